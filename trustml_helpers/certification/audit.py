"""Audit of a certification log: can these radii have come from whole numbers of votes?

And a prediction: what would it say with more of them?

A radius in a log comes from a Clopper-Pearson bound for some count k of n (``sigma * Phi^-1`` of it
under Gaussian noise), printed with a few digits. Near the largest radii the possible values lie far
apart, so the printed ones betray which alpha and n were really used.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, stats

from trustml_helpers import bounds
from trustml_helpers._support.arguments import ALPHA, declared, maybe, whole
from trustml_helpers._support.arguments import each as every
from trustml_helpers._support.files import LogError
from trustml_helpers.certification.log import check_rows, vote_counts
from trustml_helpers.smoothing import ABSTAIN, BOUND, NOISE, Noise, answered, radii

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

ALPHAS = (0.05, 0.01, 0.005, 0.001, 0.0001)
SIZES = (1_000, 10_000, 100_000)
_PLACES = 10_000_000  # more than data sets have; what is missing among them is listed
_SLACK = 1e-9  # of a printed number read back as a float


@dataclass(frozen=True)
class Audit:
    """What :func:`audit_log` found; ``print`` it, or look at the fields.

    Attributes:
        rows: number of rows.
        fits: every ``(alpha, n)`` of the grid under which all radii are possible.
        stated: the ``(alpha, n)`` that was claimed, if one was.
        impossible: idx of rows whose radius no count gives under the stated alpha and n.
        rounded_up: idx of rows possible only if the radius was rounded up: they claim too much.
        missing: idx that the regular step of the log skips.
        repeated: idx that occur more than once.
        inconsistent: idx of rows that contradict themselves: ``correct`` against ``predict`` and
            ``label``, a radius without a class, counts that do not give the radius, or no class.
    """

    rows: int
    fits: tuple[tuple[float, int], ...]
    stated: tuple[float, int] | None
    impossible: tuple[int, ...] = ()
    rounded_up: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()
    inconsistent: tuple[int, ...] = ()

    @property
    def passed(self) -> bool:
        """Nothing is wrong: every row is possible as stated, none twice, none missing."""
        wrong = (self.impossible, self.rounded_up, self.missing, self.repeated, self.inconsistent)
        return not any(wrong) and bool(self.fits)

    def __str__(self) -> str:
        pairs = " or ".join(f"alpha {alpha:g} with n {n:,}" for alpha, n in self.fits)
        lines = [f"{self.rows} rows; every radius can come from {pairs}" if pairs else
                 f"{self.rows} rows; no alpha and n that were tried give every radius"]  # fmt: skip
        if self.stated:
            alpha, n = self.stated
            lines.append(f"impossible under alpha {alpha:g}, n {n:,}: {_some(self.impossible)}")
            lines.append(f"rounded up: {_some(self.rounded_up)}")
        for name in ("missing", "repeated", "inconsistent"):
            lines.append(f"{name}: {_some(getattr(self, name))}")
        return "\n".join(lines)


def _stated_together(alpha: float | None, n: int | None) -> None:
    if (alpha is None) != (n is None):
        raise ValueError(f"alpha={alpha}, n={n}: expected both or neither")


_LISTED = whole(1, 10_000_000)  # every possible radius is listed


@declared(
    _stated_together, sigma=NOISE, alpha=maybe(ALPHA), n=maybe(_LISTED), alphas=every(ALPHA),
    sizes=every(_LISTED), bound=BOUND,
)  # fmt: skip
def audit_log(
    log: pd.DataFrame, sigma: float | Noise, *, alpha: float | None = None, n: int | None = None,
    alphas: Sequence[float] = ALPHAS, sizes: Sequence[int] = SIZES, bound: str = "one_class",
) -> Audit:  # fmt: skip
    """Which settings can have made this log, and which rows cannot be right?

    Args:
        log: as ``certification.read_log`` returns it.
        sigma: of the noise, in pixel units; or noise of another kind, as for
            :class:`SmoothedClassifier`.
        alpha, n: the stated settings, both or neither; with counts in the log they are checked
            against them as well; n at most 10,000,000, since every possible radius is listed.
        alphas, sizes: the grid of settings to try; the stated pair is added to it.
        bound: ``"one_class"``, or ``"two_class"``: such a radius depends on two counts, so that
            nearly every number is possible, and it is checked against the counts of its row.

    Returns:
        An :class:`Audit`.

    Raises:
        LogError: for two-class radii without counts, a cell that no certification writes, and an
            idx far beyond all others.

    Source: Clopper & Pearson (1934) bounds of whole counts, as in Cohen et al. (2019).

    >>> import pandas as pd
    >>> log = pd.DataFrame({"idx": [0, 1], "label": [3, 3], "predict": [3, 3],
    ...                     "radius": [0.616, 0.589], "correct": [1, 1]})
    >>> audit_log(log, 0.25, sizes=[1000]).fits  # 0.616: all of 1,000 votes, at this alpha only
    ((0.001, 1000),)
    """
    log = check_rows(log, needed=("idx", "label", "predict", "radius", "correct"))
    idx = log["idx"].to_numpy()
    radius = log["radius"].to_numpy(dtype=float)
    claimed = radius > 0
    assert isinstance(sigma, Noise)  # the declaration has made one of a number
    # Numbers of pixels are whole: nothing was rounded.
    unit, fixed = (0 * radius, True) if sigma.norm == "l0" else _printed_units(radius)
    pairs = [(a, m) for a in alphas for m in sizes]
    stated = (alpha, n) if alpha is not None and n is not None else None
    if stated and stated not in pairs:
        pairs.append(stated)
    if bound == "one_class":
        explained = {pair: _explained(radius, unit, sigma, *pair) for pair in pairs}
    else:
        explained = {pair: _recomputed(log, radius, unit, sigma, *pair) for pair in pairs}
    # A program rounds all its radii the same way. A format with significant digits rounds to
    # nearest; one with a fixed number of decimals may have rounded down before.
    fits = [pair for pair, (near, down) in explained.items()
            if near[claimed].all() or (fixed and down[claimed].all())]  # fmt: skip
    impossible = up = np.zeros(len(log), dtype=bool)
    if stated:
        near, down = explained[stated]
        impossible = claimed & ~near & ~(down & fixed)
        up = claimed & near & ~down
    present, times = np.unique(idx, return_counts=True)
    return Audit(
        len(log), tuple(fits), stated, _pick(idx, impossible), _pick(idx, up),
        _missing(present), _pick(present, times > 1),
        _pick(idx, _inconsistent(log, sigma, stated, unit, bound)),
    )  # fmt: skip


@declared(sigma=NOISE, n=whole(1), alpha=ALPHA, more=whole(1), draws=whole(1), seed=whole())
def predict_acr(
    log: pd.DataFrame, sigma: float | Noise, n: int, alpha: float, more: int, *,
    draws: int = 100, seed: int = 0,
) -> float:  # fmt: skip
    """What average certified radius (one-class) would this log have with more samples?

    The share of votes against the label is taken as Beta distributed over the images, and fitted
    to the counts by maximum likelihood (empirical Bayes). Then, per image: a share from its
    posterior, a count of ``more`` votes, its radius.

    Args:
        log: with counts, as ``certification.read_log`` returns it.
        sigma, n, alpha: what it was made with.
        more: estimation samples to predict for, at least 1.
        draws: per image, over which the mean is taken.
        seed: of the draws.

    Returns:
        In pixel units. For six networks of the study, from n = 10,000 to 100,000, it was too large
        by at most 0.0071.

    >>> import pandas as pd
    >>> log = pd.DataFrame({"label": [0, 0, 0], "count_0": [100, 99, 95], "count_1": [0, 1, 5]})
    >>> round(predict_acr(log, 0.5, 100, 0.001, 100_000), 1)
    1.1
    """
    assert isinstance(sigma, Noise)  # the declaration has made one of a number
    log = check_rows(log, needed=("label",), least=2)
    counts = vote_counts(log)
    if log["label"].max() >= counts.shape[1]:
        raise ValueError(f"log: label {log['label'].max()} has no column of counts")
    if n < counts.sum(axis=1).max():
        raise ValueError(f"n={n}: expected at least the votes of a row, {counts.sum(axis=1).max()}")
    rng = np.random.default_rng(seed)
    k = counts[np.arange(len(log)), log["label"].to_numpy()]

    def unlikely(prior: Floats) -> float:
        return -float(stats.betabinom.logpmf(n - k, n, *np.exp(prior)).sum())

    a, b = np.exp(optimize.minimize(unlikely, np.log([0.1, 3.0]), method="Nelder-Mead").x)
    share = rng.beta(a + n - k, b + k, size=(draws, len(log)))
    lower = bounds.lower_conf_bound(rng.binomial(more, 1 - share), more, alpha)
    return float(sigma.radius(lower).mean())


@functools.lru_cache(maxsize=64)
def _possible_shares(alpha: float, n: int) -> Floats:
    """Every bound above 1/2 that n votes can give for p_A, increasing."""
    shares = bounds.lower_conf_bound(np.arange(n // 2, n + 1), n, alpha)
    return shares[shares > 0.5]


def _explained(
    radius: Floats, unit: Floats, noise: Noise, alpha: float, n: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether some possible radius is printed like this by rounding to nearest, and by rounding
    down."""
    possible = noise.radius(_possible_shares(alpha, n))

    def between(low: Floats, high: Floats) -> NDArray[np.bool_]:
        first = np.searchsorted(possible, low - _SLACK)
        return first < np.searchsorted(possible, high + _SLACK, side="right")

    return between(radius - unit / 2, radius + unit / 2), between(radius, radius + unit)


def _recomputed(
    log: pd.DataFrame, radius: Floats, unit: Floats, noise: Noise, alpha: float, n: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The same for the two-class radius of each row's own counts."""
    if vote_counts(log).shape[1] == 0:
        raise LogError("log: two-class radii cannot be audited without the counts they are from")
    expected, _ = _from_counts(log, noise, alpha, n, "two_class")
    near = np.abs(radius - expected) <= unit / 2 + _SLACK
    return near, (radius - _SLACK <= expected) & (expected <= radius + unit + _SLACK)


def _from_counts(
    log: pd.DataFrame, noise: Noise, alpha: float, n: int, bound: str
) -> tuple[Floats, NDArray[np.bool_]]:
    """The radius that the counts of each row give, NaN where they are more than n votes, and
    whether they make the class of the row certain."""
    predict, counts = log["predict"].to_numpy(), vote_counts(log)
    fits = counts.sum(axis=1) <= n
    top = torch.as_tensor(predict.clip(0, counts.shape[1] - 1))
    held = torch.as_tensor(np.where(fits[:, None], counts, 0))
    found, p_a = radii(held, top, n, alpha, noise, bound)
    certain = answered(top, found, p_a).numpy() != ABSTAIN
    return np.where(fits, np.where(predict >= 0, found, 0.0), np.nan), certain


def _printed_units(radius: Floats) -> tuple[Floats, bool]:
    """The last printed digit of each radius, from the digits that the whole log shows, and
    whether the number of decimals is fixed.

    Logs with few significant digits (Cohen et al. print 3) have them in every row; logs with a
    fixed number of decimals (ours: 6) show more significant digits than that somewhere.
    """
    digits, decimals = 1, 0
    for value in radius[radius > 0]:
        mantissa, _, fraction = f"{value:.9f}".rstrip("0").partition(".")
        digits = max(digits, len((mantissa + fraction).lstrip("0")))
        decimals = max(decimals, len(fraction))
    if digits > 4:
        return np.full(len(radius), 10.0**-decimals), True
    leading = np.floor(np.log10(np.where(radius > 0, radius, 1.0)))
    return 10.0 ** (leading - digits + 1), False


def _inconsistent(
    log: pd.DataFrame, noise: Noise, stated: tuple[float, int] | None, unit: Floats, bound: str,
) -> NDArray[np.bool_]:  # fmt: skip
    predict, radius = log["predict"].to_numpy(), log["radius"].to_numpy(dtype=float)
    wrong = (predict == log["label"].to_numpy()) != (log["correct"].to_numpy() == 1)
    wrong |= (predict < 0) & (radius > 0)
    if vote_counts(log).shape[1] == 0 or stated is None:
        return wrong
    expected, certain = _from_counts(log, noise, *stated, bound)
    wrong |= (predict >= 0) & ~certain
    return wrong | ~(np.abs(radius - expected) <= unit + _SLACK)  # NaN: more votes than n


def _missing(present: NDArray[np.int64]) -> tuple[int, ...]:
    """What is skipped in an increasing sequence, given its most frequent step."""
    if len(present) < 3:
        return ()
    steps, often = np.unique(np.diff(present), return_counts=True)
    step = int(steps[often.argmax()])
    places = (int(present[-1]) - int(present[0])) // step
    if places > _PLACES:
        raise LogError(
            f"log: idx from {present[0]} to {present[-1]} in steps of {step} are {places:,} places "
            f"for {len(present)} rows; remove the row with the wrong idx"
        )
    expected = np.arange(present[0], present[-1], step)
    return tuple(np.setdiff1d(expected, present, assume_unique=True).tolist())


def _pick(idx: NDArray[np.int64], flags: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in idx[flags])


def _some(rows: tuple[int, ...]) -> str:
    if not rows:
        return "none"
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"{len(rows)} (idx {', '.join(map(str, rows[:5]))}{more})"
