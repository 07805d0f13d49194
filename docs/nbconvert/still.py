"""Make a fresh run fit to be stored: without views that need a kernel, with its length in seconds.

JupyterLab reports a widget without its kernel as lost; its words stay. The cells of the core path
(before "For the curious") give the metadata run_seconds, on which docs/minutes.py reckons.

Usage: python docs/nbconvert/still.py notebooks/0*.ipynb
"""

from __future__ import annotations

import sys
from datetime import datetime

import nbformat


def _seconds(cell: nbformat.NotebookNode) -> float:
    said = cell.metadata.pop("execution", {})
    begun, ended = (said.get(f"iopub.{each}") for each in ("execute_input", "status.idle"))
    if not (begun and ended):
        return 0.0
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()


def still(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    run, core = 0.0, True
    for cell in notebook.cells:
        core = core and not cell.source.startswith(("## For the curious", "## Exercises"))
        seconds = _seconds(cell)
        run += seconds * core
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    if run:
        notebook.metadata["run_seconds"] = 10 * round(run / 10)
    return notebook


if __name__ == "__main__":
    for path in sys.argv[1:]:
        nbformat.write(still(nbformat.read(path, as_version=4)), path)
