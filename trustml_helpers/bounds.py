"""Confidence bounds for a binomial share and the radii that follow from them; NumPy and SciPy only.

Everything here is vectorised and exact: no normal approximation, one-sided alpha.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]


def lower_conf_bound(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> Array:
    """LOWERCONFBOUND: one-sided lower Clopper-Pearson bound for p after k successes in n trials.

    With probability at least ``1 - alpha`` the bound is at most p, whatever p is.

    Args:
        k: successes, integers from 0 to n; any shape.
        n: trials, at least 1.
        alpha: error probability in (0, 1), all of it on one side.

    Returns:
        float64, shaped like the broadcast arguments; 0 where k = 0.

    Raises:
        ValueError: for counts or alpha out of range.

    Source: Clopper & Pearson (1934): the p at which ``P(Bin(n, p) >= k) = alpha``, the alpha
    quantile of Beta(k, n - k + 1). Used as in Cohen et al. (2019), section 3.2.2.

    >>> float(np.round(lower_conf_bound(100, 100, 0.001), 6))  # k = n: alpha ** (1 / n)
    0.933254
    """
    k, n, alpha = _checked(k, n, alpha)
    inside = k > 0
    # The arguments at k = 0 are replaced by valid ones, and the result by the exact end.
    found = special.betaincinv(np.where(inside, k, 1), n - np.where(inside, k, 1) + 1, alpha)
    # Below an alpha of about 1e-100 SciPy may give up (nan); the trivial bound stays true.
    # No bound is 1: what rounds to it would promise an infinite radius.
    return np.where(inside & (found > 0), np.minimum(found, 1 - 2.0**-53), 0.0)


def upper_conf_bound(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> Array:
    """The upper twin of :func:`lower_conf_bound`: at least p with probability ``1 - alpha``.

    Arguments, errors and source as there; the p at which ``P(Bin(n, p) <= k) = alpha``, the
    ``1 - alpha`` quantile of Beta(k + 1, n - k); 1 where k = n.

    >>> float(np.round(upper_conf_bound(0, 100, 0.001), 6))
    0.066746
    """
    k, n, alpha = _checked(k, n, alpha)
    inside = k < n
    # The complementary inverse keeps its precision where 1 - alpha would round.
    found = special.betainccinv(np.where(inside, k, 0) + 1, n - np.where(inside, k, 0), alpha)
    return np.where(inside & (found < 1), found, 1.0)


def certified_radius(p_a_lower: ArrayLike, sigma: ArrayLike) -> Array:
    """l2 radius within which the smoothed classifier cannot change: ``sigma * Phi^-1(p_a)``.

    Args:
        p_a_lower: lower bound on the top class's probability, in [0, 1].
        sigma: standard deviation of the noise, at least 0, in pixel units.

    Returns:
        float64, in pixel units: 0 where ``p_a_lower <= 1/2``, inf where it is 1.

    Raises:
        ValueError: for arguments out of range.

    Source: Cohen et al. (2019), theorem 1 with p_B = 1 - p_A.

    >>> float(certified_radius(0.9, 0.5).round(4))
    0.6408
    """
    return two_class_radius(p_a_lower, 1 - np.asarray(p_a_lower, dtype=float), sigma)


def two_class_radius(p_a_lower: ArrayLike, p_b_upper: ArrayLike, sigma: ArrayLike) -> Array:
    """l2 radius from bounds on the two top classes: ``sigma/2 * (Phi^-1(p_a) - Phi^-1(p_b))``.

    Args:
        p_a_lower: lower bound on the top class's probability, in [0, 1].
        p_b_upper: upper bound on every other class's probability, in [0, 1]; what exceeds
            ``1 - p_a_lower`` is cut off, since the two cannot add up to more than 1.
        sigma: standard deviation of the noise, at least 0, in pixel units.

    Returns:
        float64, in pixel units: 0 where ``p_a_lower <= p_b_upper`` after the cut, inf where
        ``p_a_lower`` is 1.

    Raises:
        ValueError: for arguments out of range.

    Source: Cohen et al. (2019), theorem 1, equation 3.

    >>> float(two_class_radius(0.6, 0.1, 0.5).round(4))
    0.3837
    """
    a, s = np.asarray(p_a_lower, dtype=float), np.asarray(sigma, dtype=float)
    b = np.asarray(p_b_upper, dtype=float)
    for name, value in (("p_a_lower", a), ("p_b_upper", b)):
        if not np.all((value >= 0) & (value <= 1)):
            raise ValueError(f"{name}={_show(value)}: expected probabilities in [0, 1]")
    if not np.all((s >= 0) & np.isfinite(s)):
        raise ValueError(f"sigma={_show(s)}: expected finite numbers >= 0, in pixel units")
    b = np.minimum(b, 1 - a)
    wins = a > b
    spread = special.ndtri(np.where(wins, a, 0.5)) - special.ndtri(np.where(wins, b, 0.5))
    with np.errstate(invalid="ignore"):
        radius = s * spread / 2  # in this order: half of a tiny sigma may round to 0
    # sigma = 0 times an infinite quantile is no radius at all.
    return np.where(wins & (s > 0), radius, 0.0)


def _checked(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> tuple[Array, Array, Array]:
    counts: list[Any] = [np.asarray(v, dtype=float) for v in (k, n)]
    for name, value in zip(("k", "n"), counts, strict=True):
        if not np.all(np.isfinite(value) & (value == np.floor(value))):
            raise ValueError(f"{name}={_show(value)}: expected integers")
    if not np.all(counts[1] >= 1):
        raise ValueError(f"n={_show(counts[1])}: expected at least 1 trial")
    if not np.all((counts[0] >= 0) & (counts[0] <= counts[1])):
        raise ValueError(f"k={_show(counts[0])}: expected 0 to n={_show(counts[1])}")
    a = np.asarray(alpha, dtype=float)
    if not np.all((a > 0) & (a < 1)):
        raise ValueError(f"alpha={_show(a)}: expected an error probability strictly in (0, 1)")
    k_, n_, a_ = np.broadcast_arrays(*counts, a)
    return k_, n_, a_


def check_sigma(sigma: float) -> None:
    """Raise ValueError unless sigma can be the standard deviation of smoothing noise."""
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma={sigma}: expected a finite number above 0, in pixel units")


def check_counts(least: int = 1, **counts: float) -> None:
    """Raise ValueError, naming the argument, unless all are whole numbers of at least ``least``."""
    for name, value in counts.items():
        if not (value >= least and value % 1 == 0):
            raise ValueError(f"{name}={value}: expected a whole number, at least {least}")


def check_alpha(alpha: float) -> None:
    """Raise ValueError unless alpha can be an error probability."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: expected an error probability strictly in (0, 1)")


def _show(value: Array) -> str:
    return str(value.item()) if value.ndim == 0 else np.array2string(value, threshold=4)
