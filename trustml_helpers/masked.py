"""The homework's open task: three defenses that only hide their gradient, and what breaks them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trustml_helpers.attack_checks import stays
from trustml_helpers.checking import Cases, Wrong, check, tensor
from trustml_helpers.data import load_mnist
from trustml_helpers.models import load

Answer = Callable[..., Any]

MASKED_EPS, PASSES = 0.15, 1000
# Accuracy left that earns a third, two thirds, all of the points of each defense.
GOALS = {"steep": (0.6, 0.3, 0.1), "coarse": (0.6, 0.3, 0.1), "restless": (0.5, 0.35, 0.2)}


class MaskedDefense(nn.Module):
    """An undefended network that hides its gradient, in one of three ways.

    ``steep`` multiplies the logits by 1,000, so that the softmax saturates; ``coarse`` rounds
    pixels to sixteenths, so that the gradient is zero; ``restless`` moves the picture by up to two
    pixels, anew in every call, and then rounds it.

    Attributes:
        network: what lies behind; a white-box attacker may use it.
        asked: images that it was asked about so far, in any way.
    """

    def __init__(self, kind: str, network: nn.Module, seed: int = 0) -> None:
        super().__init__()
        self.kind, self.network, self.asked = kind, network, 0
        self.generator = torch.Generator().manual_seed(seed)
        network.register_forward_pre_hook(self._count)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "steep":
            return 1000 * self.network(x)
        if self.kind == "restless":
            shift = torch.randint(-2, 3, (2,), generator=self.generator).tolist()
            x = x.roll(shift, (2, 3))
        return self.network((16 * x).round() / 16)

    def _count(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self.asked += len(inputs[0])


def masked_defenses(seed: int = 0) -> dict[str, MaskedDefense]:
    """Three defenses that look strong, by name; see :class:`MaskedDefense`."""
    return {
        kind: MaskedDefense(kind, load("mnist_smallcnn_standard"), seed).eval() for kind in GOALS
    }


def accuracy_left(answer: Answer, seed: int = 0) -> dict[str, float]:
    """Accuracy of each masked defense under an attack ``(defense, x, y, eps) -> x_adv``.

    60 test images, drawn from the seed; ``restless`` is asked ten times. The attack may ask the
    network 1,000 times per image; a forward pass with gradient counts once.

    Raises:
        Wrong: if the attack leaves the ball or [0, 1], or asks too often.
    """
    images, labels = load_mnist("test")
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:60]
    x, y = images[chosen], labels[chosen]
    left = {}
    for kind, defense in masked_defenses(seed).items():
        found = answer(defense, x.clone(), y, MASKED_EPS)
        found = tensor(found, x, "one attacked image per image").to(x.dtype)
        if defense.asked > PASSES * len(x):
            raise Wrong(
                f"{kind}: asks the network {defense.asked / len(x):.0f} times per image, allowed "
                f"are {PASSES:,}"
            )
        stays(found, x, MASKED_EPS, "linf")
        with torch.no_grad():
            right = [(defense.eval()(found).argmax(1) == y).double() for _ in range(10)]
        left[kind] = torch.stack(right).mean().item()
    return left


@check
def break_masked(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Task 12: the accuracy that an attack leaves, three goals for each of the three defenses."""
    trouble, left = "", {}
    try:
        seed = int(torch.randint(2**31, (), generator=generator))
        left = accuracy_left(partial(answer, may_borrow=True), seed)
    except Wrong as what:
        trouble = str(what)
    for kind, goals in GOALS.items():
        for goal in goals:
            with case(f"{kind}, at most {goal:.0%} left"):
                if trouble:
                    raise Wrong(trouble)
                if left[kind] > goal:
                    raise Wrong(f"{left[kind]:.1%} left")
