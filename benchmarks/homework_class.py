"""How long a class of the homework takes to grade: solved, untouched and broken submissions.

Usage: python benchmarks/homework_class.py FOLDER [--students 100] [--jobs 2] [--cell-seconds 240]

FOLDER gets the submissions and the results; begun again, it goes on where it was, and says no time.
"""

from __future__ import annotations

import argparse
import copy
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat

from trustml_helpers import checks
from trustml_helpers.checks.grading import homework, labels

TASKS = [
    "linear-attack", "step-towards", "pgd-best", "free-step", "numerical-gradient",
    "danskin-gradient", "shared-bounds", "sample-batch", "abstention", "certify-two-class",
    "probability-band", "radius-at", "average-certified-radius", "break-masked",
]  # fmt: skip


def solved(blank: Any) -> Any:
    answers = labels.released_cells(homework.source(homework.numbers()))
    notebook = copy.deepcopy(blank)
    for name, cell in labels.released_cells(notebook).items():
        if labels.is_answer(cell):
            cell.source = answers[name].source
    return notebook


def without_labels(blank: Any) -> Any:
    notebook = solved(blank)
    for number, cell in enumerate(notebook.cells):
        cell.metadata.pop("nbgrader", None)
        cell["id"] = f"lost-{number}"
    return notebook


def half(blank: Any) -> Any:
    notebook = solved(blank)
    for name in TASKS[::2]:
        labels.released_cells(notebook)[name].source = labels.released_cells(blank)[name].source
    return notebook


def with_code(name: str, code: str) -> Callable[[Any], Any]:
    def broken(blank: Any) -> Any:
        notebook = solved(blank)
        labels.released_cells(notebook)[name].source = code
        return notebook

    return broken


# Of every hundred students, so many hand in this.
CLASS: list[tuple[str, int, Callable[[Any], Any]]] = [
    ("solved", 40, solved), ("untouched", 20, copy.deepcopy), ("labels lost", 10, without_labels),
    ("half", 15, half), ("syntax error", 6, with_code("abstention", "def abstention(p, n\n")),
    ("endless", 2, with_code("free-step", "def free_step(*_):\n    while True: pass\n")),
    ("memory", 2, with_code("pgd-best", "def pgd_best(*_):\n    return bytearray(20 * 2**30)\n")),
    ("ends Python", 2, with_code("radius-at", "import os\nos._exit(0)\n")),
    ("torn", 3, lambda _: None),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--students", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cell-seconds", type=int, default=240)
    options = parser.parse_args()
    handed_in = options.folder / "handed in"
    handed_in.mkdir(parents=True, exist_ok=True)
    checks.release(options.folder / "release")
    blank = nbformat.read(options.folder / "release" / "hw1.ipynb", as_version=4)
    kinds = [(kind, make) for kind, percent, make in CLASS for _ in range(percent)]
    for number in range(options.students):
        # Kinds mixed: one after the other they would wait for memory or time together.
        kind, make = kinds[number * 37 % 100]
        path = handed_in / f"{number:03} {kind}.ipynb"
        notebook = make(blank)
        path.write_text('{"cells": [' if notebook is None else nbformat.writes(notebook), "utf-8")
    started, resumed = time.monotonic(), (options.folder / "out/rows").exists()
    table = checks.grade(
        handed_in, options.folder / "out", cell_seconds=options.cell_seconds, jobs=options.jobs,
        resume=True,
    )  # fmt: skip
    minutes = (time.monotonic() - started) / 60
    table["kind"] = table["student"].str[4:]
    table["status"] = table["status"].str[:30]
    groups = table.groupby(["kind", "status", "points"], dropna=False)["seconds"]
    print(groups.agg(["count", "median", "max"]).round(1).to_string())
    print(
        f"{len(table)} submissions, {options.jobs} jobs: "
        f"{'resumed' if resumed else f'{minutes:.1f} minutes'} on "
        f"{platform.machine()}, {table['seconds'].sum() / 60:.1f} minutes one by one"
    )


if __name__ == "__main__":
    main()
