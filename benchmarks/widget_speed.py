"""How long each explorer of the notebooks takes to answer a move, beside drawing an empty figure.

Usage: python benchmarks/widget_speed.py [--repeats 9]

A move is one of the values below; the answer is the new picture and its words. The limit that a
lecturer feels is 0.3 s.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics

import matplotlib.pyplot as plt
import torch
from timing import add_options, alternate, begin, quartiles, ratios

from trustml_helpers import data, models, widgets


def jagged(z: torch.Tensor) -> torch.Tensor:
    """The classifier of the plane of notebook 03."""
    a = z[:, 0] + 0.35 * torch.sin(7 * z[:, 1])
    b = z[:, 1] + 0.35 * torch.sin(6 * z[:, 0] + 1)
    return torch.stack([a, b, -(a + b)], 1)


def toy(theta: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """The loss of notebook 02."""
    return theta * delta - delta**2 / 2 + 0.3 * (theta - 0.5) ** 2


def explorers() -> dict[str, tuple[widgets.Explorer, list[dict[str, object]]]]:
    """As the notebooks make them, with moves to repeat in turn."""
    images, labels = data.load_mnist("test")
    model = models.load("mnist_smallcnn_standard")
    thetas, deltas = torch.linspace(-2, 2, 201), torch.linspace(-1, 1, 401)
    return {
        "attack (PGD, 20 steps)": (
            widgets.attack_explorer(model, images[:100], labels[:100]),
            [{"eps": 0.05}, {"image": 7}, {"eps": 0.1}, {"image": 0}],
        ),
        "attack (PGD, 50 steps)": (
            widgets.attack_explorer(model, images[:100], labels[:100], steps=50),
            [{"eps": 0.05}, {"image": 7}, {"eps": 0.1}, {"image": 0}],
        ),
        "Danskin": (
            widgets.danskin_explorer(toy, thetas, deltas),
            [{"theta": value} for value in (-1.5, -0.5, 0.5, 1.5)],
        ),
        "smoothing (5,000 samples)": (
            widgets.smoothing_explorer(jagged, num_classes=3).set(n=5000),
            [{"sigma": 0.2}, {"x": -0.5}, {"sigma": 0.8}, {"x": 0.5}],
        ),
        "radius": (
            widgets.radius_explorer(),
            [{"p_a": 0.7}, {"delta": 0.5}, {"p_a": 0.9}, {"delta": 0.1}],
        ),
        "certification (5,000 votes)": (
            widgets.certification_explorer(),
            [{"n": 5000}, {"p": 0.8}, {"n": 4000}, {"p": 0.9}],
        ),
    }


def empty_figure() -> None:
    figure, _ = plt.subplots(1, 2, figsize=(9.4, 4.3))
    figure.savefig(io.BytesIO(), format="png")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, repeats=9)
    options = parser.parse_args()
    begin(options, "seconds per answer")
    made = explorers()
    turns = {name: itertools.cycle(moves) for name, (_, moves) in made.items()}
    runs = {name: lambda name=name: made[name][0].set(**next(turns[name])) for name in made}
    took = alternate(runs | {"empty figure": empty_figure}, options.repeats)
    for name in made:
        middle, slowest = statistics.median(took[name]), max(took[name])
        beside = quartiles(ratios(took, name, "empty figure"))
        print(f"{name:>28}: {middle:.2f} s, slowest {slowest:.2f} s; x an empty figure {beside}")


if __name__ == "__main__":
    main()
