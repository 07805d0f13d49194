"""How often certificates are false where that is hardest: 200,000 of each kind, with known p.

Usage: python tests/error_rates.py PICTURE.png TABLE.csv

The network is a half-line in one dimension, so that p and the true radius are known. p lies just
below the value that the procedure can tell from a larger one: the exact error is as near to alpha
as the procedure ever comes.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
import torch
from scipy import special, stats

from trustml_helpers import bounds, figures, sequential
from trustml_helpers.smoothing import ABSTAIN, SmoothedClassifier, votes

ALPHA, N0, N, IMAGES = 0.001, 50, 1000, 200_000
HAIR = 1e-12


class Case(NamedTuple):
    name: str
    exact: float  # the probability of a false answer
    false: int  # of IMAGES answers


def right_of_zero(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, -x], 1)


def smoothed(p: float) -> tuple[SmoothedClassifier, torch.Tensor]:
    """The half-line under noise of 1, and images at which class 0 has probability p."""
    x = torch.full((IMAGES, 1), special.ndtri(p))
    return SmoothedClassifier(right_of_zero, 1.0, 2), x


def certificates(bound: str, generator: torch.Generator) -> Case:
    """A radius beyond the border, where 950 votes just certify more than is true."""
    share = votes.SHARES[0] if bound == "two_class" else 1.0
    p = float(bounds.lower_conf_bound(950, N, share * ALPHA)) - HAIR
    g, x = smoothed(p)
    found = g.certify(x, N0, N, ALPHA, bound, generator=generator, batch_size=10**6)
    false = (found.prediction == 1) | (found.radius > special.ndtri(p))
    return Case(f"certify, {bound}", float(stats.binom.sf(949, N, p)), int(false.sum()))


def predictions(generator: torch.Generator) -> Case:
    """Two classes equally likely: any answer is one too many."""
    g, x = smoothed(0.5)
    n = max(range(N // 2, N), key=lambda n: _answered(n))
    found = g.predict(x, n, ALPHA, generator=generator, batch_size=10**6)
    return Case("predict", _answered(n), int((found != ABSTAIN).sum()))


def _answered(n: int) -> float:
    return 2 * (1 - votes.abstention_probability(0.5, n, ALPHA))


def at_radius(generator: torch.Generator) -> Case:
    """The radius asked for is a hair larger than the true one."""
    sizes = sequential.looks(N)
    p = max(np.linspace(0.85, 0.95, 201), key=lambda p: sequential.plan(p, ALPHA, sizes).error[0])
    g, x = smoothed(p - HAIR)
    exact = float(sequential.plan([p], ALPHA, sizes).error[0])
    found = g.certify_at_radius(x, special.ndtri(p), ALPHA, N, n0=N0, generator=generator,
                                batch_size=10**6)  # fmt: skip
    return Case("certify_at_radius", exact, int(found.certified.sum()))


def cases(seed: int = 0) -> list[Case]:
    generator = torch.Generator().manual_seed(seed)
    return [certificates("one_class", generator), certificates("two_class", generator),
            predictions(generator), at_radius(generator)]  # fmt: skip


def main(picture: str, table: str) -> None:
    import matplotlib.pyplot as plt
    import pandas as pd

    found = pd.DataFrame(cases())
    found["rate"] = found["false"] / IMAGES
    found.to_csv(table, index=False, float_format="%.6g")
    with plt.rc_context(figures.STYLE):
        figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
        places = np.arange(len(found))[::-1]
        ends = stats.beta.ppf([[0.025], [0.975]], [found["false"], found["false"] + 1],
                              [IMAGES - found["false"] + 1, IMAGES - found["false"]])  # fmt: skip
        rate = found["rate"].to_numpy() / ALPHA
        axis.errorbar(rate, places, xerr=np.abs(ends / ALPHA - rate), fmt="o", capsize=5,
                      label="measured, 95 % interval")  # fmt: skip
        axis.plot(found["exact"] / ALPHA, places, "x", color="black", markersize=10, label="exact")
        axis.axvline(1, color="black", linestyle="--", label="promised")
        words = f"false answers among {IMAGES:,}, as a multiple of alpha = {ALPHA:g}"
        axis.set(yticks=places, yticklabels=found["name"], xlim=(0, 2.05), ylim=(-0.5, 3.5),
                 xlabel=words)  # fmt: skip
        figure.legend(loc="outside upper center", ncols=3)
        figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
