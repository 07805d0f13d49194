"""``trustml study``: train and certify every method, one command after the other."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from trustml_helpers import certification
from trustml_helpers.cli import plan
from trustml_helpers.cli.inputs import option
from trustml_helpers.data import data_folder

app = typer.Typer(no_args_is_help=True, help="Whole studies: many networks, one protocol.")


@app.callback()
def _app() -> None:
    """Makes the function below a sub-command."""


@app.command()
def mnist(
    out: Annotated[Path | None, option("Folder; data/results/mnist_study if not given.")] = None,
    method: Annotated[
        list[str] | None,
        option(f"One of {', '.join(certification.METHOD_NAMES)}; may be repeated."),
    ] = None,
    sigma: Annotated[
        list[float] | None, option("May be repeated; 0.25, 0.5 and 1.0 if not given.")
    ] = None,
    n: Annotated[int, option("Estimation samples per image.")] = 10_000,
    every: Annotated[int, option("Certify every k-th test image.")] = 20,
    seed: Annotated[int, option("Of training and noise.")] = 0,
    published: Annotated[
        bool, option("Train by the papers' settings: days on a CPU.", "--published")
    ] = False,
    fast: Annotated[bool, option("Certify in bfloat16, compiled.", "--fast/--float32")] = True,
    dry_run: Annotated[bool, option("Print the commands only.", "--dry-run")] = False,
) -> None:
    """Train and certify smoothed LeNets on MNIST; a table and pictures go beside the logs.

    Runs ordinary commands and prints each; a study that was stopped goes on where it was. One row
    alone: --method macer --sigma 0.5. A single command can as well be copied and run by hand.
    """
    folder = out or data_folder() / "results" / "mnist_study"
    how = ["--dtype", "bfloat16", "--compile", "--layout", "channels_last", "--batch-size", "256"]
    prefix = "" if published else "quick_"
    steps = plan.steps(
        folder, methods=method or plan.METHODS, sigmas=sigma or plan.SIGMAS, n=n, every=every,
        seed=seed, prefix=prefix, execution=how if fast else (),
    )  # fmt: skip
    for step in steps:
        typer.echo(f"$ {shlex.join(['trustml', *step.words])}")
        if dry_run or step.done:
            continue
        step.output.parent.mkdir(parents=True, exist_ok=True)
        code = subprocess.run([sys.executable, "-m", "trustml_helpers", *step.words]).returncode
        if code != 0:
            raise typer.Exit(code)
    if dry_run:
        return
    table = certification.summarise(folder)
    table.to_csv(folder / "summary.csv", index=False, float_format="%.4f")
    for name, figure in certification.draw_study(folder).items():
        figure.savefig(folder / f"{name}.png")
    shown = table.loc[:, :"abstained"]
    typer.echo(shown.to_string(index=False, float_format="{:.4f}".format))
    typer.echo(f"wrote {folder / 'summary.csv'} and its pictures")
