"""``trustml course``: copies of the notebooks to work on, with stubs to fill in or complete.

In a cell with the tag "your-turn" the body of each function becomes a stub; below the check that
follows it, the solution is folded. All outputs go: guess first, then run. Cells that draw are
collapsed: how they do it is not the subject, and the description of a figure gives it away.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trustml_helpers._support.files import replace_file
from trustml_helpers.cli.inputs import option
from trustml_helpers.data import course_folder

EDITIONS = ("fill-in", "complete")


def course(
    folder: Annotated[Path, typer.Argument(help="Folder for the copies; made if missing.")],
    edition: Annotated[str, option("fill-in, or complete with the solutions.")] = "fill-in",
    show: Annotated[bool, option("Open JupyterLab there.", "--open/--no-open")] = True,
) -> None:
    """Copy the notebooks of the course into a folder, and open JupyterLab on it.

    Copies that are there stay as they are: delete one for a fresh copy.
    """
    if edition not in EDITIONS:
        raise ValueError(f"edition={edition!r}: expected one of {', '.join(EDITIONS)}")
    source = course_folder() / "notebooks"
    paths = sorted([*source.glob("0*.ipynb"), *source.glob("beyond/*.ipynb")])
    made = [copy(path, folder / path.relative_to(source), edition) for path in paths]
    typer.echo(f"{sum(made)} notebooks copied to {folder}, {len(made) - sum(made)} were there")
    if show:
        command = [sys.executable, "-m", "jupyterlab", "--notebook-dir", str(folder)]
        raise typer.Exit(subprocess.run(command, check=False).returncode)


def copy(path: Path, to: Path, edition: str) -> bool:
    """Write an edition of a notebook, unless there is a file already; whether it did."""
    if to.exists():
        return False
    text = path.read_text(encoding="utf-8")
    if edition == "fill-in":
        text = json.dumps(fill_in(json.loads(text)), ensure_ascii=False, indent=1) + "\n"
    to.parent.mkdir(parents=True, exist_ok=True)
    replace_file(to, text.encode())
    return True


def fill_in(notebook: dict[str, Any]) -> dict[str, Any]:
    """The edition in which the reader writes the functions, of a notebook as JSON."""
    cells: list[dict[str, Any]] = []
    solution = ""
    for cell in notebook["cells"]:
        cells.append(cell)
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        cell["outputs"], cell["execution_count"] = [], None
        if "figures.show(" in source:
            cell["metadata"]["jupyter"] = {"source_hidden": True}
        if "your-turn" in cell["metadata"].get("tags", []):
            solution = source
            cell["source"] = stub(solution)
        elif solution:  # the check of the cell before
            folded = (
                "<details>\n<summary>Solution</summary>\n\n"
                f"```python\n{solution}\n```\n\n</details>"
            )
            cells.append({"cell_type": "markdown", "id": f"{cell['id']}-solution", "metadata": {},
                          "source": folded})  # fmt: skip
            solution = ""
    return notebook | {"cells": cells}


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
