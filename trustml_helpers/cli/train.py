"""The command that trains: a recipe in, a checkpoint with its card out."""

from __future__ import annotations

import platform
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import Tensor, nn

from trustml_helpers import attacks, data, models, robustness, training
from trustml_helpers._support.arguments import declared, maybe, number, one_of
from trustml_helpers._support.processes import team
from trustml_helpers._support.randomness import draw, keyed_generator
from trustml_helpers.cli.inputs import Seed, check_output, first, length, option, print_share
from trustml_helpers.training import BEHIND, RECIPES, Recipe

if TYPE_CHECKING:
    import pandas as pd

BITS = {32: torch.float32, 16: torch.float16, 8: torch.int8}
EPILOG = "\n\n".join(["Recipes:", *(
    f"{name}: {recipe.title}; {recipe.architecture}, {recipe.epochs} epochs"
    for name, recipe in RECIPES.items()
)])  # fmt: skip


def train(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the checkpoint to write.")],
    recipe: Annotated[str, option("How to train: objective, network, optimizer; see below.")] = "",
    sigma: Annotated[float | None, length("Noise in pixel units, if not the recipe's.")] = None,
    eps: Annotated[float | None, length("Radius of the l-inf ball, if not the recipe's.")] = None,
    epochs: Annotated[int | None, option("Number of them, if not the recipe's.")] = None,
    validation: Annotated[int, option("Training images held out for validation.")] = 5000,
    limit: Annotated[int | None, option("Use so many training and test images.")] = None,
    seed: Seed = 0,
    bits: Annotated[int, option("Of a stored weight: 32, 16, or 8 and a scale for each row.")] = 16,
    out: Annotated[Path | None, option("Folder; data/checkpoints if not given.")] = None,
    history_file: Annotated[Path | None, option("CSV, one row per epoch.", "--history")] = None,
    test: Annotated[bool, option("Measure on the test set; not while you still choose.")] = True,
    overwrite: Annotated[bool, option("Replace a checkpoint of this name.")] = False,
) -> None:
    """Train a network on MNIST by a recipe and write its checkpoint with a card.

    The weights are final before the test set is read: it is used once, to measure what the card
    says. The state after each epoch is kept in NAME.training beside it until the end; after a kill
    the same command goes on from there. Under torchrun the minibatches are dealt to the processes.
    Anything else than what a recipe offers is trained from Python, with training.fit.
    """
    if context.args or not recipe:
        likely = [word for word in context.args if word in RECIPES] or ["standard"]
        raise ValueError(
            f"{' '.join(context.args) or 'recipe'}: a recipe decides how a network is trained, for "
            f"example --recipe {likely[-1]}; trustml train --help lists them all"
        )
    one_of(*BITS)("bits", bits)
    path = (out or models.checkpoint_folder()) / f"{name}.safetensors"
    if path.exists() and not overwrite:
        raise ValueError(f"name={name!r}: {path} exists; pass --overwrite to replace it")
    if Path(name).name != name:
        raise ValueError(f"name={name!r}: expected a plain name; the folder goes into --out")
    check_output(history_file, "history")
    plan = _plan(recipe, sigma=sigma, eps=eps, epochs=epochs)
    generator = torch.Generator().manual_seed(seed)
    goal, model = plan.objective(generator), models.build(plan.architecture, seed=seed)
    if plan.channels_last:
        model = model.to(memory_format=torch.channels_last)
    part, held = data.train_validation_split(
        *first(data.load_mnist("train"), limit), validation, seed=seed
    )
    state, command = path.with_suffix(".training"), _command(context)
    history = training.fit(
        model, part, goal, epochs=plan.epochs, batch_size=plan.batch_size,
        validation=None if isinstance(model, models.Denoiser) else _as_seen(plan, held, seed),
        attacks=None if plan.eps is None else _watched(plan.eps, seed), best=plan.best,
        average=plan.average, optimizer=plan.optimizer, scheduler=plan.scheduler,
        precision=plan.precision, checkpoint=state, generators=[generator], about=command,
        seed=seed,
    )  # fmt: skip
    if team().rank > 0:
        return
    if history_file is not None:
        history.to_csv(history_file, index=False, float_format="%.6g")
    typer.echo(history.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    words = f"MNIST train: {len(part[0])} images; {len(held[0])} held out (seed {seed})"
    about: dict[str, Any] = {
        "objective": plan.title,
        "data": words,
        "seed": seed,
        "command": command,
    }
    about |= _measured(history, plan)
    store = partial(models.save, model, path, dtype=BITS[bits])
    store(**about)  # before testing: a kill during the test loses nothing
    state.unlink(missing_ok=True)
    model.load_state_dict(models.load(path).state_dict())  # what is measured is what is stored
    if test:
        held_back = first(data.load_mnist("test"), limit)
        shares = _tested(model, held_back, seed, plan)
        about |= {"test_images": len(held_back[0]), "test_accuracy": shares}
        store(**about)
        for key, share in shares.items():
            print_share(key, share, len(held_back[0]))
    typer.echo(f"wrote {path} and its card")


@declared(
    recipe=one_of(*RECIPES), sigma=maybe(number("[0, inf)", "in pixel units")),
    eps=maybe(number("[0, 1]", "in pixel units; 8 grey levels are 8 / 255")),
)  # fmt: skip
def _plan(recipe: str, *, sigma: float | None, eps: float | None, epochs: int | None) -> Recipe:
    """The recipe with what the call says in place of its own."""
    plan, asked = RECIPES[recipe], {"sigma": sigma, "eps": eps, "epochs": epochs}
    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    for key, value in given.items():
        if getattr(plan, key) is None:
            raise ValueError(f"{key}={value}: recipe {recipe!r} has no {key} to choose")
    return replace(plan, **given)


def _as_seen(plan: Recipe, part: tuple[Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """Images as a network for another kind of noise sees them, one noisy copy each."""
    x, y = part
    return (x if plan.noise is None else plan.noise(x, keyed_generator(seed, 0))), y


def _watched(eps: float, seed: int) -> dict[str, attacks.Attack]:
    """What validation measures after each epoch; the same starts every time."""

    def ten_steps(model: Any, x: Tensor, y: Tensor) -> Tensor:
        return attacks.pgd(model, x, y, eps, steps=10, keep="first",
                           generator=torch.Generator().manual_seed(seed))  # fmt: skip

    return {"fgsm": partial(attacks.fgsm, eps=eps), "pgd": ten_steps}


def _measured(history: pd.DataFrame, plan: Recipe) -> dict[str, Any]:
    """What a card says of the training, and of the validation after the epoch that was kept."""
    kept = int(history["kept"].argmax()) if plan.best else len(history) - 1
    found: dict[str, Any] = {
        "training_seconds": round(float(history["seconds"].sum())),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}",
    }
    if "error" in history:
        found["validation_accuracy"] = round(1 - float(history["error"].iloc[kept]), 4)
    if plan.sigma is not None:
        found["sigma"] = plan.sigma
    if plan.noise is not None:
        found |= plan.noise.settings
    if plan.eps is not None:
        found["validation_pgd_accuracy"] = round(1 - float(history["error pgd"].iloc[kept]), 4)
    if plan.best:
        found["epoch_kept"] = kept + 1
    return found


def _tested(
    model: nn.Module, test: tuple[Tensor, Tensor], seed: int, plan: Recipe
) -> dict[str, float]:
    """What a card states: accuracy on clean images, and on noisy ones if it was trained on them,
    else under PGD-40 at two radii; of a denoiser, that of the network behind it at three sigma."""
    x, y = test
    if isinstance(model, models.Denoiser):
        behind, found = models.load(BEHIND), {}
        noise = draw(x, torch.randn, keyed_generator(seed, 0))
        for size in (0.25, 0.5, 1.0):
            front = models.Denoised(model, behind, size)
            found[f"noise {size:g}"] = robustness.accuracy(front, x + size * noise, y)
        return {key: round(value, 4) for key, value in found.items()}
    found = {"clean": robustness.accuracy(model, x, y)}
    generator = torch.Generator().manual_seed(seed)
    if plan.noise is not None:
        found[str(plan.noise)] = robustness.accuracy(model, *_as_seen(plan, test, seed))
    elif plan.sigma is not None:
        noise = torch.randn(x.shape, generator=generator)
        found[f"noise {plan.sigma:g}"] = robustness.accuracy(model, x + plan.sigma * noise, y)
    for eps in (0.1, 0.3) if plan.sigma is None and plan.noise is None else ():
        generator.manual_seed(seed)
        one = partial(attacks.pgd, eps=eps, steps=40, generator=generator)
        found[f"pgd-40 linf {eps}"] = robustness.robust_accuracy(model, *test, one, progress=True)
    return {key: round(value, 4) for key, value in found.items()}


def _command(context: typer.Context) -> str:
    """The call again, with every option that matters and differs from its default."""
    words = ["trustml", str(context.info_name)]
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        if name in ("overwrite", "out", "history_file", "test") or value == parameter.default:
            continue
        words += [parameter.opts[0]] if parameter.param_type_name == "option" else []
        words.append(str(value))
    return shlex.join(words)
