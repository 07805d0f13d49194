"""Average certified radius of the one-class and the two-class bound, from the same votes.

Reads the stored two-class logs of the MNIST study.
Usage: python benchmarks/bound_gain.py [METHOD]
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from trustml_helpers import certification, data
from trustml_helpers.smoothing import ABSTAIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", nargs="?", choices=certification.METHOD_NAMES, default="gaussian")
    method, rows = parser.parse_args().method, []
    folder = data.data_folder() / "results" / "mnist_study"
    for path in sorted(folder.glob(f"{method}_[0-9]*_n*.tsv")):
        logs = {bound: certification.read_log(path, bound) for bound in ("one_class", "two_class")}
        one, two = (np.where(log["correct"] == 1, log["radius"], 0) for log in logs.values())
        gain = two - one
        rows.append({
            "log": path.stem, "images": len(gain), "ACR one-class": one.mean(),
            "two-class": two.mean(), "gain": gain.mean(),
            "s.e.": gain.std(ddof=1) / len(gain) ** 0.5,
            **{f"abstained {bound}": (log["predict"] == ABSTAIN).mean()
               for bound, log in logs.items()},
            "largest loss": -gain.min(),
        })  # fmt: skip
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4f}".format))


if __name__ == "__main__":
    main()
