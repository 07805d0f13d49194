"""The audit finds the alpha and n of a log, and every row that was tampered with."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta, norm

from trustml_helpers import bounds, certification
from trustml_helpers.certification import LogError, audit_log, predict_acr
from trustml_helpers.smoothing import noise_from


def made(alpha, n, sigma, printed, *, rows=300, seed=0):
    """A log of clear images, whose radii are printed by the given function."""
    k = np.random.default_rng(seed).binomial(n, 1 - 10 ** -np.linspace(0.5, 4, rows))
    radius = bounds.certified_radius(bounds.lower_conf_bound(k, n, alpha), sigma)
    return pd.DataFrame(
        {"idx": 20 * np.arange(rows), "label": 0, "predict": 0, "correct": 1,
         "radius": [printed(r) for r in radius], "count_0": k, "count_1": n - k}
    )  # fmt: skip


def significant(digits):
    return lambda r: float(f"{r:.{digits}}")


def floored(r):
    return np.floor(r * 1e6) / 1e6


@pytest.mark.parametrize("printed", [significant(3), significant(4), floored], ids="34f")
@pytest.mark.parametrize("alpha", [0.01, 0.001])
@pytest.mark.parametrize("n", [10_000, 100_000])
@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_the_settings_are_found(printed, alpha, n, sigma):
    log = made(alpha, n, sigma, printed).drop(columns=["count_0", "count_1"])
    fits = audit_log(log, sigma).fits
    assert (alpha, n) in fits
    if printed is floored:  # three digits may leave others
        assert fits == ((alpha, n),)


def test_an_honest_log_passes_and_prints():
    log = made(0.001, 10_000, 0.5, floored)
    found = audit_log(log, 0.5, alpha=0.001, n=10_000)
    assert found.passed
    assert found.impossible == found.rounded_up == found.missing == found.inconsistent == ()
    assert "rows; every radius can come from alpha 0.001 with n 10,000" in str(found)
    assert str(found).count("none") == 5


def test_wrong_settings_are_named():
    log = made(0.01, 100_000, 0.5, significant(3)).drop(columns=["count_0", "count_1"])
    found = audit_log(log, 0.5, alpha=0.001, n=100_000)
    assert not found.passed
    assert (0.01, 100_000) in found.fits
    assert (0.001, 100_000) not in found.fits
    assert len(found.impossible) >= 1
    assert "impossible under alpha 0.001" in str(found)
    worst = log.set_index("idx").radius[list(found.impossible)]
    assert worst.max() > 1.7  # the tell-tale rows are the largest radii


def test_radii_that_were_rounded_up_are_found():
    """Exactly the rows whose printed radius exceeds the true one and no larger one explains."""
    exact = made(0.001, 10_000, 0.5, float)
    log = exact.assign(radius=[significant(3)(r) for r in exact.radius])
    found = audit_log(log, 0.5, alpha=0.001, n=10_000)
    up = exact.idx[log.radius > exact.radius + 1e-9]
    assert set(found.rounded_up) <= set(up)
    assert len(found.rounded_up) > 0.3 * len(up)
    assert audit_log(made(0.001, 10_000, 0.5, floored), 0.5, alpha=0.001, n=10_000).rounded_up == ()


def test_each_fault_is_found_by_its_name():
    log = made(0.001, 10_000, 0.5, floored)
    audit = lambda changed: audit_log(changed, 0.5, alpha=0.001, n=10_000)  # noqa: E731
    assert audit(log.drop(index=[7])).missing == (140,)
    assert audit(pd.concat([log, log[9:10]])).repeated == (180,)
    assert audit(log.assign(correct=[0] + [1] * 299)).inconsistent == (0,)
    assert audit(log.assign(predict=[0] * 299 + [-1])).inconsistent == (5980,)
    bare = log.drop(columns=["count_0", "count_1"])
    abstained = bare.assign(predict=[-1] + [0] * 299, correct=[0] + [1] * 299)
    assert audit(abstained).inconsistent == (0,)  # a radius without a class
    larger = log.copy()
    larger.loc[4, "radius"] += 2e-4  # another possible radius, but not that of its counts
    assert 80 in audit(larger).inconsistent
    beyond = log.copy()
    beyond.loc[5, "radius"] = 1.7
    found = audit(beyond)
    assert found.impossible == (100,)
    assert found.fits == ()
    assert not found.passed
    for broken in (log.drop(index=[7]), beyond, larger):
        assert not audit(broken).passed


def test_logs_with_few_rows_or_none():
    log = made(0.001, 1000, 0.5, floored)
    assert audit_log(log[:0], 0.5).missing == ()
    assert audit_log(log[:1], 0.5).rows == 1
    nothing = log.assign(radius=0.0, predict=-1, correct=0)
    assert len(audit_log(nothing, 0.5).fits) == 15  # nothing was claimed: everything fits
    assert audit_log(nothing, 0.5).inconsistent == ()


def test_what_is_missing_may_be_far_away():
    log = made(0.001, 1000, 0.5, floored, rows=4)
    apart = log.assign(idx=[0, 1, 1_000_000, 1_000_001])
    assert audit_log(apart, 0.5).missing == tuple(range(2, 1_000_000))
    with pytest.raises(LogError, match=r"idx from 0 to 3000000000000 in steps of 1 .* remove"):
        audit_log(log.assign(idx=[0, 1, 2, 3_000_000_000_000]), 0.5)
    assert audit_log(log.assign(idx=[0, 10**12, 2 * 10**12, 4 * 10**12]), 0.5).missing == (
        3 * 10**12,
    )


def counted(k, n):
    return pd.DataFrame({"label": 0, "count_0": k, "count_1": n - np.asarray(k)})


def test_a_prediction_for_shares_that_are_beta_distributed():
    """Against the mean radius that 50,000 votes of the very same images give.

    The images' own radii cancel; what is left is chance in 2,000 counts of 1,000 votes, whose
    effect on the mean was 0.0023 (standard deviation over 40 seeds): 0.011 is passed by chance
    with probability below 1e-5.
    """
    rng = np.random.default_rng(2)
    share = rng.beta(0.15, 2.5, 2000)
    lower = bounds.lower_conf_bound(rng.binomial(50_000, 1 - share), 50_000, 0.001)
    truth = bounds.certified_radius(lower, 0.5).mean()
    log = counted(rng.binomial(1000, 1 - share), 1000)
    assert predict_acr(log, 0.5, 1000, 0.001, 50_000) == pytest.approx(truth, abs=0.011)
    fewer = bounds.certified_radius(bounds.lower_conf_bound(log["count_0"], 1000, 0.001), 0.5)
    assert fewer.mean() < truth - 0.1


def test_a_prediction_where_all_images_are_alike():
    """The posterior is then nearly a point: 900 of 1,000, and the label may be any class."""
    log = counted(np.full(200, 900), 1000)
    swapped = log.assign(label=1, count_0=log["count_1"], count_1=log["count_0"])
    lower = bounds.lower_conf_bound(90_000, 100_000, 0.001)
    expected = float(bounds.certified_radius(lower, 0.5))
    for each in (log, swapped):
        found = predict_acr(each, 0.5, 1000, 0.001, 100_000)
        assert found == pytest.approx(expected, abs=0.003)


def test_a_prediction_needs_counts():
    log = counted([9, 8], 10)
    with pytest.raises(ValueError, match=r"expected at least 2 rows|no column of counts"):
        predict_acr(log[["label"]], 0.5, 10, 0.001, 100)


def test_the_stored_logs_pass():
    from trustml_helpers import data

    for path in (data.data_folder() / "results").rglob("*.tsv"):
        about = json.loads(path.with_suffix(".json").read_text())
        log = certification.read_log(path, "one_class")
        assert audit_log(log, noise_from(about), alpha=about["alpha"], n=about["n"]).passed


# --- two-class radii ------------------------------------------------------------------------------


def two_class(alpha=0.001, n=1000, sigma=0.5):
    """Rows of three classes whose radii follow from their counts, computed with SciPy alone."""
    rng = np.random.default_rng(4)
    counts = rng.multinomial(n, [0.55, 0.25, 0.2], 60)
    rival = counts[:, 1:].max(1)
    lower = beta.ppf(0.9 * alpha, counts[:, 0], n - counts[:, 0] + 1)
    upper = np.minimum(beta.ppf(1 - 0.1 * alpha, rival + 1, n - rival), 1 - lower)
    radius = floored(sigma / 2 * (norm.ppf(lower) - norm.ppf(upper)))
    table = {"idx": range(60), "label": 0, "predict": 0, "correct": 1, "radius": radius}
    return pd.DataFrame(table | {f"count_{k}": counts[:, k] for k in range(3)})


def test_two_class_radii_are_audited_against_their_counts():
    log = two_class()
    assert (log["radius"] > 0).all()
    found = audit_log(log, 0.5, alpha=0.001, n=1000, bound="two_class")
    assert found.passed
    assert found.fits == ((0.001, 1000),)
    assert not audit_log(log, 0.5, alpha=0.001, n=1000).passed  # they are no one-class radii
    other = audit_log(log, 0.5, alpha=0.01, n=1000, bound="two_class")
    assert not other.passed
    assert other.fits == ((0.001, 1000),)
    assert len(other.impossible) == 60
    more = log.assign(radius=log["radius"].where(log.index != 7, log["radius"] + 0.01))
    found = audit_log(more, 0.5, alpha=0.001, n=1000, bound="two_class")
    assert found.impossible == found.inconsistent == (7,)
    votes = log.assign(count_0=log["count_0"] + (log.index == 9) * 300)
    found = audit_log(votes, 0.5, alpha=0.001, n=1000, bound="two_class")
    assert 9 in found.inconsistent
    with pytest.raises(LogError, match="without the counts"):
        audit_log(log.drop(columns=[f"count_{k}" for k in range(3)]), 0.5, bound="two_class")
