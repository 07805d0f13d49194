"""Random numbers: always from a generator of one's own, one stream per (seed, number)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from trustml_helpers._support.arguments import declared, whole


def given_or_fresh(generator: torch.Generator | None, x: Tensor) -> torch.Generator:
    """The given generator, or a new one on the device of x, seeded by the operating system."""
    if generator is None:
        generator = torch.Generator(x.device)
        generator.seed()
    return generator


@declared(seed=whole(), number=whole())
def keyed_generator(seed: int, number: int, device: str | torch.device = "cpu") -> torch.Generator:
    """One stream of random numbers per (seed, number), for example of an image.

    On a CPU torch takes 32 bits of a seed, so that two of m numbers have the same stream with
    probability about m^2 / 2^33 (with seed 0 none of the first 10,000). Each certificate keeps its
    level; only the errors of two such images are not independent.

    >>> keyed_generator(0, 7).initial_seed() == keyed_generator(0, 8).initial_seed()
    False
    """
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)


def draw(x: Tensor, kind: Callable[..., Tensor], generator: torch.Generator | None) -> Tensor:
    """``torch.rand`` or ``torch.randn`` shaped like x, drawn where the generator lives."""
    generator = given_or_fresh(generator, x)
    drawn = kind(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
    return drawn.to(x.device)
