"""Every notebook in JupyterLab: run up to its explorer, every control moved, the picture changes.

The cells below it are run by nbval.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from helpers import LESSONS

pytestmark = pytest.mark.slow

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
PATIENCE = 10 * 60  # seconds for a notebook; a machine that hangs must not hang the tests

# Runs the notebook down to the cell that shows its explorer; how many code cells that is.
RUN = """() => {
  const {content} = jupyterapp.shell.currentWidget;
  const shows = cell => /^explorer$/m.test(cell.model.sharedModel.source);
  const last = content.widgets.findIndex(shows);
  content.activeCellIndex = last + 1;
  void jupyterapp.commands.execute("notebook:run-all-above");
  return content.widgets.slice(0, last + 1).filter(cell => cell.model.type === "code").length;
}"""
# How far the run has come: cells that have not run, cells that failed, whether the kernel works.
PROGRESS = """count => {
  const {content, sessionContext} = jupyterapp.shell.currentWidget;
  const cells = content.widgets.filter(cell => cell.model.type === "code").slice(0, count);
  const failed = cells.flatMap(cell => cell.model.outputs.toJSON())
    .filter(output => output.output_type === "error").map(o => `${o.ename}: ${o.evalue}`);
  return {left: cells.filter(cell => !cell.model.executionCount).length, failed,
          busy: sessionContext.session?.kernel?.status !== "idle"};
}"""

# A notebook that only shows the drawing pad.
MAKE = """from trustml_helpers import data, models, widgets
images, labels = data.load_mnist("test")
model = models.load("mnist_smallcnn_standard")
explorer = widgets.draw_explorer(model, images[:20], labels[:20])"""
DRAWING = {
    "cells": [{"cell_type": "code", "id": f"cell-{k}", "metadata": {}, "execution_count": None,
               "outputs": [], "source": source} for k, source in enumerate([MAKE, "explorer", ""])],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    "nbformat": 4, "nbformat_minor": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server of its own on copies of the notebooks, with nobody's settings."""
    home = tmp_path_factory.mktemp("lab")
    for path in LESSONS.values():
        shutil.copy(path, home)
    (home / "drawing.ipynb").write_text(json.dumps(DRAWING), encoding="utf-8")
    # All cells in the page, also those that are not on the screen.
    tracker = home / "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text(json.dumps({"windowingMode": "none"}), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "TQDM_DISABLE": "1",
    }
    token = secrets.token_hex(16)
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser",
         f"--IdentityProvider.token={token}", f"--ServerApp.port={port}",
         "--ServerApp.ip=127.0.0.1", "--ServerApp.allow_root=True",
         f"--ServerApp.root_dir={home}"],
        env=os.environ | own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/api/status?token={token}").close()
            break
        except OSError:
            assert server.poll() is None, "JupyterLab did not start"
            time.sleep(0.5)
    # A workspace of its own: another page would open again what this one left.
    yield f"{address}/lab/workspaces/{{0}}/tree/{{0}}.ipynb?token={token}"
    server.terminate()
    server.wait()


@pytest.fixture
def page(browser, lab):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PATIENCE * 1000)
    yield page
    page.evaluate("jupyterapp.serviceManager.sessions.shutdownAll()")
    page.close()


def run(page, address, lesson):
    """The number of cells that ran."""
    page.goto(address.format(lesson))
    page.wait_for_function(
        "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
    )
    page.evaluate("jupyterapp.shell.currentWidget.context.ready")
    page.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    count = page.evaluate(RUN)
    assert count >= 2  # imports, and the explorer
    page.wait_for_timeout(1000)
    idle(page, count)
    return count


def idle(page, count):
    until = time.monotonic() + PATIENCE
    while (progress := page.evaluate(PROGRESS, count))["left"] or progress["busy"]:
        assert not progress["failed"]
        assert time.monotonic() < until, progress
        page.wait_for_timeout(500)
    assert not progress["failed"]


def moved(page, control, words):
    """Whether a step of the control, by keyboard, is answered; a slider at its end goes back."""
    before = words.inner_text()
    change = "old => document.querySelector('.widget-vbox p').innerText !== old"
    buttons = control.locator("button:not(.mod-active)")
    steps = [(buttons.last, "Space")]
    if not buttons.count():
        slider = control.locator("[role=slider]")
        steps = [(slider, "PageUp"), (slider, "PageDown")]
    for place, key in steps:
        place.press(key)
        try:
            page.wait_for_function(change, arg=before, timeout=60_000)
        except sync_api.TimeoutError:
            continue
        return True
    return False


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_notebook_in_jupyterlab(page, lab, lesson):
    bad = []
    page.on("pageerror", lambda error: bad.append(str(error)))
    page.on("console", lambda line: bad.append(line.text) if line.type == "error" else None)
    count = run(page, lab, lesson)
    explorer = page.locator(".jp-OutputArea-output .widget-vbox").first
    picture, words = explorer.locator("img"), explorer.locator("p")
    picture.scroll_into_view_if_needed()
    controls = explorer.locator(".widget-inline-hbox:has(button, [role=slider])")
    pictures = [picture.get_attribute("src")]
    for k in reversed(range(controls.count())):  # steps, before an attack without any is chosen
        control = controls.nth(k)
        assert control.locator("label, .widget-label").first.inner_text().strip()
        assert moved(page, control, words), control.inner_text()
        answer = words.inner_text()
        page.wait_for_timeout(500)
        idle(page, count)
        assert words.inner_text() == answer  # one move, one answer
        picture.evaluate("picture => picture.decode()")  # refused for what is no picture
        pictures.append(picture.get_attribute("src"))
    # An attack that has converged looks the same after more steps; its words count them.
    assert len(set(pictures)) >= max(2, controls.count())
    assert page.evaluate(PROGRESS, count)["failed"] == []
    assert not bad


def test_a_digit_drawn_with_the_mouse_and_with_keys(page, lab):
    bad = []
    page.on("pageerror", lambda error: bad.append(str(error)))
    page.on("console", lambda line: bad.append(line.text) if line.type == "error" else None)
    run(page, lab, "drawing")
    explorer = page.locator(".jp-OutputArea-output .widget-vbox").first
    pad, words = explorer.locator("canvas"), explorer.locator("p")

    def says(text):
        sync_api.expect(words).to_contain_text(text, timeout=60_000)

    says("0 strokes on blank paper")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    corners = [(box["x"] + share * box["width"], box["y"] + down * box["height"])
               for share, down in ((0.3, 0.2), (0.7, 0.2), (0.45, 0.8))]  # fmt: skip
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=5)
    page.mouse.up()
    says("1 stroke on blank paper: the model says 7")
    pad.press("Backspace")
    says("0 strokes on blank paper")
    pad.press("Space")
    for _ in range(4):
        pad.press("Shift+ArrowUp")
    pad.press("Space")
    says("1 stroke on blank paper: the model says 1")
    sync_api.expect(explorer.locator("[aria-live]")).to_contain_text("Pen up at")
    explorer.get_by_role("button", name="Clear").press("Space")
    says("0 strokes on blank paper")
    assert page.evaluate("jupyterapp.shell.currentWidget.content.widgets.length") == 3
    assert not bad
