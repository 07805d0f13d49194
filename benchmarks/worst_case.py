"""The worst case of `attacks.suite` against a public AutoAttack, image by image.

OURS is a file that `trustml attack MODEL --attack suite --output OURS` wrote. The peer attacks the
same test images of the same network; its results are kept per batch, so a killed run goes on.
Usage: python benchmarks/worst_case.py MODEL OURS [--out build/worst]
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import torch

from trustml_helpers import attacks, data, models, robustness


def peer(eps: float) -> attacks.Attack:
    """pyautoattack's standard version: APGD-CE, APGD-T, FAB-T and Square with 5,000 queries."""
    package = importlib.import_module("pyautoattack")

    def attack(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        run = package.AutoAttack(model, norm="Linf", eps=eps, seed=0)
        found = run.run_standard_evaluation(x, y, batch_size=len(x))
        return found[0] if isinstance(found, tuple) else found

    return attack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("ours", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/worst"))
    options = parser.parse_args()
    eps = json.loads(options.ours.with_suffix(".json").read_text())["eps"]
    ours = robustness.read_attack_log(options.ours)
    numbers = ours["idx"].tolist()
    images, labels = (part[numbers] for part in data.load_mnist("test"))
    theirs = robustness.attack_dataset(
        models.load(options.model), images, labels, lambda _: {"pyautoattack": peer(eps)},
        options.out / f"{Path(options.model).stem}.csv", about={"eps": eps}, numbers=numbers,
    )  # fmt: skip
    stands = {"ours": ours["broken_by"] == "", "pyautoattack": theirs["broken_by"] == ""}
    for name, which in stands.items():
        print(f"{name:>14}: {100 * which.mean():.2f} % of {len(images)} images withstand it")
    a, b = stands.values()
    print(
        f"only ours succeeds on {int((~a & b).sum())}, only pyautoattack on {int((a & ~b).sum())}"
    )


if __name__ == "__main__":
    main()
