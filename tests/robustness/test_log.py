"""Attacks on a whole data set: per-image results, resumed exactly, never mixed with other runs."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Linear

from trustml_helpers import attacks, models, robustness
from trustml_helpers.robustness import log as attack_log


@pytest.fixture
def case():
    g = torch.Generator().manual_seed(0)
    model = Linear(torch.randn(6, generator=g))
    x = torch.rand(20, 6, generator=g)
    y = models.predict(model, x)
    y[3] = 1 - y[3]
    return model, x, y


def make(generator):
    noise = partial(attacks.pgd, eps=0.5, steps=0, keep="first", generator=generator)
    return {"noise": noise, "FGSM": partial(attacks.fgsm, eps=0.15)}


run = partial(attack_log.attack_dataset, about={"eps": 0.15}, batch_size=4, progress=False)


def test_rows_are_what_the_attacks_do(case, tmp_path):
    model, x, y = case
    log = run(model, x, y, make, tmp_path / "a.csv")
    assert log["idx"].tolist() == list(range(20))
    assert log["label"].tolist() == y.tolist()
    assert log["broken_by"][3] == "clean"
    falls = (attacks.margin(model(attacks.fgsm(model, x, y, 0.15)), y) > 0).tolist()
    named = {name: log.index[log["broken_by"] == name].tolist() for name in ("noise", "FGSM", "")}
    assert all(named.values())
    assert all(falls[k] for k in named["FGSM"])
    assert not any(falls[k] for k in named[""])
    rest = [k for rows in named.values() for k in rows]
    assert sorted([3, *rest]) == list(range(20))
    shares = attack_log.summary(log, ["noise", "FGSM"])
    assert shares["clean"] == pytest.approx(19 / 20)
    assert shares["FGSM"] == (log["broken_by"] == "").mean() <= shares["noise"]
    pd.testing.assert_frame_equal(attack_log.read_attack_log(tmp_path / "a.csv"), log)
    assert json.loads((tmp_path / "a.json").read_text())["attacks"] == ["noise", "FGSM"]


def test_a_killed_run_goes_on_where_it_was(case, tmp_path):
    """Killed in the third batch: the first two are kept, and the end is that of a whole run."""
    whole = run(*case, make, tmp_path / "whole.csv")
    calls = []

    def dies(generator):
        calls.append(1)
        if len(calls) == 4:  # the first call asks for the names
            raise KeyboardInterrupt
        return make(generator)

    with pytest.raises(KeyboardInterrupt):
        run(*case, dies, tmp_path / "cut.csv")
    assert len(attack_log.read_attack_log(tmp_path / "cut.csv")) == 8
    seen = []
    case[0].register_forward_hook(lambda m, i, o: seen.append(len(o)))
    again = run(*case, make, tmp_path / "cut.csv")
    pd.testing.assert_frame_equal(again, whole)
    assert max(seen) <= 4
    assert sum(n == 4 for n in seen) >= 3


def test_each_batch_has_its_own_random_numbers(case, tmp_path):
    seeds = []
    run(*case, lambda g: seeds.append(g.initial_seed()) or make(g), tmp_path / "a.csv")
    assert len(set(seeds[1:])) == 5  # the first call asks for the names
    again = []
    run(*case, lambda g: again.append(g.initial_seed()) or make(g), tmp_path / "b.csv", seed=1)
    assert not set(again[1:]) & set(seeds[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"about": {"eps": 0.2}}, "eps=0.15, not 0.2"),
        ({"seed": 1}, "seed=0, not 1"),
        ({"batch_size": 5}, "batch_size=4, not 5"),
        ({"numbers": list(range(1, 21))}, "other images"),
    ],
)
def test_another_run_is_refused(case, tmp_path, change, message):
    path = tmp_path / "a.csv"
    run(*case, make, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        run(*case, make, path, **change)
    assert path.read_bytes() == before


def test_another_network_and_damaged_files_are_refused(case, tmp_path):
    _, x, y = case
    path = tmp_path / "a.csv"
    run(*case, make, path)
    with pytest.raises(ValueError, match="model_sha256"):
        run(Linear(torch.ones(6)), x, y, make, path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json cannot be read .*: use another path"):
        run(*case, make, path)
    (tmp_path / "b.csv").write_text("something,else\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns"):
        attack_log.read_attack_log(tmp_path / "b.csv")


def test_a_function_of_other_source_is_refused(case, tmp_path):
    """It has no weights by which to tell it; a log from before that was recorded goes on."""
    _, x, y = case
    path = tmp_path / "a.csv"

    def network(z, first=0):
        return z[:, first : first + 2]

    log = run(network, x, y, make, path)
    with pytest.raises(ValueError, match=r"another network|of other attributes or source"):
        run(partial(network, first=2), x, y, make, path)
    about = json.loads((tmp_path / "a.json").read_text())
    del about["model_code_sha256"]
    (tmp_path / "a.json").write_text(json.dumps(about))
    pd.testing.assert_frame_equal(run(network, x, y, make, path), log)


def test_other_images_or_labels_are_refused(case, tmp_path):
    """Of the same number; logs that do not say which they were made of go on."""
    model, x, y = case
    path = tmp_path / "a.csv"
    log = run(*case, make, path)
    for images, labels in ((x.flip(0), y), (x, 1 - y)):
        with pytest.raises(ValueError, match=r"a\.csv was made with other images or labels"):
            run(model, images, labels, make, path)
    pd.testing.assert_frame_equal(attack_log.read_attack_log(path), log)
    about = json.loads((tmp_path / "a.json").read_text())
    del about["images_sha256"]
    (tmp_path / "a.json").write_text(json.dumps(about))
    pd.testing.assert_frame_equal(run(*case, make, path), log)


def test_the_settings_name_the_origin(case, tmp_path):
    """Which is not compared; a log from before that goes on."""
    path = tmp_path / "a.csv"
    origin = {"data": "mine", "files": {"0": "cat.png"}}
    log = run(*case, make, path, origin=origin)
    about = json.loads((tmp_path / "a.json").read_text())
    assert about["origin"] == origin
    pd.testing.assert_frame_equal(run(*case, make, path, origin={"data": "moved"}), log)
    del about["origin"]
    (tmp_path / "a.json").write_text(json.dumps(about))
    pd.testing.assert_frame_equal(run(*case, make, path, origin=origin), log)


def test_an_attack_may_be_called_by_a_number(case, tmp_path):
    model, x, y = case
    weak = {"0.1": partial(attacks.fgsm, eps=0.1)}
    y = models.predict(model, x)
    log = run(model, x, y, lambda _: weak, tmp_path / "a.csv")
    falls = log["broken_by"] == "0.1"
    strong = x[falls.tolist()], y[falls.tolist()]
    run(model, *strong, lambda _: weak, tmp_path / "b.csv")  # all rows say 0.1
    read = attack_log.read_attack_log(tmp_path / "b.csv")
    assert read["broken_by"].tolist() == ["0.1"] * falls.sum() != []
    assert attack_log.summary(read, ["0.1"]) == {"clean": 1.0, "0.1": 0.0}
    again = run(model, *strong, lambda _: weak, tmp_path / "b.csv")
    assert again["broken_by"].tolist() == read["broken_by"].tolist()


@pytest.mark.parametrize("name", ["", "clean", "worst case"])
def test_names_that_stand_for_something_else_are_refused(case, tmp_path, name):
    model, x, y = case
    named = {"FGSM": partial(attacks.fgsm, eps=0.1), name: partial(attacks.fgsm, eps=0.2)}
    for call in (
        lambda: robustness.broken_by(model, x, y, named),
        lambda: robustness.attack_matrix({"net": model}, named, x, y),
        lambda: run(model, x, y, lambda _: named, tmp_path / "a.csv"),
    ):
        with pytest.raises(ValueError, match=f"none of them called .*'{name}'.*rename it"):
            call()
    with pytest.raises(ValueError, match=rf"attacks=\['{name}'\]: expected names of attacks"):
        attack_log.summary(pd.DataFrame({"broken_by": [""]}), [name])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.json", "a", "run_0.5"])
def test_a_name_whose_settings_would_overwrite_others_is_refused(case, tmp_path, name):
    with pytest.raises(ValueError, match=r"path=.*: expected the name of a log with a suffix"):
        run(*case, make, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_json_of_something_else_is_not_overwritten(case, tmp_path):
    path, sidecar = tmp_path / "mine.csv", tmp_path / "mine.json"
    for text in ('{"architecture": "LeNet", "sigma": 0.25}', "null", "[]", "{"):
        sidecar.write_text(text)
        with pytest.raises(ValueError, match=r"mine\.json .*another path"):
            run(*case, make, path)
        assert sidecar.read_text() == text
        assert not path.exists()
    sidecar.unlink()
    whole = run(*case, make, path)
    path.unlink()  # as a kill during the first batch leaves it
    pd.testing.assert_frame_equal(run(*case, make, path), whole)
    for text in ("null", "[1]"):
        sidecar.write_text(text)
        with pytest.raises(ValueError, match=r"mine\.json cannot be read .*: use another path"):
            run(*case, make, path)


def test_numbers_of_numpy_are_recorded_as_numbers(case, tmp_path):
    odd = {"seed": np.int64(1), "batch_size": np.int64(4), "numbers": np.arange(20)}
    run(*case, make, tmp_path / "a.csv", **odd)
    log = run(*case, make, tmp_path / "a.csv", **odd)
    assert log["idx"].tolist() == list(range(20))


def test_a_table_without_names_of_attacks():
    with pytest.raises(ValueError, match=r"log: expected .*the column broken_by"):
        attack_log.summary(pd.DataFrame({"idx": [0]}), ["PGD"])


def test_the_random_numbers_are_those_of_the_image_and_not_of_its_place(tmp_path):
    """A part of a data set that is attacked alone draws what it would in the whole."""
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    net = torch.nn.Linear(3, 2)
    y, drawn = net(x).argmax(1), []

    def make(generator):
        def attack(model, x, y):
            drawn.append(torch.rand(1, generator=generator).item())
            return x

        return {"a": attack}

    for name, part in (("whole", slice(0, 4)), ("part", slice(2, 4))):
        attack_log.attack_dataset(
            net, x[part], y[part], make, tmp_path / f"{name}.csv", about={}, batch_size=2,
            numbers=list(range(4))[part], progress=False,
        )  # fmt: skip
    assert len(drawn) == 3
    assert drawn[1] == drawn[2]
