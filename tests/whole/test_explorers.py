"""Explorers on a page without a kernel: their states are those of the live ones."""

from __future__ import annotations

import itertools
import json
import re

import nbformat
import pytest
import torch
from helpers import BEYOND, LESSONS, script

from trustml_helpers import widgets

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


def toy(theta, delta):
    return theta * delta - delta**2


LIVE = {
    "02_danskin_min_max_training": lambda: widgets.danskin_explorer(
        toy, torch.linspace(-2, 2, 201), torch.linspace(-1, 1, 401)
    ),
    "05_certification": lambda: widgets.certification_explorer(alpha=0.001, sigma=0.5),
}


@pytest.mark.parametrize("name", LIVE)
def test_states_are_those_of_the_live_explorer(name):
    """On a part of the grid: the sentence of each state is what the widget says when it is set."""
    explorer = LIVE[name]()
    about = DECLARED[name].metadata["page"]
    grid = {key: values[::4][:2] for key, values in about["grid"].items()}
    found = explorers.states(explorer, grid)
    wanted = [
        explorer.set(**dict(zip(grid, values, strict=True))).says
        for values in itertools.product(*grid.values())
    ]
    assert found["says"] == wanted
    assert len(set(found["shown"])) == len(found["pictures"]) == len(set(wanted))


def test_a_page_begins_where_the_widget_does():
    assert explorers.nearest([0.0, 0.05, 0.1], 0.1) == 2
    assert explorers.nearest([0, 100, 500, 1500], 1000) in (2, 3)
    assert explorers.nearest(["FGSM", "PGD"], "PGD") == 1


def test_what_is_no_explorer_is_refused():
    with pytest.raises(TypeError, match="int, expected an Explorer"):
        explorers.fragment(1, {"title": "T", "grid": {}})


def test_a_cell_is_run_with_what_it_needs_and_no_more():
    cells = [
        nbformat.v4.new_code_cell("raise ValueError", id="a"),
        nbformat.v4.new_code_cell("from trustml_helpers import widgets", id="b"),
        nbformat.v4.new_code_cell("widgets.radius_explorer()", id="c"),
    ]
    cells[2].metadata["page"] = {"title": "R", "needs": ["b"], "formula": "radius"}
    page = explorers.static(nbformat.v4.new_notebook(cells=cells))
    text = page.cells[2].outputs[0].data["text/html"]
    data = json.loads(re.search(r"<script[^>]*>(.*?)</script>", text)[1])
    assert data["formula"] == "radius"
    assert [each["name"] for each in data["controls"]] == ["p_a", "sigma", "delta"]
