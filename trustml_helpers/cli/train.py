"""The command that trains: options or a recipe in, a checkpoint with its card out."""

from __future__ import annotations

import platform
import shlex
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from trustml_helpers import attacks, data, models, objectives, processes, robustness, training
from trustml_helpers.cli.certify import Seed, check_output, first, print_share
from trustml_helpers.training import RECIPES, Recipe


class ObjectiveName(StrEnum):
    standard = "standard"
    adversarial = "adversarial"
    mixed = "mixed"
    trades = "trades"
    gaussian = "gaussian"


class AttackName(StrEnum):
    fgsm = "fgsm"
    fgsm_rs = "fgsm_rs"
    pgd = "pgd"
    auto_pgd = "auto_pgd"
    square = "square"
    suite = "suite"


class Norm(StrEnum):
    linf = "linf"
    l2 = "l2"
    l1 = "l1"


class Optimizer(StrEnum):
    adam = "adam"
    sgd = "sgd"


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Rate(StrEnum):
    constant = "constant"
    triangular = "triangular"


Goal = objectives.Objective | objectives.ByEpoch
Eps = Annotated[float, typer.Option(help="Radius of the ball, in pixel units of [0, 1].")]
Steps = Annotated[int, typer.Option(help="Steps of PGD.")]
StepSize = Annotated[
    float | None,
    typer.Option(
        help="Length of a step; if not given 2.5 eps / steps, in l2 10 eps / steps, in "
        "l1 eps / 4, for fgsm_rs 1.25 eps."
    ),
]


def train(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the checkpoint to write.")],
    architecture: Annotated[str, typer.Option(help="SmallCNN or LeNet.")] = "SmallCNN",
    objective: Annotated[ObjectiveName, typer.Option()] = ObjectiveName.standard,
    attack: Annotated[
        AttackName, typer.Option(help="Attack to train against: fgsm, fgsm_rs or pgd.")
    ] = AttackName.pgd,
    norm: Annotated[Norm, typer.Option(help="Norm of that attack.")] = Norm.linf,
    eps: Eps = 0.3,
    steps: Steps = 10,
    step_size: StepSize = None,
    eps_ramp: Annotated[
        float, typer.Option(help="Epochs over which eps grows linearly from 0.")
    ] = 0.0,
    clip_start: Annotated[
        bool, typer.Option(help="fgsm_rs: clip the start to [0, 1]; the published code does not.")
    ] = False,
    clean_share: Annotated[float, typer.Option(help="Share of clean examples (mixed).")] = 0.5,
    beta: Annotated[float, typer.Option(help="Weight of the divergence (trades).")] = 6.0,
    sigma: Annotated[
        float, typer.Option(help="Standard deviation of the noise (gaussian, and recipes).")
    ] = 0.5,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A named way to train for smoothing, all its settings included: "
            f"{', '.join(RECIPES)}. Goes with --sigma, --epochs, --seed, and where to write."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="5 if not given, or what the recipe says.")
    ] = None,
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
    precision: Annotated[
        Precision, typer.Option(help="bfloat16 is faster on most machines; weights stay float32.")
    ] = Precision.float32,
    best: Annotated[
        bool,
        typer.Option(
            help="Keep the weights of the epoch with the least validation error "
            "(under PGD, for objectives with an attack)."
        ),
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
    history_file: Annotated[
        Path | None, typer.Option("--history", help="Write one row per epoch to this CSV as well.")
    ] = None,
    test: Annotated[
        bool, typer.Option(help="Measure on the test set; not while you still choose.")
    ] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace a checkpoint of this name.")] = False,
) -> None:
    """Train a network on MNIST and write its checkpoint with a card.

    The weights are final before the test set is read: it is used once, to measure what the card
    says. The state after each epoch is kept in NAME.training beside it until the end; after a kill
    the same command goes on from there. Under torchrun the minibatches are dealt to the processes.
    """
    path = (out or models.checkpoint_folder()) / f"{name}.safetensors"
    if path.exists() and not overwrite:
        raise ValueError(f"name={name!r}: {path} exists; pass --overwrite to replace it")
    if Path(name).name != name:
        raise ValueError(f"name={name!r}: expected a plain name; the folder goes into --out")
    check_output(history_file)
    if validation < 1:
        raise ValueError(f"validation={validation}: expected at least 1 image")
    generator = torch.Generator().manual_seed(seed)
    if recipe is not None:
        plan = _recipe(recipe, context)
    else:
        inner = _training_attack(attack, norm, steps, step_size, clip_start, generator)
        against = partial(objectives.trades, beta=beta, norm=norm.value, steps=steps,
                          step_size=step_size, generator=generator)  # fmt: skip

        def make(sigma: float, generator: torch.Generator) -> Goal:
            return _objective(
                objective, inner, eps, eps_ramp, clean_share, sigma, against, generator
            )

        words = _describe(objective, attack, norm, eps, steps, clean_share, clip_start, beta)
        plan = Recipe(
            make, words, epochs=5, batch_size=batch_size, optimizer=_optimizer(optimizer, lr),
            scheduler=training.triangular(lr) if rate is Rate.triangular else None,
            precision=precision.value, channels_last=channels_last, architecture=architecture,
        )  # fmt: skip
    plan = plan if epochs is None else replace(plan, epochs=epochs)
    smoothed = recipe is not None or objective is ObjectiveName.gaussian
    noisy = {"sigma": sigma} if smoothed else {}
    model = models.build(plan.architecture, seed=seed)
    if plan.channels_last:
        model = model.to(memory_format=torch.channels_last)
    goal = plan.make(sigma, generator)
    train_part, held = data.train_validation_split(
        *first(data.load_mnist("train"), limit), validation, seed=seed
    )
    attacked = recipe is None and objective in (
        ObjectiveName.adversarial, ObjectiveName.mixed, ObjectiveName.trades
    )  # fmt: skip
    watched = _watched(eps, norm, seed) if attacked else {}
    state = path.with_suffix(".training")
    command = _command(context, leave_out=("overwrite", "out", "history_file", "test"))
    with processes.team() as team:
        history = training.fit(
            model, train_part, goal, epochs=plan.epochs, batch_size=plan.batch_size,
            validation=held, attacks=watched, seed=seed, optimizer=plan.optimizer,
            best=("error pgd" if attacked else "error") if best else None,
            scheduler=plan.scheduler, precision=plan.precision, checkpoint=state,
            generators=[generator], about=command,
        )  # fmt: skip
        if team.rank > 0:
            return
    if history_file is not None:
        history.to_csv(history_file, index=False, float_format="%.6g")
    typer.echo(history.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    kept = int(history["kept"].argmax()) if best else len(history) - 1
    about: dict[str, Any] = {
        "objective": plan.words + (f", sigma {sigma:g}" if smoothed else ""),
        "data": f"MNIST train: {len(train_part[0])} images; {len(held[0])} held out (seed {seed})",
        "seed": seed,
        "command": command,
        "training_seconds": round(float(history["seconds"].sum())),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}",
        "validation_accuracy": round(1 - float(history["error"].iloc[kept]), 4),
    } | noisy
    if attacked:
        about["validation_pgd_accuracy"] = round(1 - float(history["error pgd"].iloc[kept]), 4)
    if best:
        about["epoch_kept"] = kept + 1
    models.save(model, path, **about)  # before testing: a kill during the test loses nothing
    state.unlink(missing_ok=True)
    if test:
        held_back = first(data.load_mnist("test"), limit)
        about["test_images"] = len(held_back[0])
        about["test_accuracy"] = _measure(model, held_back, seed, **noisy)
        models.save(model, path, **about)
        for key, share in about["test_accuracy"].items():
            print_share(key, share, len(held_back[0]))
    typer.echo(f"wrote {path} and its card")


# What may stand beside a recipe: all other options are the recipe's to decide.
BESIDE = {"name", "recipe", "sigma", "epochs", "best", "validation", "limit", "seed", "out",
          "history_file", "test", "overwrite"}  # fmt: skip


def _recipe(name: str, context: typer.Context) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"recipe={name!r}: expected one of {', '.join(RECIPES)}")
    for option in set(context.params) - BESIDE:
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(
                f"{option}: recipe {name!r} decides it; leave out the one or the other"
            )
    return RECIPES[name]


def _training_attack(
    name: AttackName, norm: Norm, steps: int, step_size: float | None, clip_start: bool,
    generator: torch.Generator,
) -> partial[Tensor]:  # fmt: skip
    if name is AttackName.fgsm:
        return partial(attacks.fgsm, norm=norm.value)
    if name is AttackName.fgsm_rs:
        if norm is not Norm.linf:
            raise ValueError(f"norm={norm.value!r}: fgsm_rs works in linf")
        return partial(
            attacks.fgsm_rs, step_size=step_size, clip_start=clip_start, generator=generator
        )
    if name is AttackName.pgd:
        return partial(attacks.pgd, norm=norm.value, steps=steps, step_size=step_size, keep="last",
                       generator=generator)  # fmt: skip
    raise ValueError(f"attack={name.value!r} is for evaluation; train with fgsm, fgsm_rs or pgd")


def _watched(eps: float, norm: Norm, seed: int) -> dict[str, attacks.Attack]:
    """What validation measures after each epoch; the same starts every time."""

    def ten_steps(model: Any, x: Tensor, y: Tensor) -> Tensor:
        return attacks.pgd(model, x, y, eps, norm=norm.value, steps=10, keep="first",
                           generator=torch.Generator().manual_seed(seed))  # fmt: skip

    return {"fgsm": partial(attacks.fgsm, eps=eps, norm=norm.value), "pgd": ten_steps}


def _objective(
    name: ObjectiveName,
    attack: partial[Tensor],
    eps: float,
    ramp: float,
    clean_share: float,
    sigma: float,
    trades: partial[objectives.Objective],
    generator: torch.Generator,
) -> Goal:
    if name is ObjectiveName.standard:
        return objectives.standard
    if name is ObjectiveName.gaussian:
        return objectives.gaussian(sigma, generator=generator)

    def at(epoch: float) -> objectives.Objective:
        radius = eps * min(1.0, epoch / ramp) if ramp > 0 else eps
        if name is ObjectiveName.trades:
            return trades(radius)
        one = partial(attack, eps=radius)
        if name is ObjectiveName.mixed:
            return objectives.mixed(one, clean_share)
        return objectives.adversarial(one)

    return objectives.ByEpoch(at) if ramp > 0 else at(0.0)


def _describe(
    name: ObjectiveName, attack: AttackName, norm: Norm, eps: float, steps: int,
    clean_share: float, clip_start: bool, beta: float,
) -> str:  # fmt: skip
    if name is ObjectiveName.standard:
        return "standard cross-entropy"
    if name is ObjectiveName.gaussian:
        return "cross-entropy under Gaussian noise"
    if name is ObjectiveName.trades:
        return f"TRADES, beta {beta:g}, {steps} steps, {norm.value}, eps {eps:g}"
    against = {
        AttackName.fgsm: "FGSM",
        AttackName.fgsm_rs: f"FGSM-RS ({'clipped' if clip_start else 'unclipped'} start)",
    }.get(attack, f"PGD-{steps}")
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
