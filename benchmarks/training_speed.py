"""An epoch of MNIST: FGSM-RS against standard training, and ours against the usual DataLoader.

All start from the same weights and take the same number of Adam steps on images held in memory,
except "DataLoader": torchvision's data set with ToTensor, shuffled, in the main process (0 workers)
or in as many as there are threads. Medians of ratios with quartiles, in an order that alternates.
Usage: python benchmarks/training_speed.py [--images 12000] [--batch 100] [--repeats 7] [--pinned]
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from functools import partial
from pathlib import Path

import timing
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset

from trustml_helpers import attacks, data, models, objectives, training


def ours(objective: objectives.Objective, part: training.Data, batch: int, **rest: object) -> None:
    training.fit(models.build("SmallCNN"), part, objective, epochs=1, batch_size=batch,
                 progress=False, **rest)  # fmt: skip


def usual(part: Subset[object], batch: int, workers: int) -> None:
    """The loop of most tutorials."""
    model = models.build("SmallCNN")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for x, y in DataLoader(part, batch_size=batch, shuffle=True, num_workers=workers):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def torchvision_mnist(folder: Path, images: int) -> Subset[object]:
    """torchvision's own reader on the shipped files."""
    from torchvision import datasets, transforms

    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (data.data_folder() / "mnist").glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    found = datasets.MNIST(str(folder), train=True, transform=transforms.ToTensor())
    return Subset(found, range(images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=100)
    timing.add_options(parser, repeats=7)
    options = parser.parse_args()
    timing.begin(options, f"SmallCNN, {options.images} images an epoch, batch {options.batch}")
    part = tuple(values[: options.images] for values in data.load_mnist("train"))
    attack = partial(attacks.fgsm_rs, eps=0.3, generator=torch.Generator().manual_seed(0))
    pgd = partial(attacks.pgd, eps=0.3, steps=10, keep="last",
                  generator=torch.Generator().manual_seed(0))  # fmt: skip
    run = partial(ours, part=part, batch=options.batch)
    with tempfile.TemporaryDirectory() as folder:
        peer = torchvision_mnist(Path(folder), options.images)
        runs = {
            "standard": partial(run, objectives.standard),
            "FGSM-RS": partial(run, objectives.adversarial(attack)),
            "PGD-10": partial(run, objectives.adversarial(pgd)),
            "PGD-10, bfloat16": partial(run, objectives.adversarial(pgd), precision="bfloat16"),
            "DataLoader, 0 workers": partial(usual, peer, options.batch, 0),
            f"DataLoader, {options.threads} workers": partial(
                usual, peer, options.batch, options.threads
            ),
        }
        for each in runs.values():
            each()
        took = timing.alternate(runs, options.repeats)
    for name in runs:
        ratio = timing.quartiles(timing.ratios(took, name, "standard"))
        print(f"{name:>22}: {ratio} x a standard epoch of ours, {options.repeats} pairs")


if __name__ == "__main__":
    main()
