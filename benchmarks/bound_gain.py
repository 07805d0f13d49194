"""Average certified radius of the one-class and the two-class bound, from the same votes.

Reads the shipped logs (one-class). A row that abstained does not say which class the selection
samples chose, so they are drawn once more, from the noise of that row: the same samples.
Usage: python benchmarks/bound_gain.py
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import torch

from trustml_helpers import certification, data, models
from trustml_helpers.smoothing import ABSTAIN, SmoothedClassifier, radii


def main() -> None:
    images, _ = data.load_mnist("test")
    rows = []
    for sigma in (0.25, 0.5, 1.0):
        path = data.data_folder() / "results" / "mnist_gaussian" / f"sigma_{sigma}.tsv"
        log, about = certification.read_log(path), json.loads(path.with_suffix(".json").read_text())
        network = models.load(f"mnist_lenet_gaussian_{sigma}")
        g = SmoothedClassifier(network.to(memory_format=torch.channels_last), sigma, 10)
        top = log["predict"].to_numpy(copy=True)
        for row in np.flatnonzero(top == ABSTAIN):
            number = int(log["idx"][row])
            generator = certification.noise_generator(about["seed"], number)
            chosen = g.sample_under_noise(images[number : number + 1], about["n0"], generator,
                                          about["batch_size"])  # fmt: skip
            top[row] = int(chosen.argmax())
        counts = torch.as_tensor(certification.vote_counts(log))
        right = top == log["label"].to_numpy()
        found = {
            bound: radii(counts, torch.as_tensor(top), about["n"], about["alpha"], sigma, bound)[0]
            for bound in ("one_class", "two_class")
        }
        scores = {bound: np.where(right, radius, 0) for bound, radius in found.items()}
        gain = scores["two_class"] - scores["one_class"]
        rows.append({
            "sigma": sigma, "images": len(log), "n": about["n"],
            **{f"ACR {bound}": score.mean() for bound, score in scores.items()},
            "gain": gain.mean(), "s.e.": gain.std(ddof=1) / len(log) ** 0.5,
            **{f"abstained {bound}": (radius == 0).mean() for bound, radius in found.items()},
            "largest loss": -gain.min(),
        })  # fmt: skip
    print(pd.DataFrame(rows).set_index("sigma").to_string(float_format="{:.4f}".format))


if __name__ == "__main__":
    main()
