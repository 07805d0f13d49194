"""Samples per image: the sequential test and open-ended sampling, against the fixed n of a log.

The votes of the log are replayed in random order, so all answers are about the same votes. The
class of a row that abstained is not in the log; the one with the most votes stands in.
Usage: python benchmarks/sampling_budget.py [LOG] [--radii 0.5 1.0 1.5] [--gains 0.02 0.05 0.1]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special

from trustml_helpers import bounds, certification, data, sequential

DEFAULT = data.data_folder() / "results" / "mnist_study" / "gaussian_0.5_n100000.tsv"
ORDERS = 20  # per image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, nargs="?", default=DEFAULT)
    parser.add_argument("--radii", type=float, nargs="+", default=[0.5, 1.0, 1.5])
    parser.add_argument("--gains", type=float, nargs="+", default=[0.02, 0.05, 0.1])
    options = parser.parse_args()
    about = json.loads(options.log.with_suffix(".json").read_text())
    sigma, n, n0, alpha = (about[key] for key in ("sigma", "n", "n0", "alpha"))
    log = certification.read_log(options.log, "one_class")
    counts = certification.vote_counts(log)
    chosen = np.where(log["predict"] >= 0, log["predict"], counts.argmax(1))
    k, right = counts[np.arange(len(log)), chosen], chosen == log["label"].to_numpy()
    rng = np.random.default_rng(0)
    print(f"{options.log.name}: {len(log)} images, sigma {sigma:g}, n {n:,}, alpha {alpha:g}; "
          f"samples include the {n0} of the selection")  # fmt: skip

    rows = []
    for radius in options.radii:
        plan = sequential.plan([special.ndtr(radius / sigma)], alpha, sequential.looks(n))
        runs = [sequential.replay(k, n, plan, rng) for _ in range(ORDERS)]
        certified = [float((run.certified & right).mean()) for run in runs]
        rows.append({
            "radius": radius, "samples": np.mean([run.samples.mean() for run in runs]) + n0,
            "certified accuracy": np.mean(certified), "lowest": min(certified),
            "fixed n": certification.certified_accuracy(log, radius)[0],
            "exact error": plan.error[0],
        })  # fmt: skip
    print(pd.DataFrame(rows).set_index("radius").to_string(float_format="{:,.4f}".format))

    rows = []
    for gain in options.gains:
        used, radius = open_ended(k, n, gain, sigma, alpha, rng)
        rows.append({
            "gain": gain, "samples": used.mean() + n0, "median": np.median(used) + n0,
            "ACR": (radius * right).mean(),
            "ACR, fixed n": certification.average_certified_radius(log)[0],
        })  # fmt: skip
    print(pd.DataFrame(rows).set_index("gain").to_string(float_format="{:,.4f}".format))


def open_ended(
    k: np.ndarray, n: int, gain: float, sigma: float, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Votes used and radii of ``certify_anytime``, on the votes of the log in random order."""
    votes, left = np.zeros_like(k), k.copy()
    used, radius, going, before = np.zeros_like(k), np.zeros(len(k)), np.arange(len(k)), 0
    for size in sequential.looks(n):
        drawn = rng.hypergeometric(left[going], n - before - left[going], size - before)
        votes[going] += drawn
        left[going] -= drawn
        used[going], before = size, int(size)
        lower = sequential.anytime_lower_bound(votes[going], size, alpha)
        best = sequential.best_case_bound(votes[going], size, n, alpha)
        radius[going] = np.maximum(radius[going], bounds.certified_radius(lower, sigma))
        going = going[bounds.certified_radius(best, sigma) - radius[going] > gain]
        if len(going) == 0:
            break
    return used, radius


if __name__ == "__main__":
    main()
