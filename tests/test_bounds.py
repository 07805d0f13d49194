"""Clopper-Pearson bounds and radii against mpmath, SciPy, exact enumeration and closed forms."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from trustml_helpers import bounds

mpmath.mp.dps = 50


def tail(k, n, p):
    """P(Bin(n, p) >= k) by summing the probabilities, in 50 digits."""
    p = mpmath.mpf(p)
    return mpmath.fsum(mpmath.binomial(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1))


def precise_lower(k, n, alpha):
    """Bisection on the binomial tail: an independent algorithm in another arithmetic."""
    low, high = mpmath.mpf(0), mpmath.mpf(1)
    for _ in range(150):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(k, n, middle) < alpha else (low, middle)
    return low


@pytest.mark.parametrize(
    ("k", "n"), [(1, 1), (1, 7), (7, 7), (60, 100), (99, 100), (100, 100), (3, 40)]
)
@pytest.mark.parametrize("alpha", [0.05, 1e-3, 1e-12])
def test_against_mpmath(k, n, alpha):
    found, exact = float(bounds.lower_conf_bound(k, n, alpha)), precise_lower(k, n, alpha)
    assert abs(found / exact - 1) < 1e-12
    upper = float(bounds.upper_conf_bound(n - k, n, alpha))
    assert abs(upper - (1 - exact)) < 1e-12 * (1 - exact) + 1e-15


def test_exact_ends():
    assert bounds.lower_conf_bound(0, 10, 0.01) == 0
    assert bounds.upper_conf_bound(10, 10, 0.01) == 1
    n = np.array([1, 50, 100_000, 10**9])
    assert np.allclose(bounds.lower_conf_bound(n, n, 0.001), 0.001 ** (1 / n), rtol=1e-13)
    assert np.allclose(
        bounds.upper_conf_bound(0 * n, n, 0.001), -np.expm1(np.log(0.001) / n), rtol=1e-11
    )


@settings(max_examples=200)
@given(st.integers(1, 100_000), st.floats(0, 1), st.floats(1e-6, 0.5))
def test_against_scipy(n, share, alpha):
    k = round(share * n)
    test = scipy.stats.binomtest(k, n, alternative="greater")
    assert bounds.lower_conf_bound(k, n, alpha) == pytest.approx(
        test.proportion_ci(1 - alpha).low, abs=1e-11
    )
    test = scipy.stats.binomtest(k, n, alternative="less")
    assert bounds.upper_conf_bound(k, n, alpha) == pytest.approx(
        test.proportion_ci(1 - alpha).high, abs=1e-11
    )


@pytest.mark.parametrize("n", [1, 2, 5, 20, 60])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
def test_exact_coverage(n, alpha):
    """P(bound <= p) for every p of a fine grid, by enumeration over k: at least 1 - alpha, and not
    needlessly more: at p just above a bound the error comes close to alpha."""
    k = np.arange(n + 1)
    lower, upper = bounds.lower_conf_bound(k, n, alpha), bounds.upper_conf_bound(k, n, alpha)
    grid = np.unique(
        np.concatenate([np.linspace(0, 1, 501), lower + 1e-12, lower - 1e-12]).clip(0, 1)
    )
    pmf = scipy.stats.binom.pmf(k[:, None], n, grid)
    assert (pmf * (lower[:, None] > grid)).sum(0).max() <= alpha + 1e-9
    assert (pmf * (upper[:, None] < grid)).sum(0).max() <= alpha + 1e-9
    assert (pmf * (lower[:, None] > grid)).sum(0).max() >= 0.999 * alpha - 1e-9


def test_one_sided_not_two_sided():
    """alpha is not halved: 100,000 equal votes at alpha 0.001 give z = 3.8115."""
    p = bounds.lower_conf_bound(100_000, 100_000, 0.001)
    assert float(bounds.certified_radius(p, 0.5)) == pytest.approx(0.5 * 3.8115, abs=1e-4)


def test_radii():
    p = np.array([0.0, 0.3, 0.5, 0.75, 0.975, 1.0])
    expected = [
        0,
        0,
        0,
        0.2 * scipy.stats.norm.ppf(0.75),
        0.2 * scipy.stats.norm.ppf(0.975),
        np.inf,
    ]
    assert np.allclose(bounds.certified_radius(p, 0.2), expected)
    assert bounds.certified_radius(0.9, 0.0) == 0
    assert bounds.certified_radius(1.0, 0.0) == 0
    assert bounds.certified_radius(1.0, 5e-324) == np.inf
    by_hand = 0.25 * (scipy.stats.norm.ppf(0.45) - scipy.stats.norm.ppf(0.2))
    assert bounds.two_class_radius(0.45, 0.2, 0.5) == pytest.approx(by_hand)
    assert bounds.two_class_radius(0.3, 0.4, 1.0) == 0


@settings(max_examples=300)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 10))
def test_two_classes_are_never_worse(p_a, p_b, sigma):
    one, two = bounds.certified_radius(p_a, sigma), bounds.two_class_radius(p_a, p_b, sigma)
    assert two >= one - 1e-12
    assert two >= 0
    assert not np.isnan(two)


@settings(max_examples=100)
@given(st.integers(1, 1000), st.floats(1e-9, 0.4))
def test_monotone_in_k(n, alpha):
    lower = bounds.lower_conf_bound(np.arange(n + 1), n, alpha)
    assert (np.diff(lower) > 0).all()
    assert (lower <= np.arange(n + 1) / n).all()


@pytest.mark.parametrize("alpha", [1e-12, 0.001, 0.3])
def test_exact_coverage_for_every_n_up_to_200(alpha):
    """The error is largest just below a bound L(m), where it tends to P(Bin(n, L(m)) >= m): all
    200 n and all m are gone through, so this covers every p."""
    for n in range(1, 201):
        m = np.arange(1, n + 1)
        lower = bounds.lower_conf_bound(m, n, alpha)
        error = scipy.stats.binom.sf(m - 1, n, lower)
        assert (error <= alpha * (1 + 1e-9)).all()
        assert (error >= alpha * (1 - 1e-9)).all()  # and no smaller: exact, not merely valid


@pytest.mark.parametrize("misses", [0, 1, 30, 1000])
@pytest.mark.parametrize("alpha", [1e-12, 0.001])
def test_a_thousand_million_samples(misses, alpha):
    """The tail at the bound, added up term by term in 50 digits, is alpha again."""
    n = 10**9
    p = mpmath.mpf(float(bounds.lower_conf_bound(n - misses, n, alpha)))
    term = tail_ = p**n
    for j in range(1, misses + 1):
        term *= mpmath.mpf(n - j + 1) / j * (1 - p) / p
        tail_ += term
    # The tail is steep: rounding p to double precision alone changes it by up to n * 2**-53.
    assert float(abs(tail_ / alpha - 1)) < 1e-6


def test_one_vote_of_a_thousand_million():
    n, alpha = 10**9, 0.001
    found = float(bounds.lower_conf_bound(1, n, alpha))
    assert found == pytest.approx(float(-mpmath.expm1(mpmath.log1p(-alpha) / n)), rel=1e-12)


@pytest.mark.parametrize("alpha", [1e-150, 1e-200, 1e-300])
def test_where_scipy_gives_up_the_trivial_bound_stays(alpha):
    """SciPy's inverse may end in nan there; a bound must not, nor exceed the counted share."""
    n = 100
    k = np.arange(n + 1)
    lower, upper = bounds.lower_conf_bound(k, n, alpha), bounds.upper_conf_bound(k, n, alpha)
    assert ((lower >= 0) & (lower <= k / n)).all()
    assert ((upper <= 1) & (upper >= k / n)).all()
    assert (np.diff(lower[10:]) > 0).all()
    assert lower[-1] == pytest.approx(alpha ** (1 / n), rel=1e-12)


def test_float32_is_computed_in_float64():
    """Seven digits could round a radius up."""
    a, b = np.float32([0.9, 0.999, 0.6]), np.float32([0.05, 0.0005, 0.3])
    found = bounds.two_class_radius(a, b, np.float32(0.3))
    wide = [v.astype(np.float64) for v in (a, b)]
    assert found.dtype == np.float64
    assert found.tolist() == bounds.two_class_radius(*wide, float(np.float32(0.3))).tolist()
    assert bounds.certified_radius(a, 1).tolist() == bounds.certified_radius(wide[0], 1).tolist()
    assert bounds.two_class_radius(a, wide[1], 1).tolist() == (
        bounds.two_class_radius(wide[0], b, 1).tolist()
    )


def test_no_bound_promises_certainty():
    """Where alpha is so near 1 that alpha ** (1 / n) rounds to 1, the radius stays finite."""
    bound = bounds.lower_conf_bound(10, 10, 1 - 2.0**-53)
    assert bound < 1
    assert np.isfinite(bounds.certified_radius(bound, 1.0))
