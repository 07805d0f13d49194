"""A whole class through the grading: limits, several at once, a kill, points by hand, exports."""

from __future__ import annotations

import copy
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest
import tiny_homework as tiny
from helpers import ROOT, watched

from trustml_helpers import checks
from trustml_helpers.checks.grading import contain, grader, homework, labels, run

pytestmark = pytest.mark.slow  # nbgrader runs whole notebooks

LIMITS = {"cell_seconds": 3, "notebook_seconds": 120, "memory_gb": 1.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    with tiny.in_place(tmp_path_factory.mktemp("source")) as folder:
        yield folder


@pytest.fixture(scope="module")
def blank(source, tmp_path_factory):
    made = tmp_path_factory.mktemp("release")
    return labels.read(homework.generate(made, 60, homework.numbers(), "--no-db"))


@pytest.fixture(scope="module")
def mixed(blank, tmp_path_factory):
    """Submissions of every kind, with names of platforms, and a roster."""
    folder = tmp_path_factory.mktemp("class") / "handed in"
    tiny.put(tiny.answered(blank), folder / "lovelaceada_11_900_hw1.ipynb")
    tiny.put(tiny.answered(blank, two=None), folder / "lovelaceada_11_901_hw1-1.ipynb")
    cunning = copy.deepcopy(blank)  # nbgrader gives full points to what did not run
    for cell in cunning.cells:
        cell.metadata["tags"] = ["skip-execution"]
    tiny.put(cunning, folder / "Blaise Pascal_7_assignsubmission_file_" / "hw1.ipynb")
    tiny.put(tiny.stripped(tiny.answered(blank, why="Lost, but found.")), folder / "carl.ipynb")
    lost = tiny.stripped(tiny.answered(blank, why="Where am I?"))
    text = lost.cells.pop(-2)
    del lost.cells[-2:]
    lost.cells.insert(1, text)
    tiny.put(lost, folder / "dora.ipynb")
    (folder / "emil.ipynb").write_text('{"cells": [')
    (folder / "fritz").mkdir()
    (folder / "fritz" / "essay.pdf").write_bytes(b"%PDF")
    wrong = tiny.answered(blank, three="def three():\n    return 33", why="<script>bad()</script>")
    (folder / "gerda.ipynb").write_text(nbformat.writes(wrong), encoding="utf-8-sig")
    (folder.parent / "roster.csv").write_text(
        "id,name,email\n11,Ada Lovelace,ada@example.org\n12,Blaise Pascal,\n13,Carl,\n14,Dora,\n"
        "15,Emil,\n16,Fritz,\n17,Zoe,zoe@example.org\n"
    )
    return folder


@pytest.fixture(scope="module")
def graded(mixed, tmp_path_factory):
    out = tmp_path_factory.mktemp("graded") / "out"
    (out / "feedback").mkdir(parents=True)
    for student in ("17", "16", "15", "14"):  # what is left of another day
        (out / "feedback" / f"{student}.html").write_text("old")
    checks.grade(mixed, out, roster=mixed.parent / "roster.csv", jobs=2, **LIMITS)
    return out


def read(out):
    kept = {"student": str, "notes": str}
    return pd.read_csv(out / "grades.csv", dtype=kept, keep_default_na=False).set_index("student")


def test_everybody_has_a_row_and_nobody_loses_points_to_a_tool(graded):
    table = read(graded)
    assert set(table.index) == {"11", "11 (lovelaceada_11_900_hw1.ipynb)", "12", "13", "14", "15",
                                "16", "17", "gerda"}  # fmt: skip
    status = table["status"].to_dict()
    assert status["11 (lovelaceada_11_900_hw1.ipynb)"] == (
        "superseded by lovelaceada_11_901_hw1-1.ipynb"
    )
    assert status["14"] == "labels lost: why"
    assert status["15"].startswith("damaged: not a notebook")
    assert status["16"] == "no notebook, only essay.pdf"
    assert status["17"] == "missing"
    good = {one for one, state in status.items() if state == "graded"}
    assert good == {"11", "12", "13", "gerda"}
    points = {one: table.loc[one, "points"] for one in status if " (" not in one}
    assert points == {"11": "6.0", "12": "0.0", "13": "10.0", "14": "", "15": "", "16": "",
                      "17": "", "gerda": "4.0"}  # fmt: skip
    waiting = table.loc[["11", "12", "13", "14"], "by_hand_open"]
    assert waiting.astype(float).to_list() == [5, 0, 5, 5]
    assert (table["of"].astype(float) == 15).all()
    assert "labels were lost and found again: 7 cells" in table.loc["13", "notes"]
    assert "unmatched: nobody in the roster fits 'gerda'" in table.loc["gerda", "notes"]
    pages = {path.stem for path in (graded / "feedback").glob("*.html")}
    assert pages == good
    rows = run.load_rows(graded / "rows")
    assert rows["14"].written == {"why": "Where am I?"}


def test_what_goes_to_canvas_and_moodle(graded):
    canvas = pd.read_csv(graded / "grades_canvas.csv", dtype=str, keep_default_na=False)
    assert list(canvas)[:5] == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section"]
    assert canvas.iloc[0].to_list() == ["    Points Possible", "", "", "", "", "15"]
    lines = canvas.set_index("Student")["Homework 1"].to_dict()
    assert lines["Ada Lovelace"] == "6"
    assert set(lines) == {"    Points Possible", "Ada Lovelace", "Blaise Pascal", "Carl"}
    ada = canvas[canvas["Student"] == "Ada Lovelace"].iloc[0]
    assert (ada["ID"], ada["SIS User ID"], ada["SIS Login ID"]) == ("11", "", "ada@example.org")
    assert canvas[canvas["Student"] == "Carl"].iloc[0]["SIS User ID"] == "13"
    moodle = pd.read_csv(graded / "grades_moodle.csv", dtype=str, keep_default_na=False)
    assert list(moodle) == ["ID number", "Full name", "Email address", "Homework 1",
                            "Feedback comments"]  # fmt: skip
    assert len(moodle) == len(canvas) - 1 == 3


def test_the_pages_show_what_students_wrote_as_text(graded):
    page = (graded / "written.html").read_text()
    assert "Where am I?" in page
    assert "Because" in page  # the model answer beside them
    assert "<script>bad()" not in page
    said = (graded / "summary.html").read_text()
    assert "is #, no" in said
    tasks = pd.read_csv(graded / "summary.csv").set_index("task")
    assert tasks.loc["three", ["mean_share", "commonest_message", "students"]].to_list() == [
        0.5, "is #, no", 1,
    ]  # fmt: skip
    assert (tasks.loc["two", "full"], tasks.loc["two", "none"]) == (2, 2)
    assert not [name for name in ("Ada", "example.org", "gerda") if name in said]
    feedback = (graded / "feedback" / "gerda.html").read_text()
    assert "is 33, no" in feedback
    assert '<a href="#three-graded">three</a> (Score: 0.0 / 6.0)' in feedback
    assert '<a href="#why">why</a> (not read yet, of 5.0)' in feedback
    assert "hw1 (so far 4.0 / 15.0)" in feedback
    assert feedback.count("were not run here") == 1
    assert feedback.count("not read yet, of 5.0") == 2
    assert re.search(r"seed</span><span class=\"o\">=</span><span class=\"mi\">\.\.\.", feedback)


def test_points_are_entered_on_the_page_and_taken_without_running_anything(
    graded, browser, tmp_path, monkeypatch
):
    bad = []
    page = watched(browser, bad)
    page.goto((graded / "written.html").as_uri())
    assert "4 of 4 without points" in page.locator("#open").inner_text()
    field = page.locator('[data-points="11/why"]')
    field.fill("7")
    assert page.locator("#save").is_disabled()
    field.fill("3.5")
    page.locator('[data-comment="11/why"]').fill('Good, "but" short;\nsee 02.')
    page.locator('[data-comment="13/why"]').fill("Come and talk to me.")
    with page.expect_download() as download:
        page.locator("#save").click()
    download.value.save_as(graded / "by_hand.csv")
    monkeypatch.setattr(contain, "run", lambda *_: pytest.fail("runs a submission"))
    table = checks.enter_points(graded).set_index("student")
    assert table.loc["11", ["points", "by_hand_open"]].to_list() == [9.5, 0]
    feedback = (graded / "feedback" / "11.html").read_text().replace("&quot;", '"')
    assert 'Good, "but" short' in feedback
    assert "not read yet" not in feedback
    assert "hw1 (Score: 9.5 / 15.0)" in feedback
    alone = (graded / "feedback" / "13.html").read_text()  # a comment, and no points yet
    assert "Come and talk to me." in alone
    assert "not read yet, of 5.0" in alone
    assert table.loc["13", ["points", "by_hand_open"]].to_list() == [10, 5]
    moodle = pd.read_csv(graded / "grades_moodle.csv", dtype=str).set_index("ID number")
    assert moodle.loc["11", "Homework 1"] == "9.5"
    assert moodle.loc["11", "Feedback comments"].startswith("why: Good")
    page.goto((graded / "written.html").as_uri())
    assert page.locator('[data-points="11/why"]').input_value() == "3.5"
    assert page.locator('[data-points="13/why"]').input_value() == ""
    assert page.locator('[data-comment="13/why"]').input_value() == "Come and talk to me."
    assert not bad


def test_points_for_an_older_text_are_flagged_and_one_student_is_graded_alone(
    graded, mixed, blank, tmp_path
):
    given = {"student": ["11"], "why": ["3.5"], "why comment": ["Good, but short."]}
    pd.DataFrame(given).to_csv(graded / "by_hand.csv", index=False)
    checks.enter_points(graded)
    before = read(graded)
    new = tmp_path / "again"
    tiny.put(tiny.answered(blank, why="Quite another answer."), new / "11.ipynb")
    roster = mixed.parent / "roster.csv"
    name = ["ada lovelace"]
    table = checks.grade(new, graded, roster=roster, only=name, **LIMITS).set_index("student")
    assert "why: its points were given for an older text" in table.loc["11", "notes"]
    assert table.loc["11", "points"] == 13.5
    assert "given for an older text" in (graded / "written.html").read_text()
    page = (graded / "feedback" / "11.html").read_text()  # new, and what a person gave is on it
    assert "Good, " in page
    assert "hw1 (Score: 13.5 / 15.0)" in page
    others = [one for one in table.index if one not in ("11",)]
    assert table.loc[others, "status"].to_dict() == before.loc[others, "status"].to_dict()
    assert not [one for one in table.index if one.startswith("11 (")]  # the version of before
    with pytest.raises(checks.HomeworkError, match=r"only=\['nobody'\]: no such .* are 11$"):
        checks.grade(new, graded, only=["nobody"])


@pytest.mark.parametrize(
    ("kind", "status", "points", "note"),
    [
        ("endless", "graded", 6, "out of time: two-graded"),
        ("asleep", "graded", 6, "out of time: two-graded"),
        ("memory", "graded", 6, "out of memory: two-graded"),
        ("hoard", None, None, ""), ("file", "graded", 6, ""),
        ("prints", "graded", 10, ""), ("parent", "crashed: its code ended Python", None, ""),
        ("exits", "crashed: its code ended Python", None, ""),
        ("forks", None, 0, ""),
    ],
)  # fmt: skip
def test_what_goes_too_far_costs_its_own_task_or_its_own_submission(
    source, blank, tmp_path, kind, status, points, note
):
    tiny.put(tiny.answered(blank, two=tiny.PITFALLS[kind]), tmp_path / "in" / f"{kind}.ipynb")
    limits = LIMITS | {"memory_gb": 4.0 if kind == "prints" else 1.0}  # what is cut was there
    table = checks.grade(tmp_path / "in", tmp_path / "out", **limits).set_index("student")
    row = table.loc[kind]
    if status is None:  # refused by the system, or seen by the watch: what comes first
        assert row["status"] in ("graded", "stopped: it used more than 1 GB of memory",
                                 "stopped: it started more than 100 processes")  # fmt: skip
        return
    assert (row["status"], row["points"]) == (status, points)
    assert note in row["notes"]
    page = tmp_path / "out" / "feedback" / f"{kind}.html"
    assert not page.exists() or page.stat().st_size < 20e6


@pytest.mark.parametrize("kind", ["endless", "asleep"])
def test_the_last_tasks_count_where_the_first_take_all_the_time(source, blank, tmp_path, kind):
    tiny.put(tiny.answered(blank, two=tiny.PITFALLS[kind]), tmp_path / "in" / "x.ipynb")
    limits = {"cell_seconds": 60, "notebook_seconds": 60}
    row = checks.grade(tmp_path / "in", tmp_path / "out", **limits).iloc[0]
    assert (row["status"], row["points"]) == ("graded", 6)


GRADE = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
sys.path.insert(0, {tests!r})
import tiny_homework as tiny
from trustml_helpers import checks
tiny.use(Path({source!r}), setattr)
checks.grade(Path({folder!r}), Path(sys.argv[1]), jobs=int(sys.argv[2]), resume=True)
"""


def without_times(out):
    table = read(out).drop(columns="seconds")
    return table.sort_index()


def test_one_job_or_two_or_a_kill_and_all_is_the_same(source, blank, mixed, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(mixed, folder)
    tiny.put(tiny.answered(blank, three="def three():\n    return 3.0"), folder / "lent.ipynb")
    tiny.put(tiny.answered(blank, two=tiny.PITFALLS["exits"]), folder / "exits.ipynb")
    for number in range(15):  # most of them cost no time
        (folder / f"torn {number}.ipynb").write_text('{"cells": [' * number)
    one = checks.grade(folder, tmp_path / "one", jobs=1).set_index("student")
    assert len(one) == 25
    assert one.loc["lent", "points"] == 10
    assert "three-graded: tried with a right two, theirs being wrong" in one.loc["lent", "notes"]
    code = GRADE.format(tests=str(ROOT / "tests"), source=str(source), folder=str(folder))
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", code, str(killed), "2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while process.poll() is None and sum(
        '"status": "graded"' in path.read_text() for path in (killed / "rows").glob("*.json")
    ) < 2:  # fmt: skip
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name: path.read_bytes() for path in (killed / "rows").glob("*.json")}
    assert 2 <= len(finished) < 25
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    for name, raw in finished.items():  # what was finished was not done again
        assert (killed / "rows" / name).read_bytes() == raw
    pd.testing.assert_frame_equal(without_times(killed), without_times(tmp_path / "one"))


def test_another_process_may_not_grade_into_the_same_folder(source, mixed, tmp_path):
    with (
        grader._alone(tmp_path / "out"),
        pytest.raises(checks.HomeworkError, match="another proce"),
    ):
        checks.grade(mixed, tmp_path / "out")


def test_what_cannot_begin_is_said_before_any_work(source, mixed, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(homework, "generate", lambda *_: pytest.fail("work began"))
    with pytest.raises(checks.HomeworkError, match="jobs=0"):
        checks.grade(mixed, out, jobs=0)
    with pytest.raises(checks.HomeworkError, match="no such file"):
        checks.grade(mixed, out, roster=tmp_path / "gone.csv")
    assert not out.exists()
    out.mkdir()
    (out / "by_hand.csv").write_text("student,why\n11,99\n")
    with pytest.raises(checks.HomeworkError, match="'11' has '99' for why: expected points from 0"):
        checks.grade(mixed, out)
    (out / "by_hand.csv").write_text("pupil,why\n11,1\n")
    with pytest.raises(checks.HomeworkError, match="expected the column student"):
        checks.grade(mixed, out)
    with pytest.raises(checks.HomeworkError, match="nothing was graded there"):
        checks.enter_points(out)
    with pytest.raises(checks.HomeworkError, match="nothing was graded there"):
        checks.scoreboard(out)


def test_going_on_keeps_the_rows_of_older_versions(graded, mixed):
    roster = mixed.parent / "roster.csv"
    before = set(read(graded).index)
    old = "11 (lovelaceada_11_900_hw1.ipynb)"
    table = checks.grade(mixed, graded, roster=roster, resume=True, **LIMITS).set_index("student")
    assert old in table.index
    assert before <= set(table.index)


def test_points_for_a_row_that_is_not_there_are_refused(graded):
    before, table = read(graded), (graded / "by_hand.csv").read_text()
    (graded / "by_hand.csv").write_text('student;why;why comment\nlovelace;2,5;"good; very"\n')
    with pytest.raises(checks.HomeworkError, match=r"no row 'lovelace' in grades\.csv"):
        checks.enter_points(graded)
    (graded / "by_hand.csv").write_text('student;why;why comment\n11;2,5;"good; very"\n')
    assert checks.enter_points(graded).set_index("student").loc["11", "why"] == 2.5
    assert "good; very" in (graded / "by_hand.csv").read_text()
    # Who was not graded has no points, whatever a slipped line says.
    (graded / "by_hand.csv").write_text("student,why,why comment\n17,5,\n12,1,<b>odd</b>\n")
    found = checks.enter_points(graded).set_index("student")
    assert pd.isna(found.loc["17", "points"])
    assert "why: points were given, but nothing is written" in found.loc["12", "notes"]
    moodle = pd.read_csv(graded / "grades_moodle.csv", dtype=str).set_index("ID number")
    assert "17" not in moodle.index
    assert moodle.loc["12", "Feedback comments"] == "why: &lt;b&gt;odd&lt;/b&gt;"
    assert "<b>odd" not in (graded / "feedback" / "12.html").read_text()
    (graded / "by_hand.csv").write_text(table)
    checks.enter_points(graded)
    pd.testing.assert_frame_equal(read(graded), before)


def test_a_page_that_fails_costs_no_points(source, blank, tmp_path, monkeypatch):
    tiny.put(tiny.answered(blank), tmp_path / "in" / "x.ipynb")
    page = tmp_path / "out" / "feedback" / "x.html"
    page.parent.mkdir(parents=True)
    page.write_text("old")
    broken = homework._GRADE.replace("GenerateFeedbackApp.launch_instance(", "os._exit(")
    monkeypatch.setattr(homework, "_GRADE", broken)
    row = checks.grade(tmp_path / "in", tmp_path / "out", **LIMITS).iloc[0]
    assert (row["status"], row["points"]) == ("graded", 10)
    assert row["notes"] == "no page of feedback: its log says why"
    assert not page.exists()


def test_what_stops_while_it_grades_again_leaves_the_old(graded, mixed, blank, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    rows = run.load_rows(graded / "rows")
    left = [graded / "feedback" / "13.html", graded / "work" / "13" / "gradebook.db"]
    before = [path.read_bytes() for path in left]
    monkeypatch.setattr(contain, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.grade_one(rows["13"], mixed / "carl.ipynb", blank, graded, contain.Limits())
    assert [path.read_bytes() for path in left] == before


def test_who_says_that_it_was_graded_has_no_points(source, blank, tmp_path):
    code = "def two():\n    import os\n    open('../../../graded', 'w').close()\n    os._exit(0)"
    tiny.put(tiny.answered(blank, two=code), tmp_path / "in" / "x.ipynb")
    row = checks.grade(tmp_path / "in", tmp_path / "out", **LIMITS).iloc[0]
    assert row["status"] == "crashed: its code ended Python"
    assert pd.isna(row["points"])


def test_the_scoreboard_ranks_and_hides_names(graded):
    text = checks.scoreboard(graded).read_text()
    assert "13" in text
    assert text.index("steep") < text.index("coarse")
    assert "<b>10.0</b>" in text
    hidden = checks.scoreboard(graded, pseudonyms=True).read_text()
    assert "attacker 1" in hidden
    assert "gerda" not in hidden


def test_an_interrupt_ends_what_runs(source, blank, tmp_path):
    tiny.put(tiny.answered(blank, two=tiny.PITFALLS["asleep"]), tmp_path / "in" / "x.ipynb")
    code = GRADE.format(tests=str(ROOT / "tests"), source=str(source),
                        folder=str(tmp_path / "in"))  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out"), "1"],
                               stderr=subprocess.DEVNULL)  # fmt: skip
    log = tmp_path / "out" / "logs" / "x.log"
    while not (log.exists() and "Autograding" in log.read_text()) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) != 0
