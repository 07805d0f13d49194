"""``trustml homework``: release and grade the homework."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trustml_helpers import checks
from trustml_helpers.cli.inputs import option

app = typer.Typer(no_args_is_help=True, help="Release and grade the homework, offline.")


@app.command()
def release(out: Annotated[Path, option("Folder to write to.")] = Path("build/homework")) -> None:
    """Write the student version and a zip with all that a student needs."""
    archive = checks.release(out)
    typer.echo(f"wrote {archive.with_suffix('.ipynb')} and {archive}")


@app.command()
def grade(
    submissions: Annotated[Path, typer.Argument(help="Folder of NAME.ipynb, or of NAME/*.ipynb.")],
    out: Annotated[Path, option("Folder to write to.")] = Path("build/homework/grades"),
    cell_seconds: Annotated[int, option("A longer cell is interrupted.")] = 120,
    notebook_seconds: Annotated[int, option("A longer notebook is stopped.")] = 1200,
) -> None:
    """Grade a folder of notebooks: a CSV, and a page of feedback for each.

    Student code runs on this machine with your rights: contain it, as docs/instructor/homework.md
    says.
    """
    table = checks.grade(
        submissions, out, cell_seconds=cell_seconds, notebook_seconds=notebook_seconds
    )
    typer.echo(table.iloc[:, :6].to_string(index=False))
    typer.echo(f"wrote {out / 'grades.csv'} and {out / 'feedback'}; written answers: fill in "
               f"{out / 'by_hand.csv'} and grade again")  # fmt: skip
