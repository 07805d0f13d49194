"""The homework's open task: three defenses that only hide their gradient, and what breaks them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from trustml_helpers.checks.attacks import stays
from trustml_helpers.checks.harness import Answer, Cases, Wrong, check, tensor
from trustml_helpers.data import load_mnist
from trustml_helpers.models import load

MASKED_EPS, PASSES = 0.15, 1000
# Accuracy left that earns a third, two thirds, all of the points of each defense.
GOALS = {"steep": (0.5, 0.25, 0.1), "coarse": (0.5, 0.25, 0.1), "restless": (0.5, 0.3, 0.2)}


class Rounding(nn.Module):
    """Rounds to multiples of 1/8: its derivative is zero wherever there is one."""

    def forward(self, x: Tensor) -> Tensor:
        return (8 * x).round() / 8


class MaskedDefense(nn.Module):
    """A network without any robust training that hides its gradient, in one of three ways.

    ``steep`` has the weights of its last layer multiplied by 1,000, so that the softmax saturates;
    ``coarse`` rounds the outputs of its first layer; ``restless`` does so too, and before moves
    the batch by up to two pixels in each direction, cyclically, anew in every call.

    Attributes:
        kind: one of the three names.
        network: its layers after the move, an ``nn.Sequential``.
        asked: images that the network was asked about so far.
    """

    def __init__(self, kind: str, network: nn.Module, seed: int = 0) -> None:
        super().__init__()
        self.kind, self.asked = kind, 0
        self.generator = torch.Generator().manual_seed(seed)
        first, *rest, last = network.children()
        if kind == "steep":
            for parameter in last.parameters():
                parameter.data *= 1000
            self.network = nn.Sequential(first, *rest, last)
        else:
            self.network = nn.Sequential(first, Rounding(), *rest, last)
        first.register_forward_pre_hook(self._count)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "restless":
            x = x.roll(torch.randint(-2, 3, (2,), generator=self.generator).tolist(), (2, 3))
        return self.network(x)

    def _count(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self.asked += len(inputs[0])


def masked_defenses(seed: int = 0) -> dict[str, MaskedDefense]:
    """Three defenses that look strong, by name; see :class:`MaskedDefense`."""
    network = partial(load, "mnist_smallcnn_standard_seed1")  # a fresh one for each
    return {kind: MaskedDefense(kind, network(), seed).eval() for kind in GOALS}


def accuracy_left(answer: Answer, seed: int = 0) -> dict[str, float]:
    """Accuracy of each masked defense under an attack ``(defense, x, y, eps) -> x_adv``.

    60 test images, drawn from the seed, those of the check with the same seed; each defense is
    asked ten times. The attack may ask the network 1,000 times per image; a forward pass counts
    once, with or without a backward pass.

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
            raise Wrong(f"{kind}: asks the network {defense.asked / len(x):.0f} times per image, "
                        f"allowed are {PASSES:,}")  # fmt: skip
        stays(found, x, MASKED_EPS, "linf")
        with torch.no_grad():
            right = [(defense.eval()(found).argmax(1) == y).double() for _ in range(10)]
        left[kind] = torch.stack(right).mean().item()
    return left


@check
def break_masked(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Task 12: the accuracy that an attack leaves, three goals for each of the three defenses."""
    left: dict[str, float] = {}
    with case.before_all():
        left = accuracy_left(partial(answer, may_borrow=True), generator.initial_seed())
    for kind, goals in GOALS.items():
        for goal in goals:
            with case(f"{kind}, at most {goal:.0%} left"):
                if left[kind] > goal:
                    raise Wrong(f"{left[kind]:.1%} left")
