"""Odd logs, data sets and studies: a correct result, or an error that names what is wrong."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import named, outcome
from hypothesis import given
from hypothesis import strategies as st

from trustml_helpers import certification, data, study

NUMBERS = st.sampled_from(
    [0.3, 0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, 2.0, math.nan, math.inf, -math.inf]
)
WHOLE = st.sampled_from([0, 1, 2, 100, 1000, -1])
BOUND = st.sampled_from(["one_class", "two_class", "three_class"])
TEXT = (
    "idx\tlabel\tpredict\tradius\tcorrect\ttime\tcount_0\tcount_1\tcount_2\n"
    "0\t1\t1\t0.616000\t1\t0.1\t0\t100\t0\n"
    "20\t2\t2\t0.300000\t1\t0.1\t2\t3\t95\n"
    "40\t0\t-1\t0.000000\t0\t0.1\t40\t30\t30\n"
    "60\t0\t1\t0.200000\t0\t0.1\t10\t90\t0\n"
)


def table():
    return pd.read_csv(pd.io.common.StringIO(TEXT), sep="\t")


LOG = table()
LOGS = [
    LOG, LOG[:1], LOG[:0], LOG.iloc[:, :6], LOG.assign(label=7), LOG.assign(label=-1),
    LOG.assign(radius=math.nan), LOG.assign(radius=-1.0), LOG.assign(count_1=-5),
    LOG.assign(predict=9), LOG.assign(idx=0), LOG[::-1], LOG.assign(radius=1e300),
    LOG.assign(predict=-7), LOG.assign(count_1=0.5),
]  # fmt: skip


def logs():
    return st.sampled_from(LOGS).map(pd.DataFrame.copy)


@given(log=logs(), sigma=NUMBERS, n=WHOLE, alpha=NUMBERS, bound=BOUND)
def test_rebound(log, sigma, n, alpha, bound):
    arguments = {"log": log, "sigma": sigma, "n": n, "alpha": alpha, "bound": bound}
    found = named(certification.rebound, **arguments)
    if found is not None:
        assert list(found.columns) == list(log.columns)
        assert ((found.radius >= 0) & (found.radius < math.inf)).all()
        assert ((found.predict >= -1) & (found.predict < 3)).all()


@given(log=logs(), radii=st.lists(NUMBERS, max_size=3))
def test_shares_of_a_log(log, radii):
    found = named(certification.certified_accuracy, log=log, radii=radii)
    if found is not None:
        assert found.shape == (len(radii),)
        assert ((found >= 0) & (found <= 1)).all()
    acr = named(certification.average_certified_radius, log=log)
    assert acr is None or len(acr) == 2


@given(log=logs(), sigma=NUMBERS, alpha=NUMBERS, n=WHOLE)
def test_audit(log, sigma, alpha, n):
    found = named(certification.audit_log, log=log, sigma=sigma, alpha=alpha, n=n, sizes=[100])
    if found is not None:
        assert found.rows == len(log)
        assert str(found)


@given(log=logs(), sigma=NUMBERS, n=WHOLE, alpha=NUMBERS, more=WHOLE)
def test_prediction(log, sigma, n, alpha, more):
    found = named(certification.predict_acr, log=log, sigma=sigma, n=n, alpha=alpha, more=more)
    if found is not None:
        assert 0 <= found < math.inf


def damaged(seed: int) -> str:
    """The text of a log with a few bytes, cells or lines changed, lost or doubled."""
    chance, text = random.Random(seed), TEXT
    for _ in range(chance.randint(1, 3)):
        i, j = sorted(chance.choices(range(len(text) + 1), k=2))
        kind = chance.randrange(6)
        if kind == 0:
            text = text[:i]
        elif kind == 1:
            text = text[:i] + chance.choice(["x", "\t", "\n", "9", "-", "é", "\0", '"']) + text[i:]
        elif kind == 2:
            text = text[:i] + text[j:]
        elif kind == 3:
            lines = text.split("\n")
            chance.shuffle(lines)
            text = "\n".join(lines)
        elif kind == 4:
            cells = text.split("\t")
            cells[chance.randrange(len(cells))] = chance.choice(["", "nan", "-1", "1e999", "one"])
            text = "\t".join(cells)
        else:
            text = text[:j] + text[i:]
    return text


@pytest.mark.filterwarnings("ignore:.*the last row is cut off")
@given(seed=st.integers(0, 2**32), bound=st.sampled_from([None, "one_class", "two_class"]))
def test_damaged_logs(tmp_path_factory, seed, bound):
    path = tmp_path_factory.getbasetemp() / "damaged.tsv"
    path.write_text(damaged(seed), encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps({"sigma": 0.5, "n": 100, "alpha": 0.001}))
    found = outcome(lambda: certification.read_log(path, bound), "damaged")
    if found is None:
        return
    assert list(found.columns[:6]) == list(certification.COLUMNS)
    numbers = found.iloc[:, :5].to_numpy(dtype=float)
    assert np.isfinite(numbers).all()


SETTINGS = [
    "", "[]", "{}", "{", '{"sigma": "a", "n": 100, "alpha": 0.001}', "null",
    '{"sigma": 0.5, "n": 100.5, "alpha": 0.001}', '{"sigma": 0.5, "n": null, "alpha": 0.001}',
    '{"sigma": -1, "n": 100, "alpha": 0.001}', '{"sigma": 0.5, "n": 100, "alpha": [1]}',
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_damaged_settings(tmp_path, settings):
    path = tmp_path / "log.tsv"
    path.write_text(TEXT)
    path.with_suffix(".json").write_text(settings)
    with pytest.raises(certification.LogError, match=r"log\.json"):
        certification.read_log(path, "two_class")


@given(count=st.sampled_from([0, 1, 2, 10]), fewer=st.sampled_from([0, 0, 1]),
       validation=st.sampled_from([-1, 0, 1, 2, 9, 10, 11]),
       seed=st.sampled_from([0, 1, -1, 2**63]))  # fmt: skip
def test_split(count, fewer, validation, seed):
    arguments = {"images": torch.zeros(count, 1), "labels": torch.arange(max(count - fewer, 0))}
    arguments |= {"validation": validation, "seed": seed}
    found = named(data.train_validation_split, **arguments)
    if found is not None:
        assert [len(each) for part in found for each in part] == [
            count - validation, count - validation, validation, validation
        ]  # fmt: skip


PAIRS = [(torch.zeros(1, 2, 2), 3), (torch.ones(1, 2, 2), 4)]


@given(indices=st.sampled_from([None, [], [0], [1, 1], [2], [-1], range(3), [0.5]]))
def test_to_tensors(indices):
    found = outcome(lambda: data.to_tensors(PAIRS, indices), "indices")
    if found is not None:
        assert len(found[0]) == len(found[1])


@given(size=st.sampled_from([1, 0, -1, 2, 300, 10**6]))
def test_photo(size):
    found = named(data.load_photo, size=size)
    assert found is None or found.shape == (1, 3, size, size)


@given(sigma=NUMBERS, n=WHOLE, every=WHOLE, seed=WHOLE)
def test_plans_of_a_study(tmp_path_factory, sigma, n, every, seed):
    folder = tmp_path_factory.getbasetemp() / "study"
    arguments = {"methods": ["macer"], "sigmas": [sigma], "n": n, "every": every, "seed": seed}
    found = outcome(lambda: study.steps(folder, **arguments), "sigma", *arguments)
    if found is not None:
        assert [step.words[0] for step in found][-1] == "certify"
