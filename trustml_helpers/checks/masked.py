"""The homework's open task: defenses that only hide their gradient, and what breaks them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trustml_helpers._support.arguments import shown
from trustml_helpers.checks.attacks import stays
from trustml_helpers.checks.harness import Answer, Cases, Wrong, check, tensor
from trustml_helpers.data import load_mnist
from trustml_helpers.models import load

MASKED_EPS, PASSES = 0.15, 1000
# Accuracy left that earns a third, two thirds, all of the points of each defense.
GOALS = {
    "steep": (0.5, 0.25, 0.1), "coarse": (0.5, 0.25, 0.1), "restless": (0.5, 0.3, 0.2),
    "squeezed": (0.5, 0.25, 0.1), "rippled": (0.5, 0.25, 0.1),
}  # fmt: skip
KINDS = ("steep", "coarse", "restless")


class Rounding(nn.Module):
    """Rounds to multiples of ``1 / levels``: its derivative is zero wherever there is one."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return (self.levels * x).round() / self.levels


class Ripple(nn.Module):
    """Adds a wave, 1/100 high and thousands of times per unit: only its derivative is large."""

    phase: Tensor

    def __init__(self) -> None:
        super().__init__()
        turns = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(0))
        self.register_buffer("phase", 6.2832 * turns)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * (20_000 * x + self.phase).sin()


class MaskedDefense(nn.Module):
    """A network without any robust training that hides its gradient, in one of five ways.

    ``steep`` has the weights of its last layer multiplied by 1,000, so that the softmax saturates;
    ``coarse`` rounds the outputs of its first layer to multiples of 1/8; ``restless`` does so too,
    and before moves the batch by up to two pixels in each direction, cyclically, anew in every
    call; ``squeezed`` rounds the pixels to multiples of 1/4; ``rippled`` adds a fine wave to them,
    1/100 high, of other phase at each pixel.

    Attributes:
        kind: one of the five names.
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
        before: list[nn.Module] = []
        if kind in ("squeezed", "rippled"):
            before = [Rounding(4) if kind == "squeezed" else Ripple()]
        after = [Rounding(8)] if kind in ("coarse", "restless") else []
        self.network = nn.Sequential(*before, first, *after, *rest, last)
        first.register_forward_pre_hook(self._count)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "restless":
            x = x.roll(torch.randint(-2, 3, (2,), generator=self.generator).tolist(), (2, 3))
        return self.network(x)

    def _count(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self.asked += len(inputs[0])


# What an answer may have put in the place of these is undone before its images are judged.
_FORWARD = {each: each.forward for each in (Rounding, Ripple, MaskedDefense)}


# The first is what others become, except in inference mode.
_CONVOLUTIONS = {
    torch.ops.aten.convolution, torch.ops.aten.conv2d, torch.ops.aten._convolution,
}  # fmt: skip


class Budget(TorchDispatchMode):
    """Counts the images that a defense is asked about, by whatever way its first layer is run.

    Copies of the defense count, and calls of functions with its weights; other networks do not.
    """

    def __init__(self, defense: MaskedDefense, most: int) -> None:
        super().__init__()
        self.kind, self.asked, self.most = defense.kind, 0, most
        first = next(each for each in defense.network if isinstance(each, nn.Conv2d))
        self.own, self.weight = first.weight, first.weight.detach().clone()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        packet = getattr(function, "overloadpacket", None)
        if packet in _CONVOLUTIONS and self._is_first(args[1]):
            self.asked += len(args[0]) if args[0].ndim == 4 else 1
            self.hold()
        return function(*args, **(kwargs or {}))

    def hold(self) -> None:
        """Wrong if the budget is spent."""
        if self.asked > self.most:
            raise Wrong(f"{self.kind}: asks the network more than {PASSES:,} times per image")

    def _is_first(self, weight: Tensor) -> bool:
        """Whether these are the weights of the first layer, up to their scale."""
        if weight.shape != self.weight.shape or weight.data_ptr() == self.own.data_ptr():
            return weight.shape == self.weight.shape
        a, b = weight.detach().flatten(), self.weight.flatten()
        return bool((a.double() @ b.double()).abs() > 0.9 * a.double().norm() * b.double().norm())


def masked_defenses(seed: int = 0, *, kinds: Sequence[str] = KINDS) -> dict[str, MaskedDefense]:
    """Defenses that look strong, by name; see :class:`MaskedDefense`.

    Args:
        kinds: some of ``steep``, ``coarse``, ``restless``, ``squeezed``, ``rippled``.

    Raises:
        ValueError: if there is no such defense.
    """
    for kind in kinds:
        if kind not in GOALS:
            raise ValueError(f"kinds: {shown(kind)}, expected some of {', '.join(GOALS)}")
    network = partial(load, "mnist_smallcnn_standard_seed1")  # a fresh one for each
    return {kind: MaskedDefense(kind, network(), seed).eval() for kind in kinds}


def accuracy_left(
    answer: Answer, seed: int = 0, *, kinds: Sequence[str] = KINDS, eps: float = MASKED_EPS
) -> dict[str, float]:
    """Accuracy of each masked defense under an attack ``(defense, x, y, eps) -> x_adv``.

    60 test images, drawn from the seed, those of the check with the same seed. A defense that the
    attack never saw, of the same kind, is asked ten times about what it returns, so it does not
    matter what it does to its own. The attack may ask the network 1,000 times per image; a forward
    pass counts once, with or without a backward pass, also one of a copy.

    Args:
        kinds: the defenses, as in :func:`masked_defenses`.
        eps: what is allowed in l-inf, in pixel units. ``squeezed`` needs more than 1/8.

    Raises:
        Wrong: if the attack leaves the ball or [0, 1], or asks too often.
    """
    images, labels = load_mnist("test")
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:60]
    x, y = images[chosen], labels[chosen]
    left = {}
    judges = masked_defenses(seed + 1_000_003, kinds=kinds)
    for kind, defense in masked_defenses(seed, kinds=kinds).items():
        with Budget(defense, PASSES * len(x)) as budget:
            found = answer(defense, x.clone(), y.clone(), eps)
        budget.hold()
        found = tensor(found, x, "one attacked image per image").to(x.dtype)
        stays(found, x, eps, "linf")
        for module, forward in _FORWARD.items():
            setattr(module, "forward", forward)  # noqa: B010
        with torch.no_grad():
            right = [(judges[kind](found).argmax(1) == y).double() for _ in range(10)]
        left[kind] = torch.stack(right).mean().item()
    return left


@check
def break_masked(
    answer: Answer, case: Cases, generator: torch.Generator, *,
    kinds: Sequence[str] = KINDS, eps: float = MASKED_EPS,
) -> None:  # fmt: skip
    """The accuracy that an attack leaves, three goals for each defense, best at ``MASKED_EPS``."""
    left: dict[str, float] = {}
    with case.before_all():
        attack = partial(answer, may_borrow=True)
        left = accuracy_left(attack, generator.initial_seed(), kinds=kinds, eps=eps)
        print("left: " + ", ".join(f"{kind} {share:.1%}" for kind, share in left.items()))
    for kind in kinds:
        for goal in GOALS[kind]:
            with case(f"{kind}, at most {goal:.0%} left"):
                if left[kind] > goal:
                    raise Wrong(f"{left[kind]:.1%} left")
