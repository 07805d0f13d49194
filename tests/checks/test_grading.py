"""The homework from source to grades: what a release may hold, and what grading survives."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from helpers import ROOT, watched

from trustml_helpers import cli
from trustml_helpers.checks import grading

pytestmark = pytest.mark.slow  # nbgrader runs whole notebooks

SOURCE = nbformat.read(grading.SOURCE, as_version=4)
POINTS = {
    cell.metadata["nbgrader"]["grade_id"]: cell.metadata["nbgrader"]["points"]
    for cell in SOURCE.cells
    if cell.metadata.get("nbgrader", {}).get("grade")
}
BY_HAND = {"danskin-written", "two-class-derivation"}

# Python that refuses every connection but to this machine, in all processes started below.
NO_NETWORK = """
import socket
_connect = socket.socket.connect
def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"no network: {address}")
    return _connect(self, address)
socket.socket.connect = connect
"""

# Endless from the fifth call on: the visible check, which makes four, does not cost time as well.
ENDLESS = """
import time
calls = []
def two_class_radius(p_a, p_b, sigma):
    calls.append(1)
    while len(calls) > 4:
        time.sleep(0.1)
    return 0.0
"""

# Right, but it writes to stderr below Python, which a notebook shows in the graded cell.
NOISY = """
import os
quiet = adversarial_step
def adversarial_step(*given):
    os.write(2, b"noise")
    return quiet(*given)
"""


def label(cell):
    return cell.metadata.get("nbgrader", {}).get("grade_id")


def cell_of(notebook, name):
    return next(cell for cell in notebook.cells if label(cell) == name)


def solved(blank):
    """The release with the solutions of the source in it."""
    notebook = copy.deepcopy(blank)
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = cell_of(SOURCE, label(cell)).source
    return notebook


def troubled(blank):
    """Solved, but with one thing of every kind wrong."""
    notebook = solved(blank)
    cell_of(notebook, "two-class-radius").source = ENDLESS
    cell_of(notebook, "predict").source = "def predict(counts, alpha)\n    return 0"
    cell_of(notebook, "fgsm-graded").source = "6.0"
    cell_of(notebook, "fgsm-graded").metadata["nbgrader"]["points"] = 60
    cell_of(notebook, "fgsm").source = "def fgsm(model, x, y, eps):\n    return x + eps"
    cell_of(notebook, "adversarial-step").source += NOISY
    cell_of(notebook, "break-masked").source = "raise NotImplementedError()"  # the slowest task
    gone = ["sample-under-noise-graded"]
    gone += [f"average-certified-radius{end}" for end in ("", "-check", "-graded")]
    notebook.cells = [cell for cell in notebook.cells if label(cell) not in gone]
    notebook.cells.append(nbformat.v4.new_code_cell("checks.certify = lambda *_, **__: None"))
    notebook.cells.append(copy.deepcopy(cell_of(notebook, "pgd")))  # a copied cell
    notebook.cells[-1]["id"] = "copied"
    return notebook


def crashing(blank):
    notebook = copy.deepcopy(blank)
    cell_of(notebook, "fgsm").source = "import os\nos._exit(1)"
    return notebook


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    out = tmp_path_factory.mktemp("release")
    grading.release(out)
    return out


@pytest.fixture(scope="module")
def blank(released):
    return nbformat.read(released / "hw1.ipynb", as_version=4)


@pytest.fixture(scope="module")
def graded(blank, tmp_path_factory):
    """One run of the command over all kinds of submissions, with the network cut."""
    folder = tmp_path_factory.mktemp("graded")
    handed_in = folder / "submissions"
    handed_in.mkdir()
    nbformat.write(solved(blank), handed_in / "ada.ipynb")
    (handed_in / "blaise").mkdir()
    nbformat.write(blank, handed_in / "blaise" / "my solution.ipynb")
    nbformat.write(troubled(blank), handed_in / "carl friedrich.ipynb")
    nbformat.write(crashing(blank), handed_in / "david.ipynb")
    (handed_in / "emmy.ipynb").write_text('{"cells": [')
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    run = subprocess.run(
        [sys.executable, "-m", "trustml_helpers", "homework", "grade", str(handed_in),
         "--out", str(folder / "out"), "--cell-seconds", "60"],
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    table = pd.read_csv(folder / "out" / "grades.csv").set_index("student")
    return folder / "out", table, run.stdout


def test_points_add_up_and_each_task_is_whole():
    text = "\n".join(cell.source for cell in SOURCE.cells)
    assert sum(POINTS.values()) == 100
    said = [int(n) for n in re.findall(r"^\*(\d+) points", text, flags=re.M)]
    shown = {"linear": 6, "fgsm": 6, "pgd": 9, "step": 7, "5": 13, "5a": 3, "5b": 6, "5c": 4,
             "bound": 6, "sample": 7, "predict": 6, "certify": 9, "10": 12, "10a": 4, "10b": 8,
             "11": 10, "11a": 3, "11b": 3, "11c": 4, "12": 9}  # fmt: skip
    assert said == list(shown.values())
    minutes = [int(n) for n in re.findall(r"^\*\d+ points, (\d+) minutes; ", text, flags=re.M)]
    assert 120 <= sum(minutes) <= 190
    for name in POINTS.keys() - BY_HAND:
        task = name.removesuffix("-graded")
        labels = [label(cell) for cell in SOURCE.cells]
        at = labels.index(task)
        assert labels[at + 1 : at + 3] == [f"{task}-check", name]
        hints = SOURCE.cells[at - 1].source
        assert hints.count("<details>") >= 2, task
        assert SOURCE.cells[at].source.count('"""') == 2, task
        assert "### BEGIN HIDDEN TESTS" in cell_of(SOURCE, name).source


def test_release_holds_no_solution_and_no_hidden_test(released, blank):
    text = (released / "hw1.ipynb").read_text()
    for word in ("SOLUTION", "HIDDEN", "Rubric", "checks.score", "seed=2026"):
        assert word not in text, word
    secret = r"### BEGIN (?:SOLUTION|HIDDEN TESTS)\n(.*?)### END (?:SOLUTION|HIDDEN TESTS)"
    whole = "\n".join(cell.source for cell in SOURCE.cells)
    open_to_all = re.sub(secret, "", whole, flags=re.S)
    shown = "\n".join(cell.source for cell in blank.cells)
    hidden = re.findall(secret, whole, flags=re.S)
    assert len(hidden) == 2 * (len(POINTS) - 2) + 2
    for part in hidden:
        for line in filter(None, map(str.strip, part.splitlines())):
            assert line in open_to_all or line not in shown, line
        words = set(re.findall(r"\w+", part)) - set(re.findall(r"\w+", open_to_all))
        assert not words & set(re.findall(r"\w+", shown))
    for cell in blank.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            assert "YOUR CODE HERE" in cell.source or "YOUR ANSWER HERE" in cell.source
        assert not cell.get("outputs")


def test_the_zip_holds_what_a_student_needs_and_no_more(released, tmp_path):
    with zipfile.ZipFile(released / "hw1.zip") as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert {"hw1/hw1.ipynb", "hw1/README.md", "hw1/pyproject.toml", "hw1/LICENSE"} <= set(names)
    assert sum(Path(name).match("notebooks/0?_*.ipynb") for name in names) == 5
    package = [path.relative_to(ROOT) for path in (ROOT / "trustml_helpers").rglob("*.py")]
    assert {f"hw1/{path.as_posix()}" for path in package} == {n for n in names if n.endswith(".py")}
    assert not [n for n in names if re.search(r"homework/source|instructor|tests/|__pycache__", n)]
    assert (tmp_path / "hw1/hw1.ipynb").read_bytes() == (released / "hw1.ipynb").read_bytes()
    code = "from trustml_helpers import checks, data; print(len(data.load_mnist('test')[0]))"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "hw1", capture_output=True,
                         text=True, env=os.environ | {"PYTHONPATH": "."}, check=True)  # fmt: skip
    assert run.stdout == "10000\n"


def test_every_auto_graded_point_goes_to_the_source_and_none_to_the_untouched(graded):
    out, table, _ = graded
    tasks = [name for name in POINTS if name not in BY_HAND]
    assert table.loc["ada", "status"] == "graded"
    assert table.loc["ada", tasks].to_dict() == {name: POINTS[name] for name in tasks}
    assert table.loc["ada", "by_hand_open"] == 12
    assert table.loc["ada", "points"] == 88
    assert table.loc["blaise", ["points", "by_hand_open"]].to_list() == [0, 0]
    assert table.loc["blaise", "status"] == "graded"
    assert (table["of"] == 100).all()
    page = (out / "feedback" / "blaise.html").read_text()
    assert "not written yet" in page


def test_feedback_is_one_file_with_its_formulas(graded, browser, tmp_path):
    out, _, _ = graded
    alone = Path(shutil.copy(out / "feedback" / "ada.html", tmp_path))
    bad = []
    page = watched(browser, bad)
    page.on("request", lambda one: bad.append(one.url) if one.url.startswith("http") else None)
    page.goto(alone.as_uri())
    page.evaluate("MathJax.startup.promise")
    assert page.locator("mjx-container").count() > 10
    assert page.locator("[data-mml-node='merror']").count() == 0
    assert not bad


def test_a_submission_with_every_kind_of_trouble_is_graded_for_the_rest(graded):
    out, table, _ = graded
    row = table.loc["carl friedrich"]
    lost = {"two-class-radius-graded", "predict-graded", "fgsm-graded",
            "average-certified-radius-graded", "break-masked-graded"} | BY_HAND  # fmt: skip
    expected = {name: 0 if name in lost else points for name, points in POINTS.items()}
    assert row[list(POINTS)].to_dict() == expected
    assert row["status"] == "graded"
    for note in ("fgsm-graded was changed and put back", "changes the checks",
                 "sample-under-noise-graded was missing and put back", "is not valid Python",
                 "average-certified-radius was missing and put back"):  # fmt: skip
        assert note in row["notes"]
    assert "fgsm: 0 of 4 cases right" in (out / "feedback/carl friedrich.html").read_text()


def test_what_cannot_be_graded_is_named_and_the_rest_goes_on(graded):
    out, table, said = graded
    assert table.loc["david", "status"] == "crashed: its code ended Python"
    assert table.loc["emmy", "status"].startswith("damaged: not a notebook")
    assert table.loc[["david", "emmy"], "points"].to_list() == [0, 0]
    assert list(table.index) == ["ada", "carl friedrich", "david", "emmy", "blaise"]
    assert "crashed: its code ended Python" in said
    assert (out / "logs" / "david.log").stat().st_size > 0
    assert not (out / "feedback" / "david.html").exists()


def test_graded_again_points_by_hand_stay_and_a_slow_notebook_is_stopped(
    graded, blank, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # small networks are faster on one thread
    out, before, _ = graded
    by_hand = pd.read_csv(out / "by_hand.csv").set_index("student")
    assert set(by_hand.columns) == BY_HAND
    assert by_hand.isna().all(axis=None)
    by_hand.loc["ada"] = [3.5, 7]
    by_hand.to_csv(out / "by_hand.csv")
    nbformat.write(short(solved(blank)), tmp_path / "ada.ipynb")
    slow = copy.deepcopy(blank)
    cell_of(slow, "fgsm").source = "import time\ntime.sleep(100)"
    nbformat.write(slow, tmp_path / "felix.ipynb")
    table = grading.grade(tmp_path, out, notebook_seconds=50).set_index("student")
    assert list(table.index[:2]) == ["ada", "felix"]
    assert set(table.index[2:]) == {"carl friedrich", "david", "emmy", "blaise"}
    assert table.loc["carl friedrich", "points"] == before.loc["carl friedrich", "points"]
    assert table.loc["ada", "danskin-written"] == 3.5
    assert table.loc["ada", ["points", "by_hand_open"]].to_list() == [
        10.5 + POINTS["fgsm-graded"],
        0,
    ]
    assert table.loc["felix", ["status", "points"]].to_list() == ["stopped after 50 seconds", 0]
    assert not (out / "feedback" / "felix.html").exists()
    kept = pd.read_csv(out / "by_hand.csv").set_index("student")
    assert kept.loc["ada"].to_list() == [3.5, 7]
    assert set(kept.index) == {*by_hand.index, "felix"}


def short(notebook):
    """Only FGSM and the written answers solved: quick to grade."""
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("solution") and cell.cell_type == "code":
            cell.source = cell.source if label(cell) == "fgsm" else "raise NotImplementedError()"
    return notebook


def test_what_cannot_begin_says_why(tmp_path, monkeypatch, released):
    with pytest.raises(grading.HomeworkError, match="no such folder"):
        grading.grade(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(grading.HomeworkError, match=r"Expected NAME\.ipynb"):
        grading.grade(tmp_path, tmp_path / "out")
    (tmp_path / "ada").mkdir()
    for path in ("ada.ipynb", "ada/hw1.ipynb"):
        (tmp_path / path).write_text(json.dumps({}))
    with pytest.raises(grading.HomeworkError, match="two notebooks of 'ada'"):
        grading.grade(tmp_path, tmp_path / "out")
    (tmp_path / "ada.ipynb").rename(tmp_path / "a+b.ipynb")
    with pytest.raises(grading.HomeworkError, match="may not contain"):
        grading.grade(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    before = (released / "hw1.zip").read_bytes()
    monkeypatch.setattr(grading, "_nbgrader", lambda *_: _[1].write_text("no module") and 1)
    with pytest.raises(grading.HomeworkError, match=r"\[homework\]"):
        grading.release(released)
    assert (released / "hw1.zip").read_bytes() == before
    assert sorted(path.name for path in released.iterdir()) == ["hw1.ipynb", "hw1.zip"]
    monkeypatch.setattr(grading, "SOURCE", tmp_path / "gone.ipynb")
    with pytest.raises(grading.HomeworkError, match="need the whole repository"):
        grading.release(released)


def test_restoring_puts_back_cells_labels_and_order(blank):
    notebook = troubled(blank)
    del cell_of(notebook, "linear-attack").metadata["nbgrader"]["grade_id"]
    cell_of(notebook, "pgd-graded").metadata["nbgrader"]["grade_id"] = "pgd-mine"
    notes = grading._restore(notebook, blank)
    names = [label(cell) for cell in notebook.cells if label(cell)]
    assert names == [label(cell) for cell in blank.cells if label(cell)]
    for cell in notebook.cells:
        if label(cell):
            assert cell.metadata["nbgrader"] == cell_of(blank, label(cell)).metadata["nbgrader"]
    assert "linear-attack was missing and put back" in notes
    assert "pgd-graded was missing and put back" in notes
    assert grading._restore(solved(blank), blank) == []


@pytest.mark.parametrize(
    ("code", "noted"),
    [
        ("checks.fgsm = print", True), ("checks = None", True), ("del checks.score", True),
        ("setattr(checks.harness, 'call', print)", True), ("trustml_helpers.checks.x = 1", True),
        ("checks.fgsm(fgsm)", False), ("mine = checks.accuracy_left(f)", False),
        ("self.checks = 1", False), ("def f(:", True),
    ],
)  # fmt: skip
def test_code_that_replaces_a_check_is_noted(code, noted):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    assert bool(grading._changes_to_the_checks(notebook)) == noted


def test_the_commands_say_what_they_wrote_and_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grading, "release", lambda out: out / "hw1.zip")
    monkeypatch.setattr("sys.argv", ["trustml", "homework", "release", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert f"wrote {tmp_path / 'hw1.ipynb'} and {tmp_path / 'hw1.zip'}" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["trustml", "homework", "grade", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "no such folder" in capsys.readouterr().err


def test_points_by_hand_must_be_numbers(tmp_path):
    (tmp_path / "by_hand.csv").write_text("student,danskin-written\nada,good\n")
    with pytest.raises(grading.HomeworkError, match="expected points as numbers"):
        grading._by_hand(tmp_path / "by_hand.csv")


def test_students_may_be_called_like_nothing(tmp_path):
    (tmp_path / "by_hand.csv").write_text("student,q1,q2\nNA,3,\nnull,,4\n")
    assert grading._by_hand(tmp_path / "by_hand.csv") == {"NA": {"q1": 3.0}, "null": {"q2": 4.0}}


@pytest.mark.parametrize(("text", "message"), [
    ("name,q1\nada,3\n", "expected the column student"),
    ("student;q1\nada;3\n", "expected the column student"),
    ("", "expected points as numbers"),
    ("student,q1\nada,3\nada,4\n", "'ada' is there twice"),
])  # fmt: skip
def test_a_damaged_table_of_points_by_hand(tmp_path, text, message):
    (tmp_path / "by_hand.csv").write_text(text)
    with pytest.raises(grading.HomeworkError, match=rf"by_hand\.csv: {message}"):
        grading._by_hand(tmp_path / "by_hand.csv")
