"""Randomized smoothing: g(x), the most likely class of f under noise, and its certificates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trustml_helpers import sequential
from trustml_helpers._support.arguments import (
    ALPHA,
    declared,
    function,
    increasing,
    maybe,
    number,
    numbers,
    shown,
    whole,
)
from trustml_helpers._support.calling import fast_layout, logits_of, suited_batch, unchanged
from trustml_helpers._support.randomness import given_or_fresh
from trustml_helpers._support.tensors import GENERATOR, IMAGES
from trustml_helpers.smoothing.noise import NOISE, Noise
from trustml_helpers.smoothing.votes import (
    ABSTAIN,
    BOUND,
    answered,
    decide,
    enough,
    radii,
    votes_for,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Certificates(NamedTuple):
    """What CERTIFY found, per image."""

    prediction: Tensor  # int64 (b,), ABSTAIN where nothing is certified
    radius: Tensor  # float64 (b,), in the norm of the noise, 0 where abstained
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
    radius: Tensor  # float64 (b,), in the norm of the noise, 0 where abstained
    samples: Tensor  # int64 (b,), noisy copies used, the n0 selection samples included


_RADII = increasing(numbers("(0, inf)"), "finite numbers above 0, in pixel units")
_sampled = {
    "x": IMAGES, "generator": GENERATOR, "batch_size": maybe(whole(1)), "alpha": ALPHA,
}  # fmt: skip
_n = {"n0": whole(1), "n_max": whole(1)}


def _can_be_told_apart(self: Any, radius: Floats, alpha: float, n_max: int) -> None:
    p_null = self.noise.needed(radius)
    if p_null[-1] == 1 or np.any(np.diff(p_null) == 0):
        raise ValueError(
            f"radius={shown(radius)}: no votes can tell such radii apart under {self.noise}; "
            f"expected at most {self.noise.radius(1 - 2.0**-53):.3g}, in steps that are not tiny"
        )
    if sequential.plan(p_null, alpha, sequential.looks(n_max)).success[0, -1] > n_max:
        share = (1 - sequential.EARLY) * alpha  # what the last look has for sure
        plenty = math.ceil(math.log(share) / math.log(p_null[0]))
        raise ValueError(
            f"n_max={n_max}: even {n_max} equal votes do not certify radius {radius[0]:g} at "
            f"alpha={alpha}; n_max={plenty} is enough"
        )


def _fit_the_noise(self: Any, x: Tensor) -> None:
    self.noise.check(x)


class SmoothedClassifier:
    """g(x): the class that the base classifier f most likely returns on noisy copies of x.

    Args:
        base_classifier: f, any callable from images to logits ``(n, K)``; used in eval mode (a
            warning says so if it was in training mode) and left as found. Noisy images are not
            clipped. A checkpoint of the course trained with another sigma, or with noise that has
            none, gives a warning.
        sigma: standard deviation of Gaussian noise, above 0, in pixel units: copies are
            x + N(0, sigma^2 I), radii in l2. Or another noise, ``Uniform(0.5)`` or ``Laplace(0.5)``
            (radii in l1), ``Ablation(45)`` (radii in l0).
        num_classes: K, at least 2.

    Attributes:
        noise: the noise, with its norm.
        sigma: of the noise, if it has one.

    What is promised of certificates is promised in real arithmetic: in floating point the noise is
    not quite the same at every x, and a contrived f can make a certificate false (Voráček & Hein
    2023; ``notebooks/beyond/votes_and_audits.ipynb``, section 5).

    Source: Cohen, Rosenfeld, Kolter (2019), "Certified adversarial robustness via randomized
    smoothing", section 3 and algorithm 1.

    >>> g = SmoothedClassifier(lambda x: torch.stack([x.sum(1), -x.sum(1)], 1), 1.0, 2)
    >>> x = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])
    >>> g.predict(x, 200, alpha=0.001, generator=torch.Generator().manual_seed(0)).tolist()
    [0, 1]
    """

    @declared(
        base_classifier=function("from images to logits (n, K)"), sigma=NOISE, num_classes=whole(2)
    )
    def __init__(
        self, base_classifier: Callable[[Tensor], Tensor], sigma: float | Noise, num_classes: int
    ) -> None:
        self.base_classifier, self.num_classes = base_classifier, num_classes
        assert isinstance(sigma, Noise)  # the declaration has made one of a number
        self.noise, self.sigma = sigma, getattr(sigma, "sigma", None)
        self.settled = False  # whether the memory layout was chosen, as `prepare` does
        card = getattr(base_classifier, "card", {})
        for name in ("sigma", "keep"):
            given, trained = getattr(sigma, name, None), card.get(name)
            if trained is not None and given != trained:
                asked = sigma if given is None else f"{name}={given:g}"
                warnings.warn(
                    f"{asked}: this checkpoint was trained with {name} {trained:g}; with "
                    "other noise it mostly certifies less",
                    UserWarning,
                    stacklevel=3,
                )

    @declared(_fit_the_noise, n=whole(1), **{k: v for k, v in _sampled.items() if k != "alpha"})
    def sample_under_noise(
        self, x: Tensor, n: int, generator: torch.Generator | None = None,
        batch_size: int | None = None,
    ) -> Tensor:  # fmt: skip
        """SAMPLEUNDERNOISE: how often f returns each class on n noisy copies of each image.

        Args:
            x: images ``(b, ...)``, floating point, any range.
            n: noisy copies of each image, at least 1.
            generator: source of the noise; fresh entropy if not given.
            batch_size: noisy images per forward pass; what suits the size of an image if not given.
                On a CPU the noise does not depend on it.

        Returns:
            int64 counts ``(b, K)`` on the device of x. Each row adds up to n, less the votes that
            were lost because f returned NaN or an infinite logit (a warning says how many).
        """
        batch_size = suited_batch(x) if batch_size is None else batch_size
        generator = given_or_fresh(generator, x)
        votes = torch.zeros(len(x), self.num_classes + 1, dtype=torch.int64, device=x.device)
        with self._evaluated(x) as f, torch.inference_mode():
            for first, noisy in self.noise.copies(x, n, batch_size, generator):
                logits = logits_of(f, noisy.flatten(0, 1), self.num_classes)
                # A last column for what is no vote: NaN, or infinite.
                chosen = logits.argmax(1).masked_fill(~logits.isfinite().all(1), self.num_classes)
                chosen = chosen.view(noisy.shape[:2])
                votes[first : first + len(chosen)].scatter_add_(1, chosen, torch.ones_like(chosen))
        if lost := int(votes[:, -1].sum()):
            warnings.warn(
                f"f returned NaN or infinite logits for {lost} of {n * len(x)} noisy images; they "
                "vote for no class",
                RuntimeWarning,
                stacklevel=3,
            )
        return votes[:, :-1].clone()

    @contextmanager
    def _evaluated(self, x: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
        """The base classifier in eval mode and in the layout that is fast here, given back as it
        was found."""
        model = self.base_classifier
        if isinstance(model, nn.Module) and any(each.training for each in model.modules()):
            warnings.warn(
                "base_classifier is in training mode: it is evaluated in eval mode and given back "
                "as it was; call .eval() first if that is what you mean",
                UserWarning,
                stacklevel=5,
            )
        with unchanged(model):
            if self.settled:
                yield model
            else:
                with fast_layout(model, x) as fast:
                    yield fast

    @declared(_fit_the_noise, n=whole(1), **_sampled)
    def predict(
        self, x: Tensor, n: int, alpha: float, *, generator: torch.Generator | None = None,
        batch_size: int | None = None,
    ) -> Tensor:  # fmt: skip
        """PREDICT: g(x), or ABSTAIN where n votes do not settle it.

        For each image, the probability that a class is returned which is not g(x) is at most
        ``alpha``. Among the returned answers the share of wrong ones may be larger.

        Args:
            x, n, generator, batch_size: as for :meth:`sample_under_noise`.
            alpha: error probability in (0, 1), per image.

        Returns:
            int64 ``(b,)``, :data:`ABSTAIN` where the test is not passed.

        Source: Cohen et al. (2019), algorithm 1 and proposition 1: a two-sided binomial test of
        the two largest counts.
        """
        counts = self.sample_under_noise(x, n, generator, batch_size)
        return decide(counts, alpha)

    @declared(_fit_the_noise, enough, n0=whole(1), n=whole(1), bound=BOUND, **_sampled)
    def certify(
        self, x: Tensor, n0: int, n: int, alpha: float, bound: str = "one_class", *,
        generator: torch.Generator | None = None, batch_size: int | None = None,
    ) -> Certificates:  # fmt: skip
        """CERTIFY: a class and a radius within which g cannot change, or ABSTAIN.

        The class is chosen on n0 samples and its probability bounded on n fresh ones. For each
        image, with probability at least ``1 - alpha``, a returned class and radius R are true:
        g(x + delta) is that class for every delta shorter than R in the norm of the noise (in l0:
        of at most R pixels; R = 0 says that x itself is of that class).

        Args:
            x, generator, batch_size: as for :meth:`sample_under_noise`.
            n0: selection samples, at least 1.
            n: estimation samples, enough that n equal votes would certify something.
            alpha: error probability in (0, 1), per image.
            bound: ``"one_class"`` as published, or ``"two_class"``, which also bounds the largest
                other class: 90 % of alpha for the top class, 10 % for the other, fixed in advance.

        Returns:
            :class:`Certificates`, per image.

        Source: Cohen et al. (2019), algorithm 1 and proposition 2; two classes: theorem 1. For
        other noise the same votes, with the radius of :class:`Noise`.
        """
        generator = given_or_fresh(generator, x)
        top = self.sample_under_noise(x, n0, generator, batch_size).argmax(1)
        counts = self.sample_under_noise(x, n, generator, batch_size)
        radius, p_a = radii(counts, top, n, alpha, self.noise, bound)
        prediction = answered(top, radius, p_a)
        return Certificates(prediction, torch.as_tensor(radius), counts, torch.as_tensor(p_a))

    @declared(_fit_the_noise, _can_be_told_apart, radius=_RADII, **_n, **_sampled)
    def certify_at_radius(
        self, x: Tensor, radius: float | Sequence[float], alpha: float, n_max: int, *,
        n0: int = 100, generator: torch.Generator | None = None, batch_size: int | None = None,
    ) -> RadiusCertificates:  # fmt: skip
        """Is g certified at this radius? Samples only until the answer is clear.

        A group-sequential test of "p_A is at most what the radius needs", ``Phi(radius / sigma)``
        under Gaussian noise, for the class that n0 samples select. For each image, with probability
        at least ``1 - alpha``, a certified radius is true. With a grid of radii one run answers
        for all of them, at the same alpha:
        the boundaries rise with the radius, so a false claim means that one fixed test erred.

        Args:
            x, generator, batch_size: as for :meth:`sample_under_noise`.
            radius: in pixel units (l0: pixels), above 0; or an increasing grid of radii.
            alpha: error probability in (0, 1), per image; spent as :func:`sequential.spending`
                says, 10 % before the last look.
            n_max: largest number of estimation samples; enough that n_max equal votes would
                certify the smallest radius.
            n0: selection samples; they are counted in ``samples``, not in ``n_max``.

        Returns:
            :class:`RadiusCertificates`, per image.

        Source: Jennison & Turnbull (1999); boundaries by :func:`sequential.plan`.

        >>> g = SmoothedClassifier(lambda x: torch.stack([x.sum(1), -x.sum(1)], 1), 1.0, 2)
        >>> x = torch.tensor([[2.0, 2.0]])  # at distance 2.83 from the border
        >>> found = g.certify_at_radius(x, 1.0, 0.001, 10_000)
        >>> found.certified.tolist(), bool(found.samples[0] < 1000)
        ([True], True)
        """
        grid, sizes = np.asarray(radius), sequential.looks(n_max)
        plan = sequential.plan(self.noise.needed(grid), alpha, sizes)
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

    @declared(_fit_the_noise, gain=number("(0, inf)", "in pixel units"), **_n, **_sampled)
    def certify_anytime(
        self, x: Tensor, gain: float, alpha: float, n_max: int, *, n0: int = 100,
        generator: torch.Generator | None = None, batch_size: int | None = None,
    ) -> AnytimeCertificates:  # fmt: skip
        """Certify whatever radius there is; samples until more would hardly enlarge it.

        The lower bound of p_A holds at all sample sizes at once, so stopping may depend on it: the
        certificate holds with probability at least ``1 - alpha`` per image. At every look the
        radius is compared with :func:`sequential.best_case_bound`, and sampling stops where that
        is at most ``gain`` larger. So the probability that it stops early, and the radius that the
        bound at n_max gives is larger by more than ``gain`` all the same, is at most ``2 * alpha``.

        Args:
            x, generator, batch_size: as for :meth:`sample_under_noise`.
            gain: in pixel units, above 0.
            alpha: error probability in (0, 1), per image.
            n_max: largest number of estimation samples.
            n0: selection samples; they are counted in ``samples``, not in ``n_max``.

        Returns:
            :class:`AnytimeCertificates`, per image.

        Source: :func:`sequential.anytime_lower_bound`; looks as for :meth:`certify_at_radius`.

        >>> g = SmoothedClassifier(lambda x: torch.stack([x.sum(1), -x.sum(1)], 1), 1.0, 2)
        >>> found = g.certify_anytime(torch.tensor([[0.5, 0.5]]), 0.2, 0.001, 100_000)
        >>> bool(0.3 < found.radius[0] < 0.71), bool(found.samples[0] < 10_000)  # true: 0.707
        (True, True)
        """
        generator = given_or_fresh(generator, x)
        top = self.sample_under_noise(x, n0, generator, batch_size).argmax(1)
        votes = np.zeros(len(x), dtype=np.int64)
        used = np.zeros(len(x), dtype=np.int64)
        p_a = np.zeros(len(x))
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
            p_a[going] = np.maximum(p_a[going], lower)
            hope = self.noise.radius(best) - self.noise.radius(p_a[going])
            going = going[hope > gain]
        radius = self.noise.radius(p_a)
        prediction = answered(top, radius, p_a)
        return AnytimeCertificates(prediction, torch.as_tensor(radius), torch.as_tensor(used + n0))
