"""Cut the notebooks into slides: text, code and result, or a picture with what to see in it.

Left out are the calls that draw, cells that only check, and what is for the curious: the notebook
has them. Beside a deck for each notebook there is one for a lecture of 90 minutes: the cells with
the tag "lecture". A text begins a slide, under the heading of its section if it has none; a code
cell joins the slide before it, with its picture if it draws one, else with its code and result.

Usage: python docs/slides/cut.py build/slides-source
"""

from __future__ import annotations

import ast
import copy
import math
import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "docs/site"))
from assemble import emptied, readable, without_the_curious  # noqa: E402

# Heights in pixels of a slide of 1280 x 720, as slides.css sets them; slides.js shrinks the rest.
ROOM, LINE, CODE_LINE, ROW, FORMULA = 600, 41, 28, 38, 100
LETTERS = 80  # in a line
TABLE = 10  # rows
BREAK = "```{revealjs-break}\n```"


def blocks(text: str) -> list[str]:
    """Paragraphs, lists, tables and displayed formulas of a Markdown cell; hints stay whole."""
    found: list[str] = []
    for part in re.split(r"\n\s*\n", text):
        inside = found and (
            found[-1].count("<details>") > found[-1].count("</details>")
            or found[-1].count("$$") % 2
            or found[-1].count("```") % 2
        )
        if inside:
            found[-1] += "\n\n" + part
        else:
            found.append(part)
    return found


def shares(block: str) -> list[str]:
    """A table too long for a slide, in parts with its heading; anything else as it is."""
    if not block.startswith("|"):
        return [block]
    head, rows = block.splitlines()[:2], block.splitlines()[2:]
    parts = math.ceil(len(rows) / TABLE)
    size = math.ceil(len(rows) / max(parts, 1))
    return ["\n".join(head + rows[size * k : size * (k + 1)]) for k in range(parts)]


def height(block: str) -> int:
    """About what a block of Markdown takes."""
    if block.startswith("#"):
        return 0  # the title has its own place
    if block.startswith("|"):
        return ROW * len(block.splitlines())
    if block.startswith("<details>"):
        return LINE * block.count("<details>")
    lines = block.split("\n") if block.startswith(("- ", "1. ", "* ")) else [block]
    used = sum(math.ceil(len(re.sub(r"\$\$.*?\$\$", "", line, flags=re.S)) / LETTERS)
               for line in lines)  # fmt: skip
    return LINE * used + FORMULA * (block.count("$$") // 2) + 16


def _printed(output: NotebookNode) -> int:
    data = output.get("data", {})
    if "text/html" in data:
        return ROW * data["text/html"].count("<tr")
    return CODE_LINE * len((output.get("text") or data.get("text/plain", "")).splitlines()) + 16


def _part(cell: NotebookNode, outputs: list[NotebookNode], *tags: str) -> NotebookNode:
    part = copy.deepcopy(cell)
    part.id = f"{cell.id}-{len(tags)}"
    part.outputs = outputs
    if outputs:
        part.source = "..."  # not shown; without a source the cell would be dropped
    part.metadata["tags"] = [*part.metadata.get("tags", []), *tags]
    return part


def told(source: str) -> str:
    """The code of a cell without what only draws or only checks."""
    lines = source.splitlines(keepends=True)
    kept = list(lines)
    for statement in ast.parse(source).body:
        call = ast.unparse(statement)
        if isinstance(statement, ast.Assert) or call.startswith("figures.show("):
            kept[statement.lineno - 1 : statement.end_lineno] = [""] * (
                statement.end_lineno - statement.lineno + 1
            )
    return "".join(kept).strip("\n")


class Deck:
    """Cells of a deck as they come, with a break where a slide is full."""

    def __init__(self) -> None:
        self.cells: list[NotebookNode] = []
        self.used = 0

    def turn(self) -> None:
        if self.used:
            self.cells.append(new_markdown_cell(BREAK))
            self.used = 0

    def add(self, cell: NotebookNode, size: int) -> None:
        if self.used + size > ROOM:
            self.turn()
        self.cells.append(cell)
        self.used += size


def cut(notebook: NotebookNode) -> NotebookNode:
    """The notebook with breaks between slides, and code apart from the pictures that it draws."""
    deck, pictured = Deck(), False
    for cell in without_the_curious(notebook):
        if "question" in cell.metadata.get("tags", []):
            for slide in asked(cell.source):
                deck.turn()
                deck.add(new_markdown_cell(slide), ROOM)
            continue
        if cell.cell_type == "markdown":
            parts = blocks(cell.source)
            if pictured and parts[0].startswith("*What to see"):
                deck.add(new_markdown_cell(parts.pop(0)), 0)  # beside its picture
            if parts and parts[0].startswith("#"):
                deck.used = 0  # a heading begins a slide
            elif parts and (pictured or deck.used + sum(map(height, parts)) > ROOM):
                deck.turn()
            for share in [share for part in parts for share in shares(part)]:
                deck.add(new_markdown_cell(share), height(share))
            pictured = False
            continue
        if "remove-cell" in cell.metadata.get("tags", []):
            continue
        pictures = drawn(cell)
        other = [each for each in cell.outputs if each not in pictures]
        cell.source = told(cell.source)
        if cell.source:
            size = CODE_LINE * len(cell.source.splitlines()) + 32
            deck.add(_part(cell, []), size)
        if other:
            deck.add(_part(cell, other, "remove-input"), sum(map(_printed, other)))
        if pictures:
            deck.turn()
            deck.add(_part(cell, pictures, "remove-input", "picture"), ROOM)
        pictured = bool(pictures)
    notebook.cells = deck.cells
    return notebook


def asked(source: str) -> tuple[str, str]:
    """A question as two slides: what the class votes on, then the answers with their reasons."""
    question, _, answers = source.partition("<details><summary>Answers</summary>")
    return question.strip(), answers.partition("</details>")[0].strip()


def drawn(cell: NotebookNode) -> list[NotebookNode]:
    return [
        each for each in cell.get("outputs", [])
        if any(kind.startswith("image/") for kind in each.get("data", {}))
    ]  # fmt: skip


def lecture(notebooks: list[NotebookNode]) -> NotebookNode:
    """One deck of all cells with the tag: what fits into one lecture."""
    cells: list[NotebookNode] = [new_markdown_cell("# Robust training")]
    for notebook in notebooks:
        title = ""
        for cell in notebook.cells:
            heading = re.match(r"#+ (?:\d+ )?(?:· )?(.*)", cell.source)
            if heading and cell.cell_type == "markdown":
                title = heading[1]
            if "lecture" not in cell.metadata.get("tags", []):
                continue
            if cell.cell_type == "markdown":
                text = re.sub(r"^#+ .*\n*", "", cell.source)
                cells.append(new_markdown_cell(f"## {title}\n\n{text}"))
            elif pictures := drawn(cell):
                cells.append(_part(cell, pictures, "remove-input", "picture"))
            else:
                cells.append(_part(cell, []))
                cells[-1].source = told(cell.source)
                if cell.outputs:
                    cells.append(_part(cell, cell.outputs, "remove-input"))
    for k, cell in enumerate(cells):  # notebooks may use the same name twice
        cell.id = f"lecture-{k}"
    return new_notebook(cells=cells, metadata=notebooks[0].metadata)


def main() -> None:
    out = emptied(__doc__.splitlines()[0])
    shutil.copytree(
        Path(__file__).parent, out, ignore=shutil.ignore_patterns("__pycache__", "cut.py")
    )
    paths = sorted((ROOT / "notebooks").glob("0*.ipynb"))
    notebooks = [readable(nbformat.read(path, as_version=4)) for path in paths]
    for cell in [cell for notebook in notebooks for cell in notebook.cells]:  # not all have a deck
        cell.source = re.sub(r"\[([^\]]*)\]\([^)]*\.ipynb\)", r"\1", cell.source)
    nbformat.write(lecture(notebooks), out / "lecture.ipynb")
    for path, notebook in zip(paths, notebooks, strict=True):
        nbformat.write(cut(notebook), out / path.name)


if __name__ == "__main__":
    main()
