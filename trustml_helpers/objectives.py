"""What training minimises: every objective is a function ``(model, x, y) -> loss``, a scalar.

Objectives that draw noise hold their own generator, so the global one is never touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trustml_helpers.attacks import Attack, pgd
from trustml_helpers.losses import check_attacked, check_tensors, mean_cross_entropy
from trustml_helpers.models import logits_of
from trustml_helpers.noise_objectives import (
    Objective,
    consistency,
    gaussian,
    macer,
    smoothadv,
    smoothmix,
    stability,
)
from trustml_helpers.norms import Bounds, draw

__all__ = [
    "ByEpoch", "Objective", "adversarial", "consistency", "gaussian", "macer", "mixed",
    "smoothadv", "smoothmix", "stability", "standard", "trades",
]  # fmt: skip


def standard(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy on the images as they are.

    Args:
        model: images to logits ``(n, K)``.
        x, y: images ``(n, C, H, W)`` and labels int64 ``(n,)``.

    Returns:
        The loss, a scalar that can be differentiated.

    >>> standard(lambda x: x, torch.zeros(2, 10), torch.tensor([0, 1]))
    tensor(2.3026)
    """
    check_tensors(x=x, y=y)
    return mean_cross_entropy(logits_of(model, x), y)


def adversarial(attack: Attack) -> Objective:
    """Mean cross-entropy on attacked images: the inner maximum of min-max training.

    The attack's images are constants of the loss (Danskin's theorem), so only the model's
    parameters receive a gradient.

    Args:
        attack: ``(model, x, y) -> x_adv``, for example ``partial(pgd, eps=0.3, keep="last")``.

    Source: Madry et al. (2018), equation 2.1; with FGSM, Goodfellow et al. (2015).

    >>> objective = adversarial(lambda model, x, y: 2 * x)
    >>> objective(lambda x: x, torch.eye(2), torch.tensor([0, 1]))
    tensor(0.1269)
    """

    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        return standard(model, check_attacked(attack(model, x, y), x), y)

    return objective


def mixed(attack: Attack, clean_share: float = 0.5) -> Objective:
    """Adversarial training in which a share of every minibatch stays clean.

    The first ``round(clean_share * n)`` examples of the (shuffled) minibatch are used as they
    are, the others are attacked; the loss is the mean over all of them.

    Args:
        attack: as for :func:`adversarial`.
        clean_share: in [0, 1]; 0 is adversarial training, 1 is standard training.

    Source: the mixture of Goodfellow et al. (2015), section 6, taken over examples.

    >>> objective = mixed(lambda model, x, y: -x, clean_share=0.5)
    >>> objective(lambda x: x, torch.eye(2), torch.tensor([0, 1]))
    tensor(0.8133)
    """
    if not 0 <= clean_share <= 1:
        raise ValueError(f"clean_share={clean_share}: expected a share between 0 and 1")

    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        clean = round(clean_share * len(x))
        if clean < len(x):
            attacked = check_attacked(attack(model, x[clean:], y[clean:]), x[clean:])
            x = torch.cat([x[:clean], attacked])
        return standard(model, x, y)

    return objective


def trades(
    eps: float,
    beta: float = 6.0,
    *,
    norm: str = "linf",
    bounds: Bounds = (0, 1),
    steps: int = 10,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> Objective:
    """TRADES: cross-entropy on clean images, plus how far an attack can move the prediction.

    The loss is ``CE(f(x), y) + beta * KL(f(x) || f(x_adv))``, where x_adv maximises the second
    term. The clean logits are computed once and serve all three: a call costs one clean pass,
    ``steps`` passes of the attack and one attacked pass.

    Args:
        eps, norm, bounds, steps, step_size: of the inner attack, as for :func:`attacks.pgd`.
        beta: weight of the second term, at least 0.
        generator: source of the start, Gaussian of standard deviation 0.001 around x (at x itself
            the divergence has no gradient); fresh entropy if not given.

    Source: Zhang et al. (2019), "Theoretically principled trade-off between robustness and
    accuracy", equation 5 and algorithm 1.

    >>> loss = trades(0.0, 6.0)(lambda x: x, torch.zeros(2, 10), torch.tensor([0, 1]))
    >>> loss.round(decimals=4)
    tensor(2.3026)
    """
    if not 0 <= beta < float("inf"):
        raise ValueError(f"beta={beta}: expected a finite number >= 0")

    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        check_tensors(x=x, y=y)
        logits = logits_of(model, x)
        clean = logits.log_softmax(1)
        fixed = clean.detach()

        def moved(now: Tensor, _: Tensor) -> Tensor:
            return F.kl_div(now.log_softmax(1), fixed, log_target=True, reduction="none").sum(1)

        x_adv = pgd(
            model, x, y, eps, norm=norm, bounds=bounds, steps=steps, step_size=step_size,
            start=x + 0.001 * draw(x, torch.randn, generator), loss=moved, keep="last",
        )  # fmt: skip
        attacked = logits_of(model, x_adv).log_softmax(1)
        divergence = F.kl_div(attacked, clean, log_target=True, reduction="batchmean")
        return mean_cross_entropy(logits, y) + beta * divergence

    return objective


@dataclass(frozen=True)
class ByEpoch:
    """An objective that changes during training, for example to let eps grow.

    Args:
        at: function of the epoch (0.0 at the start, 1.5 in the middle of the second pass) that
            returns the objective to use then.

    >>> switch = ByEpoch(lambda epoch: standard if epoch < 2 else adversarial(lambda m, x, y: x))
    >>> switch.at(0.5) is standard
    True
    """

    at: Callable[[float], Objective]
