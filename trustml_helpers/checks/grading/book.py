"""The table of a class: rows and points by hand in, CSV files out, those of platforms too."""

from __future__ import annotations

import hashlib
import html
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustml_helpers._support.files import replace_file
from trustml_helpers.checks.grading import labels
from trustml_helpers.checks.grading.homework import HomeworkError, table_of
from trustml_helpers.checks.grading.run import GRADED, Row

if TYPE_CHECKING:
    import pandas as pd

TITLE = "Homework 1"
_COMMENT, _READ = " comment", " read"


@dataclass(frozen=True)
class Given:
    """What a person gave for one written answer: points, a comment, and the text it was for."""

    points: float | None
    comment: str = ""
    read: str = ""

    def shown(self) -> str:
        return "" if self.points is None else f"{self.points:g}"


ByHand = dict[str, dict[str, Given]]


def maxima(blank: Any) -> tuple[dict[str, float], list[str]]:
    """Points of every graded cell of a release, and which of them a person gives."""
    cells = [cell for cell in blank.cells if labels.label(cell).get("grade")]
    points = {labels.name_of(cell): float(labels.label(cell)["points"]) for cell in cells}
    return points, labels.written(blank)


def digest_of(text: str) -> str:
    """Names a text: points belong to the text that was read."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:12]


def read_by_hand(path: Path, points: dict[str, float]) -> ByHand:
    """The points by hand, by student and written answer; empty where nothing is filled in.

    Args:
        path: ``by_hand.csv``, with the columns ``student``, the names of the written answers, and
            beside each ``NAME comment`` and ``NAME read``, which may be missing.
        points: the largest possible, by name.

    Raises:
        HomeworkError: for points that are no number or out of range, a student who is there twice
            or a file that is no such table; it names the cell.
    """
    if not path.exists():
        return {}
    table = table_of(path)
    if "student" not in table:
        raise HomeworkError(f"{path}: expected the column student, and one per question")
    table = table.set_index("student")
    if table.index.has_duplicates:
        raise HomeworkError(f"{path}: {table.index[table.index.duplicated()][0]!r} is there twice")
    found: ByHand = {}
    for student, line in table.iterrows():
        own = found.setdefault(str(student), {})
        for name in (each for each in points if each in table):
            value = _points(path, str(student), name, line[name], points[name])
            comment = str(line.get(name + _COMMENT, ""))
            if value is not None or comment.strip():
                own[name] = Given(value, comment, line.get(name + _READ, ""))
    return found


def _points(path: Path, student: str, name: str, text: str, most: float) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:  # NaN is not, either
        raise HomeworkError(f"{path}: {student!r} has {text!r} for {name}: expected points from 0 "
                            f"to {most:g}, or nothing")  # fmt: skip
    return value


def write_by_hand(path: Path, given: ByHand, rows: dict[str, Row], written: list[str]) -> None:
    """The table to fill in: everybody who was graded, and what was given before."""
    import pandas as pd

    lines = []
    for student in dict.fromkeys([*given, *(one.student for one in rows.values() if not one.of)]):
        line = {"student": student}
        for name in written:
            one = given.get(student, {}).get(name)
            line[name] = "" if one is None else one.shown()
            line[name + _COMMENT] = "" if one is None else one.comment
            line[name + _READ] = "" if one is None else one.read
        lines.append(line)
    columns = ["student", *(n + end for n in written for end in ("", _COMMENT, _READ))]
    replace_file(path, pd.DataFrame(lines, columns=columns).to_csv(index=False).encode())


def mark_read(given: ByHand, rows: dict[str, Row]) -> ByHand:
    """The points by hand, where those that name no text now name the one that is there."""
    marked: ByHand = {}
    for student, own in given.items():
        texts = rows[student].written if student in rows else {}
        marked[student] = {
            name: one if one.read or name not in texts
            else Given(one.points, one.comment, digest_of(texts[name]))
            for name, one in own.items()
        }  # fmt: skip
    return marked


def table(rows: dict[str, Row], given: ByHand, blank: Any) -> pd.DataFrame:
    """One row per submission: see :func:`grade`."""
    import pandas as pd

    points, written = maxima(blank)
    named = any(row.name or row.email for row in rows.values())
    lines = []
    for row in rows.values():
        own = given.get(row.student, {}) if not row.of else {}
        own = {name: one for name, one in own.items() if one.points is not None}
        known = row.status == GRADED
        waiting = [name for name in written if name in row.written and name not in own]
        notes = row.notes + [
            f"{name}: its points were given for an older text"
            for name, one in own.items()
            if one.read and one.read != digest_of(row.written.get(name, ""))
        ] + [
            f"{name}: points were given, but nothing is written"
            for name, one in own.items() if known and one.points and name not in row.written
        ]  # fmt: skip
        # What nobody has read yet has no points, which is not the same as 0.
        score: dict[str, float | None] = {
            name: None if name in waiting else row.points.get(name, 0.0) for name in points
        }
        score |= {name: one.points for name, one in own.items()}
        line: dict[str, Any] = {"student": row.student}
        if named:
            line |= {"name": row.name, "email": row.email}
        line |= {
            "status": row.status,
            "points": round(sum(one or 0.0 for one in score.values()), 2) if known else None,
            "of": sum(points.values()),
            "by_hand_open": sum(points[name] for name in waiting) if not row.of else 0,
            "seconds": row.seconds, "notes": "; ".join(notes),
        }  # fmt: skip
        lines.append(line | (score if known else dict.fromkeys(score)))
    return pd.DataFrame(lines)


def export(whole: pd.DataFrame, rows: dict[str, Row], given: ByHand, out: Path) -> None:
    """``grades_canvas.csv`` and ``grades_moodle.csv``, as their gradebooks import them.

    Only those who have points, and whom the roster knows if there is one: an empty field may erase
    a grade, and a stranger may stop an import. Canvas knows a person by the number of its file
    names (``ID``), else by ``SIS User ID`` or ``SIS Login ID``; Moodle by ``ID number`` or
    ``Email address``.
    """
    import pandas as pd

    most = float(whole["of"].max()) if len(whole) else 0.0
    canvas: list[dict[str, str]] = [{"Student": "    Points Possible", TITLE: f"{most:g}"}]
    moodle: list[dict[str, str]] = []
    for line in whole.to_dict("records"):
        row = rows[line["student"]]
        own = given.get(row.student, {})
        stranger = any(note.startswith("unmatched") for note in row.notes)
        if row.of or stranger or pd.isna(line["points"]):
            continue
        points, name = f"{line['points']:g}", row.name or row.student
        comments = [f"{task}: {html.escape(one.comment, quote=False)}"
                    for task, one in own.items() if one.comment]  # fmt: skip
        canvas.append({
            "Student": name, "ID": row.canvas, "SIS User ID": "" if row.canvas else row.student,
            "SIS Login ID": row.email, "Section": "", TITLE: points,
        })  # fmt: skip
        moodle.append({
            "ID number": row.student, "Full name": name, "Email address": row.email, TITLE: points,
            "Feedback comments": " ".join(comments),
        })  # fmt: skip
    first = ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", TITLE]
    second = ["ID number", "Full name", "Email address", TITLE, "Feedback comments"]
    for kind, lines, columns in (("canvas", canvas, first), ("moodle", moodle, second)):
        text = pd.DataFrame(lines, columns=columns).to_csv(index=False)
        replace_file(out / f"grades_{kind}.csv", text.encode())
