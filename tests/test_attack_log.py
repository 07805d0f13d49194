"""Attacks on a whole data set: per-image results, resumed exactly, never mixed with other runs."""

from __future__ import annotations

import json
from functools import partial

import pandas as pd
import pytest
import torch
from helpers import Linear

from trustml_helpers import attack_log, attacks, models


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
    model, x, y = case
    path = tmp_path / "a.csv"
    run(*case, make, path)
    with pytest.raises(ValueError, match="model_sha256"):
        run(Linear(torch.ones(6)), x, y, make, path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="rename it"):
        run(*case, make, path)
    (tmp_path / "b.csv").write_text("something,else\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns"):
        attack_log.read_attack_log(tmp_path / "b.csv")
    with pytest.raises(ValueError, match="20, 19 and 20"):
        run(model, x, y[:19], make, tmp_path / "c.csv")
    assert not (tmp_path / "c.json").exists()
