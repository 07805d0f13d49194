"""The command line: train, attack, certify, predict, plot, audit; each has a --help."""

from __future__ import annotations

import platform
import shlex
import sys
import warnings
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from trustml_helpers import attacks, cli_smoothing, data, models, objectives, robustness, training
from trustml_helpers.certification import LogError
from trustml_helpers.cli_smoothing import (
    CheckpointArgument,
    Seed,
    Split,
    check_output,
    first,
    print_share,
)

STOPPED = 130  # exit code after Ctrl-C

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
                  help="Train, attack, smooth and certify the networks of the course.")  # fmt: skip
for _command_of_smoothing in (
    cli_smoothing.certify,
    cli_smoothing.predict,
    cli_smoothing.plot,
    cli_smoothing.audit,
):
    app.command()(_command_of_smoothing)


class ObjectiveName(StrEnum):
    standard = "standard"
    adversarial = "adversarial"
    mixed = "mixed"
    gaussian = "gaussian"


class AttackName(StrEnum):
    fgsm = "fgsm"
    pgd = "pgd"


class Norm(StrEnum):
    linf = "linf"
    l2 = "l2"


class Optimizer(StrEnum):
    adam = "adam"
    sgd = "sgd"


class Rate(StrEnum):
    constant = "constant"
    triangular = "triangular"


Eps = Annotated[float, typer.Option(help="Radius of the ball, in pixel units of [0, 1].")]
Steps = Annotated[int, typer.Option(help="Steps of PGD.")]
StepSize = Annotated[
    float | None,
    typer.Option(help="Length of a PGD step; 2.5 * eps / steps (l2: 10 *) if not given."),
]


@app.callback()
def _app() -> None:
    """Makes every function below a sub-command."""


@app.command()
def train(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the checkpoint to write.")],
    architecture: Annotated[str, typer.Option(help="SmallCNN or LeNet.")] = "SmallCNN",
    objective: Annotated[ObjectiveName, typer.Option()] = ObjectiveName.standard,
    attack: Annotated[AttackName, typer.Option(help="Attack to train against.")] = AttackName.pgd,
    norm: Annotated[Norm, typer.Option(help="Norm of that attack.")] = Norm.linf,
    eps: Eps = 0.3,
    steps: Steps = 10,
    step_size: StepSize = None,
    eps_ramp: Annotated[
        float, typer.Option(help="Epochs over which eps grows linearly from 0.")
    ] = 0.0,
    clean_share: Annotated[float, typer.Option(help="Share of clean examples (mixed).")] = 0.5,
    sigma: Annotated[float, typer.Option(help="Standard deviation of the noise (gaussian).")] = 0.5,
    epochs: Annotated[int, typer.Option()] = 5,
    batch_size: Annotated[int, typer.Option()] = 128,
    optimizer: Annotated[
        Optimizer,
        typer.Option(help="sgd has Nesterov momentum 0.9 and weight decay 1e-4."),
    ] = Optimizer.adam,
    lr: Annotated[float, typer.Option(help="Learning rate; its peak if triangular.")] = 1e-3,
    rate: Annotated[Rate, typer.Option(help="How the learning rate changes.")] = Rate.constant,
    channels_last: Annotated[
        bool,
        typer.Option(help="Memory layout of the weights; faster on most CPUs, other rounding."),
    ] = False,
    validation: Annotated[
        int, typer.Option(help="Training images held out for validation.")
    ] = 5000,
    limit: Annotated[
        int | None, typer.Option(help="Use this many training and test images; all if not given.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; data/checkpoints if not given.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a checkpoint of this name.")] = False,
) -> None:
    """Train a network on MNIST and write its checkpoint with a card.

    The weights are final before the test set is read: it is used once, to measure what the card
    says.
    """
    path = (out or models.checkpoint_folder()) / f"{name}.safetensors"
    if path.exists() and not overwrite:
        raise ValueError(f"name={name!r}: {path} exists; pass --overwrite to replace it")
    if Path(name).name != name:
        raise ValueError(f"name={name!r}: expected a plain name; the folder goes into --out")
    if validation < 1:
        raise ValueError(f"validation={validation}: expected at least 1 image")
    model = models.build(architecture, seed=seed)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    inner = _attack(attack, norm, steps, step_size, keep="last", generator=generator)
    goal = _objective(objective, inner, eps, eps_ramp, clean_share, sigma, generator)
    train_part, held = data.train_validation_split(
        *first(data.load_mnist("train"), limit), validation, seed=seed
    )
    history = training.fit(
        model, train_part, goal, epochs=epochs, batch_size=batch_size, validation=held, seed=seed,
        optimizer=_optimizer(optimizer, lr),
        scheduler=training.triangular(lr) if rate is Rate.triangular else None,
    )  # fmt: skip
    typer.echo(history.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    about: dict[str, Any] = {
        "objective": _describe(objective, attack, norm, eps, steps, clean_share, sigma),
        "data": f"MNIST train: {len(train_part[0])} images; {len(held[0])} held out (seed {seed})",
        "seed": seed,
        "command": _command(context, leave_out=("overwrite", "out")),
        "training_seconds": round(float(history["seconds"].sum())),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}",
        "validation_accuracy": round(1 - float(history["error"].iloc[-1]), 4),
    }
    models.save(model, path, **about)  # before testing: a kill during the test loses nothing
    test = first(data.load_mnist("test"), limit)
    about["test_images"] = len(test[0])
    noisy = {"sigma": sigma} if objective is ObjectiveName.gaussian else {}
    about |= noisy | {"test_accuracy": _measure(model, test, seed, **noisy)}
    models.save(model, path, **about)
    for key, share in about["test_accuracy"].items():
        print_share(key, share, len(test[0]))
    typer.echo(f"wrote {path} and its card")


@app.command()
def attack(
    model: CheckpointArgument,
    attack: Annotated[AttackName, typer.Option()] = AttackName.pgd,
    norm: Annotated[Norm, typer.Option()] = Norm.linf,
    eps: Eps = 0.3,
    steps: Steps = 40,
    step_size: StepSize = None,
    restarts: Annotated[int, typer.Option(help="Random starts of PGD, counted per image.")] = 1,
    loss: Annotated[str, typer.Option(help="cross_entropy or margin.")] = "cross_entropy",
    split: Annotated[Split, typer.Option()] = Split.test,
    limit: Annotated[int | None, typer.Option(help="Attack only the first images.")] = None,
    batch_size: Annotated[int, typer.Option()] = 256,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(help="Write index, label, clean, robust per image as CSV.")
    ] = None,
) -> None:
    """Attack a network on MNIST and print its accuracy before and after.

    The accuracy under an attack is an upper bound on the true robust accuracy.
    """
    check_output(output)
    network = models.load(model)
    x, y = first(data.load_mnist(split.value), limit)
    generator = torch.Generator().manual_seed(seed)
    one = partial(
        _attack(attack, norm, steps, step_size, restarts=restarts, generator=generator, loss=loss),
        eps=eps,
    )
    one(network, x[:1], y[:1])  # a wrong argument ends here, not after the clean pass
    clean = robustness.correct(network, x, y, batch_size=batch_size)
    generator.manual_seed(seed)
    robust = robustness.robust_correct(network, x, y, one, batch_size=batch_size, progress=True)
    title = f"{attack.value} {norm.value} {eps:g}"
    for name, flags in {"clean": clean, title: robust}.items():
        print_share(name, flags.double().mean().item(), len(x))
    if output is not None:
        import pandas as pd

        columns = {"label": y, "clean": clean.int(), "robust": robust.int()}
        pd.DataFrame({k: v.numpy() for k, v in columns.items()}).to_csv(output, index_label="index")
        typer.echo(f"wrote {output}")


def _attack(
    name: AttackName, norm: Norm, steps: int, step_size: float | None, **rest: Any
) -> partial[Tensor]:
    if name is AttackName.fgsm:
        return partial(attacks.fgsm, norm=norm.value, loss=rest.get("loss", "cross_entropy"))
    return partial(attacks.pgd, norm=norm.value, steps=steps, step_size=step_size, **rest)


def _objective(
    name: ObjectiveName,
    attack: partial[Tensor],
    eps: float,
    ramp: float,
    clean_share: float,
    sigma: float,
    generator: torch.Generator,
) -> objectives.Objective | objectives.ByEpoch:
    if name is ObjectiveName.standard:
        return objectives.standard
    if name is ObjectiveName.gaussian:
        return objectives.gaussian(sigma, generator=generator)

    def at(epoch: float) -> objectives.Objective:
        one = partial(attack, eps=eps * min(1.0, epoch / ramp) if ramp > 0 else eps)
        if name is ObjectiveName.mixed:
            return objectives.mixed(one, clean_share)
        return objectives.adversarial(one)

    return objectives.ByEpoch(at) if ramp > 0 else at(0.0)


def _describe(
    name: ObjectiveName, attack: AttackName, norm: Norm, eps: float, steps: int,
    clean_share: float, sigma: float,
) -> str:  # fmt: skip
    if name is ObjectiveName.standard:
        return "standard cross-entropy"
    if name is ObjectiveName.gaussian:
        return f"cross-entropy under Gaussian noise, sigma {sigma:g}"
    against = "FGSM" if attack is AttackName.fgsm else f"PGD-{steps}"
    share = f", {clean_share:g} of each minibatch clean" if name is ObjectiveName.mixed else ""
    return f"{name.value} training against {against}, {norm.value}, eps {eps:g}{share}"


def _optimizer(name: Optimizer, lr: float) -> training.MakeOptimizer:
    if name is Optimizer.sgd:
        return partial(torch.optim.SGD, lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    return partial(torch.optim.Adam, lr=lr)


def _measure(
    model: nn.Module, test: tuple[Tensor, Tensor], seed: int, sigma: float | None = None
) -> dict[str, float]:
    """What a card states: accuracy on clean images, and on noisy ones if it was trained on them,
    else under PGD-40 at two radii."""
    x, y = test
    found = {"clean": robustness.accuracy(model, x, y)}
    generator = torch.Generator().manual_seed(seed)
    if sigma is not None:
        noise = torch.randn(x.shape, generator=generator)
        found[f"noise {sigma:g}"] = robustness.accuracy(model, x + sigma * noise, y)
    for eps in (0.1, 0.3) if sigma is None else ():
        generator.manual_seed(seed)
        one = partial(attacks.pgd, eps=eps, steps=40, generator=generator)
        found[f"pgd-40 linf {eps}"] = robustness.robust_accuracy(model, *test, one, progress=True)
    return {key: round(value, 4) for key, value in found.items()}


def _command(context: typer.Context, leave_out: tuple[str, ...]) -> str:
    """The call again, with every option that differs from its default."""
    words = ["trustml", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in leave_out or value == parameter.default:
            continue
        if parameter.param_type_name == "option":
            words.append(parameter.opts[0])
        if value is not True:  # a flag has no value
            words.append(str(value.value if isinstance(value, StrEnum) else value))
    return shlex.join(words)


def main() -> None:
    """Run the command line; what the user can mend is one sentence, not a traceback."""
    expected = (ValueError, TypeError, OSError, models.CheckpointError, data.DataError, LogError)
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
