"""What the benchmarks share: fixed threads and allocator, alternating order, medians, spread."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch

# glibc gives large blocks back to the system at once and fetches them again for the next batch.
PINNED = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


def several(text: str) -> int:
    """At least two repeats: of one there is no spread."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 2 on")
    return int(text)


def add_options(parser: argparse.ArgumentParser, repeats: int, *, devices: bool = False) -> None:
    parser.add_argument("--repeats", type=several, default=repeats)
    if devices:
        parser.add_argument("--device", default="cpu")
    else:
        parser.set_defaults(device="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pinned", action="store_true", help="fix glibc's thresholds at 1 GiB")


def begin(options: argparse.Namespace, what: str) -> None:
    """Fix the allocator (which needs a new process) and the threads; say where this runs."""
    if options.pinned and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | PINNED)
    torch.set_num_threads(options.threads)
    cpu = options.device == "cpu"
    kind = platform.machine() if cpu else torch.cuda.get_device_name()
    allocator = "pinned" if "MALLOC_TRIM_THRESHOLD_" in os.environ else "default"
    print(f"{kind}, {options.threads} threads, {allocator} allocator, torch {torch.__version__}, "
          f"{what}")  # fmt: skip


def seconds(run: Callable[[], object], device: str = "cpu") -> float:
    started = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def alternate(
    runs: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each, all once per repeat, forwards and backwards in turn."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name in list(runs) if repeat % 2 == 0 else list(runs)[::-1]:
            took[name].append(seconds(runs[name], device))
    return took


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} (quartiles {low:.2f} to {high:.2f})"


def ratios(took: Mapping[str, list[float]], name: str, other: str) -> list[float]:
    """Time of ``name`` over that of ``other``, repeat by repeat."""
    return [a / b for a, b in zip(took[name], took[other], strict=True)]
