"""Who handed in which file: names as learning platforms write them, and the roster of a class.

Canvas calls a file ``lovelaceada_LATE_123_4567_hw1-2.ipynb`` (the number of the person, that of the
submission, and of a resubmission); Moodle calls a folder, or the file itself,
``Ada Lovelace_123_assignsubmission_file_``.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from trustml_helpers.checks.grading.homework import HomeworkError, table_of

_CANVAS = re.compile(r"(?P<name>[^_]+)_(?:LATE_)?(?P<user>\d+)_(?P<number>\d+)_(?P<file>.+)")
_MOODLE = re.compile(r"(?P<name>.+)_(?P<user>\d+)_assignsubmission_file_?(?P<file>.*)")
_AGAIN = re.compile(r"-(\d+)$")
_SKIP = {".ipynb_checkpoints", "__MACOSX"}


@dataclass(frozen=True)
class Person:
    """A line of the roster.

    Attributes:
        id: what the class is keyed by: a number of Canvas or Moodle, or of the university.
        name, email: may be empty.
    """

    id: str
    name: str = ""
    email: str = ""


@dataclass(frozen=True)
class Submission:
    """What one student handed in.

    Attributes:
        student: names the row and the files of the results: the id in the roster, or, without one,
            the name of file or folder.
        path: the notebook that counts; None where there is none.
        status: why nothing can be graded, or empty.
        notes: what a person should know.
        person: in the roster, if there is one.
        of: for an older version, the student whose row it belongs to.
        canvas: the number of the person in Canvas's file name.
    """

    student: str
    path: Path | None = None
    status: str = ""
    notes: tuple[str, ...] = ()
    person: Person | None = None
    of: str = ""
    canvas: str = ""


@dataclass
class _Pile:
    """The files of one student, before they are sorted."""

    name: str
    user: str = ""
    canvas: bool = False
    files: list[Path] = field(default_factory=list)


def read_roster(path: Path) -> list[Person]:
    """The class, from a CSV with the columns ``id``, ``name`` and ``email`` (or ``e-mail``).

    Raises:
        HomeworkError: if the file is missing, lacks ``id``, or an id is empty or there twice.
    """
    if not path.is_file():
        raise HomeworkError(f"roster={str(path)!r}: no such file")
    table = table_of(path)
    table.columns = [re.sub(r"[^a-z]", "", str(name).lower()) for name in table.columns]
    if "id" not in table:
        raise HomeworkError(f"{path}: expected the columns id, name, email, found "
                            f"{', '.join(table.columns)}")  # fmt: skip
    ids = table["id"].str.strip()
    if (ids == "").any() or ids.duplicated().any():
        twice = next(iter(ids[ids.duplicated()]), "")
        raise HomeworkError(f"{path}: id {twice!r} is empty or there twice")
    texts = {name: table.get(name, ids.map(lambda _: "")).str.strip() for name in ("name", "email")}
    return [Person(*line) for line in zip(ids, texts["name"], texts["email"], strict=True)]


def collect(folder: Path, roster: list[Person] | None = None) -> list[Submission]:
    """Everything that was handed in, a row for each student and for each older version.

    Args:
        folder: of files, or of folders with one student's files each, as platforms export them.
        roster: students without a file get a row of their own, too.

    Raises:
        HomeworkError: if there is nothing at all.
    """
    if not folder.is_dir():
        raise HomeworkError(f"submissions={str(folder)!r}: no such folder")
    piles = _piles(folder)
    if not any(_is_notebook(path) for pile in piles for path in pile.files):
        raise HomeworkError(f"submissions={str(folder)!r}: no notebooks. Expected NAME.ipynb, or "
                            "folders NAME with one notebook each")  # fmt: skip
    if roster is None:
        found = [each for pile in piles for each in _sorted(pile, pile.name)]
        return _told_apart(found)
    by_person: dict[str, _Pile] = {}
    rows: list[Submission] = []
    for pile in piles:
        people = _same(pile, roster)
        if len(people) == 1:
            own = by_person.setdefault(people[0].id, _Pile(pile.name, pile.user, pile.canvas))
            own.files += pile.files
            continue
        why = "nobody" if not people else "more than one"
        note = (f"unmatched: {why} in the roster fits {pile.name!r}; give the file the id as name",)
        rows += [replace(each, notes=note + each.notes) for each in _sorted(pile, pile.name)]
    for person in roster:
        if person.id not in by_person:
            rows.append(Submission(_safe(person.id), status="missing", person=person))
            continue
        each = _sorted(by_person[person.id], person.id)
        rows += [replace(one, person=person) for one in each]
    return _told_apart(rows)


def _piles(folder: Path) -> list[_Pile]:
    """The files by student, as the names of files and folders tell."""
    found: dict[tuple[str, str], _Pile] = {}
    for path in _files(folder):
        first, *deeper = path.relative_to(folder).parts
        match = _MOODLE.fullmatch(first) or (None if deeper else _CANVAS.fullmatch(first))
        name, user = first if deeper else path.stem, ""
        if match:
            name, user = match["name"], match["user"]
        canvas = match is not None and match.re is _CANVAS
        found.setdefault((name, user), _Pile(name, user, canvas)).files.append(path)
    return list(found.values())


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not _SKIP & set(parts) and not any(p.startswith(".") for p in parts):
            yield path


def _is_notebook(path: Path) -> bool:
    return path.suffix.lower() == ".ipynb"


def _version(path: Path) -> tuple[int, int, float, str]:
    """Later versions are larger: by Canvas's numbers, else by the time of the file."""
    match = _CANVAS.fullmatch(path.name)
    again = _AGAIN.search(path.stem)
    numbers = (int(match["number"]), int(again[1]) if again else 0) if match else (0, 0)
    return (*numbers, path.stat().st_mtime, path.name)


def _sorted(pile: _Pile, student: str) -> list[Submission]:
    """The newest notebook of a pile, and a row for each older one."""
    student = _safe(student)
    notebooks = sorted(filter(_is_notebook, pile.files), key=_version)
    canvas = pile.user if pile.canvas else ""
    if not notebooks:
        names = ", ".join(path.name for path in pile.files)
        return [Submission(student, None, f"no notebook, only {names}", canvas=canvas)]
    *older, newest = notebooks
    notes: tuple[str, ...] = (f"newest of {len(notebooks)}: {newest.name}",) if older else ()
    if "_LATE_" in newest.name:
        notes += ("late",)
    old = [
        Submission(f"{student} ({path.name})", path, f"superseded by {newest.name}", of=student)
        for path in older
    ]  # fmt: skip
    return [Submission(student, newest, notes=notes, canvas=canvas), *old]


def _safe(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r'[\x00-\x1f<>:"/\\|?*]', "_", name).strip(" .") or "_"


def _told_apart(rows: list[Submission]) -> list[Submission]:
    """Two students whose names are the same as those of files get numbers."""
    seen: dict[str, int] = {}
    told = []
    for row in rows:
        key = row.student.casefold()
        seen[key] = seen.get(key, 0) + 1
        new = f"{row.student} ({seen[key]})" if seen[key] > 1 else row.student
        told.append(replace(row, student=new))
    return told


def _same(pile: _Pile, roster: list[Person]) -> list[Person]:
    """Those of the roster who may have handed in a pile: by id, by e-mail, by name."""
    plain = _letters(pile.name)
    by_id = [one for one in roster if one.id in (pile.name, pile.canvas and pile.user)]
    if by_id:
        return by_id
    by_mail = [
        one for one in roster
        if one.email and pile.name.casefold() in
        (one.email.casefold(), one.email.casefold().partition("@")[0])
    ]  # fmt: skip
    if by_mail:
        return by_mail
    return [one for one in roster if plain and plain in _spellings(one.name)]


def _spellings(name: str) -> set[str]:
    """A name in every order of its parts, letters only: Canvas and Moodle differ in that."""
    parts = [part for part in re.split(r"[\s,]+", name) if part]
    orders = itertools.permutations(parts) if len(parts) <= 4 else [parts, parts[-1:] + parts[:-1]]
    return {_letters("".join(order)) for order in orders} - {""}


def _letters(text: str) -> str:
    """Letters and digits without accents and case."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in plain if letter.isalnum())
