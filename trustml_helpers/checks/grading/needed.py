"""Which cells of a submission need not run for its points: that halves the time of a class."""

from __future__ import annotations

import ast
import re
import symtable
from collections.abc import Iterator
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from trustml_helpers.checks.grading import labels

_SKIP = "skip-execution"  # nbclient's own tag
# Code with one of these may use a name that is not written in it.
_ANY = re.compile(r"\b(globals|locals|vars|eval|exec|dir|__main__|f_globals|builtins|doctest)\b")


def skip_the_rest(notebook: Any, blank: Any) -> None:
    """Tag the cells that the points do not depend on, and no others.

    Those are the visible checks, which the graded ones repeat on other inputs, and what the release
    only shows, as long as nothing else uses a name from there. What a student changed or added
    always runs.

    Args:
        notebook: with the labels of the release; changed in place.
        blank: what was released.
    """
    released = {labels.squeezed(cell.source) for cell in blank.cells}
    shown = {labels.squeezed(cell.source) for cell in blank.cells if not labels.label(cell)}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    own = " ".join(c.source for c in code if labels.squeezed(c.source) not in released)
    checks = [cell for cell in code if labels.name_of(cell).endswith("-check")]
    spare = [cell for cell in code if labels.squeezed(cell.source) in shown]
    spare = [] if _ANY.search(own) else spare
    names = {id(cell): _names(cell.source) for cell in code}
    before = -1
    while before != len(spare):  # what one that must run needs must run
        before = len(spare)
        runs = [cell for cell in code if not labels.among(cell, spare)]
        used = set().union(*(names[id(cell)][0] for cell in runs))
        spare = [cell for cell in spare if not used & names[id(cell)][1]]
    for cell in notebook.cells:  # nbgrader gives full points to a graded cell that did not run
        tags = cell.metadata.get("tags")
        cell.metadata["tags"] = [t for t in tags if t != _SKIP] if isinstance(tags, list) else []
    for cell in (*checks, *spare):
        cell.metadata["tags"].append(_SKIP)


def _names(source: str) -> tuple[set[str], set[str]]:
    """The global names that a cell uses, and those that it gives; all words of what is no Python.

    A cell that gives a name may use that of before: ``x += 1``, ``del x``.
    """
    words = set(re.findall(r"\w+", source))
    try:
        python = TransformerManager().transform_cell(source)
        tree, tables = ast.parse(python), _tables(symtable.symtable(python, "", "exec"))
    except (SyntaxError, ValueError, RecursionError):
        return words, words
    used, given = set[str](), set[str]()
    for node in _outside(tree):
        if isinstance(node, ast.AugAssign | ast.Delete):
            used |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    for table in tables:
        top, body = table.get_type() == "module", table.get_type() == "class"
        for one in table.get_symbols():
            if one.is_declared_global() or (
                one.is_referenced() and (top or body or one.is_global())
            ):
                used.add(one.get_name())
            if (one.is_assigned() or one.is_imported()) and (top or one.is_declared_global()):
                given.add(one.get_name())
    return used | words if "get_ipython" in used else used, given  # a magic has code in a text


def _outside(node: ast.AST) -> Iterator[ast.AST]:
    """What is not in a function."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _outside(child)


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)
