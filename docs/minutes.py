"""How long a notebook takes: the one formula behind the times that the notebooks state.

The core path is everything before "For the curious", questions and exercises. Reading takes a
minute for 180 words, code six seconds a line, a figure half a minute; a "Your turn" takes the
minutes it states, a run what was measured. Hints and solutions are read instead of, not besides,
the time of a "Your turn"; cells that only check are not on the page. The sum is rounded up to five
minutes.

Usage: python docs/minutes.py notebooks/*.ipynb
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

BEYOND = re.compile(r"## (For the curious|Questions|Exercises)$", re.MULTILINE)
WORDS, LINE, FIGURE = 180, 6 / 60, 0.5  # words a minute; minutes a line of code, and a figure
TURN = re.compile(r"^### Your turn: .*\((\d+) minutes\)$", flags=re.M)


@dataclass(frozen=True)
class Core:
    """What the core path of a notebook holds, and the minutes that follow."""

    words: int
    lines: int
    figures: int
    turns: tuple[int, ...]
    run_seconds: int

    @property
    def minutes(self) -> int:
        exact = (
            self.words / WORDS + self.lines * LINE + self.figures * FIGURE
            + sum(self.turns) + self.run_seconds / 60
        )  # fmt: skip
        return 5 * math.ceil(exact / 5)


def core_cells(notebook: NotebookNode) -> list[NotebookNode]:
    cells = notebook.cells
    end = next((k for k, cell in enumerate(cells) if BEYOND.match(cell.source)), None)
    if end is None:
        raise ValueError("expected one of the sections Questions, Exercises, For the curious")
    return cells[:end]


def core(notebook: NotebookNode) -> Core:
    cells = core_cells(notebook)
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    shown = [
        cell for cell in cells
        if cell.cell_type == "code" and "remove-cell" not in cell.metadata.get("tags", [])
    ]  # fmt: skip
    plain = [re.sub(r"<details>.*?</details>", "", text, flags=re.S) for text in texts]
    lines = [line.strip() for cell in shown for line in cell.source.splitlines()]
    return Core(
        words=sum(len(text.split()) for text in plain),
        lines=sum(bool(line) and not line.startswith("#") for line in lines),
        figures=sum(
            any(kind.startswith("image/") for kind in o.get("data", {}))
            for cell in shown
            for o in cell.outputs
        ),
        turns=tuple(int(found) for text in texts for found in TURN.findall(text)),
        run_seconds=notebook.metadata.get("run_seconds", 0),
    )


def main(paths: list[Path]) -> None:
    total = 0
    for path in paths:
        found = core(nbformat.read(path, as_version=4))
        total += found.minutes
        parts = f"{found.words} words, {found.lines} lines, {found.figures} figures, your turn "
        parts += f"{'+'.join(map(str, found.turns))} minutes, run {found.run_seconds} s"
        print(f"{path.stem:32} {found.minutes:3} minutes: {parts}")
    print(f"{'together':32} {total:3} minutes")


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[1:]])
