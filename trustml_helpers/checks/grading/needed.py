"""Which cells of a submission need not run for its points: a third of a class's time and more."""

from __future__ import annotations

import re
import symtable
from collections.abc import Iterator
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from trustml_helpers.checks.grading import labels

_SKIP = "skip-execution"  # nbclient's own tag
_ANY = {"globals", "locals", "vars", "eval", "exec", "dir"}  # may use every name


def skip_the_rest(notebook: Any, blank: Any) -> int:
    """Tag the cells that the points do not depend on, and say how many.

    Those are the visible checks, which the graded ones repeat on other inputs, and what the release
    only shows, as long as nothing else uses a name from there. What a student changed or added
    always runs.

    Args:
        notebook: with the labels of the release; changed in place.
        blank: what was released.
    """
    shown = {labels.squeezed(cell.source) for cell in blank.cells if not labels.label(cell)}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    names = {id(cell): _names(cell.source) for cell in code}
    checks = [cell for cell in code if labels.name_of(cell).endswith("-check")]
    spare = [cell for cell in code if labels.squeezed(cell.source) in shown]
    while True:  # what one that must run needs must run
        runs = [cell for cell in code if not labels.among(cell, spare)]
        used = set().union(*(names[id(cell)][0] for cell in runs))
        kept = [cell for cell in spare if not used & (names[id(cell)][1] | _ANY)]
        if len(kept) == len(spare):
            break
        spare = kept
    for cell in (*checks, *spare):
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), _SKIP]
    return len(checks) + len(spare)


def _names(source: str) -> tuple[set[str], set[str]]:
    """The global names that a cell uses, and those that it gives; all words of what is no Python.

    A cell that gives a name may use that of before: ``x += 1``.
    """
    words = set(re.findall(r"\w+", source))
    try:
        tables = list(_tables(symtable.symtable(TransformerManager().transform_cell(source), "",
                                                "exec")))  # fmt: skip
    except (SyntaxError, ValueError, RecursionError):
        return words, words
    deleted = " ".join(re.findall(r"\bdel\b(.*)", source))  # which needs the name as well
    used, given = set(re.findall(r"\w+", deleted)), set[str]()
    for table in tables:
        top = table.get_type() == "module"
        for one in table.get_symbols():
            if one.is_referenced() and (top or one.is_global()):
                used.add(one.get_name())
            if (one.is_assigned() or one.is_imported()) and (top or one.is_declared_global()):
                given.add(one.get_name())
    return used | words if "get_ipython" in used else used, given  # a magic has code in a text


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)
