"""What a student learns before handing in: labels, a run from top to bottom, points, memory."""

from __future__ import annotations

import nbformat
import pytest
import tiny_homework as tiny

from trustml_helpers import checks, cli
from trustml_helpers.checks.grading import homework, labels

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    with tiny.in_place(tmp_path_factory.mktemp("source")) as folder:
        yield labels.read(homework.generate(folder / "made", 60, homework.numbers(), "--no-db"))


FIRST = tiny.FIRST.replace(
    "    def two(answer): answer()",
    """    def two(answer):
        if answer() != 2: raise AssertionError("two: 1 of 4 cases right\\n  wrong: a:\\n      no")
        print("two: all 4 cases right")""",
).replace("    three = two\n", "    def three(answer): print('three: all 2 cases right')\n")


def handed(blank, tmp_path, **answers):
    notebook = tiny.answered(blank, **answers)
    notebook.cells[2].source = FIRST
    tiny.put(notebook, tmp_path / "hw1.ipynb")
    tiny.put(blank, tmp_path / "blank" / "hw1.ipynb")
    return tmp_path / "hw1.ipynb"


def test_all_is_well(blank, tmp_path):
    path = handed(blank, tmp_path)
    before = path.read_bytes()
    report = checks.check_before(path)
    assert report.labels == report.broken == report.written == []
    assert report.points == {"two": (4, 4), "three": (6, 6)}
    assert 20 < report.memory_mb < 2000
    assert report.seconds > 0
    assert path.read_bytes() == before
    said = str(report)
    assert "labels: all there" in said
    assert "10 of 10 points by the visible checks" in said


def test_what_a_grader_would_stumble_over(blank, tmp_path, monkeypatch, capsys):
    path = handed(blank, tmp_path, two="def two():\n    return 5", why=None)
    notebook = nbformat.read(path, 4)
    notebook.cells.insert(3, nbformat.v4.new_code_cell("later()"))
    notebook.cells.append(nbformat.v4.new_code_cell("def later(): pass"))
    notebook.cells = [c for c in notebook.cells if labels.name_of(c) != "three-graded"]
    nbformat.write(notebook, path)
    monkeypatch.setattr("sys.argv", ["trustml", "homework", "check", str(path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    said = capsys.readouterr().out
    assert "labels: three-graded was missing and put back" in said
    assert "fails: cell 4 (later()): NameError: name 'later' is not defined" in said
    assert "not written: why" in said
    assert "two       1 of 4" in said
    assert "7 of 10 points by the visible checks" in said


def test_code_that_ends_python_is_said_so(blank, tmp_path):
    path = handed(blank, tmp_path, two="import os\nos._exit(0)")
    with pytest.raises(checks.HomeworkError, match=r"hw1\.ipynb: its code ended Python"):
        checks.check_before(path)


def test_without_the_blank_one_it_says_so(blank, tmp_path):
    path = handed(blank, tmp_path)
    (tmp_path / "blank" / "hw1.ipynb").unlink()
    with pytest.raises(checks.HomeworkError, match="name it with --blank"):
        checks.check_before(path)
    assert checks.check_before(path, path).points["two"] == (4, 4)
    damaged = tmp_path / "damaged.ipynb"
    damaged.write_text("{")
    with pytest.raises(checks.HomeworkError) as error:  # it names the one that is damaged
        checks.check_before(damaged, path)
    assert str(error.value).startswith(f"{damaged}: not a notebook")
    assert "hw1.ipynb" not in str(error.value)
