"""The homework from source to grades, offline: nbgrader does the work, one submission at a time.

Student code runs on this machine with this user's rights: see ``docs/instructor/homework.md``.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustml_helpers._support.files import replace_file

if TYPE_CHECKING:
    import pandas as pd

ASSIGNMENT = "hw1"
GRADED = "graded"
ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "notebooks" / "homework" / "source" / ASSIGNMENT / f"{ASSIGNMENT}.ipynb"
# What a student needs to work without the repository; no tests, no solutions.
_PACKED = (
    "trustml_helpers/**/*.py", "pyproject.toml", "LICENSE", "notebooks/0*.ipynb",
    "data/mnist/*", "data/images/*.*g", "data/images/*.csv", "data/images/README.md",
    "data/checkpoints/README.md", "data/checkpoints/mnist_*",
    "data/published/*", "data/results/README.md", "data/results/*/*.[!p]*",  # no scripts
)  # fmt: skip
_README = f"""# Homework 1 on adversarial robustness

Python 3.11 or newer. In this folder:

    python3 -m venv .venv
    .venv/bin/python -m pip install --editable .
    .venv/bin/jupyter lab {ASSIGNMENT}.ipynb

On Windows `.venv\\Scripts\\python` and `.venv\\Scripts\\jupyter`. If the course is installed
already, copy `{ASSIGNMENT}.ipynb` into it and open it there.

Work in the notebook; hand in that one file, under your name: `ada_lovelace.ipynb`.
The lecture's notebooks, to which it refers, are in `notebooks/`.
"""
_CONFIG = """c = get_config()
c.CourseDirectory.course_id = "trustml"
c.Execute.timeout = {limit}
# A warning of a library on stderr is no failure; an exception still is.
c.IgnorePattern.enabled = True
c.IgnorePattern.pattern = "(?s)."
c.GenerateFeedback.permissions = 644
"""
_OURS = {"checks", "harness", "trustml_helpers"}  # names that answers leave alone
_FORMULAS = 'MathJax = {tex: {inlineMath: [["$", "$"], ["\\\\(", "\\\\)"]], processEscapes: true}};'


class HomeworkError(RuntimeError):
    """Release or grading cannot begin; the message says what to do."""


def release(out: Path) -> Path:
    """Write the student version, and a zip with all that a student needs.

    Args:
        out: folder for ``hw1.ipynb`` and ``hw1.zip``; made if missing, replaced when complete.

    Returns:
        The path of the zip.

    Raises:
        HomeworkError: if nbgrader is missing or refuses the source, or a part of the zip is
            missing; nothing is written.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        notebook = _generate(Path(scratch) / "course", 60, "--no-db")
        whole = Path(scratch) / "whole.zip"
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(notebook, f"{ASSIGNMENT}/{ASSIGNMENT}.ipynb")
            archive.writestr(f"{ASSIGNMENT}/README.md", _README)
            for pattern in _PACKED:
                if not (found := sorted(ROOT.glob(pattern))):
                    raise HomeworkError(
                        f"{ROOT / pattern} finds nothing: a part of the zip is gone"
                    )
                for path in found:
                    archive.write(path, f"{ASSIGNMENT}/{path.relative_to(ROOT).as_posix()}")
        os.replace(notebook, out / f"{ASSIGNMENT}.ipynb")
        os.replace(whole, out / f"{ASSIGNMENT}.zip")
    return out / f"{ASSIGNMENT}.zip"


def grade(
    submissions: Path, out: Path, *, cell_seconds: int = 120, notebook_seconds: int = 1200
) -> pd.DataFrame:
    """Grade every notebook of a folder, whatever is wrong with some of them.

    Args:
        submissions: folder of ``NAME.ipynb``, or of folders ``NAME`` with one notebook each.
        out: folder for ``grades.csv``, ``feedback/NAME.html``, ``logs/NAME.log``, ``by_hand.csv``
            and nbgrader's course with its gradebook. Grading again keeps the points by hand.
        cell_seconds: a cell that runs longer is interrupted and fails; the others still count.
        notebook_seconds: a notebook that runs longer is stopped and named.

    Returns:
        One row per student, as in ``grades.csv``, those of earlier folders last: ``student status
        points of by_hand_open notes`` (``by_hand_open``: points of written answers that nobody has
        read yet), then the points of every graded cell.

    Raises:
        HomeworkError: before any work, if there is nothing to grade, two notebooks have one name,
            or nbgrader is missing.
    """
    import nbformat
    import pandas as pd

    grades, by_hand, course = out / "grades.csv", out / "by_hand.csv", out / "course"
    found, given = _found(submissions), _by_hand(by_hand)
    blank = nbformat.read(_generate(course, cell_seconds, "--force"), as_version=4)
    for folder in ("logs", "feedback"):
        (out / folder).mkdir(exist_ok=True)
    rows = []
    for number, (student, path) in enumerate(found.items(), 1):
        print(f"{number} of {len(found)}: {student}", flush=True)
        log = out / "logs" / f"{student}.log"
        status, notes = _grade_one(student, path, blank, course, log, notebook_seconds)
        rows.append({"student": student, "status": status, "notes": "; ".join(notes)})
    scores = _scores(course, rows, given)
    for row in rows:
        _feedback(row, course, out)
    table = pd.DataFrame([row | scores[row["student"]] for row in rows])
    first = ["student", "status", "points", "of", "by_hand_open", "notes"]
    table = table[first + [name for name in table.columns if name not in first]]
    if grades.exists():  # students of an earlier folder keep their row
        earlier = pd.read_csv(grades, dtype={"student": str}, na_values=[""], keep_default_na=False)
        table = pd.concat([table, earlier[~earlier["student"].isin(table["student"])]])
    labels = [_label(cell) for cell in blank.cells]
    written = [each["grade_id"] for each in labels if each.get("grade") and each.get("solution")]
    asked = [
        {"student": student} | {name: given.get(student, {}).get(name) for name in written}
        for student in dict.fromkeys([*given, *found])
    ]
    replace_file(grades, table.to_csv(index=False).encode())
    replace_file(by_hand, pd.DataFrame(asked).to_csv(index=False).encode())
    return table


# --- nbgrader -------------------------------------------------------------------------------------


def _generate(course: Path, limit: int, *options: str) -> Path:
    """Make or renew a course folder; returns the path of its student version."""
    if not SOURCE.exists():
        raise HomeworkError(f"{SOURCE} is missing: releasing and grading need the whole repository")
    source = course / "source" / ASSIGNMENT / SOURCE.name
    source.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(SOURCE, source)
    (course / "nbgrader_config.py").write_text(_CONFIG.format(limit=limit))
    log = course / "generate.log"
    if _nbgrader(course, log, 300, "generate_assignment", *options) != 0:
        raise HomeworkError("nbgrader could not make the student version. Is it installed (pip "
                            f"install -e '.[homework]')? It said:\n{log.read_text()[-2000:]}"
                            )  # fmt: skip
    return course / "release" / ASSIGNMENT / SOURCE.name


def _nbgrader(course: Path, log: Path, seconds: float, command: str, *options: str) -> int | None:
    """Run nbgrader in a process of its own; its exit status, or None if it ran out of time."""
    # nbgrader calls alembic by name, which is not found in an environment that is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with log.open("a", encoding="utf-8") as file:
        try:
            return subprocess.run(
                [sys.executable, "-m", "nbgrader", command, ASSIGNMENT, *options],
                env=os.environ | {"PATH": path}, cwd=course, stdout=file,
                stderr=subprocess.STDOUT, timeout=seconds, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return None


def _grade_one(
    student: str, path: Path, blank: Any, course: Path, log: Path, seconds: int
) -> tuple[str, list[str]]:
    """Put one submission in place and grade it; what became of it, and what was noticed."""
    import nbformat

    log.write_text("")
    for stage in ("submitted", "autograded", "feedback"):
        shutil.rmtree(course / stage / student, ignore_errors=True)
    try:
        notebook = nbformat.read(path, as_version=4)
        notes = _restore(notebook, blank)
    except Exception as error:  # whatever a damaged file makes nbformat raise
        log.write_text(f"{error}\n")
        return f"damaged: not a notebook ({type(error).__name__})", []
    place = course / "submitted" / student / ASSIGNMENT
    place.mkdir(parents=True)
    nbformat.write(notebook, place / SOURCE.name)
    code = _nbgrader(course, log, seconds, "autograde", "--student", student, "--force")
    if code is None:
        return f"stopped after {seconds} seconds", notes
    if code != 0:
        dead = "DeadKernelError" in log.read_text()
        return ("crashed: its code ended Python" if dead else "nbgrader failed: see its log"), notes
    return GRADED, notes


def _feedback(row: dict[str, str], course: Path, out: Path) -> None:
    """One HTML page, if the submission was graded."""
    student = row["student"]
    page, log = out / "feedback" / f"{student}.html", out / "logs" / f"{student}.log"
    page.unlink(missing_ok=True)
    if row["status"] == GRADED:
        _nbgrader(course, log, 300, "generate_feedback", "--student", student, "--force")
        made = course / "feedback" / student / ASSIGNMENT / f"{ASSIGNMENT}.html"
        if made.exists():
            page.write_text(_with_mathjax(made.read_text(encoding="utf-8")), encoding="utf-8")


def _with_mathjax(html: str) -> str:
    """nbgrader's page with MathJax inside, where it would fetch it: one file to hand out."""
    packed = find_spec("sphinx-mathjax-offline")
    if packed is None or packed.origin is None:
        return html
    script = Path(packed.origin).parent / "static" / "mathjax" / "tex-svg.js"
    inside = f"<script>{_FORMULAS}</script><script>{script.read_text(encoding='utf-8')}</script>"
    return re.sub(r"<!-- Load mathjax -->.*?<!-- End of mathjax", lambda _: inside + "<!--", html,
                  count=1, flags=re.DOTALL)  # fmt: skip


def _scores(
    course: Path, rows: list[dict[str, str]], given: dict[str, dict[str, float]]
) -> dict[str, dict[str, Any]]:
    """Points of every graded cell by student, after the points by hand went into the gradebook."""
    from nbgrader.api import Gradebook, MissingEntry

    found: dict[str, dict[str, Any]] = {}
    with Gradebook(f"sqlite:///{course.resolve() / 'gradebook.db'}", "trustml") as book:
        cells = book.find_notebook(ASSIGNMENT, ASSIGNMENT).grade_cells
        for row in rows:
            try:
                grades = book.find_submission(ASSIGNMENT, row["student"]).notebooks[0].grades
            except MissingEntry:
                grades = []
            by_hand = given.get(row["student"], {})
            for one in grades:
                if one.name in by_hand:
                    one.manual_score, one.needs_manual_grade = by_hand[one.name], False
            book.db.commit()  # only then has the database added up the new scores
            grades = grades if row["status"] == GRADED else []
            points = {one.name: one.score for one in grades}
            found[row["student"]] = {
                "points": round(sum(points.values()), 2),
                "of": sum(cell.max_score for cell in cells),
                "by_hand_open": sum(one.max_score for one in grades if one.needs_manual_grade),
            } | {cell.name: points.get(cell.name, 0.0) for cell in cells}
    return found


# --- submissions ----------------------------------------------------------------------------------


def _found(folder: Path) -> dict[str, Path]:
    """The notebooks of a folder, by student."""
    if not folder.is_dir():
        raise HomeworkError(f"submissions={str(folder)!r}: no such folder")
    found: dict[str, Path] = {}
    for path in (*sorted(folder.glob("*.ipynb")), *sorted(folder.glob("*/**/*.ipynb"))):
        first, *deeper = path.relative_to(folder).parts
        if ".ipynb_checkpoints" in (first, *deeper):
            continue
        name = first if deeper else path.stem
        if not name.strip(". ") or any(letter in name for letter in "*?[]/\\,+"):
            raise HomeworkError(f"{path}: a student's name may not contain * ? [ ] , + or be dots; "
                                "rename it")  # fmt: skip
        if found.setdefault(name, path) != path:
            raise HomeworkError(f"two notebooks of {name!r}: {found[name]} and {path}. Keep one of "
                                "them")  # fmt: skip
    if not found:
        raise HomeworkError(f"submissions={str(folder)!r}: no notebooks. Expected NAME.ipynb, or "
                            "folders NAME with one notebook each")  # fmt: skip
    return found


def _label(cell: Any) -> dict[str, Any]:
    """What nbgrader wrote on a cell; empty if nothing, or nothing that it can read."""
    label = cell.metadata.get("nbgrader")
    return label if isinstance(label, dict) else {}


def _restore(notebook: Any, blank: Any) -> list[str]:
    """Put back, in place, the released cells that are missing; what was found missing or changed.

    nbgrader itself puts back the text of locked cells; it stumbles where cells are gone, or where
    their labels were edited.
    """
    released = {_label(cell)["grade_id"]: cell for cell in blank.cells if _label(cell)}
    notes, place = _changes_to_the_checks(notebook), {}
    for cell in notebook.cells:
        name = _label(cell).get("grade_id")
        if name not in released or name in place:
            cell.metadata.pop("nbgrader", None)  # a copy, or of another assignment
            continue
        place[name] = cell
        cell.metadata["nbgrader"] = label = _label(released[name])
        now, then = ("".join(each.source.split()) for each in (cell, released[name]))
        if label["locked"] and now != then:
            notes.append(f"{name} was changed and put back")
    at = 0
    for name, cell in released.items():
        if name in place:
            at = notebook.cells.index(place[name])
        else:
            notebook.cells.insert(at, cell.copy())
            notes.append(f"{name} was missing and put back")
        at += 1
    return notes


def _changes_to_the_checks(notebook: Any) -> list[str]:
    """Code that replaces a check: it may be an accident, and a person should look at it."""
    notes = []
    for number, cell in enumerate(notebook.cells, 1):
        try:
            nodes = list(ast.walk(ast.parse(cell.source if cell.cell_type == "code" else "")))
        except (SyntaxError, ValueError):
            notes.append(f"cell {number} is not valid Python")
            continue
        changed = [n for n in nodes if isinstance(getattr(n, "ctx", None), ast.Store | ast.Del)]
        changed += [
            n.args[0] for n in nodes
            if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "setattr" and n.args
        ]  # fmt: skip
        if {ast.unparse(n).partition(".")[0] for n in changed} & _OURS:
            notes.append(f"cell {number} changes the checks: read it")
    return notes


def _by_hand(path: Path) -> dict[str, dict[Any, float]]:
    """The points by hand, by student and cell; empty where nothing is filled in."""
    import pandas as pd

    if not path.exists():
        return {}
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)  # NA and null are names, too
        table = table.set_index("student").replace("", "nan").astype(float)
    except KeyError as error:
        raise HomeworkError(f"{path}: expected the column student, and one per question") from error
    except ValueError as error:
        raise HomeworkError(f"{path}: expected points as numbers, or nothing ({error})") from error
    if table.index.has_duplicates:
        raise HomeworkError(f"{path}: {table.index[table.index.duplicated()][0]!r} is there twice")
    return {str(student): row.dropna().to_dict() for student, row in table.iterrows()}
