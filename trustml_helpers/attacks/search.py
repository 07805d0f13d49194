"""What one attack wants of one model, and the best it has found so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trustml_helpers._support.arguments import maybe, number, one_of, whole
from trustml_helpers._support.calling import logits_of, unchanged
from trustml_helpers._support.tensors import (
    BOUNDS,
    GENERATOR,
    IMAGES,
    LABELS,
    Bounds,
    classes,
    inside,
    label_range,
    one_label_each,
)
from trustml_helpers.attacks.losses import LOSSES, Loss, named
from trustml_helpers.attacks.norms import NORMS

Model = Callable[[Tensor], Tensor]
Attack = Callable[[Any, Tensor, Tensor], Tensor]

LARGEST = 1e18  # a length whose square float32 still holds


class NotDifferentiable(ValueError):
    """The logits of a model do not depend on its input in a way that can be differentiated."""


def is_fooled(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Which examples an attack has won, bool ``(n,)``. A NaN logit never counts as robust."""
    hit = logits.argmax(1) == y
    return (hit if targeted else ~hit) | logits.isnan().any(1)


class Goal:
    """What one attack wants of one model: its loss, evaluated or with its gradient.

    Args:
        model: images to logits ``(n, K)``.
        y: all labels ``(n,)``, or ``(n, 2)``: true label and the class to be produced instead.
        loss: ``(logits, y) -> (n,)``, large where the attack is near.
        targeted: the attack wins where the label *is* y, and the loss is to be small.
        batch_size: images per pass through the model, all of them if None; results do not depend
            on it, memory does.

    Raises:
        ValueError: at the first evaluation, if logits and labels do not fit.
    """

    def __init__(
        self, model: Model, y: Tensor, loss: Loss, targeted: bool = False,
        batch_size: int | None = None,
    ) -> None:  # fmt: skip
        self.model, self.loss, self.targeted, self.batch_size = model, loss, targeted, batch_size
        self.labels = label_range(y)  # once: a GPU makes the host wait for it

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.batch_size or max(len(x), 1))

    def logits(self, x: Tensor) -> Tensor:
        found = _joined([logits_of(self.model, part) for part in self._parts(x)])
        classes(self.labels, found.shape[1])
        return found

    def fooled(self, logits: Tensor, y: Tensor) -> Tensor:
        return is_fooled(logits.detach(), y if y.ndim == 1 else y[:, 0], self.targeted)

    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows are fooled, and the value to be maximised, each ``(n,)``."""
        logits = self.logits(x)
        value = self.loss(logits, y)
        return self.fooled(logits, y), -value if self.targeted else value

    def ascend(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Logits, value, and the gradient of the summed value: each row gets its own."""
        parts = zip(self._parts(x), self._parts(y), strict=True)
        return tuple(map(_joined, zip(*(self._ascend(*part) for part in parts), strict=True)))

    def _ascend(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = self.logits(x)
            value = -self.loss(logits, y) if self.targeted else self.loss(logits, y)
            # autograd.grad, not backward: no parameter gradient is computed, no .grad is touched.
            gradient = None
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
            if gradient is None:
                raise NotDifferentiable(
                    "model: its logits do not depend on x in a way that can be differentiated (is "
                    "it wrapped in no_grad, or does it detach, round or compare its input?)"
                )
        # Where the logits overflow the gradient is NaN; such a pixel stays where it is.
        return logits.detach(), value.detach(), gradient.nan_to_num_(0.0)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class Best:
    """Per example the best iterate so far: fooling before not fooling, then the larger loss."""

    def __init__(self, x: Tensor) -> None:
        self.x_adv = x.clone()
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.value = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)

    def update(self, rows: Tensor, x_adv: Tensor, fooled: Tensor, value: Tensor) -> Tensor:
        """Compare new iterates of some rows with the best so far; returns ``fooled``."""
        before = self.fooled[rows]
        # ">=": among equal losses (a saturated 0.0) the later iterate is the better guess.
        better = (fooled & ~before) | ((fooled == before) & (value >= self.value[rows]))
        chosen = rows[better]
        self.x_adv[chosen] = x_adv[better]
        self.fooled[chosen] = fooled[better]
        self.value[chosen] = value[better].to(self.value.dtype)
        return fooled


@contextmanager
def attacking(
    model: Model, x: Tensor, y: Tensor, loss: str | Loss, targeted: bool = False,
    batch_size: int | None = None,
) -> Iterator[tuple[Tensor, Tensor, Goal]]:  # fmt: skip
    """Images and labels that autograd accepts, and the goal; the model is left as it was found."""
    with unchanged(model), torch.inference_mode(False), torch.no_grad():
        x, y = (each.clone() if each.is_inference() else each for each in (x, y.long()))
        yield x, y, Goal(model, y, named(loss), targeted, batch_size)


# --- what the arguments of every attack may be ----------------------------------------------------

THREAT = {
    "x": IMAGES, "y": LABELS, "eps": number(f"[0, {LARGEST:g}]", "in pixel units"),
    "norm": one_of(*NORMS), "bounds": BOUNDS, "loss": one_of(*LOSSES, function=True),
    "generator": GENERATOR, "batch_size": maybe(whole(1)),
}  # fmt: skip


def threat(*names: str) -> dict[str, Any]:
    """Those rules of every attack that have these names, beside x, y, eps and bounds."""
    return {name: THREAT[name] for name in ("x", "y", "eps", "bounds", *names)}


def fits(x: Tensor, y: Tensor, eps: float, bounds: Bounds, norm: str = "linf") -> None:
    """Refuse labels, images and sizes that do not belong together."""
    one_label_each(x, y)
    if bounds and norm == "linf" and eps > bounds[1] - bounds[0]:
        raise ValueError(
            f"eps={eps} is larger than the whole range of bounds={bounds}. eps is in pixel units "
            "of images in [0, 1]: a budget of 8 grey levels is 8 / 255"
        )
    inside(x, bounds)


def check_attacked(x_adv: Any, x: Tensor) -> Tensor:
    """What an attack returned, if it can stand for x; else an error that names the attack."""
    if not isinstance(x_adv, Tensor):
        raise TypeError(f"attack: expected a tensor x_adv, got {type(x_adv).__name__}")
    if x_adv.shape != x.shape or not x_adv.is_floating_point():
        raise ValueError(
            f"attack: expected floating-point x_adv of shape {tuple(x.shape)}, got {x_adv.dtype} "
            f"of shape {tuple(x_adv.shape)}"
        )
    return x_adv
