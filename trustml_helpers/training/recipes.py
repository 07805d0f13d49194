"""Named ways to train: the networks of the course, the papers' settings for smoothing, quick ones.

The published settings are those under which Jeong & Shin (2020) compared these methods on MNIST,
with LeNet, and for what came later those of the authors' programs. A ``quick_`` recipe is the same
objective with fewer passes, fewer noisy copies and fewer attack steps, for a CPU. ``trustml train
--help`` lists them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, StepLR

from trustml_helpers import attacks, bounds, models, objectives, smoothing
from trustml_helpers._support.calling import digest
from trustml_helpers._support.randomness import keyed_generator
from trustml_helpers.objectives import ByEpoch, Objective
from trustml_helpers.training import loop as training

BEHIND = "mnist_smallcnn_standard"  # the network behind a denoiser
Make = Callable[[Any, torch.Generator], Objective | ByEpoch]


slow = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=1e-4)
fast = partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


def every_third(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """Learning rate times 0.1 after each third of the training: "every 30 of 90 epochs"."""
    return StepLR(optimizer, -(-total_steps // 3), gamma=0.1)


@dataclass(frozen=True)
class Recipe:
    """All that decides how a network is trained, but the seed; ``replace`` changes a part of it.

    Args:
        make: ``(sigma, generator) -> objective``, or ``(eps, generator)`` where there is no noise,
            or ``(noise, generator)``.
        words: the objective and its settings, for a card.
        copies: forward and backward passes per image and epoch, at sigma 0.5.
        source: where the settings are from.
        sigma: standard deviation of Gaussian noise; None: there is none.
        noise: of another kind, if there is any.
        eps: radius of the l-inf ball of the attack; None: there is none, or it is not to choose.
        epochs, batch_size, optimizer, scheduler, precision, best, average: as for
            :func:`training.fit`; with eps, validation measures the errors under ``"fgsm"`` and
            ``"pgd"``, too.
        channels_last: memory layout of the weights.
        architecture: name of the network.

    >>> replace(RECIPES["trades"], eps=0.1, epochs=2).title
    'TRADES, beta 6, 10 steps, linf, eps 0.1'
    """

    make: Make
    words: str
    copies: int = 1
    source: str = ""
    sigma: float | None = 0.5
    noise: smoothing.Noise | None = None
    eps: float | None = None
    epochs: int = 90
    batch_size: int = 256
    optimizer: training.MakeOptimizer = slow
    scheduler: training.MakeScheduler | None = every_third
    precision: str = "float32"
    best: str | None = None
    average: float | None = None
    channels_last: bool = False
    architecture: str = "LeNet"

    @property
    def title(self) -> str:
        """The words, with sigma or eps."""
        sizes = {"sigma": self.sigma, "eps": self.eps}
        return ", ".join([self.words, *(f"{k} {v:g}" for k, v in sizes.items() if v is not None)])

    def objective(self, generator: torch.Generator) -> Objective | ByEpoch:
        """What to minimise; all that it draws comes from the generator."""
        return self.make(self.noise or (self.eps if self.sigma is None else self.sigma), generator)


# --- networks that are to be smoothed -------------------------------------------------------------


def _consistency(sigma: float, generator: torch.Generator) -> Objective:
    return objectives.consistency(sigma, 10.0 if sigma < 0.5 else 5.0, 0.5, generator=generator)


def _smoothadv(
    sigma: float, generator: torch.Generator, *, lam: float = 0.0, samples: int = 4,
    steps: int = 10, ramp: int = 10,
) -> ByEpoch:  # fmt: skip
    """eps grows in equal steps over the first ``ramp`` epochs to 255/256."""

    def at(epoch: float) -> Objective:
        eps, eta = 255 / 256 * _grown(epoch, ramp), 0.5 if lam else 0.0
        return objectives.smoothadv(
            sigma, eps, lam, eta, samples=samples, steps=steps, generator=generator
        )

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


def _cat_rs(
    sigma: float, generator: torch.Generator, *, samples: int = 4, steps: int = 4,
    votes: int = 10_000,
) -> Objective:  # fmt: skip
    """One teacher for all sigma, as in the authors' program."""
    shares = _counted_once("mnist_lenet_gaussian_0.25", 0.25, votes)
    return objectives.cat_rs(sigma, shares, samples=samples, steps=steps, generator=generator)


def _noise_first(make: Make, sigma: float, generator: torch.Generator) -> ByEpoch:
    """Gaussian noise alone for three epochs, then what ``make`` begins with."""
    first = objectives.gaussian(sigma, generator=generator)
    then = make(sigma, generator)

    def at(epoch: float) -> Objective:
        if epoch < 3:
            return first
        return then.at(epoch - 3) if isinstance(then, ByEpoch) else then

    return ByEpoch(at)


def _easy(
    make: Callable[[float, torch.Generator], ByEpoch], sigma: float, generator: torch.Generator, *,
    votes: int = 32,
) -> ByEpoch:  # fmt: skip
    """What ``make`` does, by epoch, on images that are easy for the Gaussian network of this sigma.

    An image is drawn in proportion to the radius that its votes certify at alpha 0.1, at least
    that of three quarters of them; never where fewer than half are right.
    """
    shares = _counted_once(f"mnist_lenet_gaussian_{float(sigma)}", sigma, votes)
    inner = make(sigma, generator)

    def weights(x: Tensor, y: Tensor) -> Tensor:
        right = shares(x).gather(1, y[:, None])[:, 0].cpu()
        p_a = bounds.lower_conf_bound((right.clamp(min=0.75) * votes).round(), votes, 0.1)
        return torch.as_tensor(bounds.certified_radius(p_a, sigma)) * (right >= 0.5)

    return ByEpoch(
        lambda epoch: objectives.reweighted(inner.at(epoch), weights, generator=generator)
    )


def _counted_once(network: str, sigma: float, votes: int) -> Callable[[Tensor], Tensor]:
    """Vote shares ``(n, 10)`` of a network of the course, counted when an image is first seen."""
    teacher = smoothing.SmoothedClassifier(models.load(network), sigma, 10)
    known: dict[str, Tensor] = {}

    def shares(x: Tensor) -> Tensor:
        keys = [digest(image) for image in x]
        for key, image in zip(keys, x, strict=True):
            if key not in known:  # noise of its own: the same votes also after a kill
                own = keyed_generator(0, int(key[:15], 16))
                known[key] = teacher.sample_under_noise(image[None], votes, own)[0] / votes
        return torch.stack([known[key] for key in keys])

    return shares


def _grown(epoch: float, ramp: int) -> float:
    """1 from epoch ``ramp`` on, in equal steps up to there."""
    return min(1.0, (int(epoch) + 1) / ramp)


_JEONG = "Jeong & Shin (2020), MNIST"
PUBLISHED = {
    "gaussian": Recipe(
        lambda sigma, generator: objectives.gaussian(sigma, generator=generator), "Gaussian noise",
        1, f"Cohen et al. (2019), as in {_JEONG}",
    ),
    "stability": Recipe(
        lambda sigma, generator: objectives.stability(sigma, 2.0, generator=generator),
        "stability training, lambda 2", 2, f"Li et al. (2019), as in {_JEONG}",
    ),
    "consistency": Recipe(
        _consistency, "consistency, m 2, lambda 10 (5 from sigma .5 on), eta .5", 2, _JEONG
    ),
    "smoothadv": Recipe(
        _smoothadv, "SmoothAdv, m 4, 10 steps, eps 255/256 after 10 epochs", 44,
        f"Salman et al. (2019), as in {_JEONG}", batch_size=64,
    ),
    "smoothadv_consistency": Recipe(
        partial(_smoothadv, lam=1.0), "SmoothAdv (m 4, 10 steps) with consistency, lambda 1, "
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
    "cat_rs": Recipe(
        _cat_rs, "CAT-RS, m 4, 4 steps of .5, lambda 1; soft labels: 10,000 votes of the Gaussian "
        "network of sigma .25", 24, "Jeong et al. (2023), MNIST", epochs=150, batch_size=64,
    ),
}  # fmt: skip
_lean: dict[str, Any] = {"precision": "bfloat16", "channels_last": True}  # fast on most CPUs
_quick = partial(
    replace, epochs=16, optimizer=fast, scheduler=training.triangular(0.1, top=0.3), **_lean
)
_attacked = partial(
    _quick, copies=8, epochs=12, batch_size=128, optimizer=partial(fast, lr=0.05),
    scheduler=training.triangular(0.05, top=0.3), average=0.998,
)  # fmt: skip
_quick_consistent = partial(_noise_first, partial(_smoothadv, lam=1.0, samples=2, steps=3, ramp=2))
QUICK = {
    "quick_gaussian": _quick(PUBLISHED["gaussian"], epochs=8),
    "quick_stability": _quick(PUBLISHED["stability"]),
    "quick_consistency": _quick(PUBLISHED["consistency"]),
    "quick_smoothadv": _attacked(
        PUBLISHED["smoothadv"],
        make=partial(_noise_first, partial(_smoothadv, samples=2, steps=3, ramp=2)),
        words="Gaussian noise for 3 epochs, then SmoothAdv, m 2, 3 steps, eps 255/256 after 2",
    ),
    "quick_smoothadv_consistency": _attacked(
        PUBLISHED["smoothadv_consistency"], make=_quick_consistent,
        words="Gaussian noise for 3 epochs, then SmoothAdv (m 2, 3 steps, eps 255/256 after 2) "
        "with consistency, lambda 1, eta .5",
    ),
    "quick_easy": _attacked(
        PUBLISHED["smoothadv_consistency"], make=partial(_easy, _quick_consistent),
        source="after Sun et al. (2025)",
        words="as quick_smoothadv_consistency, but images that the Gaussian network gets wrong are "
        "discarded and the others drawn by their certified radius",
    ),
    # The radius is added at a rate of 0.001, as in the published schedule: at 0.003 and 0.03
    # accuracy fell and did not come back.
    "quick_macer": _quick(
        PUBLISHED["macer"], make=partial(_macer, samples=6, wait=3), copies=6, epochs=9,
        words="MACER, k 6, lambda 16 (6 at sigma 1) from epoch 3 on, beta 16, gamma 8",
        batch_size=128, optimizer=partial(fast, lr=0.01), scheduler=every_third,
    ),
    "quick_smoothmix": _attacked(
        PUBLISHED["smoothmix"],
        make=partial(_noise_first, partial(_smoothmix, samples=2, longest=4, ramp=2)), copies=12,
        words="Gaussian noise for 3 epochs, then SmoothMix with the one-step adversary, m 2, eta "
        "5, 2 steps of 1 at sigma .25, 4 from .5 on",
    ),
    "quick_cat_rs": _attacked(
        PUBLISHED["cat_rs"],
        make=partial(_noise_first, partial(_cat_rs, samples=2, steps=2, votes=32)),
        words="Gaussian noise for 3 epochs, then CAT-RS, m 2, 2 steps of 1, lambda 1; soft labels: "
        "32 votes of the Gaussian network of sigma .25",
    ),
}  # fmt: skip
_long = partial(_attacked, epochs=23, average=0.999)
NIGHT = {
    "night_smoothadv_consistency": _long(
        PUBLISHED["smoothadv_consistency"], copies=16,
        make=partial(_noise_first, partial(_smoothadv, lam=1.0, samples=4, steps=3, ramp=4)),
        words="Gaussian noise for 3 epochs, then SmoothAdv (m 4, 3 steps, eps 255/256 after 4) "
        "with consistency, lambda 1, eta .5",
    ),
    "night_cat_rs": _long(
        PUBLISHED["cat_rs"], copies=24,
        make=partial(_noise_first, partial(_cat_rs, samples=4, steps=4, votes=32)),
        words="Gaussian noise for 3 epochs, then CAT-RS, m 4, 4 steps of .5, lambda 1; soft "
        "labels: 32 votes of the Gaussian network of sigma .25",
    ),
}  # fmt: skip


# --- the networks of the course -------------------------------------------------------------------


def _standard(_: None, generator: torch.Generator) -> Objective:
    return objectives.standard


def _adversarial(
    eps: float, generator: torch.Generator, *, attack: Callable[..., Tensor], ramp: float = 2.0
) -> ByEpoch:
    """eps grows along a line over the first ``ramp`` epochs."""

    def at(epoch: float) -> Objective:
        now = eps * min(1.0, epoch / ramp) if ramp else eps
        return objectives.adversarial(partial(attack, eps=now, generator=generator))

    return ByEpoch(at)


def _trades(eps: float, generator: torch.Generator) -> ByEpoch:
    """eps grows along a line over the first two epochs."""
    return ByEpoch(lambda epoch: objectives.trades(eps * min(1.0, epoch / 2), generator=generator))


def _denoising(sigma: float, generator: torch.Generator, *, alone: int) -> ByEpoch:
    """The squared error alone up to epoch ``alone``, then what the standard network makes of it."""
    first = objectives.denoising(sigma, generator=generator)
    behind = models.load(BEHIND)
    then = objectives.denoising(sigma, behind, generator=generator)
    return ByEpoch(lambda epoch: first if epoch < alone else then)


def _adam(peak: float) -> dict[str, Any]:
    """Adam whose learning rate rises to ``peak`` and falls again."""
    adam = partial(torch.optim.Adam, lr=peak)
    return {"optimizer": adam, "scheduler": training.triangular(peak)}


_small = partial(Recipe, sigma=None, architecture="SmallCNN")
_fgsm_rs = _small(
    partial(_adversarial, attack=attacks.fgsm_rs),
    "adversarial training against FGSM-RS (unclipped start), linf", 2, "Wong et al. (2020)",
    eps=0.3, epochs=10, batch_size=100, best="error pgd", **_adam(0.005), **_lean,
)  # fmt: skip
COURSE = {
    "standard": _small(_standard, "standard cross-entropy", epochs=8, batch_size=128,
                       **_adam(0.002)),
    "standard_constant": _small(
        _standard, "standard cross-entropy", epochs=5, batch_size=128, optimizer=training.adam,
        scheduler=None,
    ),
    "adversarial": _small(
        partial(_adversarial, attack=partial(attacks.pgd, steps=10, keep="last")),
        "adversarial training against PGD-10, linf", 11, "Madry et al. (2018)", eps=0.3, epochs=16,
        batch_size=100, **_adam(0.002),
    ),
    "fgsm_rs": _fgsm_rs,
    # For catastrophic overfitting: eps is whole from the first step on.
    "fgsm_rs_sudden": replace(
        _fgsm_rs, make=partial(_adversarial, attack=attacks.fgsm_rs, ramp=0.0),
        words="adversarial training against FGSM-RS (unclipped start, no ramp), linf",
    ),
    "fgsm_rs_sudden_clipped": replace(
        _fgsm_rs, words="adversarial training against FGSM-RS (clipped start, no ramp), linf",
        make=partial(_adversarial, attack=partial(attacks.fgsm_rs, clip_start=True), ramp=0.0),
    ),
    "trades": Recipe(
        _trades, "TRADES, beta 6, 10 steps, linf", 12, "Zhang et al. (2019)", sigma=None, eps=0.32,
        epochs=20, batch_size=128, best="error pgd", architecture="WideCNN", **_adam(0.003),
        **_lean,
    ),
    "course_gaussian": replace(
        PUBLISHED["gaussian"], words="cross-entropy under Gaussian noise", epochs=30,
        optimizer=fast, scheduler=training.triangular(0.1), channels_last=True,
    ),
    "ablation": Recipe(
        lambda noise, generator: objectives.noisy(noise, generator=generator),
        "cross-entropy on digits of which 45 pixels are kept", 1, "Levine & Feizi (2020)",
        sigma=None, noise=smoothing.Ablation(45), epochs=40, batch_size=128,
        architecture="AblationCNN", channels_last=True, **_adam(0.003),
    ),
    "denoiser": Recipe(
        partial(_denoising, alone=8), f"denoiser, squared error, from epoch 8 on stability of "
        f"{BEHIND}, noise uniform up to sigma", 1, "Salman et al. (2020), Stab+MSE", sigma=1.0,
        epochs=12, architecture="Denoiser", channels_last=True, **_adam(0.004),
    ),
}  # fmt: skip
RECIPES = COURSE | PUBLISHED | QUICK | NIGHT
