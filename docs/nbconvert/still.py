"""Keep of a stored widget only its words: its view needs a kernel, and JupyterLab reports it lost.

Usage: python docs/nbconvert/still.py notebooks/0*.ipynb
"""

from __future__ import annotations

import sys

import nbformat


def still(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return notebook


if __name__ == "__main__":
    for path in sys.argv[1:]:
        nbformat.write(still(nbformat.read(path, as_version=4)), path)
