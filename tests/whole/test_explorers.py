"""Explorers on a page without a kernel: their states are those of the live ones."""

from __future__ import annotations

import itertools
import re

import nbformat
import pytest
from helpers import BEYOND, LESSONS, script

pytestmark = pytest.mark.slow

explorers = script("docs/site/explorers.py")
DECLARED = {
    name: cell
    for name, path in (LESSONS | BEYOND).items()
    for cell in nbformat.read(path, as_version=4).cells
    if "page" in cell.metadata
}


def test_every_explorer_of_the_lecture_is_declared():
    assert [name.rpartition("/")[2][:2] for name in DECLARED] == [
        "01",
        "02",
        "03",
        "04",
        "05",
        "a_",
    ]
    for name, path in (LESSONS | BEYOND).items():
        for cell in nbformat.read(path, as_version=4).cells:
            if re.search(r"widgets\.(?!draw)\w+_explorer\(", cell.source):
                assert "page" in cell.metadata, (name, cell["id"])


@pytest.mark.parametrize("name", ["02_danskin_min_max_training", "05_certification"])
def test_states_are_those_of_the_live_explorer(name):
    """On a part of the grid: the sentence of each state is what the widget says when it is set."""
    notebook = nbformat.read(LESSONS[name], as_version=4)
    cell = next(each for each in notebook.cells if "page" in each.metadata)
    explorer = explorers.build(notebook, cell)
    grid = {key: values[::4][:2] for key, values in cell.metadata["page"]["grid"].items()}
    found = explorers.states(explorer, grid)
    wanted = [
        explorer.set(**dict(zip(grid, values, strict=True))).says
        for values in itertools.product(*grid.values())
    ]
    assert found["says"] == wanted
    assert len(set(found["shown"])) == len(found["pictures"]) == len(wanted)


def test_what_is_no_explorer_is_refused():
    cell = nbformat.v4.new_code_cell("x = 1\nx", metadata={"page": {"title": "T", "grid": {}}})
    with pytest.raises(TypeError, match="int, expected an Explorer"):
        explorers.build(nbformat.v4.new_notebook(cells=[cell]), cell)
    cell.source = "x = 1"
    with pytest.raises(TypeError, match="expected the explorer as the last expression"):
        explorers.build(nbformat.v4.new_notebook(cells=[cell]), cell)
