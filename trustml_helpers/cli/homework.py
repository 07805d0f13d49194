"""``trustml homework``: release, check, grade and discuss the homework, offline."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trustml_helpers import checks
from trustml_helpers.cli.inputs import option

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(no_args_is_help=True, help="Release, check and grade the homework, offline.")

Results = Annotated[Path, typer.Argument(help="Folder that grade wrote to.")]
Variant = Annotated[str, option("Release with other numbers, for instance 2027.")]
RESULTS = Path("build/homework/grades")


@app.command()
def release(
    out: Annotated[Path, option("Folder to write to.")] = Path("build/homework"),
    variant: Variant = "",
) -> None:
    """Write the student version and a zip with all that a student needs."""
    archive = checks.release(out, variant)
    typer.echo(f"wrote {archive.with_suffix('.ipynb')} and {archive}")


@app.command()
def check(
    notebook: Annotated[Path, typer.Argument(help="The notebook to hand in.")],
    blank: Annotated[Path | None, option("As given out; blank/hw1.ipynb if not given.")] = None,
) -> None:
    """For students: run a notebook from top to bottom before handing it in."""
    typer.echo(str(checks.check_before(notebook, blank)))


@app.command()
def grade(
    submissions: Annotated[Path, typer.Argument(help="Folder of what was handed in.")],
    out: Annotated[Path, option("Folder to write to.")] = RESULTS,
    roster: Annotated[Path | None, option("CSV with the columns id, name, email.")] = None,
    variant: Variant = "",
    jobs: Annotated[int, option("Submissions at once.")] = 1,
    resume: Annotated[bool, option("Leave out what was graded before.", "--resume")] = False,
    only: Annotated[list[str] | None, option("Id, name or e-mail; may be repeated.")] = None,
    cell_seconds: Annotated[int, option("Processor time of a cell.")] = 240,
    notebook_seconds: Annotated[int, option("By the clock, for a notebook.")] = 1200,
    memory_gb: Annotated[float, option("For all processes of a submission.")] = 4.0,
) -> None:
    """Grade a folder of notebooks: tables, and a page of feedback for each.

    Names may be those of Canvas or Moodle. Student code runs on this machine with your rights, with
    limits that stop accidents only: see docs/instructor/homework.md.
    """
    table = checks.grade(
        submissions, out, roster=roster, variant=variant, jobs=jobs, resume=resume, only=only or (),
        cell_seconds=cell_seconds, notebook_seconds=notebook_seconds, memory_gb=memory_gb,
    )  # fmt: skip
    _say(table, out)


@app.command()
def points(out: Results = RESULTS) -> None:
    """Take the points of by_hand.csv into all tables and pages; runs no code of students."""
    _say(checks.enter_points(out), out)


@app.command()
def relabel(
    notebook: Annotated[Path, typer.Argument(help="A notebook whose labels are lost.")],
    out: Annotated[Path, option("Where the mended copy goes.")],
    variant: Variant = "",
) -> None:
    """Write a copy with the labels of the release, to look at before it is graded."""
    for note in checks.relabel(notebook, out, variant=variant):
        typer.echo(note)
    typer.echo(f"wrote {out}: compare it with {notebook}, then grade it in its place")


@app.command()
def board(
    out: Results = RESULTS,
    pseudonyms: Annotated[bool, option("Show no names.", "--pseudonyms")] = False,
) -> None:
    """Write a scoreboard of the open task."""
    typer.echo(f"wrote {checks.scoreboard(out, pseudonyms=pseudonyms)}")


@app.command(hidden=True)
def numbers() -> None:
    """For authors: write the numbers of hw1.toml into the source notebook."""
    checks.write_numbers()


def _say(table: pd.DataFrame, out: Path) -> None:
    shown = table[["student", "status", "points", "by_hand_open", "notes"]]
    notes = shown["notes"].str.slice(0, max(20, shutil.get_terminal_size().columns // 2))
    typer.echo(shown.assign(notes=notes).to_string(index=False, na_rep=""))
    waiting = int((table["by_hand_open"] > 0).sum())
    typer.echo(f"wrote {out / 'grades.csv'}, grades_canvas.csv, grades_moodle.csv, feedback/")
    if waiting:
        typer.echo(f"{waiting} have written answers without points, so theirs are not final: open "
                   f"{out / 'written.html'}, then: trustml homework points {out}")  # fmt: skip
