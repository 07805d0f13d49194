"""The version for students, and what they check before they hand in."""

from __future__ import annotations

import os
import re
import tempfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trustml_helpers.checks.grading import labels
from trustml_helpers.checks.grading.homework import (
    ASSIGNMENT,
    ROOT,
    HomeworkError,
    Numbers,
    as_written,
    generate,
    numbers,
)

# What a student needs to work without the repository; no tests, no solutions.
_PACKED = (
    "trustml_helpers/**/*.py", "pyproject.toml", "LICENSE", "notebooks/0*.ipynb",
    "data/mnist/*", "data/images/*.*g", "data/images/*.csv", "data/images/README.md",
    "data/checkpoints/README.md", "data/checkpoints/mnist_*",
    "data/published/*", "data/results/README.md", "data/results/*/*.[!p]*",  # no scripts
    "data/results/mnist_study/mismatch/*",
)  # fmt: skip
_README = f"""# Homework 1 on adversarial robustness

You need Python 3.11 or newer. In this folder:

    python3 -m venv .venv
    .venv/bin/python -m pip install --editable .
    .venv/bin/jupyter lab {ASSIGNMENT}.ipynb

On Windows write `.venv\\Scripts\\python` and so on in place of `.venv/bin/python`.

This installs PyTorch, JupyterLab and what they need: about 150 packages. On Linux PyTorch comes
with libraries for NVIDIA's cards, 6.5 GB in all. The homework needs no card. PyTorch's own page
offers a build for the processor alone ("CPU"), a small part of that: install it into `.venv` first,
then go on as above.

Work in `{ASSIGNMENT}.ipynb`. Before you hand in:

    .venv/bin/trustml homework check {ASSIGNMENT}.ipynb

runs it from top to bottom in a fresh kernel, and says what a grader would stumble over. Hand in
that one file, under your name: `ada_lovelace.ipynb`.

`notebooks/` holds the lecture's notebooks, to which the homework refers, and `blank/` a copy of the
homework as it was given out.
"""


def release(out: Path, variant: str = "") -> Path:
    """Write the student version, and a zip with all that a student needs.

    Args:
        out: folder for ``hw1.ipynb`` and ``hw1.zip``; made if missing, replaced when complete.
        variant: for instance ``"2027"``: other seeds and other numbers; see :func:`numbers`.

    Returns:
        The path of the zip.

    Raises:
        HomeworkError: if the points, seeds or numbers of the source do not agree with
            ``hw1.toml``, nbgrader is missing or refuses the source, or a part of the zip is
            missing; nothing is written.
    """
    year = numbers(variant)
    _agrees(year)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        notebook = generate(Path(scratch) / "course", 60, year, "--no-db")
        whole = Path(scratch) / "whole.zip"
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(notebook, f"{ASSIGNMENT}/{ASSIGNMENT}.ipynb")
            archive.write(notebook, f"{ASSIGNMENT}/blank/{ASSIGNMENT}.ipynb")
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


def _agrees(year: Numbers) -> None:
    """Refuse a source whose texts, points or hidden checks are not those of the toml file."""
    if not year.variant and (apart := as_written(year)):
        raise HomeworkError("the source notebook does not show the numbers of hw1.toml; write them "
                            f"with trustml homework numbers. {apart[0]}")  # fmt: skip


# --- before handing in ----------------------------------------------------------------------------


@dataclass
class Report:
    """What a student learns before handing in.

    Attributes:
        labels: what is wrong with cells of the homework; empty if nothing.
        broken: cells that fail, other than checks, with the error.
        points: by task, and the most that there is, from the visible checks.
        written: written answers that are still blank.
        seconds, memory_mb: of the whole run.
    """

    labels: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    points: dict[str, tuple[float, float]] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    seconds: float = 0.0
    memory_mb: float = 0.0

    def __str__(self) -> str:
        lines = [f"labels: {one}" for one in self.labels] or ["labels: all there"]
        lines += [f"fails: {one}" for one in self.broken]
        lines += [f"not written: {one}" for one in self.written]
        width = max(map(len, self.points), default=0)
        lines += [f"{k:{width}} {got:5.4g} of {most:g}" for k, (got, most) in self.points.items()]
        got, most = (sum(pair[i] for pair in self.points.values()) for i in (0, 1))
        lines += [
            f"{got:g} of {most:g} points by the visible checks; the grader's have other inputs",
            f"{self.seconds:.0f} s, {self.memory_mb:,.0f} MB of memory",
        ]
        return "\n".join(lines)


def check_before(path: Path, blank: Path | None = None, *, cell_seconds: int = 300) -> Report:
    """Run a notebook from top to bottom in a fresh kernel, and see whether it can be graded.

    The notebook itself is left as it is. Nothing is sent anywhere.

    Args:
        path: the notebook to hand in.
        blank: what was given out; ``blank/hw1.ipynb`` beside the notebook if not given.
        cell_seconds: a cell that runs longer is interrupted.

    Raises:
        HomeworkError: if one of the two is no notebook, or the code in it ends Python.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    blank = blank or path.parent / "blank" / f"{ASSIGNMENT}.ipynb"
    own, ran = _notebook(path), _notebook(path)
    given = _notebook(blank, ", the homework as it was given out: name it with --blank")
    report, found = Report(), labels.restore(own, given)
    report.labels = [f"{name} cannot be found" for name in found.lost] + found.notes
    done = labels.answered(found, given)
    report.written = [name for name in labels.written(given) if name not in done]
    usage = "import resource as _r; print(_r.getrusage(_r.RUSAGE_SELF).ru_maxrss)"
    ran.cells.append(_code(usage))
    client = NotebookClient(
        ran, timeout=cell_seconds, allow_errors=True, interrupt_on_timeout=True,
        resources={"metadata": {"path": str(path.parent.resolve())}},
    )  # fmt: skip
    started = time.monotonic()
    try:
        client.execute()
    except DeadKernelError as error:
        raise HomeworkError(f"{path}: its code ended Python, or needed too much memory") from error
    report.seconds = time.monotonic() - started
    *cells, last = ran.cells
    report.memory_mb = _number(last) / 1024
    _read_run(cells, labels.released_cells(given), report)
    return report


def _notebook(path: Path, cure: str = "") -> Any:
    try:
        return labels.read(path)
    except ValueError as error:
        raise HomeworkError(f"{path}: {error}{cure}") from error


def _code(source: str) -> Any:
    import nbformat

    return nbformat.v4.new_code_cell(source)


def _number(cell: Any) -> float:
    text = "".join(one.get("text", "") for one in cell.outputs)
    return float(text) if text.strip().isdecimal() else 0.0


def _read_run(cells: list[Any], released: dict[str, Any], report: Report) -> None:
    """Points of the visible checks, and the errors of all other cells."""
    checks = {
        labels.squeezed(cell.source): name for name, cell in released.items()
        if name.endswith("-check")
    }  # fmt: skip
    for name in checks.values():
        task = name.removesuffix("-check")
        most = float(labels.label(released[f"{task}-graded"])["points"])
        report.points[task] = (0.0, most)
    for number, cell in enumerate(cells, 1):
        if cell.cell_type != "code":
            continue
        errors = [one for one in cell.outputs if one.output_type == "error"]
        check = checks.get(labels.squeezed(cell.source))
        if check is not None:
            task = check.removesuffix("-check")
            most = report.points[task][1]
            report.points[task] = (round(most * _share(cell, errors), 2), most)
        elif errors:
            where = labels.place(number, cell)
            report.broken.append(f"{where}: {errors[0].ename}: {errors[0].evalue}"[:200])


def _share(cell: Any, errors: list[Any]) -> float:
    """The share of right cases that a check told."""
    said = "".join(one.get("text", "") for one in cell.outputs if one.output_type == "stream")
    said += "\n".join(one.evalue for one in errors)
    if found := re.search(r"(\d+) of (\d+) cases right", said):
        return int(found[1]) / int(found[2])
    return 1.0 if re.search(r"all \d+ cases right", said) and not errors else 0.0
