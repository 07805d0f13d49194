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

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustml_helpers import attacks, data, models

# Checkpoint, images and labels, eps, step, steps.
NETWORKS = {
    "SmallCNN": ("mnist_smallcnn_adversarial", partial(data.load_mnist, "test"), 0.3, 0.01, 40),
    "EfficientNet-Lite0": ("imagenet_efficientnet_lite0", lambda: data.load_photos()[:2], 2 / 255,
                           0.5 / 255, 10),
}  # fmt: skip
EPS, STEP, STEPS = NETWORKS["SmallCNN"][2:]
Attack = Callable[[Tensor, Tensor], object]


def bare(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    lower, upper = (x - EPS).clamp(min=0), (x + EPS).clamp(max=1)
    z = torch.clamp(x + EPS * (2 * torch.rand_like(x) - 1), lower, upper)
    for _ in range(STEPS):
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
        z = torch.clamp(z.detach() + STEP * gradient.sign(), lower, upper)
    return z


def ours(model: nn.Module, keep: str) -> Attack:
    run = partial(attacks.pgd, eps=EPS, steps=STEPS, step_size=STEP, keep=keep)
    return lambda x, y: run(model, x, y)


def torchattacks(model: nn.Module) -> Attack:
    return importlib.import_module("torchattacks").PGD(model, EPS, STEP, STEPS)


def foolbox(model: nn.Module) -> Attack:
    peer = importlib.import_module("foolbox")
    wrapped = peer.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    attack = peer.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS)
    return lambda x, y: attack(wrapped, x, y, epsilons=EPS)


def cleverhans(model: nn.Module) -> Attack:
    name = "cleverhans.torch.attacks.projected_gradient_descent"
    attack = importlib.import_module(name).projected_gradient_descent
    return lambda x, y: attack(model, x, EPS, STEP, STEPS, float("inf"), 0, 1, y=y)


def art(model: nn.Module) -> Attack:
    """The adversarial-robustness-toolbox works on NumPy arrays."""
    shape, classes = ((1, 28, 28), 10) if STEPS == 40 else ((3, 224, 224), 1000)
    classifier = importlib.import_module("art.estimators.classification").PyTorchClassifier(
        model, nn.CrossEntropyLoss(), shape, classes, clip_values=(0, 1),
        device_type="cpu" if next(model.parameters()).device.type == "cpu" else "gpu",
    )  # fmt: skip
    evasion = importlib.import_module("art.attacks.evasion")
    attack = evasion.ProjectedGradientDescent(
        classifier, "inf", EPS, STEP, max_iter=STEPS, num_random_init=1, batch_size=100_000,
        verbose=False,
    )  # fmt: skip
    return lambda x, y: attack.generate(x.cpu().numpy(), y.cpu().numpy())


def adv_lib(model: nn.Module) -> Attack:
    name = "adv_lib.attacks.projected_gradient_descent"
    attack = importlib.import_module(name).pgd_linf
    return lambda x, y: attack(model, x, y, EPS, steps=STEPS, absolute_step_size=STEP)


PEERS = (torchattacks, foolbox, cleverhans, art, adv_lib)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="SmallCNN")
    parser.add_argument("--batch", type=int, default=256)
    timing.add_options(parser, repeats=15)
    options = parser.parse_args()
    global EPS, STEP, STEPS  # the peers read them
    name, load, EPS, STEP, STEPS = NETWORKS[options.network]
    timing.begin(options, f"PGD-{STEPS}, l-inf, {options.network}, batch {options.batch}")
    model = models.load(name).to(options.device)
    images, labels = load()
    x, y = (part[: options.batch].to(options.device) for part in (images, labels))
    made: dict[str, Attack] = {
        "bare loop": partial(bare, model),
        "ours, for training": ours(model, "last"),
        "ours, best iterate": ours(model, "best"),
    }
    for peer in PEERS:
        try:
            made[peer.__name__] = peer(model)
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
