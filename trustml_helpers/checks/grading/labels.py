"""Which cell of a submission is which cell of the release, also where nbgrader's labels are lost.

Cells are matched by label, by cell id, by the function that they define, by the text of a check,
and a written answer by the texts around it. What cannot be matched for sure is said, not guessed.
"""

from __future__ import annotations

import ast
import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trustml_helpers.checks.grading.homework import HomeworkError

_OURS = {"checks", "harness", "trustml_helpers"}  # names that answers leave alone


@dataclass
class Matching:
    """What became of the cells of a submission.

    Attributes:
        place: the cell of every released name that was found.
        notes: what was missing, moved or changed, a sentence each.
        lost: names of answers that may be there, and cannot be told from other cells.
    """

    place: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def read(path: Path) -> Any:
    """A notebook of any version; a byte-order mark does no harm.

    Raises:
        ValueError: if it is none.
    """
    import nbformat

    try:
        text = path.read_text(encoding="utf-8-sig")
        return nbformat.reads(text, as_version=4)
    except Exception as error:  # whatever a damaged file makes nbformat raise
        raise ValueError(f"not a notebook ({type(error).__name__})") from error


def label(cell: Any) -> dict[str, Any]:
    """What nbgrader wrote on a cell; empty if nothing, or nothing that it can read."""
    found = cell.metadata.get("nbgrader")
    return found if isinstance(found, dict) else {}


def name_of(cell: Any) -> str:
    """The name of a released cell, or an empty one."""
    return str(label(cell).get("grade_id", ""))


def released_cells(blank: Any) -> dict[str, Any]:
    """The labelled cells of the release, in order."""
    return {name_of(cell): cell for cell in blank.cells if label(cell)}


def written(blank: Any) -> list[str]:
    """The names of the answers that a person reads."""
    released = released_cells(blank)
    return [name for name, cell in released.items() if label(cell).get("grade") and is_answer(cell)]


def answered(found: Matching, blank: Any) -> dict[str, str]:
    """The written answers that differ from what was released, by name."""
    released = released_cells(blank)
    return {
        name: found.place[name].source for name in written(blank)
        if name in found.place
        and found.place[name].source.strip() not in ("", released[name].source.strip())
    }  # fmt: skip


def is_answer(cell: Any) -> bool:
    """Whether a released cell is a student's to fill in."""
    return bool(label(cell).get("solution"))


def place(number: int, cell: Any) -> str:
    """A cell by its name or its place and how it begins, for a person who looks for it."""
    start = " ".join(cell.source.split())[:40]
    return name_of(cell) or f"cell {number} ({start})"


def among(cell: Any, cells: list[Any]) -> bool:
    """Whether it is one of these, not only equal to one."""
    return any(cell is each for each in cells)


def squeezed(text: str) -> str:
    """A text without its spacing: what is the same after any editor."""
    return "".join(text.split())


def restore(notebook: Any, blank: Any, *, guess: bool = False) -> Matching:
    """Find the released cells in a submission, and put back those that are missing.

    The notebook is changed in place: labels and locked texts are those of the release, checks stand
    below their answers. nbgrader itself stumbles where cells are gone or labels were edited.

    Args:
        notebook: what was handed in.
        blank: what was released.
        guess: match also what is not sure, and say so in the notes.
    """
    released, found = released_cells(blank), Matching()
    found.notes = changes_to_the_checks(notebook)
    _by_label(notebook, released, found)
    kept = set(found.place)
    _text_below(notebook, blank, found)
    for name, cell in released.items():
        if name not in found.place and not is_answer(cell):
            _take(found, name, _same_text(notebook, cell, found))
    for sure in (True, False):  # what is sure leaves less to guess from
        found.lost = []
        for name, cell in released.items():
            if name not in found.place and is_answer(cell):
                find = _answer_in_code if cell.cell_type == "code" else _answer_in_words
                cell = find(notebook, blank, name, found, guess=guess and not sure)
                _take(found, name, cell)
    again = [name for name in released if name in found.place and name not in kept]
    if again:
        which = f"{len(again)} cells" if len(again) > 3 else ", ".join(again)
        found.notes.append(f"labels were lost and found again: {which}")
    known = sum(name in found.place for name in released)
    if 2 * known < len(released):
        found.lost = [name for name in released if name not in found.place]
    if found.lost and not guess:
        return found
    _write_back(notebook, released, found)
    return found


def relabel(submission: Path, blank: Any, out: Path) -> Matching:
    """Write a copy with the labels of the release, guessed where nothing better is known.

    Args:
        submission: the notebook whose labels are lost.
        blank: what was released.
        out: where the copy goes; it is for a person to look at before it is graded.

    Raises:
        HomeworkError: if the file is no notebook, or the copy would replace it.
    """
    import nbformat

    if out.resolve() == submission.resolve():
        raise HomeworkError(f"out={str(out)!r}: would replace what was handed in; name another")
    try:
        notebook = read(submission)
    except ValueError as error:
        raise HomeworkError(f"{submission}: {error}") from error
    found = restore(notebook, blank, guess=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, out)
    return found


# --- finding --------------------------------------------------------------------------------------


def _take(found: Matching, name: str, cell: Any) -> None:
    if cell is not None:
        found.place[name] = cell


def _free(notebook: Any, found: Matching) -> list[Any]:
    """Cells that are nothing released yet."""
    taken = {id(cell) for cell in found.place.values()}
    return [cell for cell in notebook.cells if id(cell) not in taken]


def _by_label(notebook: Any, released: dict[str, Any], found: Matching) -> None:
    for cell in notebook.cells:
        name = name_of(cell)
        wanted = released.get(name)
        if wanted is None or name in found.place or wanted.cell_type != cell.cell_type:
            cell.metadata.pop("nbgrader", None)  # a copy, or of another assignment
            continue
        if is_answer(wanted) and (other := _other_answer(cell, name, released)):
            cell.metadata.pop("nbgrader", None)
            found.notes.append(f"the label {name} was on the answer to {other}")
            continue
        found.place[name] = cell


def _other_answer(cell: Any, name: str, released: dict[str, Any]) -> str:
    """The task whose function a cell defines, if it is not the one that its label names."""
    if cell.cell_type != "code" or _defines(cell, _functions(released[name])):
        return ""
    for other, wanted in released.items():
        if is_answer(wanted) and wanted.cell_type == "code" and _defines(cell, _functions(wanted)):
            return other
    return ""


def _same_text(notebook: Any, wanted: Any, found: Matching) -> Any:
    """A locked cell by its text, which several may share: the first one that is free."""
    text = squeezed(wanted.source)
    same = [cell for cell in _free(notebook, found) if squeezed(cell.source) == text]
    return same[0] if same else None


def _functions(cell: Any) -> list[str]:
    """The functions at the left margin of a cell, also where the code does not parse."""
    return re.findall(r"^(?:async )?def (\w+)", cell.source, flags=re.MULTILINE)


def _defines(cell: Any, functions: list[str]) -> bool:
    return any(
        re.search(rf"^(?:(?:async )?def {name}\b|{name}\s*=[^=])", cell.source, flags=re.MULTILINE)
        for name in functions
    )


def _answer_in_code(
    notebook: Any, blank: Any, name: str, found: Matching, *, guess: bool
) -> Any:  # fmt: skip
    """The cell that defines the function of a task; None if there is none, or if it is not sure."""
    wanted = released_cells(blank)[name]
    free = [cell for cell in _free(notebook, found) if cell.cell_type == "code"]
    cells = [cell for cell in free if _defines(cell, _functions(wanted))]
    if not cells:
        same = [cell for cell in free if cell.get("id") == wanted.get("id", "")]
        return same[0] if same else None
    near = [c for c in cells if among(c, _between(notebook, blank, wanted, found))]
    if len(cells) == 1:
        return cells[0]
    if len(near) == 1:
        found.notes.append(f"{name}: of {len(cells)} cells that define it, the one in its place")
        return near[0]
    if guess:
        found.notes.append(f"{name}: guessed, the last of {len(cells)} cells that define it")
        return cells[-1]
    found.lost.append(name)
    return None


def _answer_in_words(
    notebook: Any, blank: Any, name: str, found: Matching, *, guess: bool
) -> Any:  # fmt: skip
    """The cell of a written answer, by id or by the texts above and below it."""
    wanted = released_cells(blank)[name]
    texts = {squeezed(cell.source) for cell in blank.cells}
    free = [
        cell for cell in _free(notebook, found)
        if cell.cell_type != "code" and squeezed(cell.source)
        and squeezed(cell.source) not in texts - {squeezed(wanted.source)}
    ]  # fmt: skip
    same = [cell for cell in free if cell.get("id") == wanted.get("id", "")]
    near = same or [c for c in free if among(c, _between(notebook, blank, wanted, found))]
    if near:
        if len(near) > 1:
            found.notes.append(f"{name}: {len(near)} cells of text, taken as one")
        near[0].source = "\n\n".join(cell.source for cell in near)
        notebook.cells = [cell for cell in notebook.cells if not among(cell, near[1:])]
        near[0].cell_type = "markdown"
        return near[0]
    if free and guess:
        longest = max(free, key=lambda cell: len(cell.source))
        start = " ".join(longest.source.split())[:60]
        found.notes.append(f"{name}: guessed, the longest text that is nothing else ({start!r})")
        return longest
    if free:
        found.lost.append(name)
    return None


def _text_below(notebook: Any, blank: Any, found: Matching) -> None:
    """A written answer left blank, with text in cells of its own beside it, is that text."""
    released, texts = released_cells(blank), {squeezed(cell.source) for cell in blank.cells}
    for name in written(blank):
        own = found.place.get(name)
        if own is None or squeezed(own.source) != squeezed(released[name].source):
            continue
        near = [
            cell
            for cell in _between(notebook, blank, released[name], found)
            if cell.cell_type == "markdown" and squeezed(cell.source) not in texts | {""}
        ]
        if near:
            own.source = "\n\n".join(cell.source for cell in near)
            notebook.cells = [cell for cell in notebook.cells if not among(cell, near)]
            found.notes.append(f"{name}: blank, the text beside it was taken")


def _between(notebook: Any, blank: Any, wanted: Any, found: Matching) -> list[Any]:
    """The cells between the neighbours of a released cell, as far as these are there."""
    texts = [squeezed(cell.source) for cell in notebook.cells]

    def index(cell: Any) -> int | None:
        placed = found.place.get(name_of(cell))
        if placed is not None:
            return _index(notebook, placed)
        text = squeezed(cell.source)
        return texts.index(text) if texts.count(text) == 1 else None

    at = next(i for i, cell in enumerate(blank.cells) if cell is wanted)
    above = next((i for cell in blank.cells[at - 1 :: -1] if (i := index(cell)) is not None), None)
    below = next((i for cell in blank.cells[at + 1 :] if (i := index(cell)) is not None), None)
    if above is None or below is None or above >= below:
        return []
    return [cell for cell in notebook.cells[above + 1 : below]]


# --- putting back ---------------------------------------------------------------------------------


def _write_back(notebook: Any, released: dict[str, Any], found: Matching) -> None:
    """Labels, locked texts and missing cells of the release, in its order around each answer."""
    for name, cell in found.place.items():
        cell.metadata["nbgrader"] = dict(label(released[name]))
        changed = squeezed(cell.source) != squeezed(released[name].source)
        if label(released[name])["locked"] and changed:
            found.notes.append(f"{name} was changed and put back")
            cell.source = released[name].source
    last: Any = None
    for name, wanted in released.items():
        cell = found.place.get(name)
        if cell is None:
            cell = copy.deepcopy(wanted)
            found.notes.append(f"{name} was missing and put back")
            check = found.place.get(f"{name}-check")
            if check is None:
                _insert_below(notebook, cell, last)
            else:
                notebook.cells.insert(_index(notebook, check), cell)
        elif (not is_answer(wanted) and last is not None
              and _index(notebook, cell) < _index(notebook, last)):  # fmt: skip
            found.notes.append(f"{name} stood above its answer and was moved below it")
            notebook.cells = [each for each in notebook.cells if each is not cell]
            _insert_below(notebook, cell, last)
        last = cell


def _insert_below(notebook: Any, cell: Any, other: Any) -> None:
    notebook.cells.insert(0 if other is None else _index(notebook, other) + 1, cell)


def _index(notebook: Any, cell: Any) -> int:
    return next(i for i, each in enumerate(notebook.cells) if each is cell)


def changes_to_the_checks(notebook: Any) -> list[str]:
    """Code that replaces a check: it may be an accident, and a person should look at it."""
    from IPython.core.inputtransformer2 import TransformerManager

    notes = []
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code":
            continue
        source = re.sub(r"\A\s*%%(?:time|timeit|capture|prun)\b.*", "", cell.source)
        try:  # what IPython makes of magics and of !commands
            nodes = list(ast.walk(ast.parse(TransformerManager().transform_cell(source))))
        except (SyntaxError, ValueError):
            notes.append(f"{place(number, cell)} is not valid Python")
            continue
        changed = [n for n in nodes if isinstance(getattr(n, "ctx", None), ast.Store | ast.Del)]
        changed += [
            n.args[0] for n in nodes
            if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "setattr" and n.args
        ]  # fmt: skip
        if {ast.unparse(n).partition(".")[0] for n in changed} & _OURS:
            notes.append(f"{place(number, cell)} changes the checks: read it")
    return notes
