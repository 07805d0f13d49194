"""Votes per second: `sample_under_noise` against the bare network, and against the literal loop.

"Plain call" is `SmoothedClassifier(network, sigma, K).sample_under_noise(x, n)`, nothing prepared.

Everything is measured side by side in one run, in an order that alternates, and reported as the
median of ratios with its quartiles. Then: how many labels change with layout and precision on the
same noise. Usage: python benchmarks/smoothing_speed.py [--network LeNet] [--repeats 7]
[--variants float32 bfloat16 compiled compiled-bfloat16] [--device cpu] [--threads 2] [--pinned]
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable

import timing
import torch
from torch import Tensor, nn

from trustml_helpers import data, models, smoothing
from trustml_helpers.smoothing import Execution, SmoothedClassifier

SIGMA = 0.5
VARIANTS = {
    "float32": ("float32", False), "bfloat16": ("bfloat16", False),
    "compiled": ("float32", True), "compiled-bfloat16": ("bfloat16", True),
}  # fmt: skip


def resnet(name: str, small: bool) -> nn.Module:
    """torchvision's network; for 32 x 32 images with the usual first layer."""
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(torchvision.models, name)(num_classes=10)
        if small:
            network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            network.maxpool = nn.Identity()
    return network.eval()


# How to build it, an image, and the votes of one timed run.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "LeNet": (lambda: models.load("mnist_lenet_gaussian_0.5"),
              lambda: data.load_mnist("test")[0][:1], 10_240),
    "ResNet-18": (lambda: resnet("resnet18", True), lambda: torch.rand(1, 3, 32, 32), 512),
    "ResNet-50": (lambda: resnet("resnet50", False), lambda: torch.rand(1, 3, 224, 224), 4096),
}  # fmt: skip


def literal(network: nn.Module, x: Tensor, votes: int) -> None:
    """The published procedure word by word: batches of 1,000, counted in Python on the host."""
    counts = [0] * 10
    with torch.no_grad():
        for start in range(0, votes, 1000):
            copies = x.repeat(min(1000, votes - start), 1, 1, 1)
            noise = torch.randn_like(copies) * SIGMA
            for label in network(copies + noise).argmax(1).cpu().numpy():
                counts[label] += 1


def bare(network: nn.Module, x: Tensor, batch: int, votes: int) -> None:
    """The forward pass alone, on one batch over and over."""
    several = x.repeat(batch, 1, 1, 1)
    with torch.inference_mode():
        for _ in range(votes // batch):
            network(several)


def best_of_bare(network: nn.Module, x: Tensor, votes: int, device: str) -> Callable[[], None]:
    """The bare network at its own best layout and batch size."""
    speeds: dict[tuple[str, int], float] = {}
    converted = {}
    for layout, form in smoothing.LAYOUTS.items():
        converted[layout] = copy.deepcopy(network).to(memory_format=form)
        for batch in (64, 128, 256, 512, 1024):
            size = max(batch, min(votes, 4 * batch))
            bare(converted[layout], x, batch, batch)
            took = min(timing.seconds(lambda: bare(converted[layout], x, batch, size), device)  # noqa: B023
                       for _ in range(3))  # fmt: skip
            speeds[layout, batch] = size // batch * batch / took
    layout, batch = max(speeds, key=speeds.__getitem__)
    print(f"bare: best at batch {batch}, {layout}")
    return lambda: bare(converted[layout], x, batch, votes)


def changed_labels(g: SmoothedClassifier, variants: dict[str, Execution], votes: int) -> None:
    """Against float32, contiguous, batches of 250, on the same noisy digits."""
    images = data.load_mnist("test")[0][::500]
    noise = torch.randn(len(images), votes // len(images), 1, 28, 28,
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    noisy = (images[:, None] + SIGMA * noise).flatten(0, 1)
    labels = models.predict(g.base_classifier, noisy, batch_size=250)
    print(f"labels that change, of {len(noisy)} noisy digits, against float32, contiguous:")
    for name, how in {"channels_last": Execution(layout="channels_last"), **variants}.items():
        network = smoothing.prepare(g, how, images).base_classifier
        found = models.predict(network, noisy, batch_size=250)
        print(f"  {name}, {how.layout}: {int((found != labels).sum())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="LeNet")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["float32", "bfloat16"])
    timing.add_options(parser, repeats=7)
    options = parser.parse_args()
    build, picture, votes = NETWORKS[options.network]
    device = options.device
    timing.begin(options, f"{options.network}, {votes} votes a run")
    network, x = build().to(device), picture().to(device)
    g = SmoothedClassifier(network, SIGMA, 10)
    runs = {"bare": best_of_bare(network, x, votes, device),
            "literal": lambda: literal(network, x, votes)}  # fmt: skip
    variants = {}
    for name in options.variants:
        dtype, compiled = VARIANTS[name]
        found = smoothing.search(g, x, dtype=dtype)._replace(compiled=compiled)
        variants[name] = found
        prepared = smoothing.prepare(g, found, x)
        print(f"{name}: {found}")

        def ours(prepared: SmoothedClassifier = prepared, batch: int = found.batch_size) -> None:
            generator = torch.Generator(device).manual_seed(0)
            prepared.sample_under_noise(x, votes, generator, batch)

        runs[name] = ours
    runs["plain call"] = lambda: g.sample_under_noise(x, votes)
    for run in runs.values():
        run()  # warm up; compiles

    took = timing.alternate(runs, options.repeats, device)
    for name in runs:
        print(f"{name:>18}: {votes / statistics.median(took[name]):10,.0f} votes a second")
    for name in (*variants, "plain call"):
        for other in ("bare", "literal"):
            ratios = timing.quartiles(timing.ratios(took, other, name))
            print(f"{name} is {ratios} x {other}, {options.repeats} pairs")
    if options.network == "LeNet" and device == "cpu":
        changed_labels(g, variants, 100_000)


if __name__ == "__main__":
    main()
