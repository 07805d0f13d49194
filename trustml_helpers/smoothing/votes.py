"""What votes prove: the decision of PREDICT, the radii of CERTIFY, and how many votes it takes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from trustml_helpers import bounds
from trustml_helpers._support.arguments import ALPHA, Rule, declared, number, one_of, shown, whole
from trustml_helpers.smoothing.noise import NOISE, Noise

ABSTAIN = -1
SHARES = (0.9, 0.1)  # of alpha, in the two-class bound: for the top class, for the other

Floats = NDArray[np.float64]


@declared(p_a=number("[0.5, 1]", "a probability"), n=whole(1), alpha=ALPHA)
def abstention_probability(p_a: float, n: int, alpha: float) -> float:
    """How often PREDICT abstains or errs, if two classes have probabilities p_a and 1 - p_a.

    Args:
        p_a: probability of the top class, at least 1/2; the rest goes to one rival, which is the
            hardest case.
        n: noisy copies.
        alpha: error probability of PREDICT.

    Returns:
        The exact probability that the top class is *not* returned.

    Source: the binomial test of Cohen et al. (2019), proposition 1, summed over all outcomes.

    >>> round(abstention_probability(0.9, 50, 0.001), 4)
    0.0003
    """
    # Returned are all counts from the smallest one on that passes the test.
    k = int(stats.binom.isf(alpha / 2, n, 0.5)) + 1
    while 2 * stats.binom.sf(k - 2, n, 0.5) <= alpha:  # the quantile may be one off
        k -= 1
    while 2 * stats.binom.sf(k - 1, n, 0.5) > alpha:
        k += 1
    return float(stats.binom.cdf(k - 1, n, p_a))


@declared(
    p_a=number("(0.5, 1]", "a probability; a tie is never settled"), alpha=ALPHA,
    share=number("(0, 1)", "a probability"),
)  # fmt: skip
def samples_needed(p_a: float, alpha: float, share: float = 0.01) -> int:
    """How many samples until PREDICT returns the top class with probability ``1 - share``.

    Args:
        p_a, alpha: as for :func:`abstention_probability`; p_a above 1/2.
        share: largest accepted probability of not returning the top class, in (0, 1).

    Returns:
        An n at which :func:`abstention_probability` is at most ``share``, found by doubling and
        bisection (it falls with n up to a small saw tooth, so an n a few smaller may do as well).

    >>> samples_needed(0.9, 0.001)
    40
    """
    low, high = 0, 1
    while abstention_probability(p_a, high, alpha) > share:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if abstention_probability(p_a, middle, alpha) > share:
            low = middle
        else:
            high = middle
    return high


def _votes(counts: Any) -> Tensor:
    if not isinstance(counts, Tensor) or counts.ndim != 2 or counts.shape[1] < 2:
        raise TypeError
    if counts.is_floating_point() or (counts < 0).any():
        raise ValueError
    return counts.long()  # in which sums cannot wrap around


BOUND = one_of("one_class", "two_class")
_COUNTS = Rule(
    "votes (b, K), K at least 2, a torch.Tensor of whole numbers of at least 0", _votes,
    (torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2), torch.tensor([[-1, 2]]), 17),
)  # fmt: skip


@declared(counts=_COUNTS, alpha=ALPHA)
def decide(counts: Tensor, alpha: float) -> Tensor:
    """The decision of PREDICT from votes ``(b, K)``: the top class, or ABSTAIN.

    The class is returned where the two-sided p-value of "both top classes are equally likely",
    given their two counts, is at most alpha. Votes for other classes do not enter.

    >>> decide(torch.tensor([[60, 40, 0], [90, 10, 0], [5, 5, 5]]), 0.001).tolist()
    [-1, 0, -1]
    """
    two = counts.topk(2, dim=1)
    first, second = two.values.cpu().numpy().T
    p_value = np.minimum(1.0, 2 * stats.binom.sf(first - 1, first + second, 0.5))
    sure = torch.as_tensor(p_value <= alpha)
    return torch.where(sure, two.indices[:, 0].cpu(), ABSTAIN)


def _classes_and_n(counts: Tensor, top: Tensor, n: int) -> None:
    inside = not top.is_floating_point() and ((top >= 0) & (top < counts.shape[1])).all()
    if top.shape != counts.shape[:1] or not inside:
        raise ValueError(f"top={shown(top)}: expected one of {counts.shape[1]} classes for each "
                         "image, as a whole number")  # fmt: skip
    if (counts.sum(1) > n).any():
        raise ValueError(f"n={n}: expected at least the votes of each image")


@declared(_classes_and_n, counts=_COUNTS, n=whole(1), alpha=ALPHA, sigma=NOISE, bound=BOUND)
def radii(
    counts: Tensor,
    top: Tensor,
    n: int,
    alpha: float,
    sigma: float | Noise,
    bound: str = "one_class",
) -> tuple[Floats, Floats]:
    """Certified radii and lower bounds of p_A from votes, as CERTIFY computes them.

    Args:
        counts: votes of the estimation samples ``(b, K)``.
        top: the class chosen on the selection samples, int64 ``(b,)``.
        n: number of estimation samples (more than the votes if some were lost).
        sigma: of Gaussian noise, or another noise, as for :class:`SmoothedClassifier`.
        alpha, bound: as for :meth:`SmoothedClassifier.certify`.

    Returns:
        radius and p_a, float64 ``(b,)``; radius 0 where nothing is certified (:func:`answered`
        tells that from a certificate of no pixels).
    """
    assert isinstance(sigma, Noise)  # the declaration has made one of a number
    top = top.to(counts.device)
    k = votes_for(counts, top)
    if bound == "one_class":
        p_a = bounds.lower_conf_bound(k, n, alpha)
        return sigma.radius(p_a), p_a
    p_a = bounds.lower_conf_bound(k, n, SHARES[0] * alpha)
    others = counts.scatter(1, top[:, None], -1).amax(1).cpu().numpy()
    lost = n - counts.sum(1).cpu().numpy()  # a lost vote might have been the rival's
    p_b = bounds.upper_conf_bound(others + lost, n, SHARES[1] * alpha)
    return sigma.radius(p_a, p_b), p_a


def answered(top: Tensor, radius: Floats, p_a: Floats) -> Tensor:
    """The class ``(b,)`` where it is certain, ABSTAIN elsewhere.

    It is where there is a radius, and where p_A is above 1/2: then it is the class of g at x, even
    if in l0 not one pixel may change, which is a certificate of radius 0.

    >>> answered(torch.tensor([7, 7]), np.array([0.0, 0.0]), np.array([0.51, 0.49])).tolist()
    [7, -1]
    """
    return torch.where(torch.as_tensor((radius > 0) | (p_a > 0.5)), top.cpu(), ABSTAIN)


def votes_for(counts: Tensor, top: Tensor) -> NDArray[np.int64]:
    """The votes ``(b,)`` of one class per image, from counts ``(b, K)`` on the same device."""
    return counts.gather(1, top[:, None])[:, 0].cpu().numpy()


def enough(n: int, alpha: float, bound: str) -> None:
    """Refuse an n of which even equal votes certify nothing."""
    # They bound p_A by (the top class's share of alpha) ** (1 / n), which must be above 1/2.
    share = alpha if bound == "one_class" else SHARES[0] * alpha
    smallest = math.floor(-math.log2(share)) + 1
    if n < smallest:
        raise ValueError(
            f"n={n}: even {n} equal votes certify nothing at alpha={alpha}; use at least "
            f"n={smallest}"
        )
