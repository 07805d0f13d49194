"""Sampling only as long as needed: the group-sequential binomial test, and an anytime bound.

The question "is p above p_r?" needs far fewer votes than a tight bound for p. Votes are looked at
a few times; each look may end the test, and the probability of ending it wrongly is computed
exactly, by carrying the distribution of the count among all paths that have not ended yet.
NumPy and SciPy only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from trustml_helpers import bounds
from trustml_helpers._support.arguments import (
    ALPHA,
    declared,
    increasing,
    number,
    numbers,
    shown,
    trusted,
    whole,
    wholes,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EARLY = 0.1  # share of alpha that all looks but the last may spend together
SMALLEST_ALPHA = 1e-20  # far above what is dropped
_TINY = 1e-25  # mass that may be dropped from the recursion; it is counted as error


class Plan(NamedTuple):
    """When to stop: one row per null probability, one column per look."""

    looks: Ints  # (m,) cumulative numbers of votes
    p_null: Floats  # (g,) increasing
    success: Ints  # (g, m) "p > p_null" is shown at a look if the count is at least this
    futility: Ints  # (g, m) give up if the count is at most this; -1 never
    error: Floats  # (g,) exact probability of success if p = p_null, futility ignored


@declared(n_max=whole(1), first=whole(1), growth=number("(1, inf)"))
def looks(n_max: int, *, first: int = 50, growth: float = 1.25) -> Ints:
    """Cumulative sample sizes ``first * growth ** i``, rounded up, and ``n_max`` at the end.

    >>> looks(200).tolist()
    [50, 63, 79, 98, 123, 153, 191, 200]
    """
    sizes = []
    size = float(first)
    while math.ceil(size) < n_max:
        sizes.append(math.ceil(size))
        size = max(size * growth, sizes[-1] + 1.0)
    return np.array([*sizes, n_max], dtype=np.int64)


@declared(count=whole(1), alpha=ALPHA)
def spending(count: int, alpha: float) -> Floats:
    """Error that may have been spent by each of ``count`` looks, cumulative, ending at alpha.

    All looks but the last share 10 % of alpha equally; the last has the other 90 %, so that
    little is lost against a test with all samples at once.

    >>> spending(3, 0.001).tolist()
    [5e-05, 0.0001, 0.001]
    """
    early = EARLY * alpha * np.arange(1, count) / max(count - 1, 1)
    return np.append(early, alpha)


@functools.lru_cache(maxsize=64)
def _plan(p_null: tuple[float, ...], alpha: float, sizes: tuple[int, ...], beta: float) -> Plan:
    spend = spending(len(sizes), alpha)
    n, p = np.array(sizes, dtype=np.int64), np.array(p_null)
    single = [_boundary(each, n, spend) for each in p]
    # The running maximum only raises a boundary, so no error grows; and then whoever crosses the
    # boundary of a larger p_null has crossed those of all smaller ones at the same look.
    success = np.maximum.accumulate(np.stack(single), axis=0)
    error = np.array([crossing_probability(q, n, u) for q, u in zip(p, success, strict=True)])
    futility = np.asarray(stats.binom.ppf(beta, n[None], p[:, None]), dtype=np.int64) - 1
    # Nor does it help to go on where the last boundary is out of reach.
    out_of_reach = success[:, -1:] - (n[-1] - n)[None] - 1
    futility = np.minimum(np.maximum(futility, out_of_reach), success - 1)
    futility[:, -1] = success[:, -1] - 1
    return Plan(n, p, success, np.maximum(futility, -1), error)


_sizes = increasing(wholes(1), "whole numbers of votes")


@declared(
    p_null=increasing(numbers("(0, 1)"), "numbers strictly between 0 and 1"),
    alpha=number(f"[{SMALLEST_ALPHA:g}, 1)", "an error probability; below it rounding would count"),
    sizes=_sizes, beta=number("[0, 1)", "a probability"),
)  # fmt: skip
def plan(
    p_null: ArrayLike, alpha: float, sizes: Sequence[int] | Ints, *, beta: float = 0.001
) -> Plan:
    """Boundaries of the group-sequential test of ``p <= p_null`` for a grid of null values.

    Args:
        p_null: increasing values in (0, 1), for example ``Phi(r / sigma)`` of a grid of radii.
        alpha: error probability of each test, in (0, 1). Testing the whole grid in one run needs
            no correction: a larger success implies all smaller ones, so a false claim means that
            the test of the smallest null value that is at least p has erred.
        sizes: cumulative sample sizes, increasing, as :func:`looks` gives.
        beta: give up at a look if so low a count had at most this probability under ``p_null``.
            Giving up is not binding: the error bound holds also if one goes on.

    Returns:
        A :class:`Plan`, cached.

    Source: Jennison & Turnbull (1999), "Group sequential methods", chapters 7 and 12: error
    spending, with exact binomial probabilities.

    >>> found = plan([0.5], 0.01, [10, 20])
    >>> found.success.tolist(), bool(found.error[0] <= 0.01)
    ([[10, 16]], True)
    """
    p, n = np.asarray(p_null), np.asarray(sizes)
    return _plan(tuple(p.tolist()), float(alpha), tuple(n.tolist()), float(beta))


class Replay(NamedTuple):
    """What a plan would have done, per image."""

    certified: NDArray[np.bool_]  # (b,) whether the boundary of success was reached
    samples: Ints  # (b,) votes used


def _votes_fit(k: Ints, n: int, plan: Plan, row: int) -> None:
    if n < plan.looks[-1]:
        raise ValueError(f"n={n}: expected at least the plan's {plan.looks[-1]} votes")
    if not np.all(k <= n):
        raise ValueError(f"k={shown(k)}: expected at most n={n}")
    if row >= len(plan.p_null):
        raise ValueError(f"row={row}: expected 0 to {len(plan.p_null) - 1}")


@declared(_votes_fit, k=wholes(), n=whole(1), row=whole())
def replay(k: ArrayLike, n: int, plan: Plan, rng: np.random.Generator, row: int = 0) -> Replay:
    """What the test would have cost on votes that are known: k of n for the class, in any order.

    The votes of a fixed-n run are independent, so given their number every order is equally
    likely: a random order of the same votes is as good as a new run on the same image.

    Args:
        k: votes for the class, integers from 0 to n, ``(b,)``.
        n: votes in all, at least the plan's last look.
        plan: as :func:`plan` gives it.
        rng: source of the order.
        row: which null probability of the plan.

    Returns:
        :class:`Replay`.

    >>> found = replay([1000, 400], 1000, plan([0.8], 0.001, looks(1000)), np.random.default_rng(0))
    >>> found.certified.tolist(), found.samples.tolist()
    ([True, False], [63, 50])
    """
    left = np.array(k, ndmin=1)
    votes = np.zeros_like(left)
    certified, samples = np.zeros(len(left), dtype=bool), np.zeros_like(left)
    going = np.arange(len(left))
    for look, (size, before) in enumerate(zip(plan.looks, [0, *plan.looks[:-1]], strict=True)):
        drawn = rng.hypergeometric(left[going], n - before - left[going], size - before)
        votes[going] += drawn
        left[going] -= drawn
        samples[going] = size
        certified[going] = votes[going] >= plan.success[row, look]
        going = going[~certified[going] & (votes[going] > plan.futility[row, look])]
    return Replay(certified, samples)


class _Alive:
    """Distribution of the count among paths that have not stopped, on a window of counts."""

    def __init__(self) -> None:
        self.low, self.mass, self.dropped = 0, np.ones(1), 0.0

    def advance(self, votes: int, p: float) -> None:
        """Add Bin(votes, p); what lies so far out that it cannot matter is dropped and counted."""
        first = int(stats.binom.ppf(_TINY, votes, p))
        last = votes - int(stats.binom.ppf(_TINY, votes, 1 - p))
        step = stats.binom.pmf(np.arange(first, last + 1), votes, p)
        self.dropped += 2 * _TINY
        self.mass = np.convolve(self.mass, step)
        self.low += first
        cut = int(np.searchsorted(np.cumsum(self.mass), _TINY))
        self.dropped += float(self.mass[:cut].sum())
        self.mass, self.low = self.mass[cut:], self.low + cut

    def stop_at(self, u: int) -> float:
        """Remove the paths with a count of at least u; returns their probability."""
        keep = min(max(u - self.low, 0), len(self.mass))
        gone = float(self.mass[keep:].sum())
        self.mass = self.mass[:keep] if keep else np.zeros(1)
        return gone


def _boundary(p: float, n: Ints, spend: Floats) -> Ints:
    """The smallest count at each look whose crossing keeps the spent error within the plan."""
    alive, spent, u = _Alive(), 0.0, []
    for votes, size, allowed in zip(np.diff(n, prepend=0), n, spend, strict=True):
        alive.advance(int(votes), p)
        tail = np.cumsum(alive.mass[::-1])[::-1]  # P(alive and count >= low + j)
        left = allowed - spent - alive.dropped
        fits = np.nonzero(tail <= left)[0]
        u.append(alive.low + int(fits[0]) if len(fits) else int(size) + 1)
        spent += alive.stop_at(u[-1])
    return np.array(u, dtype=np.int64)


def _one_boundary_each(sizes: Ints, success: Ints) -> None:
    if np.shape(sizes) != np.shape(success):
        raise ValueError(f"success={success}: expected one for each of {len(sizes)} sizes")


@declared(_one_boundary_each, p=number("[0, 1]", "a probability"), sizes=_sizes, success=wholes())
def crossing_probability(
    p: float, sizes: Sequence[int] | Ints, success: Sequence[int] | Ints
) -> float:
    """Exact probability that the count ever reaches the boundary, if each vote has probability p.

    Args:
        p: probability of a vote for the class, in [0, 1].
        sizes, success: cumulative sample sizes, increasing, and the boundary at each.

    >>> round(crossing_probability(0.5, [1, 2], [2, 2]), 6)
    0.25
    """
    alive, crossed = _Alive(), 0.0
    for votes, boundary in zip(np.diff(sizes, prepend=0), success, strict=True):
        alive.advance(int(votes), p)
        crossed += alive.stop_at(int(boundary))
    return crossed + alive.dropped


@declared(bounds.at_most_n, k=wholes(), n=wholes(1), alpha=ALPHA)
def anytime_lower_bound(k: ArrayLike, n: ArrayLike, alpha: float) -> Floats:
    """A lower bound for p that holds at all n at once, so sampling may stop whenever one likes.

    With probability at least ``1 - alpha``, the bound is at most p for every n = 1, 2, 3, ...

    Args:
        k: successes, integers from 0 to n; any shape.
        n: trials so far, at least 1.
        alpha: error probability in (0, 1).

    Returns:
        float64, the smallest p that is not rejected; below Clopper-Pearson's, which holds at
        one n only.

    Source: the mixture martingale of Robbins (1970) with a Beta(1/2, 1/2) weight restricted to
    values above p, and Ville's inequality; Howard et al. (2021).

    >>> bool(anytime_lower_bound(990, 1000, 0.001) < bounds.lower_conf_bound(990, 1000, 0.001))
    True
    """
    k_, n_ = np.broadcast_arrays(np.asarray(k, dtype=float), np.asarray(n, dtype=float))
    seen = np.where(k_ > 0, k_, 1.0)  # the bound at k = 0 is 0; any other count may stand in
    top = np.minimum(seen / n_, 1 - 1e-16)
    wanted = -math.log(alpha)
    # Bisection on the log-odds, for all at once; the lower end is always rejected or nearly 0.
    low, high = np.full(k_.shape, -700.0), special.logit(top)
    for _ in range(64):
        middle = (low + high) / 2
        rejected = _log_evidence(special.expit(middle), seen, n_) >= wanted
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return np.where(k_ > 0, special.expit(low), 0.0)


def _room_to_go_on(n: Ints, n_max: int) -> None:
    if np.any(n > n_max):
        raise ValueError(f"n_max={n_max}: expected at least n={shown(n)}")


@declared(bounds.at_most_n, _room_to_go_on, k=wholes(), n=wholes(1), n_max=whole(1), alpha=ALPHA)
def best_case_bound(k: ArrayLike, n: ArrayLike, n_max: int, alpha: float) -> Floats:
    """The largest lower bound to be hoped for from ``n_max`` votes: is going on worth while?

    p is taken at its upper bound that holds at all n at once (the lower one with the classes
    exchanged), and the rest of the votes as lucky as alpha allows. So at whatever n one stops, all
    ``n_max`` votes would give a larger bound than this with probability at most ``2 * alpha``.

    Args:
        k, n, alpha: as for :func:`anytime_lower_bound`.
        n_max: the number of votes that sampling could go on to, at least n.

    Returns:
        float64.

    >>> float(best_case_bound(0, 1000, 1000, 0.001))  # nothing left to gain
    0.0
    """
    k_, n_ = np.asarray(k, dtype=float), np.asarray(n, dtype=float)
    upper = 1 - trusted(anytime_lower_bound)(n_ - k_, n_, alpha)
    more = stats.binom.isf(alpha, n_max - n_, upper)
    return trusted(anytime_lower_bound)(k_ + more, n_max, alpha)


def _log_evidence(p: Floats, k: Floats, n: Floats) -> Floats:
    """ln M(p): evidence against "the probability is at most p", falling in p below k / n."""
    a, b = k + 0.5, n - k + 0.5
    return (
        special.betaln(a, b) + np.log(special.betaincc(a, b, p))
        - special.betaln(0.5, 0.5) - np.log(special.betaincc(0.5, 0.5, p))
        - special.xlogy(k, p) - special.xlog1py(n - k, -p)
    )  # fmt: skip
