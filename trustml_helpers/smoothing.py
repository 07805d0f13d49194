"""Randomized smoothing: g(x), the most likely class of f(x + noise), and its certificates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor, nn

from trustml_helpers import bounds, sequential
from trustml_helpers.attacks import given_or_fresh
from trustml_helpers.models import call, check_tensor, unchanged
from trustml_helpers.votes import (
    ABSTAIN,
    SHARES,
    abstention_probability,
    check_bound,
    check_enough,
    decide,
    radii,
    samples_needed,
    votes_for,
)

__all__ = [
    "ABSTAIN", "SHARES", "AnytimeCertificates", "Certificates", "RadiusCertificates",
    "SmoothedClassifier", "abstention_probability", "decide", "radii", "samples_needed",
]  # fmt: skip


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Certificates(NamedTuple):
    """What CERTIFY found, per image."""

    prediction: Tensor  # int64 (b,), ABSTAIN where nothing is certified
    radius: Tensor  # float64 (b,), l2 in pixel units, 0 where abstained
    counts: Tensor  # int64 (b, K), votes of the n estimation samples
    p_a: Tensor  # float64 (b,), lower confidence bound of the selected class


class RadiusCertificates(NamedTuple):
    """What the sequential test found, per image."""

    prediction: Tensor  # int64 (b,), ABSTAIN where no radius of the grid is certified
    certified: Tensor  # bool (b,), whether any is; with a single radius, whether it is
    radius: Tensor  # float64 (b,), the largest certified radius of the grid, 0 if none
    samples: Tensor  # int64 (b,), noisy copies used, the n0 selection samples included


class AnytimeCertificates(NamedTuple):
    """What open-ended sampling found, per image."""

    prediction: Tensor  # int64 (b,), ABSTAIN where nothing is certified
    radius: Tensor  # float64 (b,), l2 in pixel units, 0 where abstained
    samples: Tensor  # int64 (b,), noisy copies used, the n0 selection samples included


class SmoothedClassifier:
    """g(x): the class that the base classifier f most likely returns on x + N(0, sigma^2 I).

    Args:
        base_classifier: f, any callable from images to logits ``(n, K)``; used in eval mode (a
            warning says so if it was in training mode) and left as found. Noisy images are not
            clipped. A checkpoint of the course trained with another sigma gives a warning.
        sigma: standard deviation of the noise, above 0, in pixel units.
        num_classes: K, at least 2.

    Raises:
        ValueError: for sigma or num_classes out of range.

    Source: Cohen, Rosenfeld, Kolter (2019), "Certified adversarial robustness via randomized
    smoothing", section 3 and algorithm 1.

    >>> g = SmoothedClassifier(lambda x: torch.stack([x.sum(1), -x.sum(1)], 1), 1.0, 2)
    >>> x = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])
    >>> g.predict(x, 200, alpha=0.001, generator=torch.Generator().manual_seed(0)).tolist()
    [0, 1]
    """

    def __init__(
        self, base_classifier: Callable[[Tensor], Tensor], sigma: float, num_classes: int
    ) -> None:
        bounds.check_sigma(sigma)
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: expected at least 2")
        trained = getattr(base_classifier, "card", {}).get("sigma")
        if trained is not None and trained != sigma:
            warnings.warn(
                f"sigma={sigma:g}: this checkpoint was trained with sigma {trained:g}; with other "
                "noise it mostly certifies less",
                UserWarning,
                stacklevel=2,
            )
        self.base_classifier = base_classifier
        self.sigma = float(sigma)
        self.num_classes = int(num_classes)

    def sample_under_noise(
        self,
        x: Tensor,
        n: int,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """SAMPLEUNDERNOISE: how often f returns each class on n noisy copies of each image.

        Args:
            x: images ``(b, ...)``, floating point, any range.
            n: noisy copies of each image, at least 1.
            generator: source of the noise; fresh entropy if not given.
            batch_size: noisy images per forward pass; 256 if not given. On a CPU the noise does
                not depend on it.

        Returns:
            int64 counts ``(b, K)`` on the device of x. Each row adds up to n, less the votes that
            were lost because f returned NaN or an infinite logit (a warning says how many).

        Raises:
            ValueError, TypeError: for arguments out of range, or logits that are not ``(., K)``.
        """
        batch_size = 256 if batch_size is None else batch_size
        _check(x, n, batch_size)
        n, batch_size = int(n), int(batch_size)
        if isinstance(self.base_classifier, nn.Module) and any(
            module.training for module in self.base_classifier.modules()
        ):
            warnings.warn(
                "base_classifier is in training mode: it is evaluated in eval mode and given back "
                "as it was; call .eval() first if that is what you mean",
                UserWarning,
                stacklevel=2,
            )
        generator = given_or_fresh(generator, x)
        counts = torch.zeros(len(x), self.num_classes, dtype=torch.int64, device=x.device)
        together = max(1, batch_size // n)  # few copies of many images, or many copies of one
        copies = min(n, batch_size)
        batches = [(row, min(copies, n - done)) for row in range(0, len(x), together)
                   for done in range(0, n, copies)]  # fmt: skip
        shapes = [(len(x[row : row + together]), m, *x.shape[1:]) for row, m in batches]
        with unchanged(self.base_classifier), torch.inference_mode():
            noise = _drawn_ahead(shapes, self.sigma, x.dtype, generator)
            for (row, _), drawn in zip(batches, noise, strict=True):
                noisy = drawn.to(x.device).add_(x[row : row + together, None])
                counts[row : row + together] += self._votes(noisy)
        lost = n * len(x) - int(counts.sum())
        if lost:
            warnings.warn(
                f"f returned NaN or infinite logits for {lost} of {n * len(x)} noisy images; they "
                "vote for no class",
                RuntimeWarning,
                stacklevel=2,
            )
        return counts.clone()

    def _votes(self, noisy: Tensor) -> Tensor:
        """Votes ``(m, K)`` for noisy images ``(m, copies, ...)``."""
        logits = call(self.base_classifier, noisy.flatten(0, 1))
        check_tensor(logits)
        if logits.ndim != 2 or logits.shape != (len(noisy) * noisy.shape[1], self.num_classes):
            raise ValueError(
                f"base_classifier: expected logits of shape ({len(noisy) * noisy.shape[1]}, "
                f"{self.num_classes}), got {tuple(logits.shape)}"
            )
        chosen = logits.argmax(1).masked_fill(~logits.isfinite().all(1), self.num_classes)
        votes = torch.zeros(
            len(noisy), self.num_classes + 1, dtype=torch.int64, device=noisy.device
        )
        chosen = chosen.view(len(noisy), -1)
        return votes.scatter_add_(1, chosen, torch.ones_like(chosen))[:, :-1]

    def predict(
        self,
        x: Tensor,
        n: int,
        alpha: float,
        *,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """PREDICT: g(x), or ABSTAIN where n votes do not settle it.

        If a class is returned, it is g(x) with probability at least ``1 - alpha``.

        Args:
            x, n, generator, batch_size: as for :meth:`sample_under_noise`.
            alpha: error probability in (0, 1), per image.

        Returns:
            int64 ``(b,)``, :data:`ABSTAIN` where the test is not passed.

        Source: Cohen et al. (2019), algorithm 1 and proposition 1: a two-sided binomial test of
        the two largest counts.
        """
        bounds.check_alpha(alpha)
        counts = self.sample_under_noise(x, n, generator, batch_size)
        return decide(counts, alpha)

    def certify(
        self,
        x: Tensor,
        n0: int,
        n: int,
        alpha: float,
        bound: str = "one_class",
        *,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
    ) -> Certificates:
        """CERTIFY: a class and an l2 radius within which g cannot change, or ABSTAIN.

        The class is chosen on n0 samples and its probability bounded on n fresh ones. For each
        image, with probability at least ``1 - alpha``, a returned class and radius R are true:
        g(x + delta) is that class for every delta shorter than R.

        Args:
            x, generator, batch_size: as for :meth:`sample_under_noise`.
            n0: selection samples, at least 1.
            n: estimation samples, enough that n equal votes would certify something.
            alpha: error probability in (0, 1), per image.
            bound: ``"one_class"`` as published, or ``"two_class"``, which also bounds the largest
                other class: 90 % of alpha for the top class, 10 % for the other, fixed in advance.

        Returns:
            :class:`Certificates`, per image.

        Raises:
            ValueError: for arguments out of range; an n too small to certify anything is one.

        Source: Cohen et al. (2019), algorithm 1 and proposition 2; two classes: theorem 1.
        """
        bounds.check_alpha(alpha)
        _check(x, n0, 1, name="n0")
        bounds.check_counts(n=n)
        check_bound(bound)
        check_enough(n, alpha, bound)
        generator = given_or_fresh(generator, x)
        top = self.sample_under_noise(x, n0, generator, batch_size).argmax(1)
        counts = self.sample_under_noise(x, n, generator, batch_size)
        radius, p_a = radii(counts, top, n, alpha, self.sigma, bound)
        prediction = torch.where(torch.as_tensor(radius > 0), top.cpu(), ABSTAIN)
        return Certificates(prediction, torch.as_tensor(radius), counts, torch.as_tensor(p_a))

    def certify_at_radius(
        self,
        x: Tensor,
        radius: float | Sequence[float],
        alpha: float,
        n_max: int,
        *,
        n0: int = 100,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
    ) -> RadiusCertificates:
        """Is g certified at this radius? Samples only until the answer is clear.

        A group-sequential test of "p_A is at most ``Phi(radius / sigma)``" for the class that n0
        samples select. For each image, with probability at least ``1 - alpha``, a certified
        radius is true. With a grid of radii one run answers for all of them, at the same alpha:
        the boundaries rise with the radius, so a false claim means that one fixed test erred.

        Args:
            x, generator, batch_size: as for :meth:`sample_under_noise`.
            radius: in pixel units, above 0; or an increasing grid of radii.
            alpha: error probability in (0, 1), per image; spent as :func:`sequential.spending`
                says, 10 % before the last look.
            n_max: largest number of estimation samples; enough that n_max equal votes would
                certify the smallest radius.
            n0: selection samples; they are counted in ``samples``, not in ``n_max``.

        Returns:
            :class:`RadiusCertificates`, per image.

        Raises:
            ValueError: for arguments out of range; an n_max too small is one.

        Source: Jennison & Turnbull (1999); boundaries by :func:`sequential.plan`.

        >>> g = SmoothedClassifier(lambda x: torch.stack([x.sum(1), -x.sum(1)], 1), 1.0, 2)
        >>> x = torch.tensor([[2.0, 2.0]])  # at distance 2.83 from the border
        >>> found = g.certify_at_radius(x, 1.0, 0.001, 10_000)
        >>> found.certified.tolist(), bool(found.samples[0] < 1000)
        ([True], True)
        """
        _check(x, n0, 1, name="n0")
        grid = np.atleast_1d(np.asarray(radius, dtype=float))
        if not (len(grid) and np.all(np.isfinite(grid) & (grid > 0)) and np.all(np.diff(grid) > 0)):
            raise ValueError(f"radius={radius}: expected one or more increasing values above 0")
        sizes = sequential.looks(n_max)
        p_null = special.ndtr(grid / self.sigma)
        if p_null[-1] == 1 or np.any(np.diff(p_null) == 0):
            raise ValueError(
                f"radius={radius}: no votes can tell such radii apart at sigma={self.sigma:g}; "
                f"expected at most {8 * self.sigma:g}, in steps that are not tiny"
            )
        plan = sequential.plan(p_null, alpha, sizes)
        if plan.success[0, -1] > n_max:
            share = (1 - sequential.EARLY) * alpha
            least = math.ceil(math.log(share) / special.log_ndtr(grid[0] / self.sigma))
            raise ValueError(
                f"n_max={n_max}: even {n_max} equal votes do not certify radius {grid[0]:g} at "
                f"alpha={alpha}; use at least n_max={least}"
            )
        generator = given_or_fresh(generator, x)
        top = self.sample_under_noise(x, n0, generator, batch_size).argmax(1)
        votes = np.zeros(len(x), dtype=np.int64)
        used = np.full(len(x), n0, dtype=np.int64)
        reached = np.zeros(len(x), dtype=np.int64)  # how many radii of the grid are certified
        undecided = np.ones((len(x), len(grid)), dtype=bool)
        for look, more in enumerate(np.diff(sizes, prepend=0)):
            rows = torch.as_tensor(np.flatnonzero(undecided.any(axis=1)), device=x.device)
            if len(rows) == 0:
                break
            counts = self.sample_under_noise(x[rows], int(more), generator, batch_size)
            here = rows.cpu().numpy()
            votes[here] += votes_for(counts, top[rows])
            used[here] += more
            crossed = votes[here, None] >= plan.success[:, look]
            given_up = votes[here, None] <= plan.futility[:, look]
            reached[here] = np.maximum(reached[here], crossed.sum(axis=1))
            undecided[here] &= ~(crossed | given_up)
        largest = torch.as_tensor(np.append(0.0, grid)[reached])
        prediction = torch.where(largest > 0, top.cpu(), ABSTAIN)
        return RadiusCertificates(prediction, largest > 0, largest, torch.as_tensor(used))

    def certify_anytime(
        self,
        x: Tensor,
        gain: float,
        alpha: float,
        n_max: int,
        *,
        n0: int = 100,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
    ) -> AnytimeCertificates:
        """Certify whatever radius there is; samples until it could gain at most ``gain``.

        The lower bound of p_A holds at all sample sizes at once, so stopping may depend on it. At
        every look the radius is compared with the one that n_max samples would give if p_A were
        at its upper bound; an image that could not be certified even then is given up. The
        certificate holds with probability at least ``1 - alpha`` per image, and so does the
        upper bound that decides when to stop.

        Args:
            x, generator, batch_size: as for :meth:`sample_under_noise`.
            gain: in pixel units, above 0.
            alpha: error probability in (0, 1), per image.
            n_max: largest number of estimation samples.
            n0: selection samples; they are counted in ``samples``, not in ``n_max``.

        Returns:
            :class:`AnytimeCertificates`, per image.

        Raises:
            ValueError: for arguments out of range.

        Source: :func:`sequential.anytime_lower_bound`; looks as for :meth:`certify_at_radius`.

        >>> g = SmoothedClassifier(lambda x: torch.stack([x.sum(1), -x.sum(1)], 1), 1.0, 2)
        >>> found = g.certify_anytime(torch.tensor([[0.5, 0.5]]), 0.2, 0.001, 100_000)
        >>> bool(0.3 < found.radius[0] < 0.71), bool(found.samples[0] < 10_000)  # true: 0.707
        (True, True)
        """
        _check(x, n0, 1, name="n0")
        bounds.check_alpha(alpha)
        if not (math.isfinite(gain) and gain > 0):
            raise ValueError(f"gain={gain}: expected a finite number above 0, in pixel units")
        generator = given_or_fresh(generator, x)
        top = self.sample_under_noise(x, n0, generator, batch_size).argmax(1)
        votes = np.zeros(len(x), dtype=np.int64)
        used = np.zeros(len(x), dtype=np.int64)
        radius = np.zeros(len(x))
        going = np.arange(len(x))
        for size in sequential.looks(n_max):
            if len(going) == 0:
                break
            rows = torch.as_tensor(going, device=x.device)
            more = int(size - used[going[0]])
            counts = self.sample_under_noise(x[rows], more, generator, batch_size)
            votes[going] += votes_for(counts, top[rows])
            used[going] = size
            lower = sequential.anytime_lower_bound(votes[going], size, alpha)
            best = sequential.best_case_bound(votes[going], size, n_max, alpha)
            # The bounds of all looks hold together, so the largest may be kept.
            radius[going] = np.maximum(radius[going], bounds.certified_radius(lower, self.sigma))
            hope = bounds.certified_radius(best, self.sigma) - radius[going]
            going = going[hope > gain]
        prediction = torch.where(torch.as_tensor(radius > 0), top.cpu(), ABSTAIN)
        return AnytimeCertificates(prediction, torch.as_tensor(radius), torch.as_tensor(used + n0))


def _drawn_ahead(
    shapes: Sequence[tuple[int, ...]], sigma: float, dtype: torch.dtype, generator: torch.Generator
) -> Iterator[Tensor]:
    """Noise of each shape in turn, valid until the next one is asked for.

    On a CPU PyTorch makes normal numbers by sixteens, and the rest of a tensor in another way. So
    they are drawn by sixteens, and what is left over goes to the next shape: the numbers do not
    depend on the batch size. With several threads they are drawn while the network works on the
    last batch: a generator uses one thread, and the others would wait for it.
    """
    largest = max(map(math.prod, shapes), default=0) + 32
    buffers = [torch.empty(largest, dtype=dtype, device=generator.device) for _ in range(2)]
    left = buffers[0][:0].clone()

    def draw(turn: int) -> Tensor:
        nonlocal left
        buffer, needed, old = buffers[turn % 2], math.prod(shapes[turn]), len(left)
        end = old - (old - needed) // 16 * 16  # as many sixteens as are missing
        with torch.inference_mode():
            buffer[:old] = left
            buffer[old:end].normal_(0, sigma, generator=generator)
            left = buffer[needed:end].clone()
            return buffer[:needed].view(shapes[turn])

    # On a GPU all is queued anyway, in the caller's stream; and one thread means one thread.
    if generator.device.type != "cpu" or torch.get_num_threads() == 1:
        yield from map(draw, range(len(shapes)))
        return
    with ThreadPoolExecutor(1) as thread:
        ahead = [thread.submit(draw, 0)] if shapes else []
        for turn in range(len(shapes)):
            noise = ahead.pop().result()
            if turn + 1 < len(shapes):
                ahead.append(thread.submit(draw, turn + 1))
            yield noise


def _check(x: Tensor, n: int, batch_size: int, name: str = "n") -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point() or x.ndim < 2:
        raise TypeError(
            f"x: expected a floating-point tensor (b, ...), got {x.dtype} of shape {tuple(x.shape)}"
        )
    bounds.check_counts(**{name: n, "batch_size": batch_size})
