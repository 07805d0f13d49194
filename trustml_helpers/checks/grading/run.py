"""One submission: put into a course of its own, graded by nbgrader within limits, read back."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
import time
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trustml_helpers._support.files import replace_file
from trustml_helpers.checks.grading import contain, labels
from trustml_helpers.checks.grading.homework import (
    ASSIGNMENT,
    SOURCE,
    environment,
    grading,
    nbgrader,
)
from trustml_helpers.checks.grading.needed import skip_the_rest
from trustml_helpers.checks.grading.roster import Submission

GRADED, LOST = "graded", "labels lost"
_ONE = "student"  # every course has one
_FORMULAS = 'MathJax = {tex: {inlineMath: [["$", "$"], ["\\\\(", "\\\\)"]], processEscapes: true}};'
_LATE = ("OutOfTime", "KeyboardInterrupt", "CellTimeoutError")
_NOT_RUN = """<p>The points come from the cells called "graded". The checks above them and our
pictures were not run here, unless your own code uses them.</p>"""


@dataclass
class Row:
    """What is known of one submission; a JSON file of its own, which a kill cannot halve.

    Attributes:
        student, name, email, of: as in :class:`Submission`.
        status: "graded", or why it is not.
        notes: what a person should look at.
        seconds: that grading took.
        points: by graded cell, without those that a person gives.
        written: the written answers, by cell.
        said: what the graded checks said, by cell.
        code: the code cells.
        file: what was graded, and ``key``: a digest of it and of the release.
    """

    student: str
    name: str = ""
    email: str = ""
    canvas: str = ""
    of: str = ""
    status: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    points: dict[str, float] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    code: list[str] = field(default_factory=list)
    file: str = ""
    key: str = ""

    def save(self, folder: Path) -> None:
        raw = json.dumps(asdict(self), ensure_ascii=False, indent=1).encode()
        replace_file(folder / f"{self.student}.json", raw)


def load_rows(folder: Path) -> dict[str, Row]:
    """The rows of a folder, by student."""
    found = [Row(**json.loads(path.read_text("utf-8"))) for path in sorted(folder.glob("*.json"))]
    return {row.student: row for row in found}


def begin(submission: Submission, release: str) -> Row:
    """The row of a submission before anything ran."""
    person, path = submission.person, submission.path
    row = Row(
        submission.student, canvas=submission.canvas, of=submission.of, status=submission.status,
        notes=list(submission.notes),
    )  # fmt: skip
    if person is not None:
        row.name, row.email = person.name, person.email
    if path is not None:
        row.file = path.name
        row.key = hashlib.sha256(release.encode() + path.read_bytes()).hexdigest()
    return row


def grade_one(row: Row, path: Path, blank: Any, out: Path, limits: contain.Limits) -> Row:
    """Grade one notebook; the row with what came out.

    Args:
        row: from :func:`begin`.
        path: the notebook.
        blank: what was released.
        out: folder of the results; ``out/course`` is the course to copy.
        limits: for this submission.
    """
    import nbformat

    started = time.monotonic()
    log = out / "logs" / f"{row.student}.log"
    log.write_text("")
    old, course = out / "work" / row.student, out / "work" / f".{row.student}"
    shutil.rmtree(course, ignore_errors=True)
    try:
        notebook = labels.read(path)
        found = labels.restore(notebook, blank)
        skip_the_rest(notebook, blank)
    except Exception as error:  # whatever is in a damaged file
        log.write_text(f"{error}\n")
        row.status = f"damaged: {error}"
        return row
    row.notes += found.notes + _other_year(notebook, blank)
    row.code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    row.written = labels.answered(found, blank)
    if found.lost:  # what was written is kept for a person to read
        row.written = labels.answered(labels.restore(labels.read(path), blank, guess=True), blank)
        row.status = f"{LOST}: {', '.join(found.lost)}"
        return row
    place = course / "submitted" / _ONE / ASSIGNMENT
    place.mkdir(parents=True)
    nbformat.write(notebook, place / SOURCE.name)
    for name in ("gradebook.db", "nbgrader_config.py"):
        shutil.copy(out / "course" / name, course)
    code, why = contain.run(grading(_ONE), course, log, limits, environment())
    if (course / "graded").exists() and _read_back(row, course):
        row.status = GRADED
        _page(row, course, out)
    else:
        row.status = _status(code, why, log)
    shutil.rmtree(old, ignore_errors=True)  # a kill before leaves all as it was
    course.rename(old)
    row.seconds = round(time.monotonic() - started, 1)
    return row


def show_points(row: Row, out: Path, given: dict[str, tuple[float | None, str]]) -> None:
    """Write points and comments of a person into the page of feedback; no code of a student runs.

    Args:
        row: of the student; nothing happens unless it was graded.
        out: folder of the results.
        given: points, if there are any, and comment, by written answer.
    """
    course = out / "work" / row.student
    if row.status != GRADED or not (course / "gradebook.db").exists():
        return
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course.resolve() / 'gradebook.db'}", "trustml") as book:
        submission = book.find_submission(ASSIGNMENT, _ONE).notebooks[0]
        for grade in submission.grades:
            if grade.name in given and given[grade.name][0] is not None:
                grade.manual_score, grade.needs_manual_grade = given[grade.name][0], False
        for comment in submission.comments:
            if comment.name in given:
                comment.manual_comment = html.escape(given[comment.name][1], quote=False) or None
        book.db.commit()
    log = out / "logs" / f"{row.student}.log"
    nbgrader(course, log, 300, "generate_feedback", "--student", _ONE, "--force")
    _page(row, course, out)


def _other_year(notebook: Any, blank: Any) -> list[str]:
    """A note, if a notebook says that it is another year's."""
    own, ours = (one.metadata.get("trustml", {}).get("variant") for one in (notebook, blank))
    if own is None or own == ours:
        return []
    return [
        f"of the release {own or 'as it is'!r}, graded as {ours or 'as it is'!r}: other numbers"
    ]


def _status(code: int, why: str, log: Path) -> str:
    if why:
        return f"stopped {why}" if why.startswith("after") else f"stopped: {why}"
    if code == 0:
        return GRADED
    said = log.read_text(encoding="utf-8", errors="replace")
    dead = "DeadKernelError" in said or code in (-9, 137)
    return "crashed: its code ended Python" if dead else "nbgrader failed: see its log"


def _read_back(row: Row, course: Path) -> bool:
    """Points and messages of every graded cell, and which cells ran out of time; if there are."""
    import nbformat
    from nbgrader.api import Gradebook

    path = course / "autograded" / _ONE / ASSIGNMENT / SOURCE.name
    if not path.exists():
        return False
    with Gradebook(f"sqlite:///{course.resolve() / 'gradebook.db'}", "trustml") as book:
        grades = book.find_submission(ASSIGNMENT, _ONE).notebooks[0].grades
        row.points = {one.name: one.score for one in grades if not one.needs_manual_grade}
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells, 1):
        if cell.cell_type != "code":
            continue
        name = labels.name_of(cell)
        errors = [one for one in cell.outputs if one.output_type == "error"]
        if any(one.ename in _LATE for one in errors):
            row.notes.append(f"out of time: {labels.place(number, cell)}")
        if any(re.search("MemoryError|allocate memory", one.ename + one.evalue) for one in errors):
            row.notes.append(f"out of memory: {labels.place(number, cell)}")
        if name in row.points:
            said = [one.text for one in cell.outputs if one.output_type == "stream"]
            said += [f"{one.ename}: {one.evalue}" for one in errors]
            row.said[name] = "\n".join(said)[:5000]
            if lent := re.search(", with a right (.+) in the place of yours", row.said[name]):
                row.notes.append(f"{name}: tried with a right {lent[1]}, theirs being wrong")
    return True


# --- the page of feedback -------------------------------------------------------------------------


def forget_page(out: Path, student: str) -> None:
    """A page of feedback that is no longer true goes."""
    (out / "feedback" / f"{student}.html").unlink(missing_ok=True)


def _page(row: Row, course: Path, out: Path) -> None:
    """Write the page of feedback, from nbgrader's own."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course.resolve() / 'gradebook.db'}", "trustml") as book:
        grades = book.find_submission(ASSIGNMENT, _ONE).notebooks[0].grades
        unread = [one.name for one in grades if one.needs_manual_grade]
    made = course / "feedback" / _ONE / ASSIGNMENT / f"{ASSIGNMENT}.html"
    if made.exists():
        page = _for_students(made.read_text(encoding="utf-8"), unread)
        replace_file(out / "feedback" / f"{row.student}.html", page.encode())
    else:
        forget_page(out, row.student)
        row.notes.append("no page of feedback: its log says why")


def mathjax() -> str:
    """MathJax as scripts inside a page, or nothing where it is not installed."""
    packed = find_spec("sphinx-mathjax-offline")
    if packed is None or packed.origin is None:
        return ""
    script = Path(packed.origin).parent / "static" / "mathjax" / "tex-svg.js"
    return f"<script>{_FORMULAS}</script><script>{script.read_text(encoding='utf-8')}</script>"


def _for_students(html: str, unread: list[str]) -> str:
    """nbgrader's page as one file: MathJax inside, tasks by name, without the hidden seeds.

    Where nbgrader says 0 points for an answer that nobody has read yet, the page says just that.
    """
    if inside := mathjax():
        html = re.sub(r"<!-- Load mathjax -->.*?<!-- End of mathjax", lambda _: inside + "<!--",
                      html, count=1, flags=re.DOTALL)  # fmt: skip
    html = re.sub(r"(seed</span>\s*<span[^>]*>=</span>\s*<span[^>]*>)\d+", r"\1...", html)
    html = re.sub(r"seed=\d+", "seed=...", html)  # in tracebacks
    for name in unread:
        for start in (rf'href="#{name}">[^<]*</a> \(', rf'name="{name}"></a>.*?'):
            html = re.sub(rf"({start})Score: [\d.]+ /", r"\1not read yet, of", html,
                          count=1, flags=re.DOTALL)  # fmt: skip
    html = html.replace("</h4>", "</h4>\n" + _NOT_RUN, 1)
    if unread:
        html = re.sub(r"\(Score: (?=[\d.]+ / [\d.]+\)</h4>)", "(so far ", html)
    return re.sub(
        r'<a href="#([\w-]+)">(?:Test cell|Written response|Coding free-response)',
        lambda found: f'<a href="#{found[1]}">{found[1].removesuffix("-graded")}', html,
    )  # fmt: skip
