"""PGD in l-inf, 40 steps on digits or 10 on photographs: ours, the bare loop, and the peers.

Everything is measured side by side in one run, in an order that alternates, and reported as the
median of the time over that of the bare loop, with quartiles. The bare loop is the least that PGD
can do: forward pass, gradient to the input, sign, clamp. Peers: pip install -e ".[bench]".
Usage: python benchmarks/attack_speed.py [--network SmallCNN] [--batch 256] [--repeats 15]
[--pinned] [--device cpu]
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustml_helpers import attacks, data, models


class Case(NamedTuple):
    checkpoint: str
    load: Callable[[], tuple[Tensor, Tensor]]
    shape: tuple[int, int, int]
    classes: int
    eps: float
    step: float
    steps: int


NETWORKS = {
    "SmallCNN": Case("mnist_smallcnn_adversarial", partial(data.load_mnist, "test"), (1, 28, 28),
                     10, 0.3, 0.01, 40),
    "EfficientNet-Lite0": Case("imagenet_efficientnet_lite0", lambda: data.load_photos()[:2],
                               (3, 224, 224), 1000, 2 / 255, 0.5 / 255, 10),
}  # fmt: skip
Attack = Callable[[Tensor, Tensor], object]


def bare(model: nn.Module, case: Case, x: Tensor, y: Tensor) -> Tensor:
    lower, upper = (x - case.eps).clamp(min=0), (x + case.eps).clamp(max=1)
    z = torch.clamp(x + case.eps * (2 * torch.rand_like(x) - 1), lower, upper)
    for _ in range(case.steps):
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
        z = torch.clamp(z.detach() + case.step * gradient.sign(), lower, upper)
    return z


def ours(model: nn.Module, case: Case, keep: str) -> Attack:
    run = partial(attacks.pgd, eps=case.eps, steps=case.steps, step_size=case.step, keep=keep)
    return lambda x, y: run(model, x, y)


def torchattacks(model: nn.Module, case: Case) -> Attack:
    return importlib.import_module("torchattacks").PGD(model, case.eps, case.step, case.steps)


def foolbox(model: nn.Module, case: Case) -> Attack:
    peer = importlib.import_module("foolbox")
    wrapped = peer.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    attack = peer.attacks.LinfPGD(abs_stepsize=case.step, steps=case.steps)
    return lambda x, y: attack(wrapped, x, y, epsilons=case.eps)


def cleverhans(model: nn.Module, case: Case) -> Attack:
    name = "cleverhans.torch.attacks.projected_gradient_descent"
    attack = importlib.import_module(name).projected_gradient_descent
    return lambda x, y: attack(model, x, case.eps, case.step, case.steps, float("inf"), 0, 1, y=y)


def art(model: nn.Module, case: Case) -> Attack:
    """The adversarial-robustness-toolbox works on NumPy arrays."""
    classifier = importlib.import_module("art.estimators.classification").PyTorchClassifier(
        model, nn.CrossEntropyLoss(), case.shape, case.classes, clip_values=(0, 1),
        device_type="cpu" if next(model.parameters()).device.type == "cpu" else "gpu",
    )  # fmt: skip
    evasion = importlib.import_module("art.attacks.evasion")
    attack = evasion.ProjectedGradientDescent(
        classifier, "inf", case.eps, case.step, max_iter=case.steps, num_random_init=1,
        batch_size=100_000, verbose=False,
    )  # fmt: skip
    return lambda x, y: attack.generate(x.cpu().numpy(), y.cpu().numpy())


def adv_lib(model: nn.Module, case: Case) -> Attack:
    name = "adv_lib.attacks.projected_gradient_descent"
    attack = importlib.import_module(name).pgd_linf
    return lambda x, y: attack(
        model, x, y, case.eps, steps=case.steps, absolute_step_size=case.step
    )


PEERS = (torchattacks, foolbox, cleverhans, art, adv_lib)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="SmallCNN")
    parser.add_argument("--batch", type=int, default=256)
    timing.add_options(parser, repeats=15, devices=True)
    options = parser.parse_args()
    case = NETWORKS[options.network]
    x, y = (part[: options.batch].to(options.device) for part in case.load())
    timing.begin(options, f"PGD-{case.steps}, l-inf, {options.network}, batch {len(x)}")
    model = models.load(case.checkpoint).to(options.device)
    made: dict[str, Attack] = {
        "bare loop": partial(bare, model, case),
        "ours, for training": ours(model, case, "last"),
        "ours, best iterate": ours(model, case, "best"),
    }
    for peer in PEERS:
        try:
            made[peer.__name__] = peer(model, case)
        except ImportError as error:
            print(f"{peer.__name__} is not installed ({error})")
    runs = {name: partial(attack, x, y) for name, attack in made.items()}
    for run in runs.values():
        run()  # warm up
    took = timing.alternate(runs, options.repeats, options.device)
    for name in runs:
        ratio = timing.quartiles(timing.ratios(took, name, "bare loop"))
        print(f"{name:>20}: {ratio} x bare, {options.repeats} pairs")


if __name__ == "__main__":
    main()
