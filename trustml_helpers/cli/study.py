"""``trustml study``: train and certify every method, one command after the other."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from trustml_helpers import study
from trustml_helpers.data import data_folder

app = typer.Typer(no_args_is_help=True, help="Whole studies: many networks, one protocol.")


@app.callback()
def _app() -> None:
    """Makes the function below a sub-command."""


@app.command()
def mnist(
    out: Annotated[
        Path | None, typer.Option(help="Folder; data/results/mnist_study if not given.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(study.NAMES)}; may be repeated.")
    ] = None,
    sigma: Annotated[
        list[float] | None, typer.Option(help="May be repeated; 0.25, 0.5 and 1.0 if not given.")
    ] = None,
    n: Annotated[int, typer.Option(help="Estimation samples per image.")] = 10_000,
    every: Annotated[int, typer.Option(help="Certify every k-th test image.")] = 20,
    seed: Annotated[int, typer.Option(help="Of training and noise.")] = 0,
    published: Annotated[
        bool, typer.Option("--published", help="Train by the papers' settings: days on a CPU.")
    ] = False,
    fast: Annotated[
        bool,
        typer.Option("--fast/--float32", help="Certify in bfloat16, compiled: the network as run."),
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands only.")] = False,
) -> None:
    """Train and certify smoothed LeNets on MNIST; a table and pictures go beside the logs.

    Runs ordinary commands and prints each; a study that was stopped goes on where it was. One row
    alone: --method macer --sigma 0.5. A single command can as well be copied and run by hand.
    """
    folder = out or data_folder() / "results" / "mnist_study"
    how = ["--dtype", "bfloat16", "--compile", "--layout", "channels_last", "--batch-size", "256"]
    plan = study.steps(
        folder, methods=method or study.METHODS, sigmas=sigma or study.SIGMAS, n=n, every=every,
        seed=seed, prefix="" if published else "quick_", execution=how if fast else (),
    )  # fmt: skip
    for step in plan:
        typer.echo(f"$ {shlex.join(['trustml', *step.words])}")
        if dry_run or step.done:
            continue
        step.output.parent.mkdir(parents=True, exist_ok=True)
        code = subprocess.run([sys.executable, "-m", "trustml_helpers", *step.words]).returncode
        if code != 0:
            raise typer.Exit(code)
    if not dry_run:
        table = study.summarise(folder)
        table.to_csv(folder / "summary.csv", index=False, float_format="%.4f")
        for name, figure in study.draw(folder).items():
            figure.savefig(folder / f"{name}.png")
        shown = table.loc[:, :"abstained"]
        typer.echo(shown.to_string(index=False, float_format="{:.4f}".format))
        typer.echo(f"wrote {folder / 'summary.csv'} and its pictures")
