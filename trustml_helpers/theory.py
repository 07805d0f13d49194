"""Exact cases behind the certified radius: half-spaces, the worst-case classifier, known p.

In all of them the probability of a region under a Gaussian is known without sampling, so the
theorem can be checked to rounding. NumPy and SciPy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from trustml_helpers._support.arguments import (
    SIGMA,
    Rule,
    declared,
    increasing,
    number,
    numbers,
    whole,
)

Array = NDArray[np.float64]


_share = number("[0, 1]", "a probability")


@declared(
    p_a=numbers("[0, 1]", "probabilities"), distance=numbers("(-inf, inf)", "in pixel units"),
    sigma=numbers("(0, inf)", "in pixel units"),
)  # fmt: skip
def halfspace_probability(p_a: ArrayLike, distance: ArrayLike, sigma: ArrayLike) -> Array:
    """Probability of a half-space after the Gaussian's centre moved at right angles to its border.

    Args:
        p_a: probability before the move, in [0, 1].
        distance: length of the move in the direction that leaves the half-space, in pixel units
            (negative: the move goes deeper into it).
        sigma: standard deviation of the noise, above 0.

    Returns:
        ``Phi(Phi^-1(p_a) - distance / sigma)``, float64, broadcast.

    Source: Cohen et al. (2019), proof of theorem 1: the smallest probability that any set of
    probability p_a can have after such a move.

    >>> float(halfspace_probability(0.9, 0.6407757827723, 0.5).round(6))
    0.5
    """
    p, moved, s = (np.asarray(each) for each in (p_a, distance, sigma))
    with np.errstate(over="ignore", invalid="ignore"):
        found = special.ndtr(special.ndtri(p) - moved / s)
    # Nothing and everything stay so, however far the centre moves.
    return np.where((p == 0) | (p == 1), p, found)


@declared(
    edges=increasing(numbers("(-inf, inf)"), "finite numbers"),
    mean=number("(-inf, inf)", "in pixel units"), sigma=SIGMA,
)  # fmt: skip
def cell_masses(edges: ArrayLike, mean: float, sigma: float) -> Array:
    """Exact probabilities of the cells between ``edges`` under N(mean, sigma^2), ends infinite.

    Args:
        edges: increasing, ``(m,)``; the first cell is ``(-inf, edges[0]]``.
        mean, sigma: of the Gaussian.

    Returns:
        float64 ``(m + 1,)``, adding up to 1. For a grid in two dimensions take the outer product
        of two calls.

    >>> cell_masses([0.0], 0.0, 1.0).tolist()
    [0.5, 0.5]
    """
    z = np.concatenate([[-np.inf], (np.asarray(edges) - mean) / sigma, [np.inf]])
    # On the right half, differences of upper tails: 1 - small would lose the small.
    left, right = special.ndtr(z), special.ndtr(-z)
    return np.where(z[:-1] < 0, left[1:] - left[:-1], right[:-1] - right[1:])


def _same_grid(grid_mass_at_x: Array, grid_mass_at_x_delta: Array) -> None:
    p, q = grid_mass_at_x.shape, grid_mass_at_x_delta.shape
    if p != q:
        raise ValueError(f"grid_mass_at_x and grid_mass_at_x_delta differ in shape: {p} and {q}")


def _masses(values: ArrayLike) -> Array:
    found = np.asarray(values, dtype=float)
    if np.any(found < 0) or not np.isclose(found.sum(), 1, atol=1e-9):
        raise ValueError
    return found


_mass = Rule("probabilities that add up to 1", _masses, ([0.5, 0.6], [1.5, -0.5], [np.nan], []))
_on_a_grid = declared(_same_grid, grid_mass_at_x=_mass, grid_mass_at_x_delta=_mass, p_a=_share)


@_on_a_grid
def worst_case_classifier(
    grid_mass_at_x: ArrayLike, grid_mass_at_x_delta: ArrayLike, p_a: float
) -> tuple[Array, float]:
    """The f with ``P_x(f = A) >= p_a`` that makes ``P_{x+delta}(f = A)`` smallest, found as a
    linear program.

    Args:
        grid_mass_at_x: probability of every cell of a grid when the noise is centred at x.
        grid_mass_at_x_delta: the same, centred at x + delta; same shape.
        p_a: probability that class A must have at x, in [0, 1].

    Returns:
        f, the share of each cell that is called A, in [0, 1], shaped like the grid, and its
        probability of A at x + delta.

    Source: step 3 of the proof of Cohen et al. (2019), theorem 1; minimise ``q . f`` subject to
    ``p . f >= p_a`` and ``0 <= f <= 1``.

    >>> f, worst = worst_case_classifier([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], 0.8)
    >>> f.round(6).tolist(), round(worst, 6)
    ([1.0, 1.0, 0.0], 0.5)
    """
    p, q = np.asarray(grid_mass_at_x), np.asarray(grid_mass_at_x_delta)
    # Cells without mass at x do not help the constraint; p_a = 1 must not fail by rounding.
    wanted = min(p_a, p.sum())
    solved = optimize.linprog(
        q.ravel(), A_ub=-p.ravel()[None], b_ub=[-wanted], bounds=(0, 1), method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )  # fmt: skip
    if solved.x is None:
        raise RuntimeError(f"the linear program was not solved: {solved.message}")
    f = np.clip(solved.x, 0, 1) + 0.0  # no negative zeros
    return f.reshape(p.shape), float(f @ q.ravel())


@_on_a_grid
def neyman_pearson(
    grid_mass_at_x: ArrayLike, grid_mass_at_x_delta: ArrayLike, p_a: float
) -> tuple[Array, float]:
    """The same minimum by the Neyman-Pearson lemma: fill cells in order of their likelihood ratio.

    Arguments and returned values as for :func:`worst_case_classifier`; the cell at the threshold
    is taken in part.

    >>> f, worst = neyman_pearson([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], 0.8)
    >>> f.tolist(), worst
    ([1.0, 1.0, 0.0], 0.5)
    """
    p, q = np.asarray(grid_mass_at_x), np.asarray(grid_mass_at_x_delta)
    flat_p, flat_q = p.ravel(), q.ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(flat_p > 0, flat_q / flat_p, np.inf)
    order = np.argsort(ratio, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(flat_p[order])[:-1]])
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(flat_p[order] > 0, (p_a - before) / flat_p[order], 0.0)
    f = np.zeros_like(flat_p)
    f[order] = np.clip(share, 0, 1)
    return f.reshape(p.shape), float(f @ flat_q)


def _not_too_large(radius: float, sigma: float) -> None:
    if radius > 1e5 * sigma:
        raise ValueError(f"radius={radius}: expected at most {1e5 * sigma:g}, 100,000 sigma")


_ball = {"radius": number("[0, inf)", "in pixel units"), "sigma": SIGMA, "dimension": whole(1)}


@declared(_not_too_large, distance=numbers("[0, inf)", "in pixel units"), **_ball)
def ball_probability(distance: ArrayLike, radius: float, sigma: float, dimension: int) -> Array:
    """Probability that N(x, sigma^2 I) falls into a ball whose centre is ``distance`` from x.

    Args:
        distance: from x to the ball's centre, in pixel units, at least 0.
        radius: of the ball.
        sigma: standard deviation of the noise, above 0.
        dimension: of the space, at least 1.

    Returns:
        float64, by the noncentral chi-square distribution; exact; below about 1e-50 it may be 0.

    >>> float(ball_probability(0.0, 1.0, 1.0, 2).round(6))  # 1 - exp(-1/2)
    0.393469
    """
    away = np.asarray(distance)
    # Beyond 40 sigma it is below Phi(-40), which is 0 in double precision; SciPy may say NaN.
    near = away <= radius + 40 * sigma
    shift = (np.where(near, away, 0.0) / sigma) ** 2
    inside = (radius / sigma) ** 2
    central = stats.chi2.cdf(inside, dimension)
    shifted = stats.ncx2.cdf(inside, dimension, np.maximum(shift, 1e-300))
    return np.where(near, np.where(shift > 0, shifted, central), 0.0)


@declared(_not_too_large, **_ball)
def ball_true_radius(radius: float, sigma: float, dimension: int) -> float:
    """Distance from the ball's centre at which the smoothed classifier "inside or not" flips.

    That is where :func:`ball_probability` is 1/2: the *true* robustness radius of g at the
    centre, to be compared with the certified one. 0 if g says "outside" even at the centre.

    >>> ball_true_radius(1.0, 1.0, 2)
    0.0
    """
    if ball_probability(0.0, radius, sigma, dimension) <= 0.5:
        return 0.0
    # In units of sigma, so that the tolerance has the same meaning for every sigma.
    radius = radius / sigma
    excess = lambda d: float(ball_probability(d, radius, 1.0, dimension)) - 0.5  # noqa: E731
    return sigma * float(optimize.brentq(excess, 0.0, radius + 10, xtol=1e-12))
