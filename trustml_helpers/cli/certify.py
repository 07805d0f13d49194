"""The commands of smoothing: certify, predict, plot, audit; and options that all share."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from trustml_helpers import certification, cli_inputs, execution, smoothing
from trustml_helpers._support.files import read_settings, settings_file
from trustml_helpers._support.processes import progress_bar


class Split(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"


class Bound(StrEnum):
    one_class = "one_class"
    two_class = "two_class"


CheckpointArgument = Annotated[
    str, typer.Argument(help="Name of a checkpoint, or path of a .safetensors file.")
]
Network = Annotated[
    str,
    typer.Argument(
        help="Name of a checkpoint, path of a .safetensors file with its card, or module:name, "
        "a network or a function that returns one with its weights loaded. It takes images "
        "(n, C, H, W) in [0, 1] (normalise inside) and returns logits (n, K)."
    ),
]
DataSet = Annotated[
    str,
    typer.Option(
        "--data",
        help="mnist (ships with the course); fashion_mnist, cifar10, imagenet (torchvision's "
        "files, see --root); an .npz file with the arrays images (uint8, or floating point in "
        "[0, 1]) and labels; or module:function, which returns both as tensors.",
    ),
]
Root = Annotated[Path | None, typer.Option(help="Folder of torchvision's files.")]
SplitOption = Annotated[
    Split,
    typer.Option(
        help="Which part of a named data set; validation: the 5,000 training images of "
        "MNIST that train holds out with seed 0."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU if there is one, if not given.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything random; same seed, same result.")]
Sigma = Annotated[
    float | None,
    typer.Option(
        help="Standard deviation of the noise, in units of pixels in [0, 1]; a checkpoint's "
        "training sigma if not given."
    ),
]
Alpha = Annotated[float, typer.Option(help="Error probability per image.")]
Every = Annotated[int, typer.Option(help="Take every k-th image: 0, k, 2k, ...")]
Limit = Annotated[int | None, typer.Option(help="Take at most this many of them.")]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Noisy images per forward pass; a short trial finds it if not given."),
]


def certify(
    model: Network,
    log: Annotated[Path, typer.Argument(help="TSV to write; settings go beside it as JSON.")],
    data_set: DataSet = "mnist",
    root: Root = None,
    split: SplitOption = Split.test,
    every: Every = 1,
    limit: Limit = None,
    sigma: Sigma = None,
    n0: Annotated[int, typer.Option(help="Selection samples per image.")] = 100,
    n: Annotated[int, typer.Option(help="Estimation samples per image.")] = 100_000,
    alpha: Alpha = 0.001,
    bound: Annotated[
        Bound,
        typer.Option(
            help="one_class: as published, p_A alone. two_class: bounds the strongest other class "
            "too; larger radii where several classes compete, and nearly the same elsewhere."
        ),
    ] = Bound.one_class,
    device: Device = None,
    batch_size: BatchSize = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(execution.LAYOUTS),
            help="Memory layout of the weights; a short trial finds it if not given.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(execution.DTYPES),
            help="Run the network in this precision; its own if not given. Noise is drawn and "
            "added in that of the images.",
        ),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Compile the network with torch.compile."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Certify images and log one row each; a run that was stopped goes on where it was.

    Prints the certified accuracy at a few radii (l2, in units of pixels in [0, 1]), the average
    certified radius (ACR), and its standard error over images. A certificate is true with
    probability 1 - alpha, for each image by itself.

    The log has the columns idx, label, predict (-1: abstained), radius (rounded down, 0 where
    nothing is certified), correct, time (seconds), and the votes of each class. Call the same
    command again to go on; what is not given (batch size, layout, precision) is then taken from
    the JSON. Other settings, images or another network are refused.

    A network of your own, returned by my_network() in a file nets.py where you are:

    trustml certify nets:my_network my.tsv --data cifar10 --root data/ --every 20 --sigma 0.25

    Two processes, one thread each; the images are dealt out, the log is the same:

    torchrun --nproc-per-node=2 -m -- trustml_helpers certify ...

    Then: trustml plot my.tsv --output my.png, and trustml audit my.tsv.
    """
    chosen = cli_inputs.images(data_set, split.value, root, every, limit)
    where = cli_inputs.device(device)
    smoothed = _smoothed(model, sigma, chosen, where)
    first_process = int(os.environ.get("RANK", "0")) == 0
    table = certification.certify_dataset(
        smoothed, chosen.x.to(where), chosen.y, log, n0=n0, n=n, alpha=alpha, bound=bound.value,
        numbers=chosen.numbers, seed=seed, batch_size=batch_size,
        layout=layout, dtype=dtype, compiled=compiled,
    )  # fmt: skip
    if first_process:
        _print({log.stem: table})
        typer.echo(f"wrote {log}")


def predict(
    model: Network,
    data_set: DataSet = "mnist",
    root: Root = None,
    split: SplitOption = Split.test,
    every: Every = 1,
    limit: Limit = None,
    sigma: Sigma = None,
    n: Annotated[int, typer.Option(help="Noisy copies of each image.")] = 1000,
    alpha: Alpha = 0.001,
    device: Device = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(help="Write index, label, predict per image as CSV.")
    ] = None,
) -> None:
    """Classify images by the smoothed classifier; -1 in the output means: abstained."""
    check_output(output)
    chosen = cli_inputs.images(data_set, split.value, root, every, limit)
    where = cli_inputs.device(device)
    smoothed = _smoothed(model, sigma, chosen, where)
    one = chosen.x[:1].to(where)
    found = execution.search(smoothed, one, batch_size=batch_size)
    smoothed = execution.prepare(smoothed, found, one)
    generator = torch.Generator(where).manual_seed(seed)
    parts = [
        smoothed.predict(few.to(where), n, alpha, generator=generator, batch_size=found.batch_size)
        for few in progress_bar(True)(chosen.x.split(20), desc="predict")
    ]
    predicted = torch.cat(parts)
    for name, share in {
        "right": predicted == chosen.y,
        "abstained": predicted == smoothing.ABSTAIN,
        "wrong": (predicted != chosen.y) & (predicted != smoothing.ABSTAIN),
    }.items():
        print_share(name, share.double().mean().item(), len(predicted))
    if output is not None:
        import pandas as pd

        columns = {"index": chosen.numbers, "label": chosen.y, "predict": predicted}
        pd.DataFrame(columns).to_csv(output, index=False)
        typer.echo(f"wrote {output}")


def plot(
    logs: Annotated[list[Path], typer.Argument(help="Certification logs; one curve each.")],
    output: Annotated[Path, typer.Option(help="Picture to write (.png, .pdf, .svg).")],
    points: Annotated[int, typer.Option(help="Radii on the horizontal axis.")] = 200,
) -> None:
    """Draw certified accuracy against radius, and print the numbers.

    Reads the logs of this project and those in the format of Cohen et al. (2019).
    """
    check_output(output)
    from matplotlib.backend_bases import FigureCanvasBase

    pictures = FigureCanvasBase.get_supported_filetypes()
    if output.suffix[1:].lower() not in pictures:
        raise ValueError(f"output={str(output)!r}: expected a picture, such as {output.stem}.png")
    if points < 2:
        raise ValueError(f"points={points}: expected at least 2")
    if len({path.stem for path in logs}) < len(logs):
        raise ValueError("logs: two of them have the same name; rename one, the legend needs it")
    tables = {path.stem: certification.read_log(path) for path in logs}
    _print(tables)  # refuses a log without rows before anything is written
    from trustml_helpers import smoothing_figures

    largest = max(float(table["radius"].max()) for table in tables.values())
    radii = torch.linspace(0, 1.05 * largest or 1.0, points).tolist()
    figure = smoothing_figures.certified(
        radii, {name: certification.certified_accuracy(t, radii) for name, t in tables.items()}
    )
    figure.savefig(output)
    typer.echo(f"wrote {output}")


def audit(
    log: Annotated[Path, typer.Argument(help="Certification log, one-class radii.")],
    sigma: Annotated[
        float | None, typer.Option(help="Standard deviation; from the log's JSON if not given.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Stated error probability; from the JSON if not given.")
    ] = None,
    n: Annotated[
        int | None, typer.Option(help="Stated estimation samples; from the JSON if not given.")
    ] = None,
) -> None:
    """Check a log: which alpha and n can have given these radii, which rows cannot be right?

    Ends with exit code 1 if anything is wrong.
    """
    table = certification.read_log(log)
    known = _settings(log)
    if known.get("bound", "one_class") != "one_class":
        raise ValueError(f"{log} holds {known['bound']} radii; the audit knows one-class radii")
    sigma = known.get("sigma") if sigma is None else sigma
    if sigma is None:
        raise ValueError(f"sigma: there are no settings beside {log}; pass --sigma")
    if alpha is None and n is None:
        alpha, n = known.get("alpha"), known.get("n")
    found = certification.audit_log(table, sigma, alpha=alpha, n=n)
    typer.echo(str(found))
    if not found.passed:
        raise typer.Exit(1)


def _settings(log: Path) -> dict[str, Any]:
    """What the JSON beside a log says; nothing if there is none, or it may be another log's."""
    try:
        beside = settings_file(log)
    except ValueError:
        return {}
    if not beside.exists():
        return {}
    try:
        known = read_settings(beside)
    except (OSError, ValueError) as error:
        raise ValueError(f"{beside} cannot be read ({error}); restore or remove it") from error
    for name in ("sigma", "n", "alpha"):
        if not isinstance(known.get(name), int | float):
            raise ValueError(
                f"{beside} has no number {name}, so it is not the settings of {log}; restore it, "
                "or remove it and pass --sigma"
            )
    return known


def check_output(output: Path | None) -> None:
    """Raise ValueError, before any work, if a file could not be written for want of its folder, or
    where a folder is."""
    if output is not None and output.is_dir():
        raise ValueError(f"output={str(output)!r}: is a folder; name a file in it")
    if output is not None and not output.resolve().parent.is_dir():
        raise ValueError(f"output={str(output)!r}: the folder does not exist; create it first")


def first(part: tuple[Tensor, Tensor], limit: int | None) -> tuple[Tensor, Tensor]:
    """The first images and labels, all of them without a limit."""
    chosen = cli_inputs.indices(len(part[0]), 1, limit)
    return part[0][: len(chosen)], part[1][: len(chosen)]


def print_share(name: str, share: float, images: int) -> None:
    """One line: how many percent, of how many images."""
    typer.echo(f"{name:>20}  {100 * share:6.2f} %   of {images} images")


def _smoothed(
    name: str, sigma: float | None, chosen: cli_inputs.Images, where: torch.device
) -> smoothing.SmoothedClassifier:
    network = cli_inputs.network(name)
    sigma = getattr(network, "card", {}).get("sigma") if sigma is None else sigma
    if sigma is None:
        raise ValueError(f"sigma: {name} was not trained with a known noise; pass --sigma")
    if isinstance(network, nn.Module):
        network = network.to(where)
    try:
        with torch.inference_mode():
            logits = network(chosen.x[:1].to(where))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"model={name!r} cannot take images of shape {tuple(chosen.x.shape)}: {reason}"
        ) from error
    if not (isinstance(logits, Tensor) and logits.ndim == 2):
        raise ValueError(
            f"model={name!r}: expected logits (n, K) for images {tuple(chosen.x.shape)}"
        )
    return smoothing.SmoothedClassifier(network, sigma, num_classes=logits.shape[1])


def _print(logs: dict[str, certification.Log]) -> None:
    largest = max((log["radius"].max() for log in logs.values() if len(log)), default=0.0)
    step = 0.25 if largest < 2 else 0.5
    while largest > 40 * step:  # a table of places that can still be read
        step *= 2
    radii = [k * step for k in range(int(largest / step) + 1)]
    typer.echo(certification.summary(logs, radii).to_string(float_format="{:.4f}".format))
