"""Small models whose best attack is known, snapshots of models, built and watched pages, outcomes
of odd arguments."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trustml_helpers._support.files import LogError
from trustml_helpers.data import DataError

ROOT = Path(__file__).parents[1]
LESSONS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))}
BEYOND = {f"beyond/{path.stem}": path for path in sorted((ROOT / "notebooks/beyond").glob("*"))
          if path.suffix == ".ipynb"}  # fmt: skip


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the tracked files are not known")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


class Linear(nn.Module):
    """Two classes, logits (w.x, 0): the worst perturbation of the margin is known exactly."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.clone())

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w
        return torch.stack([score, torch.zeros_like(score)], 1)


class Awkward(nn.Module):
    """BatchNorm (one frozen), dropout, buffers, stale gradients: easy to disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        )
        self.drop = nn.Dropout(0.5)
        self.head = nn.LazyLinear(3)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = 0.9 * self.seen + x.detach().mean()  # another tensor in its place
        return self.head(self.drop(self.body(x).flatten(1)))


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything that an attack must leave alone."""
    return {
        "flags": [m.training for m in model.modules()],
        "state": [t.clone() for t in (*model.parameters(), *model.buffers())],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "rng": torch.get_rng_state(),
    }


def assert_same(before: dict[str, object], after: dict[str, object]) -> None:
    for key, old in before.items():
        new = after[key]
        if isinstance(old, torch.Tensor):
            assert torch.equal(old, new), key  # type: ignore[arg-type]
            continue
        for a, b in zip(old, new, strict=True):  # type: ignore[call-overload]
            same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a is b or a == b
            assert same, key


def read_notebook(path):
    import nbformat  # takes three seconds

    return nbformat.read(path, as_version=4)


def torchrun(*words):
    """Two processes on this machine, one thread each; if they hang, all of them are ended."""
    code = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [*code, *map(str, words)], **streams, start_new_session=True
    ) as launcher:  # fmt: skip
        try:
            out, err = launcher.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(launcher.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(launcher.args, launcher.returncode, out, err)


def sphinx_pages(folder, script, *options):
    """The pages that Sphinx makes, without a warning, of the sources that a script lays out."""
    source, html = str(folder / "source"), folder / "html"
    for words in (
        [str(ROOT / script), source],
        ["-m", "sphinx", *options, "-W", "--keep-going", "-q", source, str(html)],
    ):
        ran = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    return html


def watched(browser, bad, height=1000):
    """A new page that adds to ``bad`` what goes wrong in it."""
    page = browser.new_page(viewport={"width": 1280, "height": height})
    page.on("pageerror", lambda error: bad.append(str(error)))
    page.on("requestfailed", lambda request: bad.append(request.url))
    page.on("console", lambda line: bad.append(line.text) if line.type == "error" else None)
    return page


def outcome(call, *names):
    """The result, or None after an error that names one of the arguments."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except (ValueError, TypeError, LogError, DataError) as error:
        said = repr(error)
    assert re.search(rf"\b({'|'.join(names)})\b", said), f"{said} names none of {names}"
    return None


def script(path: str):
    """A program of docs/ as a module; each imports its neighbours by name."""
    spec = importlib.util.spec_from_file_location(path.rpartition("/")[2][:-3], ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
