"""Votes per second: `sample_under_noise` against the bare network, and against the literal loop.

"Plain call" is `SmoothedClassifier(network, sigma, K).sample_under_noise(x, n)`, nothing prepared.

Everything is measured side by side in one run, in an order that alternates, and reported as the
median of ratios with its quartiles. Then: how many labels change with layout and precision on the
same noise. With ``pip install -e ".[bench]"`` also the smoothing of adversarial-robustness-toolbox.
Usage: python benchmarks/smoothing_speed.py [--network LeNet] [--repeats 7]
[--variants float32 bfloat16 compiled compiled-bfloat16] [--device cpu] [--threads 2] [--pinned]
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    picture: Callable[[], Tensor]
    votes: int  # of one timed run, a multiple of the sizes
    sizes: tuple[int, ...] = (64, 128, 256, 512, 1024)  # batches of the bare network that are tried
    literal: int = 1000  # batch size of the published procedure


NETWORKS = {
    "LeNet": Case(lambda: models.load("mnist_lenet_gaussian_0.5"),
                  lambda: data.load_mnist("test")[0][:1], 10_240),
    "ResNet-18": Case(lambda: resnet("resnet18", True), lambda: torch.rand(1, 3, 32, 32), 512,
                      (64, 128, 256, 512)),
    "ResNet-50": Case(lambda: resnet("resnet50", False), lambda: torch.rand(1, 3, 224, 224), 4096,
                      literal=400),
    "EfficientNet-Lite0": Case(lambda: models.load("imagenet_efficientnet_lite0"),
                               lambda: data.load_photos()[0][:1], 128, (8, 16, 32), 128),
}  # fmt: skip


def art(network: nn.Module, x: Tensor, classes: int, batch: int) -> Callable[[int], object]:
    """The adversarial-robustness-toolbox: votes of one image, as its ``certify`` counts them."""
    name = "art.estimators.certification.randomized_smoothing"
    peer = importlib.import_module(name).PyTorchRandomizedSmoothing(
        network, nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, sample_size=100, scale=SIGMA,
        device_type="cpu" if x.device.type == "cpu" else "gpu",
    )  # fmt: skip
    image = x[0].cpu().numpy()
    return lambda votes: peer._prediction_counts(image, n=votes, batch_size=batch)


def literal(network: nn.Module, x: Tensor, votes: int, classes: int, batch: int) -> None:
    """The published procedure word by word: large batches, counted in Python on the host."""
    counts = [0] * classes
    with torch.no_grad():
        for start in range(0, votes, batch):
            copies = x.repeat(min(batch, votes - start), 1, 1, 1)
            noise = torch.randn_like(copies) * SIGMA
            for label in network(copies + noise).argmax(1).cpu().numpy():
                counts[label] += 1


def bare(network: nn.Module, x: Tensor, batch: int, votes: int) -> None:
    """The forward pass alone, on one batch over and over."""
    several = x.repeat(batch, 1, 1, 1)
    with torch.inference_mode():
        for _ in range(votes // batch):
            network(several)


def best_of_bare(
    network: nn.Module, x: Tensor, votes: int, sizes: tuple[int, ...], device: str
) -> Callable[[], None]:
    """The bare network at its own best layout and batch size."""
    speeds: dict[tuple[str, int], float] = {}
    converted = {}
    for layout, form in smoothing.LAYOUTS.items():
        converted[layout] = copy.deepcopy(network).to(memory_format=form)
        for batch in sizes:
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
    timing.add_options(parser, repeats=7, devices=True)
    options = parser.parse_args()
    case, votes = NETWORKS[options.network], NETWORKS[options.network].votes
    device = options.device
    timing.begin(options, f"{options.network}, {votes} votes a run")
    network, x = case.build().to(device), case.picture().to(device)
    classes = network(x).shape[1]
    g = SmoothedClassifier(network, SIGMA, classes)
    runs: dict[str, Callable[[], object]] = {
        "bare": best_of_bare(network, x, votes, case.sizes, device),
        "literal": lambda: literal(network, x, votes, classes, case.literal),
    }
    try:
        runs["art"] = partial(art(copy.deepcopy(network), x, classes, case.literal), votes)
    except ImportError as error:
        print(f"adversarial-robustness-toolbox is not installed ({error})")
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
        for other in (each for each in ("bare", "literal", "art") if each in runs):
            ratios = timing.quartiles(timing.ratios(took, other, name))
            print(f"{name} is {ratios} x {other}, {options.repeats} pairs")
    if options.network == "LeNet" and device == "cpu":
        changed_labels(g, variants, 100_000)


if __name__ == "__main__":
    main()
