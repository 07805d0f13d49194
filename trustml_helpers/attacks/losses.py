"""What an attack maximises: losses per example, ``(logits, y) -> (n,)``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trustml_helpers._support.arguments import declared, trusted
from trustml_helpers._support.tensors import LABELS, LOGITS, labels_are_classes

Loss = Callable[[Tensor, Tensor], Tensor]


@declared(labels_are_classes, logits=LOGITS, y=LABELS)
def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per example, ``(n,)``."""
    return F.cross_entropy(logits, y.long(), reduction="none")


@declared(labels_are_classes, logits=LOGITS, y=LABELS)
def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the logit of y, per example ``(n,)``: positive if misclassified.

    Source: Carlini & Wagner (2017), the loss f6 without its floor. Unlike cross-entropy it does
    not underflow when the logits are large.

    >>> margin(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([0]))
    tensor([-1.])
    """
    label = y.long()[:, None]
    others = logits.scatter(1, label, -math.inf).amax(1)
    return others - logits.gather(1, label)[:, 0]


@declared(labels_are_classes, logits=LOGITS, y=LABELS)
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
    return trusted(margin)(logits, y) / (largest[:, 0] - largest[:, 2] + _tiny(logits))


@declared(labels_are_classes, logits=LOGITS, y=LABELS, target=LABELS)
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
    true, wanted = (logits.gather(1, label.long()[:, None])[:, 0] for label in (y, target))
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
    """The loss of that name; a function stays as it is. Labels were checked before."""
    return trusted(LOSSES[loss] if isinstance(loss, str) else loss)
