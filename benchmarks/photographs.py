"""The photographs attacked: how far f is from its border, and what an attack on g can do.

For each photograph, with groups of classes (data/images/groups.csv): the smallest l2 size, of a
grid in steps of a tenth, at which PGD fools the network; and for sigma 0.12 and 0.25,
with the logs in data/results/photos, an attack on the smoothed classifier within 95 % of the
certified radius, with the share of votes that the certified class keeps, on fresh noise.

Usage: python benchmarks/photographs.py [--votes 300]   (writes data/results/photos/attacked.csv)
"""

from __future__ import annotations

import argparse

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from trustml_helpers import attacks, certification, data, models, smoothing

SIZES = [0.02 * 1.1**k for k in range(45)]  # 0.02 to 1.3
HOME = data.data_folder() / "results" / "photos"


def smallest(network: models.Grouped, x: Tensor, y: Tensor) -> float:
    """The first size of the grid, searched by bisection, at which 20 steps of PGD fool the network;
    0 where it is wrong already. An upper bound on the distance to its border."""
    if models.predict(network, x) != y:
        return 0.0
    low, high = 0, len(SIZES) - 1
    while low < high:
        middle = (low + high) // 2
        z = attacks.pgd(network, x, y, SIZES[middle], norm="l2", steps=20, keep="first",
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
        low, high = (low, middle) if models.predict(network, z) != y else (middle + 1, high)
    return SIZES[low]


def share_after_attack(
    network: models.Grouped, sigma: float, x: Tensor, row: pd.Series, votes: int
) -> float:
    """The share of votes of the certified class after an attack at 95 % of its radius."""
    kind = torch.tensor([row.predict])
    generator = torch.Generator().manual_seed(1)
    z = attacks.pgd_smoothed(network, x, kind, 0.95 * row.radius, sigma, samples=8, steps=10,
                             keep="last", generator=generator)  # fmt: skip
    g = smoothing.SmoothedClassifier(network, sigma, network.classes)
    return g.sample_under_noise(z, votes, generator)[0, row.predict].item() / votes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--votes", type=int, default=300)
    votes = parser.parse_args().votes
    images, labels, _ = data.load_photos()
    group, _ = data.load_groups()
    network = models.Grouped(models.load("imagenet_efficientnet_lite0"), group).eval()
    labels = torch.tensor(group)[labels]
    names = pd.read_csv(data.data_folder() / "images" / "photos.csv")["file"].str[:-5]
    table = pd.DataFrame({"photo": names})
    table["fools f"] = [
        round(smallest(network, images[[k]], labels[[k]]), 3) for k in tqdm(range(len(labels)))
    ]
    table.to_csv(HOME / "attacked.csv", index=False)
    for sigma in (0.12, 0.25):
        log = certification.read_log(HOME / f"lite0_{sigma}.tsv")
        left = [
            share_after_attack(network, sigma, images[[k]], log.loc[k], votes)
            if log.radius[k] > 0 else float("nan") for k in tqdm(range(len(log)))
        ]  # fmt: skip
        table[f"votes left, {sigma}"] = left
        table.to_csv(HOME / "attacked.csv", index=False)
    print(table.to_string())


if __name__ == "__main__":
    from trustml_helpers._support.processes import keep_freed_memory

    keep_freed_memory()
    main()
