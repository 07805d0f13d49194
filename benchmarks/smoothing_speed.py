"""Votes per second: `sample_under_noise` against the bare network, and against the literal loop.

Everything is measured side by side in one run, in an order that alternates, and reported as the
median of ratios. Usage: python benchmarks/smoothing_speed.py [--repeats 5] [--network LeNet]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from trustml_helpers import models
from trustml_helpers.smoothing import SmoothedClassifier

SIGMA = 0.5
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BATCHES = (64, 128, 256, 512)


def resnet18() -> nn.Module:
    """torchvision's ResNet-18 with the usual first layer for 32 x 32 images."""
    from torchvision.models import resnet18 as build

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(num_classes=10)
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network.eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "LeNet": (lambda: models.build("LeNet").eval(), (1, 28, 28), 5120),
    "ResNet-18": (resnet18, (3, 32, 32), 512),
}


def bare(network: nn.Module, shape: tuple[int, ...], batch: int, votes: int) -> None:
    """The forward pass alone, on one batch over and over."""
    x = torch.rand(batch, *shape)
    with torch.inference_mode():
        for _ in range(votes // batch):
            network(x)


def ours(network: nn.Module, shape: tuple[int, ...], batch: int, votes: int) -> None:
    """Noise, forward pass and counting, as the package does it."""
    generator = torch.Generator().manual_seed(0)
    g = SmoothedClassifier(network, SIGMA, 10)
    g.sample_under_noise(torch.rand(1, *shape), votes, generator, batch)


def literal(network: nn.Module, shape: tuple[int, ...], batch: int, votes: int) -> None:
    """The published procedure word by word: batches of 1,000, counted in Python on the host."""
    x, counts = torch.rand(shape), [0] * 10
    with torch.no_grad():
        for start in range(0, votes, 1000):
            copies = x.repeat(min(1000, votes - start), 1, 1, 1)
            noise = torch.randn_like(copies) * SIGMA
            for label in network(copies + noise).argmax(1).cpu().numpy():
                counts[label] += 1


def seconds(run: Callable[..., None], *arguments: object) -> float:
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--network", choices=NETWORKS, default="LeNet")
    options = parser.parse_args()
    build, shape, votes = NETWORKS[options.network]
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}, {options.network}, {votes} votes a run")  # fmt: skip

    networks = {name: build().to(memory_format=layout) for name, layout in LAYOUTS.items()}
    for network in networks.values():
        bare(network, shape, 64, 128)  # warm up
    best: dict[str, tuple[nn.Module, int]] = {}
    for name, run in (("bare", bare), ("ours", ours)):
        speed = {
            (layout, batch): votes / seconds(run, network, shape, batch, votes)
            for layout, network in networks.items()
            for batch in BATCHES
        }
        layout, batch = max(speed, key=speed.__getitem__)
        best[name] = networks[layout], batch
        print(
            f"{name}: best at batch {batch}, {layout}: {speed[layout, batch]:,.0f} votes a second"
        )

    runs = {"bare": bare, "ours": ours, "literal": literal}
    setting = best | {"literal": (networks["contiguous"], 1000)}
    ratios: dict[str, list[float]] = {"bare": [], "literal": []}
    for repeat in range(options.repeats):
        order = list(runs) if repeat % 2 == 0 else list(runs)[::-1]
        took = {name: seconds(runs[name], setting[name][0], shape, setting[name][1], votes)
                for name in order}  # fmt: skip
        for name in ratios:
            ratios[name].append(took[name] / took["ours"])
    for name, each in ratios.items():
        print(f"ours is {statistics.median(each):.2f} x {name} "
              f"(median of {len(each)}, {min(each):.2f} to {max(each):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
