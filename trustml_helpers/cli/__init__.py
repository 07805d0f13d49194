"""The command line: train, attack, diagnose, certify, predict, plot, audit; each has a --help."""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from trustml_helpers import (
    attack_log,
    attacks,
    cli_homework,
    cli_smoothing,
    cli_study,
    cli_training,
    data,
    models,
    robustness,
)
from trustml_helpers.certification import LogError
from trustml_helpers.cli.inputs import indices
from trustml_helpers.cli.certify import (
    CheckpointArgument,
    Seed,
    Split,
    check_output,
    first,
    print_share,
)
from trustml_helpers.cli.train import AttackName, Eps, Norm, Steps, StepSize
from trustml_helpers.checks import HomeworkError

STOPPED = 130  # exit code after Ctrl-C

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
                  help="Train, attack, smooth and certify the networks of the course.")  # fmt: skip
for _command in (
    cli_training.train,
    cli_smoothing.certify,
    cli_smoothing.predict,
    cli_smoothing.plot,
    cli_smoothing.audit,
):
    app.command()(_command)
app.add_typer(cli_homework.app, name="homework")
app.add_typer(cli_study.app, name="study")


@app.callback()
def _app() -> None:
    """Makes every function below a sub-command."""


@app.command()
def attack(
    model: CheckpointArgument,
    attack: Annotated[AttackName, typer.Option()] = AttackName.pgd,
    norm: Annotated[Norm, typer.Option()] = Norm.linf,
    eps: Eps = 0.3,
    steps: Steps = 40,
    step_size: StepSize = None,
    restarts: Annotated[int, typer.Option(help="Random starts, counted per image.")] = 1,
    queries: Annotated[int, typer.Option(help="Evaluations per image of square.")] = 5000,
    loss: Annotated[
        str, typer.Option(help="cross_entropy, margin or dlr (fgsm, pgd, auto_pgd).")
    ] = "cross_entropy",
    split: Annotated[Split, typer.Option()] = Split.test,
    every: Annotated[int, typer.Option(help="Attack every so many images.")] = 1,
    limit: Annotated[int | None, typer.Option(help="Attack only the first of them.")] = None,
    batch_size: Annotated[int, typer.Option()] = 256,
    seed: Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(help="CSV: per image what it falls to. A run that was killed goes on."),
    ] = None,
) -> None:
    """Attack a network on MNIST and print its accuracy before and after.

    The accuracy under an attack is an upper bound on the true robust accuracy. "suite" runs
    Auto-PGD on two losses and Square, each on what the others left: report its worst case.
    """
    check_output(output)
    network = models.load(model)
    x, y = data.load_mnist(split.value)
    chosen = indices(len(x), every, limit)
    x, y = x[chosen], y[chosen]
    about = {
        "model": model, "split": split.value, "attack": attack.value, "norm": norm.value,
        "eps": eps, "steps": steps, "step_size": step_size, "restarts": restarts,
        "queries": queries, "loss": loss,
    }  # fmt: skip

    def make(generator: torch.Generator) -> dict[str, attacks.Attack]:
        return _attacks(attack, norm, eps, steps, step_size, restarts, queries, loss, generator)

    for one in make(torch.Generator()).values():
        one(network, x[:0], y[:0])  # a wrong argument ends here, before any work
    with TemporaryDirectory() as folder:
        log = attack_log.attack_dataset(
            network, x, y, make, output or Path(folder) / "log.csv", about=about,
            numbers=list(chosen), batch_size=batch_size, seed=seed,
        )  # fmt: skip
    shares = attack_log.summary(log, list(make(torch.Generator())))
    for name, share in shares.items():
        print_share(name if name == "clean" else f"{name} {norm.value} {eps:g}", share, len(x))
    if output is not None:
        typer.echo(f"wrote {output}")


@app.command()
def diagnose(
    model: CheckpointArgument,
    norm: Annotated[Norm, typer.Option()] = Norm.linf,
    eps: Eps = 0.3,
    steps: Steps = 40,
    queries: Annotated[int, typer.Option(help="Evaluations per image without gradient.")] = 500,
    limit: Annotated[int, typer.Option(help="Use the first test images.")] = 300,
    seed: Seed = 0,
) -> None:
    """Ask whether an accuracy under attack can be believed: the checklist of the literature.

    Ends with exit code 1 if anything is flagged.
    """
    x, y = first(data.load_mnist("test"), limit)
    report = robustness.diagnose(
        models.load(model), x, y, eps, norm=norm.value, steps=steps, queries=queries,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    typer.echo(str(report))
    if not report.passed:
        raise typer.Exit(1)


def _attacks(
    name: AttackName, norm: Norm, eps: float, steps: int, step_size: float | None,
    restarts: int, queries: int, loss: str, generator: torch.Generator,
) -> dict[str, attacks.Attack]:  # fmt: skip
    """The attacks of one name, in the order to run them."""
    common: dict[str, Any] = {"eps": eps, "norm": norm.value}
    if name is AttackName.fgsm:
        return {"FGSM": partial(attacks.fgsm, loss=loss, **common)}
    common["generator"] = generator
    if name is AttackName.suite:
        return attacks.suite(steps=steps, queries=queries, **common)
    if name is AttackName.square:
        return {"Square": partial(attacks.square, queries=queries, **common)}
    common |= {"steps": steps, "restarts": restarts, "loss": loss, "keep": "first"}
    if name is AttackName.auto_pgd:
        return {f"APGD-{steps}": partial(attacks.auto_pgd, **common)}
    if name is AttackName.pgd:
        return {f"PGD-{steps}": partial(attacks.pgd, step_size=step_size, **common)}
    raise ValueError(f"attack={name.value!r} is for training; use pgd, auto_pgd or suite")


def main() -> None:
    """Run the command line; what the user can mend is one sentence, not a traceback."""
    expected = (ValueError, TypeError, OSError, models.CheckpointError, data.DataError, LogError,
                HomeworkError)  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: typer.echo(f"note: {message}", err=True)
            app()
    except (*expected, FloatingPointError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == STOPPED:  # typer's answer to Ctrl-C, without a word
            typer.echo("stopped; what was finished is kept, nothing was half-written", err=True)
        raise
