"""Lay out the sources of the web book: pages, notebooks with their alt texts, the blank homework.

Usage: python docs/site/assemble.py build/site-source
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import nbformat

from trustml_helpers import checks

ROOT = Path(__file__).resolve().parents[2]


def readable(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Alt texts where MyST-NB looks for them, and tables with formulas."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            table = output.get("data", {}).get("text/html", "")
            if table:  # pandas leaves the corner empty, which is no header for a reader
                table = table.replace("<th></th>", "<td></td>")
                table = re.sub(r"\$([^$<>]+)\$", r"\\(\1\\)", table)
                # A formula alone is an empty heading, too.
                output.data["text/html"] = re.sub(r"<th>(\\\(.*?\\\))</th>", r"<td>\1</td>", table)
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return notebook


def main(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(Path(__file__).parent, out, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs" / "pictures", out / "pictures")
    released = checks.release(out / "release")
    pages = [*sorted((ROOT / "notebooks").glob("0*.ipynb")), released.with_suffix(".ipynb")]
    (out / "notebooks").mkdir()
    for path in pages:
        page = readable(nbformat.read(path, as_version=4))
        nbformat.write(page, out / "notebooks" / path.name)
    shutil.rmtree(out / "release")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
