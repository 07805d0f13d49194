"""The homework from source to grades: what a release may hold, and what grading survives."""

from __future__ import annotations

import copy
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

from trustml_helpers import checks, cli
from trustml_helpers.checks.grading import book, homework

pytestmark = pytest.mark.slow  # nbgrader runs whole notebooks

SOURCE = nbformat.read(homework.SOURCE, as_version=4)
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

# Endless from some call on: the visible check does not cost time as well.
ENDLESS = """
calls = []
def probability_band(p, distance, sigma):
    calls.append(1)
    while len(calls) > 1:
        pass
    return 0.0
"""

# Right, but it writes to stderr below Python, which a notebook shows in the graded cell.
NOISY = """
import os
quiet = free_step
def free_step(*given):
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
    cell_of(notebook, "probability-band").source = ENDLESS
    cell_of(notebook, "abstention").source = "def abstention(p, n, alpha)\n    return 0"
    graded = cell_of(notebook, "step-towards-graded")
    graded.source, graded.metadata["nbgrader"]["points"] = "6.0", 60
    cell_of(notebook, "step-towards").source = "def step_towards(m, x, t, eps):\n    return x + eps"
    cell_of(notebook, "free-step").source += NOISY
    cell_of(notebook, "break-masked").source = "raise NotImplementedError()"  # the slowest task
    gone = ["sample-batch-graded"]
    gone += [f"average-certified-radius{end}" for end in ("", "-check", "-graded")]
    notebook.cells = [cell for cell in notebook.cells if label(cell) not in gone]
    notebook.cells.append(nbformat.v4.new_code_cell("checks.certify = lambda *_, **__: None"))
    notebook.cells.append(copy.deepcopy(cell_of(notebook, "pgd-best")))  # a copied cell
    notebook.cells[-1]["id"] = "copied"
    return notebook


def crashing(blank):
    notebook = copy.deepcopy(blank)
    cell_of(notebook, "step-towards").source = "import os\nos._exit(1)"
    return notebook


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    out = tmp_path_factory.mktemp("release")
    checks.release(out)
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
         "--out", str(folder / "out"), "--cell-seconds", "40", "--jobs", "2"],
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
    shown = {"1": 6, "2": 6, "3": 9, "4": 7, "5": 13, "5a": 3, "5b": 6, "5c": 4, "6": 6, "7": 7,
             "8": 6, "9": 9, "10": 12, "10a": 4, "10b": 8, "11": 10, "11a": 3, "11b": 3, "11c": 4,
             "12": 9}  # fmt: skip
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
    texts = [(ROOT / name.removeprefix("hw1/")).read_text() for name in names
             if Path(name).match("notebooks/0?_*.ipynb")]  # fmt: skip
    folders = {name for text in texts for name in re.findall(r'results(?:\\" / \\"|/)(\w+)', text)}
    assert {"fgsm_rs_starts", "mnist_linf", "mnist_study"} <= folders
    for folder in folders:
        assert (tmp_path / "hw1/data/results" / folder).is_dir()
    assert any("certification.mismatch(" in text for text in texts)
    code = (
        "from trustml_helpers import certification, checks, data\n"
        "home = data.data_folder() / 'results/mnist_study'\n"
        "assert certification.mismatch(home, 0.5).shape == (3, 3)\n"
        "print(len(data.load_mnist('test')[0]))"
    )
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
    lost = {"probability-band-graded", "abstention-graded", "step-towards-graded",
            "average-certified-radius-graded", "break-masked-graded"} | BY_HAND  # fmt: skip
    expected = {name: 0 if name in lost else points for name, points in POINTS.items()}
    assert row[list(BY_HAND)].isna().all()  # written, and not read yet
    assert row[list(POINTS)].fillna(0).to_dict() == expected
    assert row["status"] == "graded"
    for note in ("step-towards-graded was changed and put back", "changes the checks",
                 "sample-batch-graded was missing and put back", "is not valid Python",
                 "out of time: probability-band-graded",
                 "average-certified-radius was missing and put back"):  # fmt: skip
        assert note in row["notes"]
    assert "step_towards: 0 of" in (out / "feedback/carl friedrich.html").read_text()


def test_what_cannot_be_graded_is_named_and_the_rest_goes_on(graded):
    out, table, said = graded
    assert table.loc["david", "status"] == "crashed: its code ended Python"
    assert table.loc["emmy", "status"].startswith("damaged: not a notebook")
    assert table.loc[["david", "emmy"], "points"].isna().all()  # not 0: a person decides
    assert list(table.index) == ["ada", "blaise", "carl friedrich", "david", "emmy"]
    assert "crashed: its code ended Python" in said
    assert (out / "logs" / "david.log").stat().st_size > 0
    assert not (out / "feedback" / "david.html").exists()


def test_a_release_that_cannot_be_made_leaves_the_old_one(released, monkeypatch):
    before = (released / "hw1.zip").read_bytes()
    monkeypatch.setattr(homework, "nbgrader", lambda *_: _[1].write_text("no module") and 1)
    with pytest.raises(checks.HomeworkError, match=r"\[homework\]"):
        checks.release(released)
    assert (released / "hw1.zip").read_bytes() == before
    assert sorted(path.name for path in released.iterdir()) == ["hw1.ipynb", "hw1.zip"]
    monkeypatch.setattr(homework, "SOURCE", released / "gone.ipynb")
    with pytest.raises(checks.HomeworkError, match="need the whole repository"):
        checks.release(released)


def test_the_commands_say_what_they_wrote_and_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checks, "release", lambda out, variant: out / "hw1.zip")
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


@pytest.mark.parametrize(("text", "message"), [
    ("name,q1\nada,3\n", "expected the column student"),
    ("", "no CSV in UTF-8"),
    ("student;q1;q1 comment\nada;3;good; very\n", "the line of 'ada' has 4 fields"),
    ("student,q1\nada,3\nada,4\n", "'ada' is there twice"),
    ("student,q1\nada,good\n", "'ada' has 'good' for q1: expected points from 0 to 5"),
    ("student,q1\nada,-3\n", "'ada' has '-3' for q1"), ("student,q1\nada,99\n", "has '99'"),
    ("student,q1\nada,nan\n", "has 'nan'"),
])  # fmt: skip
def test_a_damaged_table_of_points_by_hand(tmp_path, text, message):
    (tmp_path / "by_hand.csv").write_text(text)
    with pytest.raises(checks.HomeworkError, match=rf"by_hand\.csv: .*{message}"):
        book.read_by_hand(tmp_path / "by_hand.csv", {"q1": 5, "q2": 4})


def test_students_may_be_called_like_nothing(tmp_path):
    (tmp_path / "by_hand.csv").write_text("student,q1,q2\nNA,3,\nnull,,4\n")
    found = book.read_by_hand(tmp_path / "by_hand.csv", {"q1": 5, "q2": 4})
    assert found == {"NA": {"q1": book.Given(3.0)}, "null": {"q2": book.Given(4.0)}}


def test_a_table_as_a_spreadsheet_in_another_country_saves_it(tmp_path):
    text = "\ufeffstudent;q1;q1 comment;q2\nada;3,5;good, mostly;\nbob;;come and see me;4\n"
    (tmp_path / "by_hand.csv").write_text(text)
    found = book.read_by_hand(tmp_path / "by_hand.csv", {"q1": 5, "q2": 4})
    assert found == {
        "ada": {"q1": book.Given(3.5, "good, mostly")},
        "bob": {"q1": book.Given(None, "come and see me"), "q2": book.Given(4.0)},
    }
