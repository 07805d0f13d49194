"""Copies of the notebooks to work on: with stubs to fill in, or complete. Existing copies stay.

In a cell with the tag "your-turn" the body of each function becomes a stub; below the check that
follows it, the solution is folded. All outputs go: guess first, then run. Cells that draw are
collapsed: how they do it is not the subject, and the description of a figure gives it away.

Usage: python docs/nbconvert/edition.py fill-in work notebooks/*.ipynb
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

EDITIONS = ("fill-in", "complete")


def stub(source: str) -> str:
    """The same functions, each with its docstring and no body."""
    lines = source.splitlines()
    functions = [each for each in ast.parse(source).body if isinstance(each, ast.FunctionDef)]
    if not functions:
        raise ValueError(f"a cell with the tag your-turn defines no function: {source!r}")
    for function in reversed(functions):
        body = function.body[ast.get_docstring(function) is not None :]
        first, last = body[0].lineno - 1, body[-1].end_lineno
        left = sum(bool(line.strip()) for line in lines[first:last])
        lines[first:last] = [
            f"    # Your turn: about {left} line{'s' * (left > 1)}.",
            "    raise NotImplementedError",
        ]
    return "\n".join(lines)


def fill_in(notebook: NotebookNode) -> NotebookNode:
    """The edition in which the reader writes the functions."""
    cells: list[NotebookNode] = []
    solution = ""
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type != "code":
            continue
        cell.outputs, cell.execution_count = [], None
        if "figures.show(" in cell.source:
            cell.metadata["jupyter"] = {"source_hidden": True}
        if "your-turn" in cell.metadata.get("tags", []):
            solution = cell.source
            cell.source = stub(solution)
        elif solution:  # the check of the cell before
            folded = (
                "<details>\n<summary>Solution</summary>\n\n"
                f"```python\n{solution}\n```\n\n</details>"
            )
            cells.append(new_markdown_cell(folded, id=f"{cell.id}-solution"))
            solution = ""
    notebook.cells = cells
    return notebook


def main(edition: str, out: Path, paths: list[Path]) -> None:
    if edition not in EDITIONS:
        raise SystemExit(f"EDITION={edition}: expected one of {', '.join(EDITIONS)}")
    for path in paths:
        copy = out / ("beyond" if path.parent.name == "beyond" else "") / path.name
        if copy.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        notebook = nbformat.read(path, as_version=4)
        nbformat.write(fill_in(notebook) if edition == "fill-in" else notebook, copy)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(each) for each in sys.argv[3:]])
