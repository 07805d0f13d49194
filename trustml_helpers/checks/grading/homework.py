"""What a homework is: its source, the numbers of a year, and the version for students.

The source notebook shows the numbers of ``hw1.toml`` and runs with them. A release writes those of
its year in their place: points, seeds, and whatever stands between ``<!--name-->`` and ``<!---->``
in a text, or in the cell that is tagged ``numbers``.
"""

from __future__ import annotations

import copy
import csv
import os
import random
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

ASSIGNMENT = "hw1"
ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "notebooks" / "homework" / "source" / ASSIGNMENT
SOURCE = FOLDER / f"{ASSIGNMENT}.ipynb"
CONFIG = """c = get_config()
c.CourseDirectory.course_id = "trustml"
c.Execute.timeout = {limit}
# A warning of a library on stderr is no failure; an exception still is.
c.IgnorePattern.enabled = True
c.IgnorePattern.pattern = "(?s)."
c.GenerateFeedback.permissions = 644
"""
# One process for both, since the import of nbgrader takes as long as grading half the tasks.
_GRADE = """import contextlib, os, sys
done = os.path.abspath("graded")
from nbgrader.apps import AutogradeApp, GenerateFeedbackApp
AutogradeApp.launch_instance(sys.argv[1:])
open(done, "w").close()  # what goes wrong from here on costs a page, and no points
AutogradeApp.clear_instance()
with contextlib.suppress(SystemExit, Exception):
    GenerateFeedbackApp.launch_instance(sys.argv[1:])
"""


class HomeworkError(RuntimeError):
    """Release or grading cannot begin; the message says what to do."""


@dataclass(frozen=True)
class Numbers:
    """The numbers of one year's homework.

    Attributes:
        points, seeds: by name of the graded cell.
        values: what the texts and the cell of numbers show, by name.
        settings: keyword arguments of a check, by name of its graded cell: names of values.
        swap: a task of the source by the alternative that takes its place.
        variant: the year, or an empty text for the source as it is.
    """

    points: dict[str, float]
    seeds: dict[str, int]
    values: dict[str, Any]
    settings: dict[str, dict[str, str]]
    swap: dict[str, str]
    variant: str = ""


def numbers(variant: str = "") -> Numbers:
    """Read ``hw1.toml``; for a variant, draw other seeds and values by its name.

    Args:
        variant: for instance ``"2027"``: the same name and the same ``secret`` of ``hw1.toml``
            always give the same homework. What stands under ``[variants.2027]`` counts more than
            what is drawn.

    Raises:
        HomeworkError: if the file is missing or does not hold what is needed, or a task has no
            points.
    """
    path = SOURCE.with_suffix(".toml")
    if not path.exists():
        raise HomeworkError(f"{path} is missing: releasing and grading need the whole repository")
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
        own = said.get("variants", {}).get(variant, {})
        found = {key: dict(said[key]) for key in ("points", "seeds", "values", "settings")}
        secret = str(said["secret"])
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise HomeworkError(f"{path}: {error} is not as needed") from error
    if variant:
        draw = random.Random(f"{ASSIGNMENT} {variant} {secret}")
        found["seeds"] = {name: draw.randrange(1000, 1_000_000) for name in found["seeds"]}
        for name, choices in said.get("choices", {}).items():
            found["values"][name] = draw.choice([c for c in choices if c != said["values"][name]])
    for key, part in found.items():
        part |= own.get(key, {})
    for name, most in found["points"].items():
        if not isinstance(most, int | float) or not most > 0:
            raise HomeworkError(f"{path}: points.{name}={most!r}: expected a number above 0")
    swap = dict(own.get("swap", said.get("swap", {})))
    for task, other in swap.items():
        for key in ("points", "seeds"):
            if f"{task}-graded" not in found[key]:
                raise HomeworkError(f"{path}: swap names no task, {task!r}")
            found[key][f"{other}-graded"] = found[key].pop(f"{task}-graded")
    return Numbers(**found, swap=swap, variant=variant)


def source(year: Numbers) -> Any:
    """The source notebook with the numbers of a year.

    Raises:
        HomeworkError: if source and numbers do not fit: a graded cell without points or seed, a
            value that no text shows, points in a text that are not those of its task.
    """
    if not SOURCE.exists():
        raise HomeworkError(f"{SOURCE} is missing: releasing and grading need the whole repository")
    notebook = _read(SOURCE)
    for task, other in year.swap.items():
        _swap(notebook, task, other)
    graded = {c.metadata["nbgrader"]["grade_id"]: c for c in notebook.cells if _is_graded(c)}
    by_machine = {n: c for n, c in graded.items() if not c.metadata["nbgrader"]["solution"]}
    _agree("points", set(year.points), set(graded))
    _agree("seeds", set(year.seeds), set(by_machine))
    shown: set[str] = set()
    for cell in notebook.cells:
        shown |= _write_values(cell, year)
    if missing := set(year.values) - shown:
        raise HomeworkError(f"{SOURCE.with_suffix('.toml')}: nothing in the notebook shows "
                            f"{', '.join(sorted(missing))}")  # fmt: skip
    for name, cell in graded.items():
        cell.metadata["nbgrader"]["points"] = year.points[name]
    for name, cell in by_machine.items():
        _write_check(cell, name, year)
    _write_points(notebook, year)
    notebook.metadata["trustml"] = {"homework": ASSIGNMENT, "variant": year.variant}
    return notebook


def as_written(year: Numbers) -> list[str]:
    """Where the source does not show the numbers it is said to have; nothing if it agrees."""
    made, there = source(year), _read(SOURCE)
    return [
        f"cell {number}: {cell.source[:60]!r}"
        for number, (cell, other) in enumerate(zip(there.cells, made.cells, strict=True))
        if cell.source != other.source or cell.metadata != other.metadata
    ]


def write_numbers() -> None:
    """Write the numbers of ``hw1.toml`` into the source notebook; run it again afterwards."""
    import nbformat

    notebook = source(numbers())
    nbformat.write(notebook, SOURCE)


def table_of(path: Path) -> pd.DataFrame:
    """A table of texts, as spreadsheets save it: with commas or semicolons, and a byte-order mark.

    Raises:
        HomeworkError: if it is none, not in UTF-8, or a line has another number of fields.
    """
    import pandas as pd

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            between = ";" if first.count(";") > first.count(",") else ","
            head, *lines = (line for line in csv.reader(file, delimiter=between) if line)
    except (ValueError, csv.Error) as error:  # that of Unicode, too
        raise HomeworkError(f"{path}: no CSV in UTF-8 ({error}). In Excel: Save as, CSV UTF-8"
                            ) from error  # fmt: skip
    for line in lines:
        if len(line) != len(head):
            raise HomeworkError(f"{path}: the line of {line[0]!r} has {len(line)} fields, the "
                                f"first one {len(head)}: put a text with {between!r} in it between "
                                "quotation marks")  # fmt: skip
    return pd.DataFrame(lines, columns=head, dtype=str)


# --- writing numbers ------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    import nbformat

    return nbformat.read(path, as_version=4)


def _is_graded(cell: Any) -> bool:
    return bool(cell.metadata.get("nbgrader", {}).get("grade"))


def _agree(what: str, said: set[str], needed: set[str]) -> None:
    if said != needed:
        apart = ", ".join(sorted(said ^ needed))
        raise HomeworkError(f"{SOURCE.with_suffix('.toml')}: [{what}] and the graded cells of the "
                            f"notebook differ in {apart}")  # fmt: skip


def _write_values(cell: Any, year: Numbers) -> set[str]:
    """Write the values that a cell shows; their names."""
    if "numbers" in cell.metadata.get("tags", []):
        first, *_ = cell.source.partition("\n")
        lines = [f"{name.upper()} = {_code(value)}" for name, value in year.values.items()]
        cell.source = "\n".join([first, *lines])
        return set(year.values)
    shown: set[str] = set()
    if cell.cell_type == "markdown":

        def write(found: re.Match[str]) -> str:
            name, _, part = found[1].partition(".")
            if name not in year.values:
                raise HomeworkError(f"{SOURCE}: <!--{found[1]}--> names no value of the toml file")
            value = year.values[name]
            shown.add(name)
            return f"<!--{found[1]}-->{_words(value[int(part)] if part else value)}<!---->"

        cell.source = re.sub(r"<!--([\w.]+)-->.*?<!---->", write, cell.source)
    return shown


def _code(value: Any) -> str:
    """A value as Python; lists are tuples, which nobody changes by accident."""
    if isinstance(value, list):
        return "(" + ", ".join(map(_code, value)) + ("," if len(value) == 1 else "") + ")"
    return f"{value:_}" if isinstance(value, int) else (
        '"' + value + '"' if isinstance(value, str) else repr(value)
    )  # fmt: skip


def _words(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else (
        f"{value:g}" if isinstance(value, float | int) else str(value)
    )  # fmt: skip


def _write_check(cell: Any, name: str, year: Numbers) -> None:
    """The hidden check with this year's points, seed and settings."""
    call = re.search(r"checks\.score\((?:[^()]|\([^()]*\))*\)", cell.source)
    answer = call and re.search(r"checks\.\w+,\s*\w+(?=,\s*seed=)", call[0])
    if call is None or answer is None:
        raise HomeworkError(f"{SOURCE}: {name} has no line checks.score(points, check, answer, "
                            "seed=...)")  # fmt: skip
    wanted, points = year.settings.get(name, {}), year.points[name]
    settings = "".join(f", {key}={_code(year.values[value])}" for key, value in wanted.items())
    inside = f"{points:g}, {answer[0]}, seed={year.seeds[name]}{settings}"
    line = f"checks.score({inside})"
    if len(line) > 100:  # as the formatter breaks it
        line = f"checks.score(\n    {inside}\n)"
    cell.source = cell.source.replace(call[0], line)
    cell.source = re.sub(r"^# Graded, [\d.]+ points", f"# Graded, {points:g} points", cell.source)


def _write_points(notebook: Any, year: Numbers) -> None:
    """The points in the text of a task are those of the graded cells up to the next heading of
    its level or above."""
    tasks: list[dict[str, Any]] = []  # every line of points, with the heading that it belongs to
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and not _is_graded(cell):  # an answer has headings, too
            level = 0
            for head, _ in re.findall(r"^(?:(#+) |\*([\d.]+) points)", cell.source, re.MULTILINE):
                level = len(head) or level
                if head:
                    for task in tasks:
                        task["open"] &= task["level"] < level
                else:
                    tasks.append({"text": cell, "level": level, "total": 0.0, "open": True})
        if _is_graded(cell):
            for task in tasks:
                task["total"] += task["open"] * year.points[cell.metadata["nbgrader"]["grade_id"]]
    for cell in {id(task["text"]): task["text"] for task in tasks}.values():
        totals = iter([task["total"] for task in tasks if task["text"] is cell])
        parts = re.split(r"^\*[\d.]+ points", cell.source, flags=re.MULTILINE)
        cell.source = parts[0] + "".join(f"*{next(totals):g} points{part}" for part in parts[1:])
    whole = sum(year.points.values())
    for cell in notebook.cells:
        cell.source = re.sub(r"\*\*Points\*\* [\d.]+;", f"**Points** {whole:g};", cell.source)


def _swap(notebook: Any, task: str, other: str) -> None:
    """Put an alternative in the place of a task: its text, hints, answer and checks."""
    path = FOLDER / "alternatives" / f"{other}.ipynb"
    if not path.exists():
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.ipynb")))
        raise HomeworkError(f"swap: no alternative {other!r}; there are {known}")
    names = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in notebook.cells]
    at = names.index(f"{task}-graded")
    heads = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## ")]
    first, end = max(i for i in heads if i < at), min(i for i in heads if i > at)
    _, *cells = copy.deepcopy(_read(path).cells)  # the first is for running it alone
    number = notebook.cells[first].source.split()[1]
    cells[0].source = re.sub(r"^## \S+", f"## {number}", cells[0].source)
    notebook.cells[first:end] = cells


# --- nbgrader -------------------------------------------------------------------------------------


def generate(course: Path, limit: int, year: Numbers, *options: str) -> Path:
    """Make or renew an nbgrader course; returns the path of its student version."""
    import nbformat

    notebook = source(year)
    place = course / "source" / ASSIGNMENT / SOURCE.name
    place.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, place)
    (course / "nbgrader_config.py").write_text(CONFIG.format(limit=limit))
    log = course / "generate.log"
    if nbgrader(course, log, 300, "generate_assignment", *options) != 0:
        raise HomeworkError("nbgrader could not make the student version. Is it installed (pip "
                            f"install -e '.[homework]')? It said:\n{log.read_text()[-2000:]}"
                            )  # fmt: skip
    return course / "release" / ASSIGNMENT / SOURCE.name


def grading(student: str) -> list[str]:
    """The words that grade a student's notebook and write the page of feedback."""
    return [sys.executable, "-P", "-c", _GRADE, ASSIGNMENT, "--student", student, "--force"]


def environment() -> dict[str, str]:
    """Variables for a process of nbgrader.

    It calls alembic by name, which is not found in an environment that is not activated. One thread
    for torch: several that wait for each other burn a cell's processor time.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {"OMP_NUM_THREADS": "1"} | os.environ | {"PATH": path}


def nbgrader(course: Path, log: Path, seconds: float, command: str, *options: str) -> int | None:
    """Run nbgrader in a process of its own; its exit status, or None if it ran out of time."""
    with log.open("a", encoding="utf-8") as file:
        try:
            return subprocess.run(
                [sys.executable, "-P", "-m", "nbgrader", command, ASSIGNMENT, *options],
                env=environment(), cwd=course, stdout=file, stderr=subprocess.STDOUT,
                timeout=seconds, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
