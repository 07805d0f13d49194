"""Attacks that follow the gradient: FGSM, FGSM-RS, PGD, and PGD on the smoothed classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustml_helpers._support.arguments import SIGMA, declared, maybe, number, one_of, whole
from trustml_helpers._support.calling import logits_of, unchanged
from trustml_helpers._support.randomness import draw
from trustml_helpers._support.tensors import IMAGES, TENSOR, Bounds
from trustml_helpers.attacks.losses import Loss, log_mean_softmax
from trustml_helpers.attacks.norms import NORMS, columns
from trustml_helpers.attacks.search import LARGEST, THREAT, Best, Model, attacking, fits, threat


@declared(fits, **threat("norm", "loss", "batch_size"))
def fgsm(
    model: Model, x: Tensor, y: Tensor, eps: float, *, norm: str = "linf", targeted: bool = False,
    bounds: Bounds = (0, 1), loss: str | Loss = "cross_entropy", batch_size: int | None = None,
) -> Tensor:  # fmt: skip
    """One step of steepest ascent, as long as the budget allows.

    Args:
        model: images to logits ``(n, K)``.
        x: images ``(n, ...)``, floating point, inside ``bounds``.
        y: int64 ``(n,)``; the true labels, or with ``targeted`` the labels to be produced.
        eps: radius of the ball, in pixel units.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``. In l1 the budget goes to the pixels of largest
            gradient, each as far as the bounds allow.
        targeted: move towards y instead of away from it.
        bounds: smallest and largest valid value, ``None`` for unbounded data.
        loss: ``"cross_entropy"``, ``"margin"`` (largest other logit minus logit of y), ``"dlr"``,
            or a function ``(logits, y) -> (n,)``.
        batch_size: images per pass through the model, all of them if not given. The result does
            not depend on it; the memory does: with 224 x 224 pixels some 100 MB an image.

    Returns:
        ``x_adv``, shaped like x, inside ball and bounds.

    Source: Goodfellow, Shlens, Szegedy (2015), section 4; in l2 and l1 the same step in that norm.

    >>> W = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    >>> fgsm(lambda x: x @ W.T, x, y, 0.1)
    tensor([[0.4000, 0.6000]])
    """
    ball = NORMS[norm]
    with attacking(model, x, y, loss, targeted, batch_size) as (x, y, goal):
        gradient = goal.ascend(x, y)[2]
        return ball.projection(x, eps, bounds)(ball.ascend(x, gradient, eps, bounds))


def _starts_fit(
    x: Tensor, steps: int, restarts: int, start: Tensor | None, clip_start: bool, keep: str
) -> None:
    if restarts != 1 and (keep == "last" or start is not None):
        why = "a given start" if start is not None else "keep='last'"
        raise ValueError(f"restarts={restarts}: with {why} there is nothing to repeat, so use 1")
    if start is not None and start.shape != x.shape:
        raise ValueError(f"start: expected shape {tuple(x.shape)}, got {tuple(start.shape)}")
    if not clip_start and (keep != "last" or steps < 1):
        raise ValueError("clip_start=False: needs keep='last' and at least one step, so that no "
                         "point outside the bounds is returned")  # fmt: skip


@declared(
    fits, _starts_fit, **threat("norm", "loss", "generator", "batch_size"), steps=whole(),
    restarts=whole(1), step_size=maybe(number(f"[0, {LARGEST:g}]", "in pixel units")),
    momentum=number("[0, 1]"), start=maybe(IMAGES), keep=one_of("best", "first", "last"),
)  # fmt: skip
def pgd(
    model: Model, x: Tensor, y: Tensor, eps: float, *, norm: str = "linf", bounds: Bounds = (0, 1),
    steps: int = 40, step_size: float | None = None, momentum: float = 0.0, restarts: int = 1,
    random_start: bool = True, start: Tensor | None = None, clip_start: bool = True,
    targeted: bool = False, loss: str | Loss = "cross_entropy", keep: str = "best",
    generator: torch.Generator | None = None, batch_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Projected gradient descent: steps of steepest ascent, each projected on ball and box.

    Args:
        model, x, y, eps, norm, bounds, targeted, loss, batch_size: as for :func:`fgsm`.
        steps: number of steps of each restart.
        step_size: length of a step in pixel units, in the attack's norm. If not given,
            ``2.5 * eps / steps`` in l-inf, enough to cross the ball; ``10 * eps / steps`` (at most
            eps) in l2, where the steps must also turn along the sphere; ``eps / 4`` in l1, where a
            step fills a few pixels, whatever the number of steps.
        momentum: share of the last direction that is kept; each gradient is divided by its l1
            norm before it is added (Dong et al. 2018). 0 follows the gradient alone.
        restarts: independent starts; a restart attacks only what no earlier one fooled.
        random_start: start uniformly in the ball (then projected on the box) instead of at x.
        start: where to start instead, shaped like x; projected on ball and box like any start.
        clip_start: project the start. ``False`` only for FGSM-RS as published, see
            :func:`fgsm_rs`; needs ``keep="last"`` and a step, so that nothing outside is returned.
        keep: ``"best"`` returns per example, over all iterates of all restarts, the last one
            included, a fooling one if there is one, and among equals the one of largest loss.
            ``"first"`` stops working on an example as soon as it is fooled, which is what counting
            wants. ``"last"`` returns the last iterate of a single restart without evaluating it,
            which is what training wants: exactly ``steps`` forward and backward passes.
        generator: source of the random starts; fresh entropy if not given. The global
            generator is never used.

    Returns:
        ``x_adv``, shaped like x, inside the bounds and the ball (l-inf exactly, l2 and l1 up to a
        relative 1e-6).

    Source: Madry et al. (2018), section 2.1; restarts counted per example.

    >>> W = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    >>> pgd(lambda x: x @ W.T, x, y, 0.1, steps=5)
    tensor([[0.4000, 0.6000]])
    """
    ball = NORMS[norm]
    step_size = ball.default_step(eps, steps) if step_size is None else step_size
    with attacking(model, x, y, loss, targeted, batch_size) as (x, y, goal):
        best = Best(x)
        for _ in range(restarts):
            # Noise is drawn for every row, so that no row's noise depends on the others' fate.
            begin = x + eps * ball.uniform(x, generator) if random_start and start is None else x
            rows: Any = (~best.fooled).nonzero()[:, 0] if keep != "last" else slice(None)
            x_clean, target, x_adv = x[rows], y[rows], (begin if start is None else start)[rows]
            if len(x_clean) == 0:
                break
            project, direction = ball.projection(x_clean, eps, bounds), torch.zeros_like(x_clean)
            x_adv = project(x_adv) if clip_start else x_adv
            for _ in range(steps):
                logits, value, gradient = goal.ascend(x_adv, target)
                if keep != "last":
                    stands = ~best.update(rows, x_adv, goal.fooled(logits, target), value)
                if keep == "first" and not stands.all():
                    rows, x_clean, target, x_adv, gradient, direction = (
                        each[stands] for each in (rows, x_clean, target, x_adv, gradient, direction)
                    )
                    if len(rows) == 0:
                        break
                    project = ball.projection(x_clean, eps, bounds)
                direction = momentum * direction + _unit_l1(gradient) if momentum else gradient
                x_adv = project(ball.ascend(x_adv, direction, step_size, bounds))
            if keep == "last":
                return x_adv
            if len(rows):
                best.update(rows, x_adv, *goal.evaluate(x_adv, target))
        return best.x_adv


@declared(eps=THREAT["eps"])
def fgsm_rs(
    model: Model, x: Tensor, y: Tensor, eps: float, *, step_size: float | None = None,
    clip_start: bool = False, bounds: Bounds = (0, 1), loss: str | Loss = "cross_entropy",
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """FGSM from a random start in the l-inf ball, for training: one forward and backward pass.

    Args:
        model, x, y, eps, bounds, loss: as for :func:`fgsm`.
        step_size: 1.25 eps if not given.
        clip_start: project the start on the bounds as well. The published code does not, and it
            may matter: with it none of three runs was robust in the end (notebook 02).
        generator: source of the start; fresh entropy if not given.

    Returns:
        ``x_adv``, shaped like x, inside ball and bounds.

    Source: Wong, Rice, Kolter (2020), "Fast is better than free", algorithm 3.

    >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
    >>> fgsm_rs(lambda x: x, x, y, 0.1, generator=torch.Generator()).sub(x).abs() <= 0.1
    tensor([[True, True]])
    """
    step_size = 1.25 * eps if step_size is None else step_size
    return pgd(model, x, y, eps, bounds=bounds, steps=1, step_size=step_size, keep="last",
               clip_start=clip_start, loss=loss, generator=generator)  # fmt: skip


def _fits_in_l2(x: Tensor, y: Tensor, eps: float, bounds: Bounds) -> None:
    fits(x, y, eps, bounds, norm="l2")


def _noise_fits(x: Tensor, noise: Tensor | None, rest: dict[str, Any]) -> None:
    if noise is None:
        return
    if noise.ndim < x.ndim or noise.shape[noise.ndim - x.ndim + 1 :] != x.shape[1:]:
        raise ValueError(f"noise: expected (samples, ...) or (n, samples, ...) for images shaped "
                         f"{tuple(x.shape)}, got {tuple(noise.shape)}")  # fmt: skip
    if noise.ndim > x.ndim and len(noise) != len(x):
        raise ValueError(f"noise: expected a set for each of {len(x)} images, got {len(noise)}")
    if noise.ndim > x.ndim and rest.get("batch_size") is not None:
        raise ValueError("batch_size: a set of noise per image is not divided; leave it out")
    if noise.ndim > x.ndim and rest.get("keep") != "last":
        raise ValueError(
            "noise: a set per image needs keep='last', which drops no image on the way"
        )


@declared(
    _fits_in_l2, _noise_fits, **threat("generator"), sigma=SIGMA, samples=whole(1),
    noise=maybe(TENSOR), steps=whole(),
)  # fmt: skip
def pgd_smoothed(
    model: Model, x: Tensor, y: Tensor, eps: float, sigma: float, *, samples: int = 32,
    noise: Tensor | None = None, bounds: Bounds = (0, 1), steps: int = 40,
    generator: torch.Generator | None = None, **rest: Any,
) -> Tensor:  # fmt: skip
    """PGD in l2 on the smoothed classifier g, through the mean softmax over fixed noise.

    Args:
        model: the base classifier f, images to logits ``(n, K)``.
        x, y, eps, bounds, steps: as for :func:`pgd`; the noise may leave the bounds, x_adv not.
        sigma: standard deviation of the noise that defines g, above 0.
        samples: noise vectors, drawn once and shared by all images and steps.
        noise: given noise of standard deviation sigma instead, ``(samples, ...)`` shared by all
            images, or ``(n, samples, ...)`` for each its own, which needs ``keep="last"``.
        generator: source of the noise and of the random starts; fresh entropy if not given.
        rest: further arguments of :func:`pgd`, such as ``restarts`` or ``batch_size``: images, each
            of which stands for all its noisy copies.

    Returns:
        ``x_adv``, shaped like x. It maximises ``-log mean softmax(f(x_adv + noise))[y]``; whether
        it fools g must be decided by PREDICT on fresh noise.

    Source: Salman et al. (2019), "Provably robust deep learning via adversarially trained
    smoothed classifiers", equation 5.

    >>> half = lambda x: torch.stack([x[:, 0], -x[:, 0]], 1)
    >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    >>> pgd_smoothed(half, x, y, 0.25, 0.1, random_start=False, steps=1).round(decimals=3)
    tensor([[0.2500, 0.5000]])
    """
    if noise is None:
        noise = sigma * draw(x.new_empty(samples, *x.shape[1:]), torch.randn, generator)

    def soft_vote(z: Tensor) -> Tensor:
        noisy = z[:, None] + noise
        logits = logits_of(model, noisy.flatten(0, 1))
        return log_mean_softmax(logits.unflatten(0, noisy.shape[:2]))

    with unchanged(model):
        return pgd(soft_vote, x, y, eps, norm="l2", bounds=bounds, steps=steps, generator=generator,
                   **rest)  # fmt: skip


@declared(fits, **threat("generator"))
def sign_noise(
    model: Any, x: Tensor, y: Tensor, eps: float, *, bounds: Bounds = (0, 1),
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Every pixel moves by ``+eps`` or ``-eps`` at random: the harmless twin of :func:`fgsm`.

    Takes the arguments of an attack, so that it can stand in a comparison, but looks at neither
    model nor labels. The result is clipped to ``bounds``.

    >>> x = torch.full((1, 4), 0.5)
    >>> sign_noise(None, x, torch.tensor([0]), 0.25, generator=torch.Generator()).sub(x).abs()
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    signs = draw(x, torch.rand, generator).sub_(0.5).sign_()
    return NORMS["linf"].projection(x, eps, bounds)(x + eps * signs)


def _unit_l1(gradient: Tensor) -> Tensor:
    """Each row divided by its l1 norm; a row of zeros stays."""
    size = NORMS["l1"].size(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
    return gradient / columns(size, gradient)
