"""A class: every submission in a process of its own, several at once, and what comes of it.

Student code runs on this machine with this user's rights: see ``docs/instructor/homework.md``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from trustml_helpers._support.files import InUseError, only_writer, replace_file
from trustml_helpers.checks.grading import book, contain, labels, pages
from trustml_helpers.checks.grading.homework import (
    ASSIGNMENT,
    SOURCE,
    HomeworkError,
    generate,
    numbers,
)
from trustml_helpers.checks.grading.roster import Submission, collect, read_roster
from trustml_helpers.checks.grading.run import (
    GRADED,
    Row,
    begin,
    forget_page,
    grade_one,
    load_rows,
    show_points,
)

if TYPE_CHECKING:
    import pandas as pd


def grade(
    submissions: Path, out: Path, *, roster: Path | None = None, variant: str = "", jobs: int = 1,
    resume: bool = False, only: Collection[str] = (), cell_seconds: int = 240,
    notebook_seconds: int = 1200, memory_gb: float = 4.0,
) -> pd.DataFrame:  # fmt: skip
    """Grade every notebook of a folder, whatever is wrong with some of them.

    Args:
        submissions: folder of notebooks, or of folders with one student's files each, named by the
            students or as Canvas and Moodle name them.
        out: folder for the results: ``grades.csv`` and its exports, ``feedback/NAME.html``,
            ``logs/NAME.log``, ``by_hand.csv``, ``written.html``, ``summary.html``,
            ``similar.html``, and a row per student in ``rows/``. Grading again keeps the points by
            hand and the rows of others.
        roster: CSV with ``id, name, email``: students are matched by one of them, and those without
            a submission get a row.
        variant: of the release that was handed out.
        jobs: submissions at once, each in processes of its own.
        resume: leave out what was graded already, from the same file and the same release.
        only: rows to grade, by id, name or e-mail; the others stay.
        cell_seconds: processor time of a cell; it is interrupted, the others still count.
        notebook_seconds: for a notebook by the clock; it is stopped and named.
        memory_gb: for all the processes of a submission together.

    Returns:
        One row per submission, as in ``grades.csv``: ``student status points of by_hand_open
        seconds notes`` (with a roster ``name email``, too; ``by_hand_open``: points of written
        answers that nobody has read yet), then the points of every graded cell. Where the labels of
        cells are lost there are no points.

    Raises:
        HomeworkError: before any work, if there is nothing to grade, a table cannot be read, a name
            of ``only`` is not there, another process grades into ``out``, or nbgrader is missing.
    """
    if jobs < 1:
        raise HomeworkError(f"jobs={jobs}: expected a whole number from 1 on")
    people = None if roster is None else read_roster(roster)
    found = collect(submissions, people)
    if only:
        found = _chosen(found, only, submissions)
    year = numbers(variant)
    book.read_by_hand(out / "by_hand.csv", year.points)  # a mistake there is told before the work
    limits = contain.Limits(cell_seconds, notebook_seconds, memory_gb)
    with _alone(out):
        blank = _prepared(out, year, limits)
        # Points that name no text were for the answers of the last run, not for those to come.
        given = _given(out, load_rows(out / "rows"), blank)
        release = "".join(cell.source for cell in blank.cells)
        new = _run_all(found, blank, release, out, limits, jobs, resume=resume)
        rows = load_rows(out / "rows")
        _show_points(out, {who: rows[who] for who in new}, given)
        return _written_out(out, blank)


def enter_points(out: Path) -> pd.DataFrame:
    """Take the points of ``by_hand.csv`` into all tables and pages; no code of a student runs.

    Args:
        out: folder of an earlier :func:`grade`.

    Raises:
        HomeworkError: if nothing was graded there, or the table cannot be read.
    """
    rows = _rows(out)
    blank = labels.read(out / "course" / "release" / ASSIGNMENT / SOURCE.name)
    given = book.read_by_hand(out / "by_hand.csv", book.maxima(blank)[0])
    if strangers := [who for who, own in given.items() if own and who not in rows]:
        raise HomeworkError(f"{out / 'by_hand.csv'}: no row {strangers[0]!r} in grades.csv; its "
                            "column student names the rows")  # fmt: skip
    with _alone(out):
        _show_points(out, rows, given)
        return _written_out(out, blank)


def relabel(submission: Path, out: Path, *, variant: str = "") -> list[str]:
    """Write a copy of a notebook with the labels of the release, for a person to look at.

    Args:
        submission: the notebook whose labels are lost.
        out: where the copy goes; grade it in place of the other if it is right.
        variant: of the release.

    Returns:
        What was matched, moved or guessed, a sentence each.

    Raises:
        HomeworkError: if it is no notebook, or the copy would replace it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        blank = labels.read(generate(Path(scratch), 60, numbers(variant), "--no-db"))
    return labels.relabel(submission, blank, out).notes


def scoreboard(out: Path, *, pseudonyms: bool = False) -> Path:
    """Write ``board.html``: what each student's attack left of the defenses of the open task.

    Args:
        out: folder of an earlier :func:`grade`.
        pseudonyms: show no names.

    Raises:
        HomeworkError: if nothing was graded there.
    """
    rows = _rows(out)
    page = out / "board.html"
    replace_file(page, pages.board(rows.values(), pseudonyms=pseudonyms).encode())
    return page


def _rows(out: Path) -> dict[str, Row]:
    if not (rows := load_rows(out / "rows")):
        raise HomeworkError(f"out={str(out)!r}: nothing was graded there")
    return rows


def _chosen(
    found: list[Submission], only: Collection[str], folder: Path
) -> list[Submission]:  # fmt: skip
    """The rows of those who are named, by any of their names."""
    names = {
        one.student: [one.student, *((one.person.name, one.person.email) if one.person else ())]
        for one in found
    }
    known = {who: {name.casefold() for name in own} for who, own in names.items()}
    asked = {each.casefold(): each for each in only}
    if wanted := sorted(asked[each] for each in asked.keys() - set().union(*known.values())):
        there = "; ".join(" ".join(filter(None, own[:2])) for own in list(names.values())[:20])
        raise HomeworkError(f"only={wanted}: no such row in {folder}; there are {there}")
    return [one for one in found if known[one.of or one.student] & set(asked)]


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    try:
        with only_writer(out / "grades.csv"):
            yield
    except InUseError as error:
        raise HomeworkError(f"out={str(out)!r}: another process grades into this folder; wait for "
                            "its end, or name another") from error  # fmt: skip


def _prepared(out: Path, year: Any, limits: contain.Limits) -> Any:
    """The course that every submission gets a copy of; what was released."""
    for folder in ("logs", "feedback", "rows"):
        (out / folder).mkdir(exist_ok=True)
    # A cell that only waits uses no processor time. The kernel stops it first, and says so.
    wall = 4 * limits.cell_seconds + 30
    return labels.read(generate(out / "course", wall, year, "--force"))


def _given(out: Path, rows: dict[str, Row], blank: Any) -> book.ByHand:
    """The points by hand; those that named no text now name that of the row, in the file too."""
    points, written = book.maxima(blank)
    given = book.mark_read(book.read_by_hand(out / "by_hand.csv", points), rows)
    book.write_by_hand(out / "by_hand.csv", given, rows, written)
    return given


def _show_points(out: Path, rows: dict[str, Row], given: book.ByHand) -> None:
    """Points and comments of a person on the pages of these rows."""
    some = {who: own for who, own in given.items() if own and who in rows}
    for who, own in tqdm(some.items(), desc="pages", disable=not some):
        show_points(rows[who], out, {n: (g.points, g.comment) for n, g in own.items()})


def _run_all(
    found: list[Submission], blank: Any, release: str, out: Path, limits: contain.Limits, jobs: int,
    *, resume: bool,
) -> list[str]:  # fmt: skip
    """Grade what is to be graded, and say who; each row is on disk as soon as it is known."""
    rows, known = out / "rows", load_rows(out / "rows")

    def done(row: Row) -> None:
        if row.status != GRADED:
            forget_page(out, row.student)
        row.save(rows)

    students = {one.student for one in found}
    for row in known.values():  # older versions of those who are graded again
        if row.of in students and row.student not in students:
            (rows / f"{row.student}.json").unlink()
    waiting: list[tuple[Row, Path]] = []
    changed = 0
    for one in found:
        row = begin(one, release)
        if resume and row.key and one.student in known and known[one.student].key == row.key:
            continue
        changed += bool(row.key and one.student in known and known[one.student].key)
        if one.path is None or row.status:
            done(row)
        else:
            waiting.append((row, one.path))
    if resume and changed:
        print(f"note: graded again, since the file or the homework is another: {changed}",
              file=sys.stderr)  # fmt: skip
    contain.go_on()
    for said in contain.unlimited() if waiting else []:
        print(f"note: {said}", file=sys.stderr)
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(waiting), desc="graded") as bar:
        tasks = [pool.submit(grade_one, row, path, blank, out, limits) for row, path in waiting]
        try:
            for task in as_completed(tasks):
                row = task.result()
                done(row)
                bar.set_postfix_str(f"{row.student}: {row.status}"[:50])
                bar.update()
        except BaseException:
            contain.stop_all()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [row.student for row, _ in waiting]


def _written_out(out: Path, blank: Any) -> pd.DataFrame:
    """All tables and pages, from the rows on disk."""
    rows = load_rows(out / "rows")
    given = _given(out, rows, blank)
    whole = book.table(rows, given, blank)
    replace_file(out / "grades.csv", whole.to_csv(index=False).encode())
    book.export(whole, rows, given, out)
    pages.write(out, rows, given, whole, blank)
    return whole
