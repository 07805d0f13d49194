"""Certified images per second: two processes of one thread each, against one such process.

Both certify the same images, through `certify_dataset`; each process is timed from the start of
that call to its end, joining the parts included, starting Python not. In alternating order.
Usage: python benchmarks/processes.py [--repeats 3] [--images 20] [--n 10000] [--processes 2]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from trustml_helpers import certification, data, models
from trustml_helpers.smoothing import SmoothedClassifier


def work(path: str, images: int, n: int) -> None:
    g = SmoothedClassifier(models.load("mnist_lenet_gaussian_0.5"), 0.5, 10)
    x, y = data.load_mnist("test")
    started = time.time()
    certification.certify_dataset(
        g, x, y, path, n0=100, n=n, alpha=0.001, indices=range(images), progress=False,
        batch_size=256, layout="channels_last",
    )  # fmt: skip
    print(f"seconds {time.time() - started}", flush=True)


def seconds(processes: int, images: int, n: int) -> tuple[float, list[str]]:
    """The longest time of any process, and the rows without their times."""
    launch = [] if processes == 1 else [
        "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        "--",  # or torchrun takes --n for one of its own options
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.tsv"
        call = [sys.executable, *launch, __file__, "--images", str(images), "--n", str(n),
                "--log", str(path)]  # fmt: skip
        run = subprocess.run(call, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True,
                             capture_output=True, text=True)  # fmt: skip
        rows = ["\t".join(w for k, w in enumerate(line.split("\t")) if k != 5)
                for line in path.read_text().splitlines()]  # fmt: skip
    return max(
        float(line.split()[1]) for line in run.stdout.splitlines() if "seconds" in line
    ), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--log", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.log:
        work(options.log, options.images, options.n)
        return
    print(f"{platform.machine()}, torch {torch.__version__}, LeNet, {options.images} images, "
          f"n = {options.n:,}")  # fmt: skip
    ratios = []
    for repeat in range(options.repeats):
        order = (1, options.processes) if repeat % 2 == 0 else (options.processes, 1)
        found = {each: seconds(each, options.images, options.n) for each in order}
        assert found[1][1] == found[options.processes][1], "the rows differ"
        ratios.append(found[1][0] / found[options.processes][0])
        print(f"  one process {found[1][0]:.1f} s, {options.processes} processes "
              f"{found[options.processes][0]:.1f} s: {ratios[-1]:.2f} x")  # fmt: skip
    spread = f"median of {len(ratios)}, {min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{options.processes} processes are {statistics.median(ratios):.2f} x one "
          f"({spread}); same rows")  # fmt: skip


if __name__ == "__main__":
    main()
