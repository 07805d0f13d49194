"""Which submissions have the same code: a report for a person to judge, never a deduction.

Own code, since copydetect (0.5.0, 2024) forgets the names of library functions with those of the
student, counts what a whole class has in common, and gives another answer in every process.
"""

from __future__ import annotations

import ast
import builtins
import html
import keyword
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

_GRAM, _WINDOW = 10, 4  # tokens: 13 in a row that two functions share are always noticed
_RARE, _COMMON = 0.15, 1 / 3  # shares of the class: counts fully up to, not at all from
_ENOUGH = 40  # fingerprints in common that a row needs: about 100 tokens, or eight lines
_PHRASES = 5  # in common that two texts need: nine words in a row
_LONG = 60  # those of one rare function that is the same, which is a row by itself
_TOKEN = re.compile(
    r"""(?P<drop>\s+|\#[^\n]*|\\\n|[rbfuRBFU]{0,2}(?:'{3}[\s\S]*?(?:'{3}|\Z)|"{3}[\s\S]*?(?:"{3}|\Z)
          |'(?:\\.|[^'\\\n])*'?|"(?:\\.|[^"\\\n])*"?))
      |(?P<name>\$?[^\W\d]\w*)
      |\d[\w.]*(?:(?<=[eE])[-+]\d+)?|(?:\*\*|//|>>|<<|[-+*/%@&|^<>=!:])=?|.""",
    re.VERBOSE,
)
_NAMING = {ast.Name: "id", ast.arg: "arg", ast.FunctionDef: "name", ast.ClassDef: "name"}
_TOO_DEEP = (RecursionError, MemoryError)
_MAGIC = re.compile(r"(?m)^[ \t]*(?:[%!?].*|[\w.]+\?+[ \t]*)$")


def similar(
    codes: Mapping[str, Sequence[str]], released: Sequence[str], *, least: float = 0.6
) -> pd.DataFrame:
    """Pairs of students with nearly the same code, the most similar first.

    Compared are fingerprints (Schleimer, Wilkerson and Aiken, "Winnowing", SIGMOD 2003) of each
    function: of its tokens without comments, strings, annotations and imports, with one word for
    all names that the student chose. Those of the release do not count. For a pair, one that at
    most 15 % of the *other* students have counts as 1, one that a third of them have as 0, in
    between by the logarithm: so those who copy from one another do not hide it by being many.

    Args:
        codes: by student, the sources of the code cells.
        released: those of the notebook as it was handed out.
        least: smallest share for a row. One long function of ``functions`` is enough as well:
            somebody may have copied the hardest task alone.

    Returns:
        ``share`` of the code of one of two students, whoever has less, that the other has too;
        ``own``, the fingerprints of that code (one for about three tokens): how much evidence;
        ``functions``, those rare and the same but for names: ``name``, or ``name = other name``;
        ``verbatim``, how many of these are the same to the letter, spacing aside.
    """
    students = sorted(codes)
    found = _found([codes[student] for student in students], released)
    same, own = _overlaps([set().union(*(prints for _, prints in each)) for each in found])
    forms = [
        {u.form(): (u.name, len(p), "".join(u.source.split())) for u, p in each if u.name and p}
        for each in found
    ]  # fmt: skip
    holders = Counter(form for each in forms for form in each)
    rows = []
    for i, j in combinations(range(len(students)), 2):
        both = forms[i].keys() & forms[j].keys()
        rare = [form for form in both if _weight(holders[form] - 2, len(students)) > 0.5]
        share = round(same[i, j] / max(own[i, j], 1e-9), 3)
        long = any(forms[i][form][1] >= _LONG for form in rare)
        if long or (share >= least and same[i, j] >= _ENOUGH):
            names = {(forms[i][form][0], forms[j][form][0]) for form in rare}
            equal = ", ".join(sorted(a if a == b else f"{a} = {b}" for a, b in names))
            verbatim = sum(forms[i][form][2] == forms[j][form][2] for form in rare)
            rows.append((students[i], students[j], share, round(own[i, j]), equal, verbatim))
    rows.sort(key=lambda row: (-row[2], -row[3], row[:2]))
    columns = ["first", "second", "share", "own", "functions", "verbatim"]
    return pd.DataFrame(rows, columns=columns)


def similar_texts(texts: Mapping[str, str], known: str, *, least: float = 0.2) -> pd.DataFrame:
    """Pairs of written answers with whole phrases in common, the most similar first.

    Args:
        texts: by student.
        known: what everybody may have read, whose phrases do not count.
        least: smallest share for a row.

    Returns:
        ``first second share phrases``: ``share`` of the phrases of five words of one of the two,
        whoever has fewer, that the other has too, and how many these are.
    """
    common = _phrases(known)
    own = {who: _phrases(text) - common for who, text in sorted(texts.items())}
    rows = []
    for first, second in combinations(own, 2):
        same = len(own[first] & own[second])
        share = round(same / max(min(len(own[first]), len(own[second])), 1), 3)
        if share >= least and same >= _PHRASES:
            rows.append((first, second, share, same))
    rows.sort(key=lambda row: (-row[2], -row[3], row[:2]))
    return pd.DataFrame(rows, columns=["first", "second", "share", "phrases"])


def _phrases(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return set(zip(*(words[i:] for i in range(5)), strict=False))


def side_by_side(
    codes: Mapping[str, Sequence[str]], pair: tuple[str, str], released: Sequence[str] = ()
) -> str:
    """An HTML table of the code that two students share, as they handed it in, escaped.

    A row has two functions, or two cells for what else is in them, where at least half of the
    fingerprints of one are in the other; those of ``released`` are not counted.
    """
    first, second = _found([codes[student] for student in pair], released)
    where = defaultdict(list)
    for k, (_, theirs) in enumerate(second):
        for fingerprint in theirs:
            where[fingerprint].append(k)
    rows = ["".join(f'<th scope="col">{html.escape(student)}</th>' for student in pair)]
    for unit, ours in first:
        shared = Counter(k for fingerprint in ours for k in where.get(fingerprint, ()))
        best = max(shared, key=lambda k: (shared[k], -k), default=None)
        if best is not None and 2 * shared[best] >= min(len(ours), len(second[best][1])):
            sources = (html.escape(each.source) for each in (unit, second[best][0]))
            rows.append("".join(f"<td><pre>{source}</pre></td>" for source in sources))
    return "<table>" + "".join(f"<tr>{row}</tr>\n" for row in rows) + "</table>"


def _overlaps(prints: Sequence[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Weighted fingerprints, by pair: those in common, and those of whoever has fewer."""
    students, counts = len(prints), Counter(f for each in prints for f in each)
    column = {f: k for k, f in enumerate(sorted(f for f, count in counts.items() if count > 1))}
    held = np.zeros((students, len(column)))
    for row, each in zip(held, prints, strict=True):
        row[[column[f] for f in each if f in column]] = 1
    both = held * _weight(held.sum(0) - 2, students) @ held.T
    alone = held * _weight(held.sum(0) - 1, students) @ held.T  # if only one of the pair has it
    total = [_weight(np.array([counts[f] - 1.0 for f in each]), students).sum() for each in prints]
    own = np.array(total)[:, None] - alone + both
    return both, np.minimum(own, own.T)


def _weight(others: np.ndarray | float, students: int) -> np.ndarray:
    """What code counts, in [0, 1], that so many have besides the pair, or one of it."""
    share = (others + 0.5) / (students + 1)  # small in a class of two, where nobody else can tell
    return np.clip(np.log(share / _COMMON) / np.log(_RARE / _COMMON), 0, 1)


class _Unit(NamedTuple):
    """A function, without the functions in it; or what else is in a cell, with the name ""."""

    name: str
    source: str
    tokens: list[str]  # names that the student chose begin with $

    def form(self) -> str:
        """The code with such names numbered as they occur: the same if they are only renamed."""
        seen: dict[str, str] = {}
        numbered = (seen.setdefault(t, f"${len(seen)}") if t[0] == "$" else t for t in self.tokens)
        return " ".join(numbered)

    def fingerprints(self, window: int = _WINDOW) -> set[int]:
        """The smallest hash of every window of k-grams, all such names taken for one."""
        plain = ["$" if t[0] == "$" else t for t in self.tokens]
        grams = (" ".join(plain[i : i + _GRAM]) for i in range(len(plain) - _GRAM + 1))
        hashes = [int(blake2b(gram.encode(), digest_size=8).hexdigest(), 16) for gram in grams]
        windows = range(max(len(hashes) - window + 1, 1))
        return {min(hashes[i : i + window]) for i in windows} if hashes else set()


def _found(
    notebooks: Sequence[Sequence[str]], released: Sequence[str]
) -> list[list[tuple[_Unit, set[int]]]]:
    """By notebook, its functions and what else is in its cells, with what counts of each."""
    trees = [tree for cell in released if (tree := _parsed(cell))]
    outside = [
        {each.name} if isinstance(each, ast.FunctionDef) else _chosen(each)
        for tree in trees for each in tree.body
    ]  # fmt: skip
    kept = set(dir(builtins)).union(*outside)
    base = {f for unit in _Normal(released, trees, kept).units for f in unit.fingerprints(window=1)}
    return [
        [(unit, unit.fingerprints() - base) for unit in _Normal(cells, trees, kept).units]
        for cells in notebooks
    ]


class _Normal(ast.NodeTransformer):
    """The units of a notebook: chosen names are marked, what is no evidence is dropped."""

    def __init__(
        self, cells: Sequence[str], released: Sequence[ast.Module], kept: set[str]
    ) -> None:
        self.kept, self.imported, self.modules = kept, dict[str, str](), set[str]()
        self.local: list[set[str]] = []  # names chosen in the functions around
        self.units: list[_Unit] = []
        cells = [cell.encode("utf-8", "replace").decode() for cell in cells]  # lone surrogates
        trees = [_parsed(cell) for cell in cells]
        for node in (node for tree in [*released, *trees] if tree for node in ast.walk(tree)):
            for each in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                path = each.name.split(".")
                self.imported[each.asname or path[0]] = path[-1 if each.asname else 0]
                self.modules.update((getattr(node, "module", each.name) or "").split("."))
        for cell, tree in zip(cells, trees, strict=True):
            self.lines = cell.split("\n")
            self.units.append(_Unit("", cell, self.rest(cell, tree)))

    def rest(self, cell: str, tree: ast.Module | None) -> list[str]:
        """What is outside of functions; of a cell that is not Python, all its words."""
        self.local.clear()
        if tree:
            with suppress(*_TOO_DEEP):
                return self.tokens(ast.unparse(self.visit(tree)), marked=True)
        return self.tokens(cell, marked=False)

    def tokens(self, text: str, marked: bool) -> list[str]:
        """Without strings, comments, and modules before a dot; never fails."""
        found: list[str] = []
        after_dot = False
        for match in _TOKEN.finditer(text):
            token = match[0]
            if match["drop"]:
                continue
            if match["name"] and not (marked or after_dot or keyword.iskeyword(token)):
                token = self.named(token)
            after_dot = token == "."
            if after_dot and found and found[-1] in self.modules:
                found.pop()
            else:
                found.append(token)
        return found

    def named(self, name: str) -> str:
        if any(name in names for names in self.local):
            return f"${name}"
        return self.imported.get(name) or (name if name in self.kept else f"${name}")

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.named(node.id))

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self.named(node.arg))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        name, node.name, node.returns = node.name, self.named(node.name), None
        self.local.append(_chosen(node))
        self.generic_visit(node)
        self.local.pop()
        source = "\n".join(self.lines[node.lineno - 1 : node.end_lineno])
        self.units.append(_Unit(name, source, self.tokens(ast.unparse(node), marked=True)))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        return node.value and self.visit(ast.Assign([node.target], node.value, lineno=node.lineno))

    def drop(self, node: ast.AST) -> None:
        """Where something is imported or declared is no evidence."""

    visit_Import = visit_ImportFrom = visit_Global = visit_Nonlocal = drop


def _parsed(cell: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in (cell, _MAGIC.sub("", cell)):
            with suppress(SyntaxError, ValueError, *_TOO_DEEP):
                return ast.parse(text)
    return None


def _chosen(code: ast.AST) -> set[str]:
    """The names that this code gives to something, in it or below."""
    return {
        getattr(node, _NAMING[type(node)])
        for node in ast.walk(code)
        if type(node) in _NAMING and not isinstance(getattr(node, "ctx", None), ast.Load)
    }
