"""The commands of smoothing: certify, predict, plot, audit."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import Tensor

from trustml_helpers import certification, models, smoothing
from trustml_helpers._support.arguments import declared, whole
from trustml_helpers._support.ledger import read_settings, settings_file
from trustml_helpers._support.processes import progress_bar
from trustml_helpers.cli import inputs
from trustml_helpers.cli.inputs import option

if TYPE_CHECKING:
    import pandas as pd


def certify(
    model: inputs.Network,
    log: Annotated[Path, typer.Argument(help="TSV to write; settings go beside it as JSON.")],
    data_set: inputs.DataSet = None,
    root: inputs.Root = None,
    split: inputs.Split = "test",
    every: inputs.Every = 1,
    limit: inputs.Limit = None,
    groups: inputs.Groups = None,
    denoiser: inputs.Denoiser = None,
    noise: inputs.Noise = None,
    sigma: inputs.Sigma = None,
    keep: inputs.Keep = None,
    n0: Annotated[int, option("Selection samples per image.")] = 100,
    n: Annotated[int, option("Estimation samples per image.")] = 100_000,
    alpha: inputs.Alpha = 0.001,
    bound: Annotated[str, option(
        "one_class: as published, p_A alone. two_class: bounds the strongest other class too; "
        "larger radii where several classes compete, and nearly the same elsewhere.",
        metavar="one_class|two_class",
    )] = "one_class",
    device: inputs.Device = None,
    batch_size: inputs.BatchSize = None,
    layout: inputs.Layout = None,
    dtype: inputs.DType = None,
    compiled: Annotated[bool | None, option("By torch.compile.", "--compile/--no-compile")] = None,
    seed: inputs.Seed = 0,
) -> None:  # fmt: skip
    """Certify images and log one row each; a run that was stopped goes on where it was.

    Prints the certified accuracy at a few radii (in the norm of the noise, in units of pixels in
    [0, 1]; in l0 a number of pixels), the average certified radius (ACR), and its standard error
    over images. A certificate is true with probability 1 - alpha, for each image by itself.

    The log has the columns idx, label, predict (-1: abstained), radius (rounded down, 0 where
    nothing is certified, and in l0 where the class is but no pixel may change), correct, time
    (seconds), and the votes of each class. Call the same command again to go on; what is not given
    (batch size, layout, precision) is then taken from the JSON. Other settings, images or another
    network are refused. The JSON also names the noise, the data set and, for a folder, the file of
    each idx.

    A network of your own, returned by my_network() in a file nets.py where you are:

    trustml certify nets:my_network my.tsv --data cifar10 --root data/ --every 20 --sigma 0.25

    Two processes, one thread each; the images are dealt out, the log is the same:

    torchrun --nproc-per-node=2 -m -- trustml_helpers certify ...

    Then: trustml plot my.tsv --output my.png, and trustml audit my.tsv.
    """
    chosen = inputs.images(inputs.data_for(model, data_set), split, root, every, limit)
    where = inputs.device(device)
    asked_noise = {"noise": noise, "sigma": sigma, "keep": keep}
    smoothed, chosen = _smoothed(model, asked_noise, chosen, groups, denoiser, where)
    table = certification.certify_dataset(
        smoothed, chosen.x, chosen.y, log, n0=n0, n=n, alpha=alpha, bound=bound,
        numbers=chosen.numbers, origin=chosen.origin, seed=seed, batch_size=batch_size,
        layout=layout, dtype=dtype, compiled=compiled,
    )  # fmt: skip
    if int(os.environ.get("RANK", "0")) == 0:
        typer.echo(f"{smoothed.noise}, radii in {smoothed.noise.norm}")
        _print({log.stem: table}, smoothed.noise.norm)
        typer.echo(f"wrote {log}")


def predict(
    model: inputs.Network,
    data_set: inputs.DataSet = None,
    root: inputs.Root = None,
    split: inputs.Split = "test",
    every: inputs.Every = 1,
    limit: inputs.Limit = None,
    groups: inputs.Groups = None,
    denoiser: inputs.Denoiser = None,
    noise: inputs.Noise = None,
    sigma: inputs.Sigma = None,
    keep: inputs.Keep = None,
    n: Annotated[int, option("Noisy copies of each image.")] = 1000,
    alpha: inputs.Alpha = 0.001,
    device: inputs.Device = None,
    batch_size: inputs.BatchSize = None,
    layout: inputs.Layout = None,
    dtype: inputs.DType = None,
    seed: inputs.Seed = 0,
    output: Annotated[Path | None, option("Write index, label, predict per image as CSV.")] = None,
) -> None:
    """Classify images by the smoothed classifier; -1 in the output means: abstained.

    What is right is decided by the labels that come with the images: of the data set, or the
    numbers that folders are called by; without any, by what the network says of them as they are.
    """
    whole(1)("n", n)  # before the trial
    inputs.check_output(output)
    chosen = inputs.images(inputs.data_for(model, data_set), split, root, every, limit)
    where = inputs.device(device)
    asked_noise = {"noise": noise, "sigma": sigma, "keep": keep}
    smoothed, chosen = _smoothed(model, asked_noise, chosen, groups, denoiser, where)
    one = chosen.x[:1]
    votes = n * len(chosen.x)
    asked: dict[str, Any] = {"batch_size": batch_size, "layout": layout, "dtype": dtype}
    found = smoothing.search(smoothed, one, **asked, votes=votes, progress=True)
    smoothed = smoothing.prepare(smoothed, found, one)
    generator = torch.Generator(where).manual_seed(seed)
    parts = [
        smoothed.predict(few, n, alpha, generator=generator, batch_size=found.batch_size)
        for few in progress_bar(True)(chosen.x.split(20), desc="predict")
    ]
    predicted, chosen = torch.cat(parts).cpu(), chosen._replace(y=chosen.y.cpu())
    typer.echo(f"compared with labels from {chosen.origin['labels_from']}:")
    for name, share in {
        "right": predicted == chosen.y,
        "abstained": predicted == smoothing.ABSTAIN,
        "wrong": (predicted != chosen.y) & (predicted != smoothing.ABSTAIN),
    }.items():
        inputs.print_share(name, share.double().mean().item(), len(predicted))
    if output is not None:
        import pandas as pd

        columns = {"index": chosen.numbers, "label": chosen.y, "predict": predicted}
        pd.DataFrame(columns).to_csv(output, index=False)
        typer.echo(f"wrote {output}")


@declared(points=whole(2))
def plot(
    logs: Annotated[list[Path], typer.Argument(help="Certification logs; one curve each.")],
    output: Annotated[Path, option("Picture to write (.png, .pdf, .svg).")],
    points: Annotated[int, option("Radii on the horizontal axis.")] = 200,
) -> None:
    """Draw certified accuracy against radius, and print the numbers.

    Reads the logs of this project and those in the format of Cohen et al. (2019). A curve is
    called as its log; where two logs have one name, the folders that tell them apart come first.
    All must be of one norm: the JSON beside a log says which, l2 if there is none.
    """
    inputs.check_output(output)
    from matplotlib.backend_bases import FigureCanvasBase

    pictures = FigureCanvasBase.get_supported_filetypes()
    if output.suffix[1:].lower() not in pictures:
        raise ValueError(f"output={str(output)!r}: expected a picture, such as {output.stem}.png")
    names = _names(logs)
    norms = {name: _norm(path) for name, path in names.items()}
    if len(set(norms.values())) > 1:
        said = ", ".join(f"{name} in {norm}" for name, norm in norms.items())
        raise ValueError(f"logs: radii of different norms have no common axis ({said}); draw each "
                         "norm by itself")  # fmt: skip
    tables = {name: certification.read_log(path) for name, path in names.items()}
    norm = norms[next(iter(names))]
    typer.echo(f"radii in {norm}")
    _print(tables, norm)  # refuses a log without rows before anything is written
    from trustml_helpers import figures

    largest = max(float(table["radius"].max()) for table in tables.values())
    radii = torch.linspace(0, 1.05 * largest or 1.0, points).tolist()
    figure = figures.certified(
        radii, {name: certification.certified_accuracy(t, radii) for name, t in tables.items()},
        norm=norm,
    )  # fmt: skip
    figure.savefig(output)
    typer.echo(f"wrote {output}")


def _names(logs: list[Path]) -> dict[str, Path]:
    """The logs, each by as much of the end of its path as no other one has."""
    ends, found = [(path.parent / path.stem).parts for path in logs], {}
    for path, parts in zip(logs, ends, strict=True):
        for n in range(1, max(map(len, ends)) + 2):
            if [end[-n:] for end in ends].count(parts[-n:]) == 1:
                found[Path(*parts[-n:]).as_posix()] = path
                break
        else:
            raise ValueError(f"logs: two of them are called {path.stem} in {path.parent}; leave "
                             "one out, or rename it, the legend needs it")  # fmt: skip
    return found


def audit(
    log: Annotated[Path, typer.Argument(help="Certification log.")],
    sigma: Annotated[
        float | None, inputs.length("Standard deviation; else as in the log's JSON.")
    ] = None,
    alpha: Annotated[float | None, option("Stated error probability; else as there.")] = None,
    n: Annotated[int | None, option("Stated estimation samples; else as there.")] = None,
) -> None:
    """Check a log: which alpha and n can have given these radii, which rows cannot be right?

    The noise is that of the JSON beside the log, Gaussian where it names none. Ends with exit code
    1 if anything is wrong.
    """
    table = certification.read_log(log)
    known = _settings(log)
    about = known if sigma is None else known | {"sigma": sigma}
    if not about:
        raise ValueError(f"sigma: there are no settings beside {log}; pass --sigma")
    noise = smoothing.noise_from(about)
    if sigma is not None and not hasattr(noise, "sigma"):
        raise ValueError(f"sigma={sigma:g}: the noise of {log} has none, it is {noise}")
    alpha = known.get("alpha") if alpha is None else alpha
    n = known.get("n") if n is None else n
    bound = known.get("bound", "one_class")
    found = certification.audit_log(table, noise, alpha=alpha, n=n, bound=bound)
    typer.echo(f"{noise}, radii in {noise.norm}")
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
        smoothing.noise_from(known)
        for name in ("n", "alpha"):
            float(known[name])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{beside} does not say sigma, n and alpha of {log} ({error}); restore it, or remove "
            "it and pass --sigma"
        ) from error
    return known


def _norm(log: Path) -> str:
    """Of the radii of a log, as the JSON beside it says; l2 where none does."""
    try:
        return smoothing.noise_from(_settings(log)).norm
    except ValueError:
        return "l2"


def _smoothed(
    name: str, asked: dict[str, Any], chosen: inputs.Images, groups: str | None,
    denoiser: str | None, where: torch.device,
) -> tuple[smoothing.SmoothedClassifier, inputs.Images]:  # fmt: skip
    """A named network under the noise that is asked for; what is not given is its card's."""
    given = {key: value for key, value in asked.items() if value is not None}
    pixels = {"pixels": math.prod(chosen.x.shape[2:])}

    def seen(x: Tensor) -> Tensor:  # a network of one's own may take ablated images only
        if given.get("noise") != "ablation" or "keep" not in given:
            return x
        return smoothing.noise_from(given | pixels)(x, torch.Generator(where).manual_seed(0))

    model, chosen, classes = inputs.ready(name, chosen, groups, where, seen)
    card = getattr(model, "card", {})
    about = {key: card[key] for key in asked if key in card} | given
    noise = _noise(name, about | pixels, given)
    if denoiser is not None:
        if not hasattr(noise, "sigma"):
            raise ValueError(f"denoiser={denoiser!r}: takes a sigma, which {noise} has not")
        front = inputs.network(denoiser, "denoiser")
        model = models.Denoised(front, model, about["sigma"]).to(where).eval()
    return smoothing.SmoothedClassifier(model, noise, classes), chosen


def _noise(name: str, about: dict[str, Any], given: dict[str, Any]) -> smoothing.Noise:
    kind = about.get("noise", "gaussian")
    needed, other = ("keep", "sigma") if kind == "ablation" else ("sigma", "keep")
    if other in given:
        raise ValueError(f"{other}={given[other]:g}: {kind} noise has none; pass another --noise, "
                         f"or --{needed}")  # fmt: skip
    if kind in smoothing.NOISES and needed not in about:
        raise ValueError(f"{needed}: {name} was not trained with a known noise; pass --{needed}")
    return smoothing.noise_from(about)


def _print(logs: dict[str, pd.DataFrame], norm: str = "l2") -> None:
    largest = max((log["radius"].max() for log in logs.values() if len(log)), default=0.0)
    steps = (0.05, 0.1, 0.25) if norm != "l0" else ()  # whole pixels
    step = next((step for step in steps if largest < 8 * step), 0.5 if steps else 1.0)
    while largest > 40 * step:  # a table of places that can still be read
        step *= 2
    # Rounded: 3 * 0.1 is more than 0.3, and 0.3 / 0.1 less than 3.
    radii = [round(k * step, 9) for k in range(int(largest / step + 1e-9) + 1)]
    typer.echo(certification.summary(logs, radii).to_string(float_format="{:.4f}".format))
