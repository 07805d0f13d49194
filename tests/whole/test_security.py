"""What comes from strangers is data: nothing in it is ever executed."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, read_notebook
from typer.testing import CliRunner

from trustml_helpers import certification, cli, models, training
from trustml_helpers.cli import inputs

# What executes a file, or a text, that is read.
FORBIDDEN = {
    "pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle", "torch.load",
    "torch.jit.load", "read_pickle", "eval", "exec", "unsafe_load", "os.system", "allow_pickle",
    "shell",
}  # fmt: skip
NOTEBOOKS = [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "notebooks/homework").rglob("*.ipynb")]
PROGRAMS = [p for d in ("trustml_helpers", "benchmarks", "docs") for p in (ROOT / d).rglob("*.py")]


def forbidden(code):
    """Names and imports of a program that could execute what they read."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute):
            found |= {node.attr, ast.unparse(node)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.add(node.func.id)
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            found |= {node.arg} - ({node.arg} if ast.unparse(node.value) == "False" else set())
    # A network's .eval() is another thing than the builtin.
    calls = {n.func.id for n in ast.walk(ast.parse(code))
             if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}  # fmt: skip
    return {name for name in found & FORBIDDEN if name not in ("eval", "exec") or name in calls}


def test_the_scan_finds_what_it_should():
    for code in ("import pickle", "from torch import load as l; import torch; torch.load('x')",
                 "eval('1')", "pd.read_pickle('x')", "from joblib import load"):  # fmt: skip
        assert forbidden(code), code
    assert not forbidden("model.eval(); np.load('x', allow_pickle=False)")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_program_executes_what_it_reads(path):
    assert not forbidden(path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_executes_what_it_reads(path):
    notebook = read_notebook(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not forbidden(cell.source)


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    sprung = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # it works
    sprung.unlink()
    yield pickle.dumps(Trap(sprung))
    assert not sprung.exists()


def test_a_checkpoint_that_is_a_pickle_is_refused(trap, tmp_path):
    path = tmp_path / "gift.safetensors"
    path.write_bytes(trap)
    card = {"architecture": "LeNet", "sha256": hashlib.sha256(trap).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(models.CheckpointError, match="is not a checkpoint"):
        models.load(path)


def test_a_state_of_training_that_is_a_pickle_is_refused(trap, tmp_path):
    path = tmp_path / "gift.training"
    path.write_bytes(trap)
    data = torch.eye(4), torch.tensor([0, 1, 0, 1])
    with pytest.raises(models.CheckpointError, match="is not the state of a training run"):
        training.fit(torch.nn.Linear(4, 2), data, epochs=1, checkpoint=path, progress=False)


@pytest.mark.parametrize("name", ["log.tsv", "log.pkl", "log.csv"])
def test_a_log_that_is_a_pickle_is_refused(trap, tmp_path, name):
    (tmp_path / name).write_bytes(trap)
    with pytest.raises(certification.LogError):
        certification.read_log(tmp_path / name)


def test_images_that_are_a_pickle_are_refused(trap, tmp_path):
    (tmp_path / "gift.npz").write_bytes(trap)
    objects = tmp_path / "objects.npz"
    np.savez(objects, images=np.array([Trap(tmp_path / "sprung")], dtype=object), labels=[0])
    cut = tmp_path / "cut.npz"
    cut.write_bytes(objects.read_bytes()[:-30])
    for path in (tmp_path / "gift.npz", objects, cut):
        with pytest.raises(ValueError, match="expected a file of numpy"):
            inputs.images(str(path), "test", None, 1, None)


@pytest.mark.parametrize("name", ["../escaped", "a/b", "/tmp/x"])
def test_a_name_cannot_leave_its_folder(tmp_path, name):
    words = ["train", name, "--recipe", "standard", "--out", str(tmp_path / "deep" / "out")]
    ran = CliRunner().invoke(cli.app, words)
    assert isinstance(ran.exception, ValueError)
    assert "expected a plain name" in str(ran.exception)
    assert not list(tmp_path.rglob("*"))
