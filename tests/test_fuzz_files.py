"""Odd files and tables: what is written is what is read, what is damaged is refused by its name."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import strategies as odd
import torch
from helpers import outcome
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import arguments

from trustml_helpers import attacks, certification, data, models, robustness
from trustml_helpers.cli import plan
from trustml_helpers.smoothing import SmoothedClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*the last row is cut off"),
    pytest.mark.filterwarnings("ignore:.*returned NaN"),
]


@settings(max_examples=30)
@given(**odd.CASE, n=st.sampled_from([9, 1e2]),
       indices=st.sampled_from([None, [0], [0.0], range(1)]), batch_size=st.sampled_from([1, 64]),
       seed=st.sampled_from([0, 2**62]))  # fmt: skip
def test_logs(tmp_path_factory, x, y, model, n, indices, batch_size, seed):
    """Of certification and of attacks: what is written is what is read."""
    assume(len(x))
    folder, y = tmp_path_factory.mktemp("logs"), y[: len(x)]
    log = certification.certify_dataset(
        SmoothedClassifier(model.eval(), 0.5, 3), x, y, folder / "log.tsv", n0=5, n=n, alpha=0.1,
        indices=indices, seed=seed, batch_size=batch_size, layout="contiguous", progress=False,
    )  # fmt: skip
    assert certification.read_log(folder / "log.tsv").equals(log)
    assert log.idx.tolist() == ([0] if indices is not None else list(range(len(x))))
    assert ((log.radius >= 0) & (log.radius < math.inf)).all()
    made = lambda generator: {"fgsm": partial(attacks.fgsm, eps=0.1)}  # noqa: E731
    log = robustness.attack_dataset(model, x, y, made, folder / "attacks.csv", about={}, seed=seed,
                                    batch_size=batch_size, progress=False)  # fmt: skip
    assert robustness.read_attack_log(folder / "attacks.csv").equals(log)
    shares = robustness.summary(log, ["fgsm"])
    assert 1 >= shares["clean"] >= shares["fgsm"] >= 0


@settings(max_examples=30)
@given(odd.logs(), arguments(certification.rebound, n=st.sampled_from([100, 1e3])),
       st.lists(st.sampled_from([0, 0.5, -1, math.inf]), max_size=3))  # fmt: skip
def test_what_logs_say(log, call, radii):
    if "count_0" in log:
        found = certification.rebound(log, **call)
        assert list(found.columns) == list(log.columns)
        assert ((found.radius >= 0) & (found.radius < math.inf)).all()
        assert ((found.predict >= -1) & (found.predict < 3)).all()
        assert certification.vote_counts(log).shape == (len(log), 3)
    call = {name: call[name] for name in ("sigma", "n", "alpha")}
    audit = certification.audit_log(log, **call, sizes=[100])
    assert (audit.rows, bool(str(audit))) == (len(log), True)
    acr = outcome(lambda: certification.predict_acr(log, **call, more=200, draws=2), "log")
    assert acr is None or 0 <= acr < math.inf
    if len(log) > 1:
        shares = certification.certified_accuracy(log, radii)
        assert shares.shape == (len(radii),)
        assert ((shares >= 0) & (shares <= 1)).all()
        acr, error = certification.average_certified_radius(log)
        assert min(acr, error) >= 0
        assert certification.summary({"a": log}, radii).loc["a", "ACR"] == acr


@pytest.mark.parametrize("spoiled", range(len(odd.SPOILED_LOGS)))
def test_cells_that_no_certification_writes(spoiled):
    log = odd.SPOILED_LOGS[spoiled]
    for look in (lambda: certification.rebound(log, 0.5, 100, 0.01),
                 lambda: certification.audit_log(log, 0.5, sizes=[100]),
                 lambda: certification.predict_acr(log, 0.5, 100, 0.01, 200, draws=2)):  # fmt: skip
        with pytest.raises(certification.LogError, match=r"log: .* in row 1 below the header"):
            look()


@given(seed=st.integers(0, 2**32), bound=st.sampled_from([None, "one_class", "two_class"]))
def test_damaged_logs(tmp_path_factory, seed, bound):
    path = tmp_path_factory.getbasetemp() / "damaged.tsv"
    path.write_text(odd.damaged(seed), encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(odd.LOG_SETTINGS))
    found = outcome(lambda: certification.read_log(path, bound), "damaged")
    if found is not None:
        assert list(found.columns[:6]) == list(certification.COLUMNS)
        assert np.isfinite(found.iloc[:, :5].to_numpy(dtype=float)).all()


@pytest.mark.parametrize("words", [
    "", "[]", "{}", "{", '{"sigma": "a", "n": 100, "alpha": 0.001}', "null",
    '{"sigma": 0.5, "n": 100.5, "alpha": 0.001}', '{"sigma": 0.5, "n": null, "alpha": 0.001}',
    '{"sigma": -1, "n": 100, "alpha": 0.001}', '{"sigma": 0.5, "n": 100, "alpha": [1]}',
])  # fmt: skip
def test_damaged_settings(tmp_path, words):
    path = tmp_path / "log.tsv"
    path.write_text(odd.LOG_TEXT)
    path.with_suffix(".json").write_text(words)
    with pytest.raises(certification.LogError, match=r"log\.(json|tsv)"):
        certification.read_log(path, "two_class")


@pytest.mark.parametrize("text", [
    "", "idx,label,broken_by", "idx,label,broken_by\n1,2\n", "idx,label,broken_by\nx,y,z\n",
    "a,b\n1,2\n", "\0\0\0", "idx,label,broken_by\n1,2,clean,4\n", "idx,label,broken_by\n1.5,2,\n",
])  # fmt: skip
def test_damaged_logs_of_attacks(tmp_path, text):
    path = tmp_path / "attacks.csv"
    path.write_text(text)
    found = outcome(lambda: robustness.read_attack_log(path), r"attacks\.csv")
    if found is not None:
        assert found.columns.tolist() == ["idx", "label", "broken_by"]
        assert found[["idx", "label"]].to_numpy(dtype=float).min(initial=0) >= 0


@pytest.mark.parametrize("look", [
    certification.summarise, partial(certification.mismatch, radius=0.5),
    partial(certification.study_curves, radii=[0.5], n=10), certification.draw_study,
])  # fmt: skip
@pytest.mark.parametrize("name", ["nothing.txt", "x_0.5_n10.tsv", "gaussian_n10.tsv",
                                  "gaussian_0.5_nx.tsv", "gaussian_0.5_n10.tsv"])  # fmt: skip
def test_studies_of_odd_folders(tmp_path, look, name):
    (tmp_path / name).write_text("this is no log\n")
    found = outcome(lambda: look(tmp_path), "folder", "gaussian", name.partition(".tsv")[0])
    assert found is None or len(found) == 0


@given(sigma=st.sampled_from([1e-300, 0.5, 1e300]), n=st.sampled_from([1, 9, 40, 1e2]))
def test_plans_of_a_study(tmp_path_factory, sigma, n):
    folder = tmp_path_factory.getbasetemp() / "study"
    call = {"methods": ["macer"], "sigmas": [sigma], "n": n, "every": 2000}
    found = outcome(lambda: plan.steps(folder, **call), "n")
    assert (found is None) == (n < 10)  # equal votes certify nothing
    assert found is None or [step.words[0] for step in found][-1] == "certify"


@given(indices=st.sampled_from([None, [], [0], [1, 1], [2], [-1], range(3), [0.5]]))
def test_to_tensors(indices):
    pairs = [(torch.zeros(1, 2, 2), 3), (torch.ones(1, 2, 2), 4)]
    found = outcome(lambda: data.to_tensors(pairs, indices), "indices")
    assert found is None or len(found[0]) == len(found[1])


@settings(max_examples=40)
@given(name=st.text(max_size=12), about=st.dictionaries(st.text(max_size=3), st.floats()))
def test_checkpoints(tmp_path_factory, name, about):
    """A name that is no checkpoint; a card that holds anything JSON can say."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with pytest.raises((models.CheckpointError, ValueError)):
        models.load(folder / name.replace("\0", "").replace("/", "_"))
    about.pop("path", None)
    card = outcome(lambda: models.save(models.build("SmallCNN"), folder / "net", **about), "about")
    if card is not None:
        assert certification.fingerprint(models.load(folder / "net.safetensors"))
        assert models.card(folder / "net.json").keys() == card.keys()
