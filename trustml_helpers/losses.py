"""What an attack maximises: losses per example, their gradient, and the best iterate so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trustml_helpers.models import logits_of
from trustml_helpers.norms import NORMS, Bounds

Model = Callable[[Tensor], Tensor]
Attack = Callable[[Any, Tensor, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]

_NO_LABEL = torch.iinfo(torch.int64).min  # torch would pass over labels of -100


class NotDifferentiable(ValueError):
    """The logits of a model do not depend on its input in a way that can be differentiated."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per example, ``(n,)``."""
    with _labels_that_fit(logits, y):
        return F.cross_entropy(logits, y, reduction="none", ignore_index=_NO_LABEL)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the logit of y, per example ``(n,)``: positive if misclassified.

    Source: Carlini & Wagner (2017), the loss f6 without its floor. Unlike cross-entropy it does
    not underflow when the logits are large.

    >>> margin(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([0]))
    tensor([-1.])
    """
    with _labels_that_fit(logits, y):
        others = logits.scatter(1, y[:, None], -math.inf).amax(1)
        return others - logits.gather(1, y[:, None])[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, per example ``(n,)``: the margin over (first minus third logit).

    Neither a shift nor a scale of the logits changes it. Needs at least 3 classes.
    Source: Croce & Hein (2020), "Reliable evaluation of adversarial robustness", equation 6.

    >>> dlr(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([0])).round(decimals=4)
    tensor([-0.3333])
    """
    if logits.shape[1] < 3:
        raise ValueError(f"loss='dlr' needs at least 3 classes, the model has {logits.shape[1]}")
    largest = logits.topk(3, dim=1).values
    return margin(logits, y) / (largest[:, 0] - largest[:, 2] + _tiny(logits))


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The difference of logits ratio towards one class, per example ``(n,)``; needs 4 classes.

    Source: Croce & Hein (2020), equation 7.

    >>> logits = torch.tensor([[3.0, 1.0, 0.0, -1.0]])
    >>> dlr_targeted(logits, torch.tensor([0]), torch.tensor([2])).round(decimals=4)
    tensor([-0.8571])
    """
    if logits.shape[1] < 4:
        raise ValueError(f"the targeted DLR loss needs 4 classes, the model has {logits.shape[1]}")
    largest = logits.topk(4, dim=1).values
    scale = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
    with _labels_that_fit(logits, y, target):
        true, wanted = (logits.gather(1, label[:, None])[:, 0] for label in (y, target))
        return (wanted - true) / (scale + _tiny(logits))


def log_mean_softmax(logits: Tensor) -> Tensor:
    """Logarithm of the mean softmax over copies: ``(n, copies, K)`` to ``(n, K)``.

    As "logits" of a cross-entropy these give ``-log mean_i p_i[y]``, the loss of a soft vote.

    >>> log_mean_softmax(torch.tensor([[[0.0, 0.0], [9.0, -9.0]]])).exp().round(decimals=3)
    tensor([[0.7500, 0.2500]])
    """
    return logits.log_softmax(2).logsumexp(1) - math.log(logits.shape[1])


def _tiny(logits: Tensor) -> float:
    return 1e-12 if logits.dtype in (torch.float32, torch.float64) else 1e-6


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def named(loss: str | Loss) -> Loss:
    """The loss of that name; a function stays as it is."""
    return LOSSES[loss] if isinstance(loss, str) else loss


def is_fooled(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Which examples an attack has won, bool ``(n,)``. A NaN logit never counts as robust."""
    hit = logits.argmax(1) == y
    return (hit if targeted else ~hit) | logits.isnan().any(1)


def usable(values: Tensor) -> Tensor:
    """A tensor that autograd accepts, also if it was made in inference mode."""
    return values.clone() if values.is_inference() else values


class Goal:
    """What one attack wants of one model: its loss, evaluated or with its gradient.

    Args:
        model: images to logits ``(n, K)``.
        y: all labels ``(n,)``, or ``(n, 2)``: true label and the class to be produced instead.
        loss: ``(logits, y) -> (n,)``, large where the attack is near.
        targeted: the attack wins where the label *is* y, and the loss is to be small.

    Raises:
        ValueError: at the first evaluation, if logits and labels do not fit.
    """

    def __init__(self, model: Model, y: Tensor, loss: Loss, targeted: bool = False) -> None:
        self.model, self.loss, self.targeted = model, loss, targeted
        # Once: on a GPU each of these numbers makes the host wait.
        self.labels = (int(y.min()), int(y.max())) if len(y) else (0, 0)

    def logits(self, x: Tensor) -> Tensor:
        found = logits_of(self.model, x)
        smallest, largest = self.labels
        if not 0 <= smallest <= largest < found.shape[1]:
            raise ValueError(
                f"y holds labels {smallest} to {largest}, but the model has {found.shape[1]} "
                f"classes: expected 0 to {found.shape[1] - 1}"
            )
        return found

    def fooled(self, logits: Tensor, y: Tensor) -> Tensor:
        return is_fooled(logits.detach(), y if y.ndim == 1 else y[:, 0], self.targeted)

    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows are fooled, and the value to be maximised, each ``(n,)``."""
        logits = self.logits(x)
        value = self.loss(logits, y)
        return self.fooled(logits, y), -value if self.targeted else value

    def ascend(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, value, and the gradient of the summed value: each row gets its own."""
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


# --- what can be wrong with the arguments --------------------------------------------------------

LARGEST = 1e18  # a length whose square float32 still holds


def check(
    x: Tensor, y: Tensor, eps: float, norm: str, bounds: Bounds, loss: str | Loss = "margin"
) -> None:
    """Refuse arguments of an attack that cannot be right, before any work."""
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: expected one of {', '.join(NORMS)}")
    if isinstance(loss, str) and loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: expected one of {', '.join(LOSSES)}")
    if not 0 <= eps <= LARGEST:
        raise ValueError(f"eps={eps}: expected a number from 0 to {LARGEST:g}, in pixel units")
    check_tensors(x=x, y=y)
    if not x.is_floating_point() or x.ndim < 2:
        raise TypeError(
            f"x: expected a floating-point tensor (n, ...), got {x.dtype} of shape {tuple(x.shape)}"
        )
    if y.is_floating_point() or y.shape != (len(x),):
        raise TypeError(
            f"y: expected integer labels of shape ({len(x)},), got {y.dtype} of shape "
            f"{tuple(y.shape)}"
        )
    check_place(x, y)
    if bounds is None:
        if not x.isfinite().all():
            raise ValueError("x: expected finite values, found NaN or infinity")
        return
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds=({low}, {high}): expected the smaller value first, or None")
    if norm == "linf" and eps > high - low:
        raise ValueError(
            f"eps={eps} is larger than the whole range of bounds=({low}, {high}). eps is in pixel "
            "units of images in [0, 1]: a budget of 8 grey levels is 8 / 255"
        )
    if x.numel() == 0:
        return
    smallest, largest = x.min().item(), x.max().item()
    if not low - 1e-6 <= smallest <= largest <= high + 1e-6:
        raise ValueError(
            f"x lies in [{smallest:.4g}, {largest:.4g}], outside bounds=({low}, {high}). Images "
            "are expected in [0, 1], with any normalisation inside the model; pass bounds=None "
            "for unbounded data"
        )


def check_place(x: Tensor, y: Tensor, name: str = "y") -> None:
    """Refuse labels that are on another device than their images."""
    check_tensors(**{"x": x, name: y})
    if x.device != y.device:
        raise ValueError(
            f"{name} is on {y.device} and x on {x.device}: move one of them, y.to(x.device)"
        )


def check_tensors(**given: Any) -> None:
    """Refuse arrays and lists where tensors are expected."""
    for name, value in given.items():
        if not isinstance(value, Tensor):
            kind = type(value)
            where = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
            raise TypeError(
                f"{name} is a {where}{kind.__qualname__}: expected a torch.Tensor, as "
                "torch.from_numpy(...) or torch.tensor(...) gives"
            )


def mean_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The usual loss; labels that do not fit the logits end in a ValueError that names y."""
    with _labels_that_fit(logits, y):
        _check_classes(logits, y)
        return F.cross_entropy(logits, y)


def mean_negative_log(log_p: Tensor, y: Tensor) -> Tensor:
    """:func:`mean_cross_entropy` from log-probabilities ``(n, K)``."""
    with _labels_that_fit(log_p, y):
        _check_classes(log_p, y)
        return F.nll_loss(log_p, y)


def _check_classes(logits: Tensor, y: Tensor) -> None:
    """Refuse labels that are no classes: torch passes over -100, and a GPU fails for good."""
    if y.numel() and not y.is_floating_point():  # floating-point: shares of classes
        low, high = torch.stack(torch.aminmax(y)).tolist()  # one message from a GPU
        if not 0 <= low <= high < logits.shape[1]:
            raise ValueError(f"they lie in {low} to {high}, expected 0 to {logits.shape[1] - 1}")


@contextmanager
def _labels_that_fit(logits: Tensor, *labels: Tensor) -> Iterator[None]:
    """What torch says of labels that do not fit, as a ValueError that names y."""
    for y in labels:
        check_tensors(y=y)
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except (IndexError, ValueError, RuntimeError) as error:
        found = " and ".join(f"{y.dtype} of shape {tuple(y.shape)}" for y in labels)
        raise ValueError(
            f"y: labels {found} do not fit logits of shape {tuple(logits.shape)}: {error}"
        ) from error


def check_attacked(x_adv: Any, x: Tensor) -> Tensor:
    """What an attack returned, if it can stand for x; else an error that names the attack."""
    check_tensors(x=x)
    if not isinstance(x_adv, Tensor):
        raise TypeError(f"attack: expected a tensor x_adv, got {type(x_adv).__name__}")
    if x_adv.shape != x.shape or not x_adv.is_floating_point():
        raise ValueError(
            f"attack: expected floating-point x_adv of shape {tuple(x.shape)}, got {x_adv.dtype} "
            f"of shape {tuple(x_adv.shape)}"
        )
    return x_adv


def check_search(steps: int, restarts: int) -> None:
    """Refuse numbers of steps and restarts that make no search."""
    if steps < 0:
        raise ValueError(f"steps={steps}: expected at least 0")
    if restarts < 1:
        raise ValueError(f"restarts={restarts}: expected at least 1")
