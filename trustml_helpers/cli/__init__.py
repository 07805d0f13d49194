"""The command line; ``trustml --help`` lists its commands."""

from __future__ import annotations

import sys
import warnings

import torch
import typer

from trustml_helpers._support.processes import keep_freed_memory
from trustml_helpers.checks import HomeworkError
from trustml_helpers.cli import attack, certify, course, homework, study, train
from trustml_helpers.data import DataError
from trustml_helpers.models import CheckpointError

STOPPED = 130  # exit code after Ctrl-C

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
                  help="Train, attack, smooth and certify the networks of the course.")  # fmt: skip
# What is no option of train is misspelt, or a recipe's to decide: train says so itself.
_lenient = {"ignore_unknown_options": True, "allow_extra_args": True}
app.command(epilog=train.EPILOG, context_settings=_lenient)(train.train)
for _command in (attack.attack, attack.diagnose, certify.certify, certify.predict, certify.plot,
                 certify.audit, course.course):  # fmt: skip
    app.command()(_command)
app.add_typer(homework.app, name="homework")
app.add_typer(study.app, name="study")


def main() -> None:
    """Run the command line; what the user can mend is one sentence, not a traceback."""
    keep_freed_memory()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: typer.echo(f"note: {message}", err=True)
            app()
    except (ValueError, TypeError, OSError, FloatingPointError, CheckpointError, DataError,
            HomeworkError, torch.OutOfMemoryError) as error:  # fmt: skip
        for sentence in (f"error: {error}", *getattr(error, "__notes__", ())):
            typer.echo(sentence, err=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == STOPPED:  # typer's answer to Ctrl-C, without a word
            typer.echo("stopped; what was finished is kept, nothing was half-written", err=True)
        raise
