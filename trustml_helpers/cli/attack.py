"""The commands of attacks: attack a network, and ask whether the result can be believed."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from trustml_helpers import attacks, robustness
from trustml_helpers._support.arguments import one_of, whole
from trustml_helpers._support.calling import suited_batch
from trustml_helpers.cli import inputs
from trustml_helpers.cli.inputs import Seed, option

BY_GRADIENT = ("fgsm", "pgd", "auto_pgd")
NAMES = (*BY_GRADIENT, "square", "suite")
Norm = Annotated[str, option("Norm of the ball.", metavar="linf|l2|l1")]
Eps = Annotated[float, inputs.length("Radius of the ball, in pixel units of [0, 1].")]
Steps = Annotated[int, option("Steps of PGD.")]
StepSize = Annotated[float | None, inputs.length(
    "Length of a step of pgd: 2.5 eps / steps if not given, in l2 10 eps / steps, in l1 eps / 4."
)]  # fmt: skip
Restarts = Annotated[int, option("Random starts of pgd and auto_pgd, counted per image.")]
Loss = Annotated[str, option("Of fgsm, pgd, auto_pgd.", metavar="cross_entropy|margin|dlr")]
BatchSize = Annotated[
    int | None, option("Images at a time; 256 digits or 8 of 224 x 224 if not given.")
]


def attack(
    model: inputs.Network,
    attack: Annotated[str, option("Which one.", metavar="|".join(NAMES))] = "pgd",
    norm: Norm = "linf",
    eps: Eps = 0.3,
    steps: Steps = 40,
    step_size: StepSize = None,
    restarts: Restarts = 1,
    queries: Annotated[int, option("Evaluations per image of square.")] = 5000,
    loss: Loss = "cross_entropy",
    data_set: inputs.DataSet = None,
    root: inputs.Root = None,
    split: inputs.Split = "test",
    every: inputs.Every = 1,
    limit: inputs.Limit = None,
    groups: inputs.Groups = None,
    device: inputs.Device = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, option("CSV: per image what it falls to. A run that was killed goes on.")
    ] = None,
) -> None:  # fmt: skip
    """Attack a network and print its accuracy before and after.

    The accuracy under an attack is an upper bound on the true robust accuracy. "suite" runs
    Auto-PGD on two losses and Square, each on what the others left: report its worst case.
    """
    inputs.check_output(output)
    data_set = inputs.data_for(model, data_set)
    chosen = inputs.images(data_set, split, root, every, limit)
    network, chosen, classes = inputs.ready(model, chosen, groups, inputs.device(device))
    x, y, numbers, _ = chosen
    about: dict[str, Any] = {
        "attack": one_of(*NAMES)("attack", attack), "norm": norm, "eps": eps, "steps": steps,
        "step_size": step_size, "restarts": restarts, "queries": queries, "loss": loss,
    }  # fmt: skip

    def make(generator: torch.Generator) -> dict[str, attacks.Attack]:
        return _attacks(generator, classes, **about)

    for one in make(torch.Generator()).values():
        one(network, x[:0], y[:0])  # a wrong argument ends here, before any work
    with TemporaryDirectory() as folder:
        log = robustness.attack_dataset(
            network, x, y, make, output or Path(folder) / "log.csv",
            about=_named(model, data_set, split, groups) | about, numbers=numbers,
            origin=chosen.origin, batch_size=_batch(batch_size, x), seed=seed,
        )  # fmt: skip
    shares = robustness.summary(log, list(make(torch.Generator())))
    for name, share in shares.items():
        inputs.print_share(name if name == "clean" else f"{name} {norm} {eps:g}", share, len(x))
    if output is not None:
        typer.echo(f"wrote {output}")


def _named(model: str, data_set: str, split: str, groups: str | None) -> dict[str, str]:
    """Network and images as a log names them; MNIST without groups as logs always did."""
    more = {"data": data_set} if data_set != "mnist" else {}
    return {"model": model, "split": split} | more | ({"groups": groups} if groups else {})


def diagnose(
    model: inputs.Network,
    attack: Annotated[str, option("The one in question.", metavar="|".join(BY_GRADIENT))] = "pgd",
    norm: Norm = "linf",
    eps: Eps = 0.3,
    steps: Steps = 40,
    step_size: StepSize = None,
    restarts: Restarts = 1,
    queries: Annotated[int, option("Evaluations per image without gradient.")] = 500,
    loss: Loss = "cross_entropy",
    data_set: inputs.DataSet = None,
    root: inputs.Root = None,
    split: inputs.Split = "test",
    every: inputs.Every = 1,
    limit: Annotated[int, option("Use at most this many of them.")] = 300,
    groups: inputs.Groups = None,
    device: inputs.Device = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Ask whether an accuracy under attack can be believed: the checklist of the literature.

    The attack in question gets the options that "trustml attack" would get. Ends with exit code 1
    if anything is flagged.
    """
    chosen = inputs.images(inputs.data_for(model, data_set), split, root, every, limit)
    network, (x, y, *_), classes = inputs.ready(model, chosen, groups, inputs.device(device))
    generator = torch.Generator(x.device).manual_seed(seed)
    (asked,) = _attacks(
        generator, classes, attack=one_of(*BY_GRADIENT)("attack", attack), norm=norm, eps=eps,
        steps=steps, step_size=step_size, restarts=restarts, queries=queries, loss=loss,
    ).values()  # fmt: skip
    with suppress(attacks.NotDifferentiable):  # which the report says
        asked(network, x[:0], y[:0])  # a wrong argument ends here, before any work
    report = robustness.diagnose(
        network, x, y, eps, attack=asked, norm=norm, steps=steps, queries=queries,
        batch_size=_batch(batch_size, x), generator=generator,
    )  # fmt: skip
    typer.echo(str(report))
    if not report.passed:
        raise typer.Exit(1)


def _batch(given: int | None, x: torch.Tensor) -> int:
    """Gradients take several times the memory of votes."""
    return max(suited_batch(x) // 2, 8) if given is None else whole(1)("batch_size", given)


def _attacks(
    generator: torch.Generator, classes: int, *, attack: str, norm: str, eps: float, steps: int,
    step_size: float | None, restarts: int, queries: int, loss: str,
) -> dict[str, attacks.Attack]:  # fmt: skip
    """The attacks of one name, in the order to run them."""
    common: dict[str, Any] = {"eps": eps, "norm": norm}
    if attack == "fgsm":
        return {"FGSM": partial(attacks.fgsm, loss=loss, **common)}
    common["generator"] = generator
    if attack == "suite":
        return attacks.suite(num_classes=classes, steps=steps, queries=queries, **common)
    if attack == "square":
        return {"Square": partial(attacks.square, queries=queries, **common)}
    common |= {"steps": steps, "restarts": restarts, "loss": loss, "keep": "first"}
    if attack == "auto_pgd":
        return {f"APGD-{steps}": partial(attacks.auto_pgd, **common)}
    return {f"PGD-{steps}": partial(attacks.pgd, step_size=step_size, **common)}
