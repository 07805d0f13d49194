"""The noise of a smoothed classifier: it draws noisy copies, and turns what votes prove of p_A into
a radius.

Whatever the noise, a class whose probability is above 1/2 at x is what g answers there. How far
away it still is, and in which norm, is all that a noise has to know. The three that are added to
the pixels have standard deviation sigma, so that they compare; the fourth removes pixels.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special
from torch import Tensor

from trustml_helpers import bounds
from trustml_helpers._support.arguments import (
    SIGMA,
    Rule,
    declared,
    maybe,
    numbers,
    shown,
    trusted,
    whole,
)

Floats = NDArray[np.float64]
_SHARE = numbers("[0, 1]", "a probability")


@dataclass(frozen=True)
class Noise:
    """What the four have in common. A noise of one's own defines the methods with an underscore."""

    norm: ClassVar[str]  # of its radii

    @property
    def settings(self) -> dict[str, Any]:
        """What it takes to make it again, by :func:`noise_from`, and the norm.

        >>> Uniform(0.5).settings
        {'noise': 'uniform', 'norm': 'l1', 'sigma': 0.5}
        """
        return {"noise": type(self).__name__.lower(), "norm": self.norm} | asdict(self)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One noisy copy of each image, for training.

        Args:
            x: images ``(b, ...)``.
            generator: source of the noise.
        """
        self.check(x)
        shape, dtype = self._numbers(x)
        drawn = torch.empty(len(x), 1, *shape, dtype=dtype, device=generator.device)
        self._fill(drawn, generator)
        return self._noisy(x[:, None], drawn.to(x.device))[:, 0]

    def copies(
        self, x: Tensor, n: int, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[int, Tensor]]:
        """n noisy copies of each image, batch by batch.

        Args:
            x: images ``(b, ...)``.
            n: copies of each.
            batch_size: copies at a time; on a CPU they do not depend on it.
            generator: source of the noise.

        Returns:
            For each batch the place in x of its first image, and copies ``(images, copies, ...)``,
            valid until the next batch is asked for.
        """
        together = max(1, batch_size // n)  # few copies of many images, or many copies of one
        for first, drawn in _drawn(self, x, n, batch_size, together, generator):
            yield first, self._noisy(x[first : first + together, None], drawn.to(x.device))

    @declared(p_a=_SHARE, p_b=maybe(_SHARE))
    def radius(self, p_a: ArrayLike, p_b: ArrayLike | None = None) -> Floats:
        """The radius within which the smoothed classifier cannot change.

        Args:
            p_a: lower bound on the top class's probability, in [0, 1].
            p_b: upper bound on every other class's probability, in [0, 1]; what exceeds
                ``1 - p_a`` is cut off, and ``1 - p_a`` if not given (the one-class bound).

        Returns:
            float64, in pixel units (l0: pixels), 0 where ``p_a <= p_b``. In l0 it is also 0 where
            the class is certain, but no pixel may change.
        """
        a = np.asarray(p_a)
        b = 1 - a if p_b is None else np.minimum(np.asarray(p_b), 1 - a)
        wins = a > b
        return self._radius(np.where(wins, a, 0.5), np.where(wins, b, 0.5))

    @declared(radius=numbers("[0, inf)", "in pixel units"))
    def needed(self, radius: ArrayLike) -> Floats:
        """What p_A must exceed to certify a radius (one-class); 1 where none is enough.

        Args:
            radius: in pixel units (l0: pixels; part of a pixel is none).

        Returns:
            float64.
        """
        return np.minimum(self._needed(np.asarray(radius)), 1.0)

    def check(self, x: Tensor) -> None:
        """Refuse images that this noise is not for."""

    # How many random numbers a copy takes, and of which type; drawing them; from them a copy.
    def _numbers(self, x: Tensor) -> tuple[torch.Size, torch.dtype]:
        return x.shape[1:], x.dtype

    def _fill(self, numbers: Tensor, generator: torch.Generator) -> None:
        raise NotImplementedError

    def _noisy(self, x: Tensor, drawn: Tensor) -> Tensor:
        return drawn.add_(x)

    # The formulas, for p_a above p_b (or both 1/2).
    def _radius(self, a: Floats, b: Floats) -> Floats:
        raise NotImplementedError

    def _needed(self, radius: Floats) -> Floats:
        raise NotImplementedError


@dataclass(frozen=True)
class _Added(Noise):
    """Noise that is added to every value of an image, never clipped.

    Args:
        sigma: its standard deviation, above 0, in pixel units.
    """

    sigma: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", SIGMA("sigma", self.sigma))


class Gaussian(_Added):
    """Normal noise; radii in l2: ``sigma / 2 * (Phi^-1(p_A) - Phi^-1(p_B))``.

    Source: Cohen et al. (2019), theorem 1.

    >>> float(Gaussian(0.5).radius(0.9).round(4))
    0.6408
    """

    norm = "l2"

    def _fill(self, numbers: Tensor, generator: torch.Generator) -> None:
        numbers.normal_(0, self.sigma, generator=generator)

    def _radius(self, a: Floats, b: Floats) -> Floats:
        return trusted(bounds.two_class_radius)(a, b, self.sigma)

    def _needed(self, radius: Floats) -> Floats:
        return special.ndtr(radius / self.sigma)


class Uniform(_Added):
    """Uniform noise on [-L, L], L = sqrt(3) sigma; radii in l1: ``L * (p_A - p_B)``.

    A move by delta leaves all but a share of at most ``|delta|_1 / (2 L)`` of the cube of noise
    where it was, so no probability changes by more.

    Source: Yang et al. (2020), "Randomized smoothing of all shapes and sizes", section 3.

    >>> float(Uniform(0.5).radius(0.9).round(4))
    0.6928
    """

    norm = "l1"

    @property
    def half(self) -> float:
        """L, half the width of the cube, in pixel units."""
        return math.sqrt(3) * self.sigma

    def _fill(self, numbers: Tensor, generator: torch.Generator) -> None:
        numbers.uniform_(-self.half, self.half, generator=generator)

    def _radius(self, a: Floats, b: Floats) -> Floats:
        return self.half * (a - b)

    def _needed(self, radius: Floats) -> Floats:
        return 0.5 + radius / (2 * self.half)


class Laplace(_Added):
    """Laplace noise of scale b = sigma / sqrt(2); radii in l1: ``-b * log(2 * (1 - p_A))``.

    A move by delta changes no density by more than the factor ``exp(|delta|_1 / b)``. So "not A"
    stays below 1/2; with p_B, A keeps ahead of B up to the larger of ``b / 2 * log(p_A / p_B)``
    and ``-b * log(1 - p_A + p_B)``, which is the first formula for ``p_B = 1 - p_A``.

    Source: Teng et al. (2020), "l1 adversarial robustness certificates: a randomized smoothing
    approach", theorem 1.

    >>> float(Laplace(0.5).radius(0.9).round(4))
    0.569
    """

    norm = "l1"

    @property
    def scale(self) -> float:
        """b, in pixel units."""
        return self.sigma / math.sqrt(2)

    def _fill(self, numbers: Tensor, generator: torch.Generator) -> None:
        # The difference of two exponential numbers; 1 - rand is never 0, so that none is infinite.
        dtype = torch.promote_types(numbers.dtype, torch.float32)
        pairs = torch.rand(*numbers.shape, 2, generator=generator, device=generator.device,
                           dtype=dtype).neg_().add_(1)  # fmt: skip
        numbers.copy_((pairs[..., 0] / pairs[..., 1]).log_().mul_(self.scale))

    def _radius(self, a: Floats, b: Floats) -> Floats:
        with np.errstate(divide="ignore"):  # infinite where nothing else can ever win
            return self.scale * np.maximum((np.log(a) - np.log(b)) / 2, -np.log(1 - a + b))

    def _needed(self, radius: Floats) -> Floats:
        return 1 - np.exp(-radius / self.scale) / 2


@dataclass(frozen=True)
class Ablation(Noise):
    """All but a few pixels are removed; radii in l0: how many pixels may change in any way.

    Of d pixels k are kept, the same in all channels, every choice equally likely. That none of rho
    changed pixels is kept has the probability C(d - rho, k) / C(d, k); so no vote share moves by
    more than the rest, Delta(rho), and rho is certified while ``p_A - p_B > 2 * Delta(rho)``.
    Compared as fractions, without rounding.

    Args:
        keep: k, at least 1.
        pixels: d, at least k; those of a digit if not given.

    Images ``(b, C, ...)`` with d places become copies with 2 C channels, ``x`` and ``1 - x``, both
    0 where a pixel is removed: so that removed differs from black.

    Source: Levine & Feizi (2020), "Robustness certificates for sparse adversarial attacks by
    randomized ablation", theorem 1 and section 3.

    >>> Ablation(45).radius([0.5, 0.51, 0.9, 1.0]).tolist()
    [0.0, 0.0, 8.0, 11.0]
    """

    keep: int
    pixels: int = 28 * 28
    norm = "l0"

    def __post_init__(self) -> None:
        for name in ("keep", "pixels"):
            object.__setattr__(self, name, whole(1)(name, getattr(self, name)))
        if self.keep > self.pixels:
            raise ValueError(f"keep={self.keep}: expected at most pixels={self.pixels}")

    def check(self, x: Tensor) -> None:
        if x.ndim < 3 or math.prod(x.shape[2:]) != self.pixels:
            raise ValueError(
                f"x={shown(x)}: expected images (n, C, ...) of {self.pixels} pixels; for others "
                f"pass Ablation({self.keep}, pixels=...)"
            )

    def _numbers(self, x: Tensor) -> tuple[torch.Size, torch.dtype]:
        return torch.Size([self.pixels]), torch.int64

    def _fill(self, numbers: Tensor, generator: torch.Generator) -> None:
        numbers.random_(generator=generator)  # of 63 bits, so that no two are ever equal

    def _noisy(self, x: Tensor, drawn: Tensor) -> Tensor:
        kept = drawn.topk(self.keep, dim=-1, sorted=False).indices
        mask = x.new_zeros(drawn.shape).scatter_(-1, kept, 1)
        mask = mask.view(*drawn.shape[:2], 1, *x.shape[3:])
        return torch.cat([x * mask, (1 - x) * mask], 2)

    def _radius(self, a: Floats, b: Floats) -> Floats:
        moves = _moves(self.pixels, self.keep)

        def largest(p_a: float, p_b: float) -> float:
            return max(bisect_left(moves, Fraction(p_a) - Fraction(p_b)) - 1.0, 0.0)

        return np.vectorize(largest, otypes=[float])(a, b)

    def _needed(self, radius: Floats) -> Floats:
        moves = _moves(self.pixels, self.keep)

        def smallest(rho: float) -> float:
            if rho >= len(moves):
                return 1.0
            exact = (1 + moves[int(rho)]) / 2
            near = float(exact)
            return near if Fraction(near) >= exact else math.nextafter(near, 1.0)

        return np.vectorize(smallest, otypes=[float])(radius)


@functools.lru_cache(maxsize=16)
def _moves(pixels: int, keep: int) -> list[Fraction]:
    """``2 * Delta(rho)`` for rho = 0, 1, ... as long as it is below 1, increasing."""
    found, all_, rho = [], math.comb(pixels, keep), 0
    while (move := 2 * (1 - Fraction(math.comb(pixels - rho, keep), all_))) < 1:
        found.append(move)
        rho += 1
    return found


NOISES = {kind.__name__.lower(): kind for kind in (Gaussian, Uniform, Laplace, Ablation)}


def noise_from(settings: Mapping[str, Any]) -> Noise:
    """The noise of a log's settings or of a checkpoint's card; Gaussian where none is named.

    Raises:
        ValueError: for an unknown noise, or without its sigma or keep.

    >>> noise_from({"sigma": 0.5, "n": 100}), noise_from(Ablation(45).settings)
    (Gaussian(sigma=0.5), Ablation(keep=45, pixels=784))
    """
    name = settings.get("noise", "gaussian")
    if name not in NOISES:
        raise ValueError(f"noise={shown(name)}: expected one of {', '.join(NOISES)}")
    kind: Any = NOISES[name]
    given = {each.name: settings[each.name] for each in fields(kind) if each.name in settings}
    needed = "keep" if kind is Ablation else "sigma"
    if needed not in given:
        raise ValueError(f"{needed}: {name} noise needs it, and it is not known")
    return kind(**given)


def _a_noise(value: Any) -> Noise:
    return value if isinstance(value, Noise) else Gaussian(SIGMA.read(value))


NOISE = Rule(
    f"{SIGMA.expected} (of Gaussian noise), or a noise such as Uniform(0.5)", _a_noise, SIGMA.wrong
)


def _drawn(
    noise: Noise, x: Tensor, n: int, batch_size: int, together: int, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    """Random numbers for n copies of each image, batch by batch, with the first image that they
    are for.

    Each is valid until the next one is asked for. On a CPU PyTorch makes normal numbers by
    sixteens, and the rest of a tensor in another way. So they are drawn by sixteens, and what is
    left over goes to the next batch: the numbers do not depend on the batch size. With several
    threads they are drawn while the network works on the last batch: a generator uses one thread,
    and the others would wait for it.
    """
    shape, dtype = noise._numbers(x)
    firsts = [(row, done) for row in range(0, len(x), together) for done in range(0, n, batch_size)]
    shapes = [(len(x[row : row + together]), min(n - done, batch_size), *shape)
              for row, done in firsts]  # fmt: skip
    largest = max(map(math.prod, shapes), default=0) + 32
    buffers = [torch.empty(largest, dtype=dtype, device=generator.device) for _ in range(2)]
    left = buffers[0][:0].clone()

    def draw(turn: int) -> tuple[int, Tensor]:
        nonlocal left
        buffer, needed, old = buffers[turn % 2], math.prod(shapes[turn]), len(left)
        end = old - (old - needed) // 16 * 16  # as many sixteens as are missing
        with torch.inference_mode():
            buffer[:old] = left
            noise._fill(buffer[old:end], generator)
            left = buffer[needed:end].clone()
            return firsts[turn][0], buffer[:needed].view(shapes[turn])

    # On a GPU all is queued anyway, in the caller's stream; and one thread means one thread.
    if generator.device.type != "cpu" or torch.get_num_threads() == 1:
        yield from map(draw, range(len(shapes)))
        return
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(draw, 0) if shapes else None
        for turn in range(len(shapes)):
            assert ahead is not None
            found = ahead.result()
            ahead = thread.submit(draw, turn + 1) if turn + 1 < len(shapes) else None
            yield found
