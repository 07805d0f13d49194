"""Odd arguments for evaluation, diagnosis, logs of attacks, sequential tests and networks."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import named, outcome
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_fuzz import BOX, COUNTS, NORM, NUMBERS, Flat, fits, labels, networks, pictures

from trustml_helpers import (
    attack_log,
    attacks,
    certification,
    models,
    objectives,
    robustness,
    sequential,
    theory,
    training,
    votes,
)
from trustml_helpers.diagnosis import diagnose
from trustml_helpers.smoothing import SmoothedClassifier

ODD_ATTACKS = {
    "fgsm": partial(attacks.fgsm, eps=0.1),
    "nothing": lambda model, x, y: x,
    "shape": lambda model, x, y: x[:, :1] if x.ndim > 1 else x[None],
    "fewer": lambda model, x, y: x[:1],
    "none": lambda model, x, y: None,
    "nan": lambda model, x, y: x * math.nan,
}


@settings(max_examples=150)
@given(x=pictures(), y=labels(), model=networks(), eps=NUMBERS, step_size=NUMBERS, box=BOX)
def test_fgsm_from_a_random_start(x, y, model, eps, step_size, box):
    x_adv = named(attacks.fgsm_rs, model=model, x=x, y=y, eps=eps, step_size=step_size,
                  bounds=box, generator=None)  # fmt: skip
    if x_adv is not None:
        assert x_adv.shape == x.shape
        if box is not None and x.numel():
            assert x_adv.min() >= box[0]
            assert x_adv.max() <= box[1]


@settings(max_examples=200)
@given(x=pictures(), y=labels(), model=networks(), batch_size=COUNTS,
       attack=st.sampled_from(sorted(ODD_ATTACKS)))  # fmt: skip
def test_evaluation(x, y, model, batch_size, attack):
    call = {"x": x, "y": y, "batch_size": batch_size}
    one, names = ODD_ATTACKS[attack], ["model", "x", "y", "attack", "attacks", "batch_size", attack]
    share = outcome(lambda: robustness.robust_accuracy(model, attack=one, **call), *names)
    assert share is None or 0 <= share <= 1
    kept = outcome(lambda: robustness.robust_correct(model, attack=[one, one], **call), *names)
    assert kept is None or (kept.shape == (len(x),) and kept.dtype == torch.bool)
    fell = outcome(lambda: robustness.broken_by(model, attacks={attack: one}, **call), *names)
    assert fell is None or set(fell) <= {"", "clean", attack}
    table = outcome(lambda: robustness.attack_matrix({"net": model}, {attack: one}, **call), *names)
    assert table is None or ((table.to_numpy() >= 0) & (table.to_numpy() <= 1)).all()


@settings(max_examples=60)
@given(x=pictures(), y=labels(), model=networks(), eps=NUMBERS, norm=NORM, box=BOX,
       steps=COUNTS, queries=COUNTS, batch_size=COUNTS)  # fmt: skip
def test_diagnosis(x, y, model, eps, norm, box, steps, queries, batch_size):
    found = named(diagnose, model=model, x=x, y=y, eps=eps, norm=norm, bounds=box, steps=steps,
                  queries=queries, batch_size=batch_size)  # fmt: skip
    assert found is None or str(found)


@settings(max_examples=100)
@given(eps=NUMBERS, norm=NORM, box=BOX, classes=COUNTS, steps=COUNTS, queries=COUNTS)
def test_suite(eps, norm, box, classes, steps, queries):
    found = named(attacks.suite, eps=eps, norm=norm, bounds=box, num_classes=classes,
                  steps=steps, queries=queries)  # fmt: skip
    if found is None:
        return
    x, y = torch.full((2, 1, 3, 3), 0.25), torch.tensor([0, 1])
    for name, attack in found.items():
        names = ["eps", "norm", "bounds", "num_classes", "steps", "queries", "classes", "targets"]
        x_adv = outcome(lambda attack=attack: attack(Flat(), x, y), *names)
        if x_adv is not None:
            assert x_adv.shape == x.shape, name
            fits(x_adv, x, eps, norm, box)


@settings(max_examples=60, deadline=None)
@given(x=pictures(), y=labels(), model=networks(), batch_size=COUNTS, seed=COUNTS,
       numbers=st.sampled_from([None, [5, 6, 7], [1], [-1, 0, 1], [2, 2, 2], [0.5, 1, 2]])
       )  # fmt: skip
def test_logs_of_attacks(tmp_path_factory, x, y, model, batch_size, seed, numbers):
    path = tmp_path_factory.mktemp("attacks") / "log.csv"
    arguments = {"model": model, "images": x, "labels": y, "path": path, "about": {}}
    arguments |= {"attacks": lambda generator: {"fgsm": ODD_ATTACKS["fgsm"]}, "seed": seed}
    arguments |= {"batch_size": batch_size, "numbers": numbers, "progress": False}
    found = outcome(lambda: attack_log.attack_dataset(**arguments), *arguments, "x", "y")
    if found is None:  # what was finished before an attack refused its images stays
        assert not path.exists() or len(attack_log.read_attack_log(path)) < len(x)
        return
    assert len(found) == len(x)
    read = attack_log.read_attack_log(path)
    assert read.broken_by.tolist() == found.broken_by.tolist()
    shares = attack_log.summary(read, ["fgsm"])
    assert 1 >= shares["clean"] >= shares["fgsm"] >= 0


@settings(max_examples=60, deadline=None)
@given(x=pictures(), y=labels(), model=networks(), n=COUNTS, alpha=NUMBERS, batch_size=COUNTS,
       indices=st.sampled_from([None, [0], [2, 0], [0, 0], [3], [-1], [], [0.5]]))  # fmt: skip
def test_certified_data_sets(tmp_path_factory, x, y, model, n, alpha, batch_size, indices):
    path = tmp_path_factory.mktemp("certified") / "log.tsv"
    arguments = {"images": x, "labels": y, "path": path, "n0": 5, "n": n, "alpha": alpha}
    arguments |= {"indices": indices, "progress": False}

    def call():
        g = SmoothedClassifier(model, 0.5, 3)
        return certification.certify_dataset(g, **arguments)

    names = [*arguments, "x", "base_classifier", "num_classes", "label"]
    found = outcome(call, *names)
    if found is None:
        assert not path.exists() or len(certification.read_log(path)) == 0
        return
    assert certification.read_log(path).idx.tolist() == found.idx.tolist()
    assert ((found.radius >= 0) & (found.radius < math.inf)).all()


@pytest.mark.parametrize(
    "text",
    ["", "idx,label,broken_by", "idx,label,broken_by\n1,2\n", "idx,label,broken_by\nx,y,z\n",
     "a,b\n1,2\n", "\0\0\0", "idx,label,broken_by\n1,2,clean,4\n", "idx,label,broken_by\n1.5,2,\n"],
)  # fmt: skip
def test_damaged_logs_of_attacks(tmp_path, text):
    path = tmp_path / "attacks.csv"
    path.write_text(text)
    found = outcome(lambda: attack_log.read_attack_log(path), r"attacks\.csv")
    if found is not None:
        assert found.columns.tolist() == ["idx", "label", "broken_by"]
        assert found[["idx", "label"]].to_numpy(dtype=float).min(initial=0) >= 0


# --- numbers -------------------------------------------------------------------------------------

WHOLE = st.sampled_from([0, 1, 2, 5, 100, -1, 0.5, math.nan, math.inf])


@settings(max_examples=200)
@given(k=WHOLE, n=WHOLE, row=st.sampled_from([0, 1, 2, -3]))
def test_replays(k, n, row):
    plan = sequential.plan([0.6, 0.7], 0.001, sequential.looks(100))
    rng = np.random.default_rng(0)
    found = outcome(lambda: sequential.replay(k, n, plan, rng, row), "k", "n", "row")
    assert found is None or (np.asarray(found.samples) >= 1).all()


@settings(max_examples=200)
@given(p=NUMBERS, sizes=st.lists(WHOLE, max_size=3), success=st.lists(WHOLE, max_size=3))
def test_crossing_probability(p, sizes, success):
    found = named(sequential.crossing_probability, p=p, sizes=sizes, success=success)
    assert found is None or 0 <= found <= 1 + 1e-12


@settings(max_examples=100)
@given(n_max=WHOLE, first=WHOLE, growth=NUMBERS)
def test_looks(n_max, first, growth):
    found = named(sequential.looks, n_max=n_max, first=first, growth=growth)
    if found is not None:
        assert found[-1] == n_max
        assert (np.diff(found) > 0).all()


@settings(max_examples=100)
@given(p=NUMBERS, distance=NUMBERS, sigma=NUMBERS)
def test_halfspace_probability(p, distance, sigma):
    found = named(theory.halfspace_probability, p_a=p, distance=distance, sigma=sigma)
    assert found is None or 0 <= found <= 1


VOTES = st.sampled_from([
    [[5, 0, 0]], [[0, 0, 0]], [[40, 60]], [[7]], [], [1, 2], [[-1, 5]], [[0.5, 1.0]],
    [[math.nan, 1.0]],
])  # fmt: skip


@settings(max_examples=200)
@given(counts=VOTES, alpha=NUMBERS, top=st.sampled_from([[0], [1], [-1], [9], [0, 0], []]),
       n=WHOLE, sigma=NUMBERS, bound=st.sampled_from(["one_class", "two_class", "no"]))  # fmt: skip
def test_votes(counts, alpha, top, n, sigma, bound):
    counts, top = torch.tensor(counts), torch.tensor(top, dtype=torch.int64)
    found = named(votes.decide, counts=counts, alpha=alpha)
    if found is not None:
        assert ((found >= -1) & (found < counts.shape[1])).all()
    found = named(votes.radii, counts=counts, top=top, n=n, alpha=alpha, sigma=sigma, bound=bound)
    if found is not None:
        assert ((found[0] >= 0) & (found[1] >= 0) & (found[1] <= 1)).all()


# --- tables, networks, training ------------------------------------------------------------------


def test_summaries_of_odd_logs():
    log = pd.DataFrame({"predict": [1], "radius": [0.5], "correct": [1]})
    with pytest.raises(certification.LogError, match="b has no rows"):
        certification.summary({"a": log, "b": log[:0]}, [0])
    assert certification.summary({"a": log}, [0]).ACR.tolist() == [0.5]
    with pytest.raises(ValueError, match="log has no rows"):
        attack_log.summary(pd.DataFrame({"broken_by": []}), [])


@given(seed=st.sampled_from([0, 1, -1, 2**63, 2**64, 0.5]),
       architecture=st.sampled_from(["LeNet", "lenet", "", "SmallCNN"]))  # fmt: skip
def test_networks(seed, architecture):
    found = named(models.build, architecture=architecture, seed=seed)
    assert found is None or isinstance(found, torch.nn.Module)


@settings(max_examples=100)
@given(x=pictures(), model=networks(), batch_size=COUNTS)
def test_predict(x, model, batch_size):
    assume(x.ndim > 1)
    found = outcome(lambda: models.predict(model, x, batch_size=batch_size), "images", "model",
                    "batch_size")  # fmt: skip
    assert found is None or found.shape == (len(x),)


@settings(max_examples=100)
@given(x=pictures(), y=labels(), attack=st.sampled_from(sorted(ODD_ATTACKS)), share=NUMBERS)
def test_objectives_of_attacks(x, y, attack, share):
    assume(x.ndim > 1)

    def call():
        return objectives.mixed(ODD_ATTACKS[attack], share)(Flat().train(), x, y)

    names = ["x", "y", "attack", "clean_share", "labels", "images"]
    loss = outcome(call, *names)
    assert loss is None or loss.ndim == 0


@given(peak=NUMBERS, top=NUMBERS)
def test_schedules(peak, top):
    found = named(training.triangular, peak=peak, top=top)
    assert found is None or callable(found)
