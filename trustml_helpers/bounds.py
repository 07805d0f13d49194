"""Confidence bounds for a binomial share and the radii that follow from them; NumPy and SciPy only.

Everything here is vectorised and exact: no normal approximation, one-sided alpha.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from trustml_helpers._support.arguments import declared, numbers, shown, trusted, wholes

Array = NDArray[np.float64]


def at_most_n(k: Array, n: Array) -> None:
    """Refuse more successes than trials."""
    if not np.all(k <= n):
        raise ValueError(f"k={shown(k)}: expected at most n={shown(n)} successes")


_counted = declared(
    at_most_n, k=wholes(), n=wholes(1),
    alpha=numbers("(0, 1)", "an error probability"),
)  # fmt: skip
_share, _sigma = numbers("[0, 1]", "a probability"), numbers("[0, inf)", "in pixel units")


@_counted
def lower_conf_bound(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> Array:
    """LOWERCONFBOUND: one-sided lower Clopper-Pearson bound for p after k successes in n trials.

    With probability at least ``1 - alpha`` the bound is at most p, whatever p is.

    Args:
        k: successes, integers from 0 to n; any shape.
        n: trials, at least 1.
        alpha: error probability in (0, 1), all of it on one side.

    Returns:
        float64, shaped like the broadcast arguments; 0 where k = 0.

    Source: Clopper & Pearson (1934): the p at which ``P(Bin(n, p) >= k) = alpha``, the alpha
    quantile of Beta(k, n - k + 1). Used as in Cohen et al. (2019), section 3.2.2.

    >>> float(np.round(lower_conf_bound(100, 100, 0.001), 6))  # k = n: alpha ** (1 / n)
    0.933254
    """
    k, n, alpha = np.broadcast_arrays(k, n, alpha)
    inside = k > 0
    # The arguments at k = 0 are replaced by valid ones, and the result by the exact end.
    found = special.betaincinv(np.where(inside, k, 1), n - np.where(inside, k, 1) + 1, alpha)
    # Below an alpha of about 1e-100 SciPy may give up (nan); the trivial bound stays true.
    # No bound is 1: what rounds to it would promise an infinite radius.
    return np.where(inside & (found > 0), np.minimum(found, 1 - 2.0**-53), 0.0)


@_counted
def upper_conf_bound(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> Array:
    """The upper twin of :func:`lower_conf_bound`: at least p with probability ``1 - alpha``.

    Arguments, errors and source as there; the p at which ``P(Bin(n, p) <= k) = alpha``, the
    ``1 - alpha`` quantile of Beta(k + 1, n - k); 1 where k = n.

    >>> float(np.round(upper_conf_bound(0, 100, 0.001), 6))
    0.066746
    """
    k, n, alpha = np.broadcast_arrays(k, n, alpha)
    inside = k < n
    # The complementary inverse keeps its precision where 1 - alpha would round.
    found = special.betainccinv(np.where(inside, k, 0) + 1, n - np.where(inside, k, 0), alpha)
    return np.where(inside & (found < 1), found, 1.0)


@declared(p_a_lower=_share, sigma=_sigma)
def certified_radius(p_a_lower: ArrayLike, sigma: ArrayLike) -> Array:
    """l2 radius within which the smoothed classifier cannot change: ``sigma * Phi^-1(p_a)``.

    Args:
        p_a_lower: lower bound on the top class's probability, in [0, 1].
        sigma: standard deviation of the noise, at least 0, in pixel units.

    Returns:
        float64, in pixel units: 0 where ``p_a_lower <= 1/2``, inf where it is 1.

    Source: Cohen et al. (2019), theorem 1 with p_B = 1 - p_A.

    >>> float(certified_radius(0.9, 0.5).round(4))
    0.6408
    """
    return trusted(two_class_radius)(p_a_lower, 1 - np.asarray(p_a_lower), sigma)


@declared(p_a_lower=_share, p_b_upper=_share, sigma=_sigma)
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

    Source: Cohen et al. (2019), theorem 1, equation 3.

    >>> float(two_class_radius(0.6, 0.1, 0.5).round(4))
    0.3837
    """
    a, b, s = (np.asarray(each) for each in (p_a_lower, p_b_upper, sigma))
    b = np.minimum(b, 1 - a)
    wins = a > b
    spread = special.ndtri(np.where(wins, a, 0.5)) - special.ndtri(np.where(wins, b, 0.5))
    with np.errstate(invalid="ignore"):
        radius = s * spread / 2  # in this order: half of a tiny sigma may round to 0
    # sigma = 0 times an infinite quantile is no radius at all.
    return np.where(wins & (s > 0), radius, 0.0)
