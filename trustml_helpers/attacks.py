"""Attacks: find ``x_adv`` in a ball around x, and in the box of valid images, that fools a model.

Everything is in the units of the pixels, so ``eps=8 / 255`` for a budget of 8 grey levels.
A model is any callable from images to logits ``(n, K)``; it is left exactly as it was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trustml_helpers.bounds import check_sigma
from trustml_helpers.models import unchanged

Model = Callable[[Tensor], Tensor]
Attack = Callable[[Any, Tensor, Tensor], Tensor]
Bounds = tuple[float, float] | None


def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    norm: str = "linf",
    targeted: bool = False,
    bounds: Bounds = (0, 1),
    loss: str = "cross_entropy",
) -> Tensor:
    """One step of steepest ascent, as long as the budget allows.

    Args:
        model: images to logits ``(n, K)``.
        x: images ``(n, ...)``, floating point, inside ``bounds``.
        y: int64 ``(n,)``; the true labels, or with ``targeted`` the labels to be produced.
        eps: radius of the ball, in pixel units.
        norm: ``"linf"`` or ``"l2"``.
        targeted: move towards y instead of away from it.
        bounds: smallest and largest valid value, ``None`` for unbounded data.
        loss: ``"cross_entropy"`` or ``"margin"`` (largest other logit minus logit of y).

    Returns:
        ``x_adv``, shaped like x, inside ball and bounds.

    Raises:
        ValueError, TypeError: for arguments out of range; the message says what was expected.

    Source: Goodfellow, Shlens, Szegedy (2015), section 4; in l2 the same step in the l2 norm.

    >>> W = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    >>> fgsm(lambda x: x @ W.T, x, y, 0.1)
    tensor([[0.4000, 0.6000]])
    """
    _check(x, y, eps, norm, bounds, loss)
    ball = NORMS[norm]
    with unchanged(model), torch.inference_mode(False), torch.no_grad():
        x, y = _usable(x), _usable(y).long()
        gradient = _ascend(model, x, y, LOSSES[loss], targeted)[2]
        return ball.projection(x, eps, bounds)(x + eps * ball.steepest(gradient))


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    norm: str = "linf",
    bounds: Bounds = (0, 1),
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    targeted: bool = False,
    loss: str = "cross_entropy",
    keep: str = "best",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient descent: steps of steepest ascent, each projected on ball and box.

    Args:
        model, x, y, eps, norm, bounds, targeted, loss: as for :func:`fgsm`.
        steps: number of steps of each restart.
        step_size: length of a step in pixel units, in the attack's norm. If not given,
            ``2.5 * eps / steps`` in l-inf, enough to cross the ball, and in l2
            ``10 * eps / steps`` (at most eps), because the steps must also turn along the sphere.
        restarts: independent starts; a restart attacks only what no earlier one fooled.
        random_start: start uniformly in the ball (then projected on the box) instead of at x.
        keep: ``"best"`` returns per example, over all iterates of all restarts, the last one
            included, a fooling one if there is one, and among equals the one of largest loss.
            ``"last"`` returns the last iterate of a single restart without evaluating it, which
            is what training wants: exactly ``steps`` forward and backward passes.
        generator: source of the random starts; fresh entropy if not given. The global
            generator is never used.

    Returns:
        ``x_adv``, shaped like x, inside the bounds and the ball (l-inf exactly, l2 up to 1e-6).

    Raises:
        ValueError, TypeError: for arguments out of range; the message says what was expected.

    Source: Madry et al. (2018), section 2.1; restarts counted per example.

    >>> W = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    >>> pgd(lambda x: x @ W.T, x, y, 0.1, steps=5)
    tensor([[0.4000, 0.6000]])
    """
    _check(x, y, eps, norm, bounds, loss)
    ball, objective = NORMS[norm], LOSSES[loss]
    step_size = ball.default_step(eps, steps) if step_size is None else step_size
    _check_pgd(steps, step_size, restarts, keep)
    with unchanged(model), torch.inference_mode(False), torch.no_grad():
        x, y = _usable(x), _usable(y).long()
        best = _Best(x)
        for _ in range(restarts):
            # Noise is drawn for every row, so that no row's noise depends on the others' fate.
            start = x + eps * ball.uniform(x, generator) if random_start else x
            rows = (~best.fooled).nonzero()[:, 0]
            if len(rows) == 0:
                break
            x_clean, target = x[rows], y[rows]
            project = ball.projection(x_clean, eps, bounds)
            x_adv = project(start[rows])
            for _ in range(steps):
                fooled, value, gradient = _ascend(model, x_adv, target, objective, targeted)
                if keep == "best":
                    best.update(rows, x_adv, fooled, value)
                x_adv = project(x_adv + step_size * ball.steepest(gradient))
            if keep == "last":
                return x_adv
            best.update(rows, x_adv, *_evaluate(model, x_adv, target, objective, targeted))
        return best.x_adv


def pgd_smoothed(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: float,
    sigma: float,
    *,
    samples: int = 32,
    bounds: Bounds = (0, 1),
    steps: int = 40,
    generator: torch.Generator | None = None,
    **rest: Any,
) -> Tensor:
    """PGD in l2 on the smoothed classifier g, through the mean softmax over fixed noise.

    Args:
        model: the base classifier f, images to logits ``(n, K)``.
        x, y, eps, bounds, steps: as for :func:`pgd`; the noise may leave the bounds, x_adv not.
        sigma: standard deviation of the noise that defines g, above 0.
        samples: noise vectors, drawn once and shared by all images and steps.
        generator: source of the noise and of the random starts; fresh entropy if not given.
        rest: further arguments of :func:`pgd`, such as ``restarts``.

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
    check_sigma(sigma)
    if samples < 1:
        raise ValueError(f"samples={samples}: expected at least 1")
    noise = sigma * _draw(x.new_empty(samples, *x.shape[1:]), torch.randn, generator)

    def soft_vote(z: Tensor) -> Tensor:
        logits = model((z[:, None] + noise).flatten(0, 1))
        # The logarithm of probabilities: cross-entropy of these "logits" is exactly -log mean p_y.
        log_shares = logits.log_softmax(1).view(len(z), samples, -1)
        return log_shares.logsumexp(1) - math.log(samples)

    with unchanged(model):
        return pgd(soft_vote, x, y, eps, norm="l2", bounds=bounds, steps=steps, generator=generator,
                   **rest)  # fmt: skip


def sign_noise(
    model: Any,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    bounds: Bounds = (0, 1),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Every pixel moves by ``+eps`` or ``-eps`` at random: the harmless twin of :func:`fgsm`.

    Takes the arguments of an attack, so that it can stand in a comparison, but looks at neither
    model nor labels. The result is clipped to ``bounds``.

    >>> x = torch.full((1, 4), 0.5)
    >>> sign_noise(None, x, torch.tensor([0]), 0.25, generator=torch.Generator()).sub(x).abs()
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    _check(x, y, eps, "linf", bounds, "cross_entropy")
    signs = _draw(x, torch.rand, generator).sub_(0.5).sign_()
    return NORMS["linf"].projection(x, eps, bounds)(x + eps * signs)


class _Best:
    """Per example the best iterate so far: fooling before not fooling, then the larger loss."""

    def __init__(self, x: Tensor) -> None:
        self.x_adv = x.clone()
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.value = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)

    def update(self, rows: Tensor, x_adv: Tensor, fooled: Tensor, value: Tensor) -> None:
        before = self.fooled[rows]
        # ">=": among equal losses (a saturated 0.0) the later iterate is the better guess.
        better = (fooled & ~before) | ((fooled == before) & (value >= self.value[rows]))
        chosen = rows[better]
        self.x_adv[chosen] = x_adv[better]
        self.fooled[chosen] = fooled[better]
        self.value[chosen] = value[better].to(self.value.dtype)


# --- the loss and its gradient -----------------------------------------------------------------


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per example, ``(n,)``."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the logit of y, per example ``(n,)``: positive if misclassified.

    Source: Carlini & Wagner (2017), the loss f6 without its floor. Unlike cross-entropy it does
    not underflow when the logits are large.
    """
    others = logits.scatter(1, y[:, None], -math.inf).amax(1)
    return others - logits.gather(1, y[:, None])[:, 0]


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
}


def is_fooled(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Which examples an attack has won, bool ``(n,)``. A NaN logit never counts as robust."""
    hit = logits.argmax(1) == y
    return (hit if targeted else ~hit) | logits.isnan().any(1)


def _usable(values: Tensor) -> Tensor:
    """A tensor that autograd accepts, also if it was made in inference mode."""
    return values.clone() if values.is_inference() else values


def _evaluate(
    model: Model, x: Tensor, y: Tensor, objective: Callable[..., Tensor], targeted: bool
) -> tuple[Tensor, Tensor]:
    """Whether each example is fooled, and the loss that the attack wants to be large."""
    logits = model(x)
    _check_logits(logits, y)
    value = objective(logits, y)
    return is_fooled(logits.detach(), y, targeted), -value if targeted else value


def _ascend(
    model: Model, x: Tensor, y: Tensor, objective: Callable[..., Tensor], targeted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Fooled, loss, and the gradient of the summed loss to x: each row gets its own gradient."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        fooled, value = _evaluate(model, x, y, objective, targeted)
        if not value.requires_grad:
            raise ValueError(
                "model: its logits do not depend on x in a way that can be differentiated (is it "
                "wrapped in no_grad, or does it detach its input?)"
            )
        # autograd.grad, not backward: no parameter gradient is computed and no .grad is touched.
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return fooled, value.detach(), gradient


# --- the norms: three small functions each -------------------------------------------------------


class Ball(NamedTuple):
    """What an attack needs to know about a norm."""

    steepest: Callable[[Tensor], Tensor]  # gradient -> direction of unit norm, steepest ascent
    uniform: Callable[[Tensor, torch.Generator | None], Tensor]  # uniform in the unit ball
    projection: Callable[[Tensor, float, Bounds], Callable[[Tensor], Tensor]]
    default_step: Callable[[float, int], float]  # eps, steps -> length of a step


def given_or_fresh(generator: torch.Generator | None, x: Tensor) -> torch.Generator:
    """The given generator, or a new one on the device of x, seeded by the operating system."""
    if generator is None:
        generator = torch.Generator(x.device)
        generator.seed()
    return generator


def _draw(x: Tensor, kind: Callable[..., Tensor], generator: torch.Generator | None) -> Tensor:
    generator = given_or_fresh(generator, x)
    drawn = kind(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
    return drawn.to(x.device)


def _columns(values: Tensor, x: Tensor) -> Tensor:
    """``(n,)`` reshaped to multiply ``(n, ...)`` row by row."""
    return values.view(-1, *[1] * (x.ndim - 1))


def _l2_norm(x: Tensor) -> Tensor:
    """l2 norm of each row, ``(n, 1, ...)``."""
    return _columns(x.flatten(1).norm(dim=1), x)


def _linf_uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return _draw(x, torch.rand, generator).mul_(2).sub_(1)


def _linf_projection(x: Tensor, eps: float, bounds: Bounds) -> Callable[[Tensor], Tensor]:
    radius = torch.tensor(eps, dtype=x.dtype)
    if radius.item() > eps:  # 0.3 rounds up in float32: no pixel may move by more than eps
        radius = radius.nextafter(torch.zeros_like(radius))
    lower, upper = x - radius, x + radius
    lower = torch.where(x - lower > radius, lower.nextafter(x), lower)
    upper = torch.where(upper - x > radius, upper.nextafter(x), upper)
    if bounds is not None:
        lower, upper = lower.clamp(min=bounds[0]), upper.clamp(max=bounds[1])
    return lambda z: torch.clamp(z, lower, upper)


def _l2_steepest(gradient: Tensor) -> Tensor:
    # Scaled by its largest entry first: the norm of a tiny gradient would fall below `tiny`.
    tiny = torch.finfo(gradient.dtype).tiny
    largest = gradient.flatten(1).abs().amax(1) if gradient[:1].numel() else gradient.flatten(1)
    scaled = gradient / _columns(largest.clamp(min=tiny), gradient)
    return scaled / _l2_norm(scaled).clamp(min=tiny)


def _l2_uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    direction = _l2_steepest(_draw(x, torch.randn, generator))
    radius = _draw(x.flatten(1)[:, 0], torch.rand, generator) ** (1 / max(x[:1].numel(), 1))
    return direction * _columns(radius, x)


def _l2_projection(x: Tensor, eps: float, bounds: Bounds) -> Callable[[Tensor], Tensor]:
    """The nearest point of ball and box: ``x + clip(s * (z - x))`` for one s in (0, 1] per row."""
    tiny = torch.finfo(x.dtype).tiny
    if bounds is None:
        return lambda z: x + (z - x) * (eps / _l2_norm(z - x).clamp(min=tiny)).clamp(max=1)
    lower, upper = bounds[0] - x, bounds[1] - x

    def project(z: Tensor) -> Tensor:
        delta = z - x
        scale = (eps / _l2_norm(delta).clamp(min=tiny)).clamp(max=1)
        while True:
            step = (scale * delta).clamp(lower, upper)
            # What the box cut off may be spent on the other pixels. The set of cut pixels only
            # grows, so this ends; each round solves for s with the present set.
            free = step == scale * delta
            left = eps**2 - _l2_norm(step.masked_fill(free, 0)) ** 2
            room = _l2_norm(delta.masked_fill(~free, 0))
            larger = (left.clamp(min=0).sqrt() / room.clamp(min=tiny)).clamp(max=1)
            moved = larger > scale * (1 + 1e-5)
            if not moved.any():
                break
            scale = torch.where(moved, larger, scale)  # a settled row must not feel the others
        step = step * (eps / _l2_norm(step).clamp(min=tiny)).clamp(max=1)
        return (x + step).clamp(*bounds)

    return project


NORMS: dict[str, Ball] = {
    "linf": Ball(
        torch.sign,
        _linf_uniform,
        _linf_projection,
        lambda eps, steps: 2.5 * eps / max(steps, 1),
    ),
    "l2": Ball(
        _l2_steepest,
        _l2_uniform,
        _l2_projection,
        lambda eps, steps: min(10 * eps / max(steps, 1), eps),
    ),
}


# --- what can be wrong with the arguments --------------------------------------------------------


def _check(x: Tensor, y: Tensor, eps: float, norm: str, bounds: Bounds, loss: str) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: expected one of {', '.join(NORMS)}")
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: expected one of {', '.join(LOSSES)}")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps={eps}: expected a finite number >= 0, in pixel units")
    if not x.is_floating_point() or x.ndim < 2:
        raise TypeError(
            f"x: expected a floating-point tensor (n, ...), got {x.dtype} of shape {tuple(x.shape)}"
        )
    if y.is_floating_point() or y.shape != (len(x),):
        raise TypeError(
            f"y: expected integer labels of shape ({len(x)},), got {y.dtype} of shape "
            f"{tuple(y.shape)}"
        )
    if bounds is None or x.numel() == 0:
        return
    low, high = bounds
    smallest, largest = x.min().item(), x.max().item()
    if not low - 1e-6 <= smallest <= largest <= high + 1e-6:
        raise ValueError(
            f"x lies in [{smallest:.4g}, {largest:.4g}], outside bounds=({low}, {high}). Images "
            "are expected in [0, 1], with any normalisation inside the model; pass bounds=None "
            "for unbounded data"
        )
    if norm == "linf" and eps > high - low:
        raise ValueError(
            f"eps={eps} is larger than the whole range of bounds=({low}, {high}). eps is in pixel "
            "units of images in [0, 1]: a budget of 8 grey levels is 8 / 255"
        )


def _check_pgd(steps: int, step_size: float, restarts: int, keep: str) -> None:
    if steps < 0:
        raise ValueError(f"steps={steps}: expected at least 0")
    if not (math.isfinite(step_size) and step_size >= 0):
        raise ValueError(f"step_size={step_size}: expected a finite number >= 0, in pixel units")
    if restarts < 1:
        raise ValueError(f"restarts={restarts}: expected at least 1")
    if keep not in ("best", "last"):
        raise ValueError(f"keep={keep!r}: expected 'best' or 'last'")
    if keep == "last" and restarts != 1:
        raise ValueError(f"restarts={restarts}: keep='last' evaluates nothing, so use restarts=1")


def _check_logits(logits: Tensor, y: Tensor) -> None:
    if logits.ndim != 2 or len(logits) != len(y) or logits.shape[1] < 2:
        raise ValueError(
            f"model: expected logits of shape ({len(y)}, K >= 2), got {tuple(logits.shape)}"
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise ValueError(
            f"y holds labels {int(y.min())} to {int(y.max())}, but the model has "
            f"{logits.shape[1]} classes: expected 0 to {logits.shape[1] - 1}"
        )
