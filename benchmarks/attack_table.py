"""The first table of docs/site/compare.md: what attacks leave to the network of FGSM-RS.

Every row is one run with a new generator of the same seed, on every 10th test image.
Usage: python benchmarks/attack_table.py [--seed 0] [--every 10]
"""

from __future__ import annotations

import argparse
import platform
from functools import partial

import torch

from trustml_helpers import attacks, data, models, robustness
from trustml_helpers.attacks import Attack

EPS = {"linf": 0.3, "l2": 2.0, "l1": 10.0}


def rows() -> dict[str, Attack]:
    """Attacks that still need a generator, by name."""
    pgd = partial(attacks.pgd, eps=0.3, steps=40, keep="first")
    found: dict[str, Attack] = {"fgsm": partial(attacks.fgsm, eps=0.3)}
    for norm, eps in EPS.items():
        found[f"pgd, {norm}"] = partial(pgd, eps=eps, norm=norm)
    found["pgd, margin, 5 restarts"] = partial(pgd, loss="margin", restarts=5)
    found["pgd, momentum 1"] = partial(pgd, momentum=1.0)
    for norm, eps in EPS.items():
        found[f"auto_pgd, {norm}"] = partial(attacks.auto_pgd, eps=eps, norm=norm, steps=100)
    found["auto_pgd, dlr"] = partial(attacks.auto_pgd, eps=0.3, steps=100, loss="dlr")
    found["auto_pgd, targets 9"] = partial(attacks.auto_pgd, eps=0.3, steps=100, targets=9)
    found["square"] = partial(attacks.square, eps=0.3, queries=5000)
    found["sign_noise"] = partial(attacks.sign_noise, eps=0.3)
    return found


def main(seed: int, every: int) -> None:
    network = models.load("mnist_smallcnn_fgsm_rs")
    images, labels = data.load_mnist("test")
    x, y = images[::every], labels[::every]
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"{len(x)} images, seed {seed}")  # fmt: skip
    for name, attack in rows().items():
        if name != "fgsm":
            attack = partial(attack, generator=torch.Generator().manual_seed(seed))
        share = robustness.robust_accuracy(network, x, y, attack)
        print(f"{name:24} {share:.1%}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=10)
    options = parser.parse_args()
    main(options.seed, options.every)
