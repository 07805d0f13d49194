"""Make a fresh run fit to be stored: without views that need a kernel, with its length in seconds.

Two pictures of README.md are outputs of the notebooks, and written anew.
JupyterLab reports a widget without its kernel as lost; its words stay. The cells of the core path
(as docs/minutes.py has it) give the metadata run_seconds, on which it reckons.

Usage: python docs/nbconvert/still.py notebooks/0*.ipynb
"""

from __future__ import annotations

import base64
import sys
from datetime import datetime
from pathlib import Path

import nbformat

sys.path.append(str(Path(__file__).parents[1]))
from minutes import core_cells

PICTURES = {  # of README.md, by notebook and cell
    ("02_danskin_min_max_training.ipynb", "cell-068"): "training.png",
    ("05_certification.ipynb", "curves-three"): "certified.png",
}


def picture(notebook: nbformat.NotebookNode, cell_id: str) -> bytes:
    """The picture that a cell shows, as PNG."""
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    (data,) = (o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
    return base64.b64decode(data)


def _seconds(cell: nbformat.NotebookNode) -> float:
    said = cell.metadata.pop("execution", {})
    begun, ended = (said.get(f"iopub.{each}") for each in ("execute_input", "status.idle"))
    if not (begun and ended):
        return 0.0
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()


def still(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    run, core = 0.0, {id(cell) for cell in core_cells(notebook)}
    for cell in notebook.cells:
        run += _seconds(cell) * (id(cell) in core)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    if run:
        notebook.metadata["run_seconds"] = max(10, 10 * round(run / 10))  # 0: not measured
    return notebook


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        notebook = still(nbformat.read(path, as_version=4))
        nbformat.write(notebook, path)
        for (name, cell_id), file in PICTURES.items():
            if path.name == name:
                shown = Path(__file__).parents[1] / "pictures" / file
                shown.write_bytes(picture(notebook, cell_id))
