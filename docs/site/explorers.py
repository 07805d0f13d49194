"""Explorers on a page that has no kernel: their states, computed when the page is built.

The author of a notebook declares beside an explorer what can be chosen on the page, in the metadata
of its cell::

    "page": {"title": "Attack explorer", "needs": ["cell-003"], "grid": {"image": [0, 1, 2]}}

``needs`` names the cells to run before it. Controls that the grid leaves out stay as they are.
``"formula"`` in the place of a grid names a function of ``explorer.js`` that draws and says all by
itself.

No library: Panel 1.9 (``save(embed=True)``) and Plotly 7.1 were tried. They bring scripts of 3 and
4.8 MB to a page, more than all its states here; Panel stores pictures as PNG alone, and neither has
a sentence that a screen reader hears after each change.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from nbclient import NotebookClient
from PIL import Image

from trustml_helpers import figures
from trustml_helpers.widgets import Explorer

WIDTH = 700  # pixels, of a picture


def static(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Put a working explorer below every cell that declares one."""
    for cell in notebook.cells:
        if about := cell.metadata.get("page"):
            text = computed(notebook, cell, about)
            cell.outputs = [nbformat.v4.new_output("display_data", {"text/html": text})]
    return notebook


def computed(
    notebook: nbformat.NotebookNode, cell: nbformat.NotebookNode, about: dict[str, Any]
) -> str:  # fmt: skip
    """The explorer of a cell as HTML, from a kernel that runs the cells that it needs."""
    by_id = {each["id"]: each.source for each in notebook.cells}
    last = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import explorers\n"
    last += f"print(explorers.fragment(_, {dict(about)!r}))"
    sources = [*(by_id[name] for name in about.get("needs", [])), cell.source, last]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    ran = NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=600).execute()
    said = (each for each in ran.cells[-1].outputs if each.output_type == "stream")
    return "".join(each.text for each in said if each.name == "stdout")


def fragment(explorer: Explorer, about: dict[str, Any]) -> str:
    """The explorer as HTML; ``explorer.js`` moves it.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(explorer, Explorer):
        raise TypeError(f"{type(explorer).__name__}, expected an Explorer as the last expression")
    formula, grid = about.get("formula"), about.get("grid", {})
    if formula:
        controls = [
            {"name": name, "min": c.min, "max": c.max, "step": c.step, "value": c.value}
            for name, c in explorer.controls.items()
        ]
        data: dict[str, Any] = {"formula": formula, "controls": controls}
    else:
        now = explorer._values()
        controls = [
            {"name": name, "values": values, "start": nearest(values, now[name])}
            for name, values in grid.items()
        ]
        data = {"controls": controls} | states(explorer, grid)
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    title = html.escape(about["title"], quote=True)
    return (
        f'<div class="explorer" role="group" aria-label="{title}">'
        f'<script type="application/json">{text}</script>'
        f"<noscript>{html.escape(explorer.says)}</noscript></div>"
    )


def nearest(values: list[Any], wanted: Any) -> int:
    """The place of a value in a list, or that of the number next to it."""
    if wanted in values or isinstance(wanted, str):
        return values.index(wanted)
    return min(range(len(values)), key=lambda k: abs(values[k] - wanted))


def states(explorer: Explorer, grid: dict[str, list[Any]]) -> dict[str, Any]:
    """A picture and a sentence for every combination, the last control running fastest.

    Equal pictures are stored once; ``shown`` has the number of each state's picture.
    """
    pictures: dict[str, int] = {}
    shown, says = [], []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        figure, sentence = explorer._draw(**explorer._values() | chosen)
        shown.append(pictures.setdefault(small(figure), len(pictures)))
        says.append(sentence)
    return {"pictures": list(pictures), "shown": shown, "says": says}


def small(figure: plt.Figure) -> str:
    """A figure as a WebP of few bytes, in base64."""
    with plt.rc_context(figures.STYLE):
        figure.set_dpi(WIDTH / figure.get_figwidth())
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        plt.close(figure)
    with io.BytesIO() as packed:
        if len(picture.getcolors(1 << 24) or []) > 4000:  # a photograph
            picture.save(packed, "WEBP", quality=60, method=2)
        else:
            flat = picture.quantize(64, dither=Image.Dither.NONE).convert("RGB")
            flat.save(packed, "WEBP", lossless=True, quality=40, method=2)
        return base64.b64encode(packed.getvalue()).decode()
