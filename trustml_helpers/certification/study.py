"""The MNIST certification study: every method at every sigma, under one protocol.

A study is a list of ordinary commands, so any single row can be run again, by hand or in another
folder; what is finished is not repeated, what was stopped goes on. The choice between methods is
made on validation images; the test set is certified once per network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trustml_helpers import bounds, models
from trustml_helpers.certification.run import (
    average_certified_radius,
    certified_accuracy,
    predict_acr,
    read_log,
)
from trustml_helpers.data import data_folder
from trustml_helpers.training import PUBLISHED
from trustml_helpers.smoothing import ABSTAIN, check_enough

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SIGMAS = (0.25, 0.5, 1.0)
METHODS = tuple(name for name in PUBLISHED if name != "smoothmix")  # which has to be named
# As in data/published/mnist_acr.csv.
NAMES = {
    "gaussian": "Gaussian", "stability": "Stability", "consistency": "Consistency",
    "smoothadv": "SmoothAdv", "smoothadv_consistency": "SmoothAdv + Consistency",
    "macer": "MACER", "smoothmix": "SmoothMix",
}  # fmt: skip
RADII = tuple(0.25 * k for k in range(12))
TEST = 10_000  # images
ALPHA = 0.001  # of certify, where nothing else is said
# With few samples the cap would hide what the methods differ in.
_VALIDATION = ["--split", "validation", "--n", "10000", "--every", "20"]  # of 5,000 images
_VALIDATION_ROWS = 250


@dataclass(frozen=True)
class Step:
    """One command of a study.

    Args:
        words: what stands after ``trustml``.
        output: the file that it makes.
        rows: of the log that it makes.
        serves: the certifications of the network that it trains.
    """

    words: list[str]
    output: Path
    rows: int = 0
    serves: tuple[Step, ...] = ()

    @property
    def done(self) -> bool:
        """Whether there is nothing to do: a network is not needed once its logs are complete."""
        if self.words[0] == "train":
            return self.output.exists() or all(step.done for step in self.serves)
        return self.output.exists() and len(read_log(self.output)) == self.rows


def steps(
    folder: Path,
    *,
    methods: Iterable[str] = METHODS,
    sigmas: Iterable[float] = SIGMAS,
    n: int = 10_000,
    every: int = 20,
    seed: int = 0,
    prefix: str = "quick_",
    execution: Sequence[str] = (),
) -> list[Step]:
    """The commands of a study in their order: train, certify validation images, certify the test.

    The networks trained with Gaussian noise are also certified under the other noise levels, with
    1,000 samples, for :func:`mismatch`.

    Args:
        folder: where logs go; networks that are not among the shipped ones go to
            ``folder / "checkpoints"``.
        methods: keys of :data:`NAMES`.
        sigmas: noise levels; each network is certified under the noise it was trained with.
        n, every: estimation samples per image, and which test images.
        seed: of training and noise.
        prefix: of the recipe: ``"quick_"``, or ``""`` for the published settings.
        execution: further options of every ``certify``, such as ``["--dtype", "bfloat16"]``.

    Raises:
        ValueError: for an unknown method or a number out of range.

    >>> first = steps(Path("out"), methods=["macer"], sigmas=[0.5])[0]
    >>> " ".join(first.words[:5])
    'train mnist_lenet_macer_0.5 --recipe quick_macer --sigma'
    """
    found, sigmas = [], list(sigmas)
    for sigma in sigmas:
        bounds.check_sigma(sigma)
    for name, value, least in (("n", n, 1), ("every", every, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value}: expected at least {least}")
    check_enough(n, ALPHA, "two_class")  # certify would refuse it after hours of training
    rows = len(range(0, TEST, every))
    certify = ["--bound", "two_class", "--seed", str(seed), *execution]
    for method in methods:
        if method not in NAMES:
            raise ValueError(f"method={method!r}: expected one of {', '.join(NAMES)}")
        for sigma in sigmas:
            key = _key(method, sigma, seed)
            name = f"mnist_lenet_{key}"
            made = folder / "checkpoints" / f"{name}.safetensors"
            ships = name in models.available()
            logs = [(folder / f"{key}_n{n}.tsv", rows, ["--n", str(n), "--every", str(every)])]
            if seed == 0:  # with another seed, others are held out of training
                held = folder / "validation" / f"{key}.tsv"
                logs.insert(0, (held, _VALIDATION_ROWS, _VALIDATION))
            if seed == 0 and method == "gaussian":
                logs += [
                    (folder / "mismatch" / f"{sigma}_at_{other}.tsv", rows,
                     ["--sigma", str(other), "--n", "1000", "--every", str(every)])
                    for other in sigmas
                ]  # fmt: skip
            serves = []
            for log, expected, which in logs:
                words = ["certify", name if ships else str(made), str(log), *which, *certify]
                serves.append(Step(words, log, expected))
            if not ships:
                words = ["train", name, "--recipe", f"{prefix}{method}", "--sigma", str(sigma),
                         "--seed", str(seed), "--out", str(made.parent)]  # fmt: skip
                found.append(Step(words, made, serves=tuple(serves)))
            found += serves
    return found


def _key(method: str, sigma: float, seed: int) -> str:
    return f"{method}_{float(sigma)}" + (f"_seed{seed}" if seed else "")


def summarise(folder: Path) -> pd.DataFrame:
    """One row per log of a study, sorted by n, sigma and ACR.

    Args:
        folder: holds ``METHOD_SIGMA[_seedS]_nN.tsv`` with their JSON files, and
            ``validation/METHOD_SIGMA[_seedS].tsv``.

    Returns:
        ``method, sigma, seed, n, images``; ACR and its standard error over images from the
        one-class bound (``acr``, ``se``) and the two-class bound (``acr_two``, ``se_two``), both
        at the whole alpha; ``published``: the authors' one-class ACR on the same images, at
        n = 100,000; ``predicted``: what ours would be with as many samples, where it had fewer
        (:func:`certification.predict_acr`); ``acr_validation``, and ``best``: the largest of
        these at this sigma and n; ``abstained``; ``r=...``: certified accuracy (one-class).
    """
    import pandas as pd

    published = pd.read_csv(data_folder() / "published" / "mnist_acr.csv")
    rows = []
    for path, key, n in _logs(folder):
        method, sigma, seed = _parse(key)
        one, two = read_log(path, "one_class"), read_log(path, "two_class")
        acr, error = average_certified_radius(one)
        acr_two, error_two = average_certified_radius(two)
        row = {"method": method, "sigma": sigma, "seed": seed, "n": n, "images": len(one),
               "acr": acr, "se": error, "acr_two": acr_two, "se_two": error_two,
               "abstained": float((one["predict"] == ABSTAIN).mean())}  # fmt: skip
        column = {500: "acr_every_20th", 10_000: "acr"}.get(len(one))
        if n != 100_000:
            alpha = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["alpha"]
            row["predicted"] = predict_acr(one, sigma, n, alpha, 100_000)
        known = published[(published.method == NAMES[method]) & (published.sigma == sigma)]
        if column and len(known):
            row["published"] = float(known[column].iloc[0])
        held = folder / "validation" / f"{key}.tsv"
        if held.exists():
            row["acr_validation"] = average_certified_radius(read_log(held, "one_class"))[0]
        shares = zip(RADII, certified_accuracy(one, RADII), strict=True)
        rows.append(row | {f"r={radius:g}": float(share) for radius, share in shares})
    if not rows:
        raise ValueError(f"folder={str(folder)!r}: no logs METHOD_SIGMA_nN.tsv there")
    table = pd.DataFrame(rows)
    for column in ("published", "predicted", "acr_validation"):
        table[column] = table.get(column, float("nan"))
    largest = table.groupby(["sigma", "n"])["acr_validation"].transform("max")
    table["best"] = table["acr_validation"] == largest
    radii = [f"r={radius:g}" for radius in RADII]
    table = table[[name for name in table if name not in radii] + radii]
    return table.sort_values(["n", "sigma", "acr"], ignore_index=True)


def mismatch(folder: Path, radius: float) -> pd.DataFrame:
    """Certified accuracy (one-class) at a radius, for networks under other noise than trained.

    Args:
        folder: of a study; reads ``mismatch/TRAINED_at_CERTIFIED.tsv``.
        radius: in pixel units.

    Returns:
        Training sigma in the rows, certification sigma in the columns.
    """
    import pandas as pd

    found: dict[float, dict[float, float]] = {}
    for path in sorted((folder / "mismatch").glob("*_at_*.tsv")):
        trained, _, used = path.stem.partition("_at_")
        share = float(certified_accuracy(read_log(path, "one_class"), radius)[0])
        found.setdefault(float(used), {})[float(trained)] = share
    return pd.DataFrame(found).sort_index(axis=0).sort_index(axis=1)


def curves(folder: Path, radii: Sequence[float], *, n: int) -> dict[float, dict[str, list[float]]]:
    """Certified accuracy (one-class) of the networks trained with seed 0, by sigma and method.

    Args:
        folder: of a study.
        radii: in pixel units, ``(m,)``.
        n: of the logs to read; a sigma or a method without such a log is left out.

    Returns:
        ``{sigma: {name of the method: shares (m,)}}``, methods in the order of :data:`NAMES`.
    """
    found: dict[float, dict[str, list[float]]] = {}
    for method, name in NAMES.items():
        for path in sorted(folder.glob(f"{method}_*_n{n}.tsv")):
            key = path.stem.rpartition("_n")[0]
            _, sigma, seed = _parse(key)
            if seed == 0 and key == _key(method, sigma, seed):
                shares = certified_accuracy(read_log(path, "one_class"), radii)
                found.setdefault(sigma, {})[name] = shares.tolist()
    return dict(sorted(found.items()))


def draw(folder: Path) -> dict[str, Figure]:
    """The pictures of a study by name: ``curves_nN`` for each n of its logs, and ``mismatch``."""
    from trustml_helpers import figures

    drawn: dict[str, Figure] = {}
    radii = (0.02 * np.arange(1, 201)).tolist()
    for n in sorted({n for _, _, n in _logs(folder)}):
        panels, titles = [], []
        for sigma, lines in curves(folder, radii, n=n).items():
            end = sum(radius <= 4 * sigma for radius in radii)  # n = 100,000 ends at 3.8 sigma
            shown = {name: shares[:end] for name, shares in lines.items()}
            panels.append((r"radius $r$ in $\ell_2$, pixel units", radii[:end], shown))
            titles.append(rf"$\sigma={sigma:g}$, n = {n:,}")
        if panels:  # there are none where all logs are of other seeds
            drawn[f"curves_n{n}"] = figures.curves(
                panels, "certified accuracy", legend="lower left", titles=titles
            )
    table = mismatch(folder, 0.5)
    if len(table):
        table = table.rename("trained with {:g}".format).rename("σ={:g}".format, axis=1)
        drawn["mismatch"] = figures.matrix(
            table, xlabel="certified with", note="certified accuracy in % at radius 0.5"
        )
    return drawn


def _logs(folder: Path) -> Iterator[tuple[Path, str, int]]:
    """Every log of a study, what its name begins with, and its n."""
    for path in sorted(folder.glob("*_n*.tsv")):
        key, _, n = path.stem.rpartition("_n")
        if not n.isdecimal():
            raise ValueError(f"{path.name}: expected METHOD_SIGMA_nN.tsv with a whole number N")
        yield path, key, int(n)


def _parse(key: str) -> tuple[str, float, int]:
    rest, _, seed = key.partition("_seed")
    method, _, sigma = rest.rpartition("_")
    if method not in NAMES:
        raise ValueError(f"{key}: expected METHOD_SIGMA with one of {', '.join(NAMES)}")
    return method, float(sigma), int(seed or 0)
