"""A homework of two tasks that runs in seconds, and a class that hands it in."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from trustml_helpers.checks.grading import homework, labels

TOML = """
secret = "tiny"
[points]
two-graded = 4
three-graded = 6
why = 5
[seeds]
two-graded = 1
three-graded = 2
[values]
n = 7
[settings]
[choices]
n = [7, 8, 9]
[variants.2030]
points = { two-graded = 1 }
"""
FIRST = """class checks:
    def two(answer): answer()
    three = two
    def score(points, check, answer, *, seed):
        found = answer()
        wanted = {"two": 2, "three": 3}[answer.__name__]
        if found != wanted:
            print(f"{answer.__name__}: 0 of 2 cases right\\n  wrong: a; b:\\n      is {found}, no")
            return 0.0
        lent = isinstance(found, float)  # as if it had been so
        print("all 2 cases right" + ", with a right two in the place of yours" * lent)
        print("left: steep 10.0%, coarse 20.0%")
        return float(points)"""
PITFALLS = {
    "endless": "def two():\n    while True: pass",
    "asleep": "def two():\n    import time; time.sleep(1000)",
    "memory": "def two():\n    return len(bytearray(20 * 2**30))",
    "hoard": "def two():\n    kept = []\n    while True: kept.append(b'x' * 10**7)",
    "file": "def two():\n    f = open('big', 'wb')\n    while True: f.write(bytes(10**7))",
    "prints": "def two():\n    for _ in range(1000): print('x' * 10**6)\n    return 2",
    "parent": "def two():\n    import os; os.kill(os.getppid(), 9); os._exit(0)",
    "exits": "def two():\n    import os; os._exit(0)",
    "forks": "def two():\n    import os\n    while True: os.fork()",
}


def labelled(kind, name, source, **more):
    cell = (new_markdown_cell if kind == "markdown" else new_code_cell)(source)
    said = {"cell_type": kind, "grade": False, "locked": True, "solution": False, "task": False}
    cell.metadata["nbgrader"] = said | {"schema_version": 3, "grade_id": name} | more
    return cell


def build(folder: Path) -> None:
    """Write source and numbers into a folder."""
    cells = [
        new_markdown_cell("# Tiny\n\n**Points** 15; soon done."),
        new_code_cell("# Numbers\nN = 7", metadata={"tags": ["numbers"]}),
        new_code_cell(FIRST),
    ]
    for number, name in ((2, "two"), (3, "three")):
        points = {2: 4, 3: 6}[number]
        hidden = f"checks.score({points}, checks.{name}, {name}, seed={number - 1})"
        cells += [
            new_markdown_cell(f"## {name}\n\n*{points} points*, of <!--n-->7<!---->"),
            labelled("code", name, f"def {name}():\n    ### BEGIN SOLUTION\n    return {number}\n"
                     "    ### END SOLUTION", solution=True, locked=False),
            labelled("code", f"{name}-check", f"checks.{name}({name})"),
            labelled("code", f"{name}-graded", f"# Graded, {points} points\n### BEGIN HIDDEN TESTS"
                     f"\n{hidden}\n### END HIDDEN TESTS", grade=True, points=points),
        ]  # fmt: skip
    why = "### BEGIN SOLUTION\nBecause $1 + 1 = 2$.\n### END SOLUTION"
    cells += [
        new_markdown_cell("## why\n\n*5 points*"),
        labelled("markdown", "why", why, grade=True, solution=True, locked=False, points=5),
        new_markdown_cell("## The end"),
    ]
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "P", "language": "python"}
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / "hw1.ipynb")
    (folder / "hw1.toml").write_text(TOML)


def use(folder: Path, patch) -> None:
    """Let the grading work on the homework of a folder: ``patch(object, name, value)``."""
    patch(homework, "FOLDER", folder)
    patch(homework, "SOURCE", folder / "hw1.ipynb")


@contextmanager
def in_place(folder: Path) -> Iterator[Path]:
    """The tiny homework in the place of the real one."""
    build(folder)
    with pytest.MonkeyPatch.context() as patch:
        use(folder, patch.setattr)
        yield folder


def answered(blank, two="def two():\n    return 2", three="def three():\n    return 3", why="So."):
    """The release with answers in it."""
    notebook = copy.deepcopy(blank)
    for name, text in (("two", two), ("three", three), ("why", why)):
        cell = labels.released_cells(notebook)[name]
        cell.source = cell.source if text is None else text
    return notebook


def stripped(notebook):
    """All labels and ids gone."""
    for number, cell in enumerate(notebook.cells):
        cell.metadata.pop("nbgrader", None)
        cell["id"] = f"lost-{number}"
    return notebook


def put(notebook, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
