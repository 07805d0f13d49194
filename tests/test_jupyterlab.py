"""Every notebook in JupyterLab: all cells run, every control moved, the picture changes."""

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

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
if not os.environ.get("TRUSTML_JUPYTERLAB"):
    pytest.skip("takes ten minutes: set TRUSTML_JUPYTERLAB=1", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
PATIENCE = 20 * 60  # seconds for a notebook; a machine that hangs must not hang the tests

# How far the run has come: cells that have not run, cells that failed, whether the kernel works.
PROGRESS = """() => {
  const {content, sessionContext} = jupyterapp.shell.currentWidget;
  const cells = content.widgets.filter(cell => cell.model.type === "code");
  const failed = cells.flatMap(cell => cell.model.outputs.toJSON())
    .filter(output => output.output_type === "error").map(o => `${o.ename}: ${o.evalue}`);
  return {left: cells.filter(cell => !cell.model.executionCount).length, failed,
          busy: sessionContext.session?.kernel?.status !== "idle"};
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server of its own on copies of the notebooks, with nobody's settings."""
    home = tmp_path_factory.mktemp("lab")
    for path in LESSONS.values():
        shutil.copy(path, home)
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
    yield f"{address}/lab/tree/{{}}.ipynb?token={token}"
    server.terminate()
    server.wait()


@pytest.fixture
def page(browser, lab):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PATIENCE * 1000)
    yield page
    page.evaluate("jupyterapp.serviceManager.sessions.shutdownAll()")
    page.close()


def run_all(page, address, lesson):
    page.goto(address.format(lesson))
    page.wait_for_function(
        "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
    )
    page.evaluate("jupyterapp.shell.currentWidget.context.ready")
    page.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
    until = time.monotonic() + PATIENCE
    while True:
        page.wait_for_timeout(1000)
        progress = page.evaluate(PROGRESS)
        assert not progress["failed"]
        if not progress["left"] and not progress["busy"]:
            return
        assert time.monotonic() < until, progress


def moved(page, control, picture):
    """The picture after a step of the control, by keyboard; a slider at its end goes back."""
    before = picture.get_attribute("src")
    change = "old => document.querySelector('.jp-OutputArea-output .widget-vbox img')?.src !== old"
    menu = control.locator("select")
    if menu.count():
        keys = ["ArrowDown", "ArrowUp"]
        menu.focus()
    else:
        control.locator("[role=slider]").focus()
        keys = ["PageUp", "PageDown"]
    for key in keys:
        page.keyboard.press(key)
        try:
            page.wait_for_function(change, arg=before, timeout=60_000)
        except sync_api.TimeoutError:
            continue
        return picture.get_attribute("src")
    return before


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_notebook_in_jupyterlab(page, lab, lesson):
    bad = []
    page.on("pageerror", lambda error: bad.append(str(error)))
    page.on("console", lambda line: bad.append(line.text) if line.type == "error" else None)
    run_all(page, lab, lesson)
    explorer = page.locator(".jp-OutputArea-output .widget-vbox").first
    picture = explorer.locator("img")
    picture.scroll_into_view_if_needed()
    controls = explorer.locator(".widget-inline-hbox:has(select, [role=slider])")
    assert controls.count() >= 1
    for k in reversed(range(controls.count())):  # the last ones may serve one choice of the first
        control = controls.nth(k)
        assert control.locator("label, .widget-label").first.inner_text().strip()
        before = picture.screenshot()
        shown = picture.get_attribute("src")
        assert moved(page, control, picture) != shown, control.inner_text()
        page.wait_for_timeout(200)
        assert picture.screenshot() != before, control.inner_text()
    assert page.evaluate(PROGRESS)["failed"] == []
    assert not bad
