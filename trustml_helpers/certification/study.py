"""Reading a study of many networks: its table, and its pictures, from the logs in one folder.

``trustml study mnist`` makes such a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trustml_helpers._support.ledger import read_settings, settings_file
from trustml_helpers.certification.audit import predict_acr
from trustml_helpers.certification.log import average_certified_radius, certified_accuracy, read_log
from trustml_helpers.data import data_folder
from trustml_helpers.smoothing import ABSTAIN

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# As in data/published/mnist_acr.csv.
METHOD_NAMES = {
    "gaussian": "Gaussian", "stability": "Stability", "consistency": "Consistency",
    "smoothadv": "SmoothAdv", "smoothadv_consistency": "SmoothAdv + Consistency",
    "macer": "MACER", "smoothmix": "SmoothMix", "cat_rs": "CAT-RS", "easy": "Easy images",
    "night": "SmoothAdv + Consistency, a night", "night_cat_rs": "CAT-RS, a night",
}  # fmt: skip
RADII = tuple(0.25 * k for k in range(12))


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
        (:func:`predict_acr`); ``acr_validation``, and ``best``: the largest of
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
            alpha = read_settings(settings_file(path))["alpha"]
            row["predicted"] = predict_acr(one, sigma, n, alpha, 100_000)
        known = published[(published.method == METHOD_NAMES[method]) & (published.sigma == sigma)]
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


def study_curves(
    folder: Path, radii: Sequence[float], *, n: int
) -> dict[float, dict[str, list[float]]]:
    """Certified accuracy (one-class) of the networks trained with seed 0, by sigma and method.

    Args:
        folder: of a study.
        radii: in pixel units, ``(m,)``.
        n: of the logs to read; a sigma or a method without such a log is left out.

    Returns:
        ``{sigma: {name of the method: shares (m,)}}``, methods ordered as ``METHOD_NAMES``.
    """
    found: dict[float, dict[str, list[float]]] = {}
    for method, name in METHOD_NAMES.items():
        for path in sorted(folder.glob(f"{method}_*_n{n}.tsv")):
            which, sigma, seed = _parse(path.stem.rpartition("_n")[0])
            if which == method and seed == 0:
                shares = certified_accuracy(read_log(path, "one_class"), radii)
                found.setdefault(sigma, {})[name] = shares.tolist()
    return dict(sorted(found.items()))


def draw_study(folder: Path) -> dict[str, Figure]:
    """The pictures of a study by name: ``curves_nN`` for each n of its logs, and ``mismatch``."""
    from trustml_helpers import figures

    drawn: dict[str, Figure] = {}
    radii = (0.02 * np.arange(1, 201)).tolist()
    for n in sorted({n for _, _, n in _logs(folder)}):
        panels, titles = [], []
        for sigma, lines in study_curves(folder, radii, n=n).items():
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
    if method not in METHOD_NAMES:
        raise ValueError(f"{key}: expected METHOD_SIGMA with one of {', '.join(METHOD_NAMES)}")
    return method, float(sigma), int(seed or 0)
