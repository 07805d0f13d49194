"""Named ways to train a network that is to be smoothed: the papers' settings, and quick ones.

The published settings are those under which Jeong & Shin (2020) compared these methods on MNIST,
with LeNet. A ``quick_`` recipe is the same objective with fewer passes, fewer noisy copies and
fewer attack steps, for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.optim.lr_scheduler import LRScheduler, StepLR

from trustml_helpers import objectives
from trustml_helpers.training import loop as training
from trustml_helpers.objectives import ByEpoch, Objective

Make = Callable[[float, torch.Generator], Objective | ByEpoch]


slow = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=1e-4)
fast = partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


def every_third(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """Learning rate times 0.1 after each third of the training: "every 30 of 90 epochs"."""
    return StepLR(optimizer, -(-total_steps // 3), gamma=0.1)


@dataclass(frozen=True)
class Recipe:
    """All that decides how a network is trained, but sigma and the seed.

    Args:
        make: ``(sigma, generator) -> objective``.
        words: the objective and its settings, for a card.
        copies: forward and backward passes per image and epoch, at sigma 0.5.
        source: where the settings are from.
        epochs, batch_size, optimizer, scheduler, precision: as for :func:`training.fit`.
        channels_last: memory layout of the weights.
        architecture: name of the network.
    """

    make: Make
    words: str
    copies: int = 1
    source: str = ""
    epochs: int = 90
    batch_size: int = 256
    optimizer: training.MakeOptimizer = slow
    scheduler: training.MakeScheduler | None = every_third
    precision: str = "float32"
    channels_last: bool = False
    architecture: str = "LeNet"


def _gaussian(sigma: float, generator: torch.Generator) -> Objective:
    return objectives.gaussian(sigma, generator=generator)


def _stability(sigma: float, generator: torch.Generator) -> Objective:
    return objectives.stability(sigma, 2.0, generator=generator)


def _consistency(sigma: float, generator: torch.Generator) -> Objective:
    return objectives.consistency(sigma, 10.0 if sigma < 0.5 else 5.0, 0.5, generator=generator)


def _smoothadv(
    sigma: float, generator: torch.Generator, *, lam: float = 0.0, samples: int = 4,
    steps: int = 10, ramp: int = 10,
) -> ByEpoch:  # fmt: skip
    """eps grows in equal steps over the first ``ramp`` epochs to 255/256."""

    def at(epoch: float) -> Objective:
        return objectives.smoothadv(
            sigma, 255 / 256 * _grown(epoch, ramp), lam, 0.5 if lam else 0.0, samples=samples,
            steps=steps, generator=generator,
        )  # fmt: skip

    return ByEpoch(at)


def _macer(
    sigma: float, generator: torch.Generator, *, samples: int = 16, wait: int = 30
) -> ByEpoch:
    """The radius counts from epoch ``wait`` on; before, the loss is cross-entropy alone."""
    make = partial(objectives.macer, sigma, samples=samples, generator=generator)
    first, then = make(0.0), make(16.0 if sigma < 1 else 6.0)
    return ByEpoch(lambda epoch: first if epoch < wait else then)


def _smoothmix(
    sigma: float, generator: torch.Generator, *, samples: int = 4, longest: int = 8, ramp: int = 10
) -> ByEpoch:
    """Two steps of length 1 at sigma .25, four at .5, eight at 1, or ``longest``."""

    def at(epoch: float) -> Objective:
        return objectives.smoothmix(
            sigma, 5.0, samples=samples, steps=min(round(8 * sigma), longest),
            warm=_grown(epoch, ramp), generator=generator,
        )  # fmt: skip

    return ByEpoch(at)


def _grown(epoch: float, ramp: int) -> float:
    """1 from epoch ``ramp`` on, in equal steps up to there."""
    return min(1.0, (int(epoch) + 1) / ramp)


_JEONG = "Jeong & Shin (2020), MNIST"
PUBLISHED = {
    "gaussian": Recipe(_gaussian, "Gaussian noise", 1, f"Cohen et al. (2019), as in {_JEONG}"),
    "stability": Recipe(
        _stability, "stability training, lambda 2", 2, f"Li et al. (2019), as in {_JEONG}"
    ),
    "consistency": Recipe(
        _consistency, "consistency, m 2, lambda 10 (5 from sigma .5 on), eta .5", 2, _JEONG
    ),
    "smoothadv": Recipe(
        _smoothadv, "SmoothAdv, m 4, 10 steps, eps 255/256 after 10 epochs", 44,
        f"Salman et al. (2019), as in {_JEONG}", batch_size=64,
    ),
    "smoothadv_consistency": Recipe(
        partial(_smoothadv, lam=5.0), "SmoothAdv (m 4, 10 steps) with consistency, lambda 5, "
        "eta .5", 44, _JEONG, batch_size=64,
    ),
    "macer": Recipe(
        _macer, "MACER, k 16, lambda 16 (6 at sigma 1) from epoch 30 on, beta 16, gamma 8", 16,
        f"Zhai et al. (2020), as in {_JEONG}",
    ),
    "smoothmix": Recipe(
        _smoothmix, "SmoothMix with the one-step adversary, m 4, eta 5, 2, 4, 8 steps of 1 at "
        "sigma .25, .5, 1", 24, "Jeong et al. (2021), MNIST", batch_size=64,
    ),
}  # fmt: skip
_quick = partial(
    replace, epochs=16, precision="bfloat16", channels_last=True,
    optimizer=fast, scheduler=training.triangular(0.1, top=0.3),
)  # fmt: skip
QUICK = {
    "quick_gaussian": _quick(PUBLISHED["gaussian"], epochs=8),
    "quick_stability": _quick(PUBLISHED["stability"]),
    "quick_consistency": _quick(PUBLISHED["consistency"]),
    "quick_smoothadv": _quick(
        PUBLISHED["smoothadv"], make=partial(_smoothadv, samples=2, steps=2, ramp=2), copies=6,
        words="SmoothAdv, m 2, 2 steps, eps 255/256 after 2 epochs", epochs=8, batch_size=128,
    ),
    "quick_smoothadv_consistency": _quick(
        PUBLISHED["smoothadv_consistency"], copies=6, epochs=8, batch_size=128,
        make=partial(_smoothadv, lam=5.0, samples=2, steps=2, ramp=2),
        words="SmoothAdv (m 2, 2 steps) with consistency, lambda 5, eta .5",
    ),
    # The radius is added at a rate of 0.001, as in the published schedule: at 0.003 and 0.03
    # accuracy fell and did not come back.
    "quick_macer": _quick(
        PUBLISHED["macer"], make=partial(_macer, samples=6, wait=3), copies=6, epochs=9,
        words="MACER, k 6, lambda 16 (6 at sigma 1) from epoch 3 on, beta 16, gamma 8",
        batch_size=128, optimizer=partial(fast, lr=0.01), scheduler=every_third,
    ),
    "quick_smoothmix": _quick(
        PUBLISHED["smoothmix"], make=partial(_smoothmix, samples=2, longest=2, ramp=2), copies=8,
        words="SmoothMix with the one-step adversary, m 2, eta 5, 2 steps of 1", epochs=8,
        batch_size=128,
    ),
}  # fmt: skip
RECIPES = PUBLISHED | QUICK
