"""The commands of smoothing: certify, predict, plot, audit; and options that all share."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from trustml_helpers import certification, data, models, smoothing
from trustml_helpers.robustness import progress_bar


class Split(StrEnum):
    train = "train"
    test = "test"


class Bound(StrEnum):
    one_class = "one_class"
    two_class = "two_class"


CheckpointArgument = Annotated[
    str, typer.Argument(help="Name of a checkpoint, or path of a .safetensors file.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything random; same seed, same result.")]
Sigma = Annotated[
    float | None,
    typer.Option(help="Standard deviation of the noise; the model's training sigma if not given."),
]
Alpha = Annotated[float, typer.Option(help="Error probability per image.")]
Every = Annotated[int, typer.Option(help="Take every k-th image: 0, k, 2k, ...")]
Limit = Annotated[int | None, typer.Option(help="Take at most this many of them.")]


def certify(
    model: CheckpointArgument,
    log: Annotated[Path, typer.Argument(help="TSV to write; settings go beside it as JSON.")],
    sigma: Sigma = None,
    n0: Annotated[int, typer.Option(help="Selection samples per image.")] = 100,
    n: Annotated[int, typer.Option(help="Estimation samples per image.")] = 100_000,
    alpha: Alpha = 0.001,
    bound: Annotated[Bound, typer.Option()] = Bound.one_class,
    split: Annotated[Split, typer.Option()] = Split.test,
    every: Every = 1,
    limit: Limit = None,
    batch_size: Annotated[int, typer.Option(help="Noisy images per forward pass.")] = 256,
    seed: Seed = 0,
) -> None:
    """Certify MNIST images and log one row each; a run that was stopped goes on where it was.

    Prints the certified accuracy at a few radii and the average certified radius. Certificates
    are true with probability 1 - alpha, for each image by itself.
    """
    smoothed = _smoothed(model, sigma)
    x, y = data.load_mnist(split.value)
    table = certification.certify_dataset(
        smoothed, x, y, log, n0=n0, n=n, alpha=alpha, bound=bound.value, seed=seed,
        indices=_indices(len(x), every, limit), batch_size=batch_size,
    )  # fmt: skip
    _print({log.stem: table})
    typer.echo(f"wrote {log}")


def predict(
    model: CheckpointArgument,
    sigma: Sigma = None,
    n: Annotated[int, typer.Option(help="Noisy copies of each image.")] = 1000,
    alpha: Alpha = 0.001,
    split: Annotated[Split, typer.Option()] = Split.test,
    every: Every = 1,
    limit: Limit = None,
    batch_size: Annotated[int, typer.Option(help="Noisy images per forward pass.")] = 256,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(help="Write index, label, predict per image as CSV.")
    ] = None,
) -> None:
    """Classify MNIST images by the smoothed classifier; -1 in the output means: abstained."""
    check_output(output)
    smoothed = _smoothed(model, sigma)
    x, y = data.load_mnist(split.value)
    chosen = torch.tensor(_indices(len(x), every, limit))
    generator = torch.Generator().manual_seed(seed)
    parts = [
        smoothed.predict(x[few], n, alpha, generator=generator, batch_size=batch_size)
        for few in progress_bar(True)(chosen.split(20), desc="predict")
    ]
    found = torch.cat(parts)
    for name, share in {
        "right": found == y[chosen],
        "abstained": found == smoothing.ABSTAIN,
        "wrong": (found != y[chosen]) & (found != smoothing.ABSTAIN),
    }.items():
        print_share(name, share.double().mean().item(), len(chosen))
    if output is not None:
        import pandas as pd

        columns = {"index": chosen, "label": y[chosen], "predict": found}
        pd.DataFrame({k: v.numpy() for k, v in columns.items()}).to_csv(output, index=False)
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
    beside = log.with_suffix(".json")
    known = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    if known.get("bound", "one_class") != "one_class":
        raise ValueError(f"{log} holds {known['bound']} radii; the audit knows one-class radii")
    if sigma is None and "sigma" not in known:
        raise ValueError(f"sigma: {beside} does not exist; pass --sigma")
    if alpha is None and n is None:
        alpha, n = known.get("alpha"), known.get("n")
    found = certification.audit_log(
        table, known["sigma"] if sigma is None else sigma, alpha=alpha, n=n
    )
    typer.echo(str(found))
    if not found.passed:
        raise typer.Exit(1)


def check_output(output: Path | None) -> None:
    """Raise ValueError, before any work, if a file could not be written for want of its folder."""
    if output is not None and not output.resolve().parent.is_dir():
        raise ValueError(f"output={str(output)!r}: the folder does not exist; create it first")


def first(part: tuple[Tensor, Tensor], limit: int | None) -> tuple[Tensor, Tensor]:
    """The first images and labels, all of them without a limit."""
    chosen = _indices(len(part[0]), 1, limit)
    return part[0][: len(chosen)], part[1][: len(chosen)]


def print_share(name: str, share: float, images: int) -> None:
    """One line: how many percent, of how many images."""
    typer.echo(f"{name:>20}  {100 * share:6.2f} %   of {images} images")


def _indices(images: int, every: int, limit: int | None) -> list[int]:
    if every < 1:
        raise ValueError(f"every={every}: expected at least 1")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1 image")
    return list(range(0, images, every))[:limit]


def _smoothed(name: str, sigma: float | None) -> smoothing.SmoothedClassifier:
    # channels_last is nearly twice as fast on the CPUs measured, for small convolutions.
    model = models.load(name).to(memory_format=torch.channels_last)
    trained = models.card(name).get("sigma")
    sigma = trained if sigma is None else sigma
    if trained is not None and sigma != trained:
        typer.echo(f"note: {name} was trained with sigma {trained:g}, not {sigma:g}", err=True)
    if sigma is None:
        raise ValueError(f"sigma: {name} was not trained with noise; pass --sigma")
    return smoothing.SmoothedClassifier(model, sigma, num_classes=10)


def _print(logs: dict[str, certification.Log]) -> None:
    largest = max((log["radius"].max() for log in logs.values() if len(log)), default=0.0)
    step = 0.25 if largest < 2 else 0.5
    radii = [k * step for k in range(int(largest / step) + 1)]
    typer.echo(certification.summary(logs, radii).to_string(float_format="{:.4f}".format))
