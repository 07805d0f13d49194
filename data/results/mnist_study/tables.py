"""The tables of this folder's README, from the logs, the cards and the published figures.

Usage: python data/results/mnist_study/tables.py [--write]
Prints them, or puts each in its place in README.md, between the lines that name it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trustml_helpers import certification, models
from trustml_helpers.certification import METHOD_NAMES

HOME = Path(__file__).parent
PUBLISHED = HOME.parents[1] / "published"
SIGMAS = (0.25, 0.5, 1.0)
RADII = (0.5, 1.0, 1.5, 2.0, 2.5)


def log_of(row: dict[str, Any], home: Path = HOME) -> Path:
    """The log that a row of ``certification.summarise`` is about."""
    seed = f"_seed{row['seed']}" if row["seed"] else ""
    return home / f"{row['method']}_{row['sigma']}{seed}_n{row['n']}.tsv"


def scores(path: Path) -> np.ndarray:
    """Certified radius per image (one-class), 0 where wrong or abstained."""
    log = certification.read_log(path, "one_class")
    return np.where(log.correct == 1, log.radius, 0.0)


def with_more(path: Path, sigma: float) -> float:
    """The ACR (one-class) that n = 100,000 would give in the place of 10,000, predicted."""
    log = certification.read_log(path, "one_class")
    return certification.predict_acr(log, sigma, 10_000, 0.001, 100_000)


def seed_of(row: dict[str, Any], table: pd.DataFrame) -> dict[str, Any]:
    """A column for the seed, where the table has several."""
    return {"seed": row["seed"]} if table.seed.any() else {}


def gain(new: np.ndarray, old: np.ndarray) -> str:
    """Mean difference image by image, and its standard error."""
    apart = new - old
    return f"{apart.mean():+.4f} ± {apart.std(ddof=1) / len(apart) ** 0.5:.4f}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table of rows that share their keys."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + ["| " + " | ".join(map(str, row.values())) + " |" for row in rows])


def results(table: pd.DataFrame, n: int) -> str:
    """ACR by both bounds, and certified accuracy by the one-class bound."""
    rows, table = [], table[table.n == n]
    for row in table.to_dict("records"):
        log = log_of(row)
        settings = json.loads(log.with_suffix(".json").read_text(encoding="utf-8"))
        shares = certification.certified_accuracy(
            certification.read_log(log, "one_class"), (0.0, *RADII)
        )
        rows.append(
            {"sigma": f"{row['sigma']:g}", "method": METHOD_NAMES[row["method"]]}
            | seed_of(row, table)
            | {"ACR one-class": f"{row['acr']:.4f}", "s.e.": f"{row['se']:.4f}",
               "ACR two-class": f"{row['acr_two']:.4f}", "s.e. ": f"{row['se_two']:.4f}",
               "abstained": f"{row['abstained']:.3f}"}
            | {f"r={r:g}": f"{share:.3f}" for r, share in zip((0, *RADII), shares, strict=True)}
            | {"validation ACR": f"{row['acr_validation']:.4f}" if row["seed"] == 0 else "",
               "network run in": settings["dtype"]}
        )  # fmt: skip
    return markdown(rows)


def against_gaussian(n: int) -> str:
    """What each method certifies more than Gaussian noise, image by image."""
    rows = []
    for method, name in METHOD_NAMES.items():
        found = {}
        for sigma in SIGMAS:
            log = HOME / f"{method}_{sigma}_n{n}.tsv"
            if method != "gaussian" and log.exists():
                found[f"{sigma:g}"] = gain(scores(log), scores(HOME / f"gaussian_{sigma}_n{n}.tsv"))
        if found:
            rows.append({"method": name} | {f"{s:g}": found.get(f"{s:g}", "") for s in SIGMAS})
    return markdown(rows)


def against_published(table: pd.DataFrame) -> str:
    """n = 100,000 beside the authors' five networks (their mean, image by image)."""
    theirs = pd.read_csv(PUBLISHED / "mnist_every_20th.csv.gz")
    best = theirs.groupby(["sigma", "method"]).radius.mean().groupby("sigma").idxmax()
    rows, table = [], table[table.n == 100_000]
    for row in table.to_dict("records"):
        sigma, name = row["sigma"], METHOD_NAMES[row["method"]]
        ours = scores(log_of(row))
        same = {}
        same_method = name.removesuffix(", a night")
        for heading, method in (("same method", same_method), ("best published", best[sigma][1])):
            known = theirs[(theirs.sigma == sigma) & (theirs.method == method)].radius.to_numpy()
            if len(known):
                same[heading] = f"{known.mean():.4f}, {gain(ours, known)}"
        rows.append(
            {"sigma": f"{sigma:g}", "method": name}
            | seed_of(row, table)
            | {"ours": f"{ours.mean():.4f}",
               "published, ours minus it": same.get("same method", ""),
               "largest published": best[sigma][1], "ACR, ours minus it": same["best published"]}
        )  # fmt: skip
    return markdown(rows)


def predicted(table: pd.DataFrame) -> str:
    """What n = 100,000 would give by ``certification.predict_acr``, beside the published figure."""
    few = table[(table.n == 10_000) & (table.seed == 0)].set_index(["method", "sigma"])
    return markdown([
        {"method": name}
        | {f"{what} {s:g}": f"{few[what].get((method, s), np.nan):.4f}".replace("nan", "")
           for what in ("predicted", "published") for s in SIGMAS}
        for method, name in METHOD_NAMES.items()
        if method in few.index.unique("method")
    ])  # fmt: skip


def nights() -> str:
    """What a night gains over the quick recipe, on the validation images."""
    pairs = (("night", "smoothadv_consistency"), ("night_cat_rs", "cat_rs"))
    rows = []
    for (night, quick), sigma in itertools.product(pairs, SIGMAS):
        new, old = (HOME / "validation" / f"{method}_{sigma}.tsv" for method in (night, quick))
        if new.exists():
            rows.append(
                {"objective": METHOD_NAMES[quick], "sigma": f"{sigma:g}",
                 "a night": f"{scores(new).mean():.4f}", "quick": f"{scores(old).mean():.4f}",
                 "gain": gain(scores(new), scores(old)),
                 "predicted, a night": f"{with_more(new, sigma):.4f}",
                 "predicted, quick": f"{with_more(old, sigma):.4f}"}
            )  # fmt: skip
    return markdown(rows)


def seeds() -> str:
    """Other trainings of three networks, beside those of seed 0 (n = 10,000)."""
    place, rows = HOME / "seeds", []
    for row in certification.summarise(place).to_dict("records"):
        if row["seed"] == 0:
            continue
        zero = row | {"seed": 0}
        first = next(log for log in (log_of(zero), log_of(zero, place)) if log.exists())
        rows.append(
            {"sigma": f"{row['sigma']:g}", "method": METHOD_NAMES[row["method"]],
             "seed": row["seed"], "ACR one-class": f"{row['acr']:.4f}",
             "seed 0": f"{scores(first).mean():.4f}",
             "minus seed 0": gain(scores(log_of(row, place)), scores(first)),
             "ACR two-class": f"{row['acr_two']:.4f}", "abstained": f"{row['abstained']:.3f}"}
        )  # fmt: skip
    return markdown(rows)


def networks() -> str:
    """Every network of the study that has a card, here or among the checkpoints."""
    cards = {path.stem: path for path in (HOME / "cards").glob("*.json")}
    shipped = [name for name in models.available() if name.startswith("mnist_lenet_")]
    rows = []
    for name in sorted([*cards, *shipped]):
        card = json.loads(cards[name].read_text()) if name in cards else models.card(name)
        clean, noisy = card["test_accuracy"].values()
        rows.append(
            {"network": f"[{name}](cards/{name}.json)" if name in cards else f"`{name}`",
             "objective": card["objective"], "minutes": round(card["training_seconds"] / 60),
             "validation": f"{card['validation_accuracy']:.2%}", "clean": f"{clean:.2%}",
             "under noise": f"{noisy:.2%}", "sha256 of the weights": card["sha256"][:16] + "…"}
        )  # fmt: skip
    return markdown(rows)


def mismatch() -> str:
    """Certified accuracy (one-class) at radius 0.5, n = 1,000, under other noise than trained."""
    table = certification.mismatch(HOME, 0.5)
    return markdown([
        {"trained with": f"{sigma:g}"} | {f"{s:g}": f"{share:.1%}" for s, share in row.items()}
        for sigma, row in table.iterrows()
    ])  # fmt: skip


def files() -> str:
    """Every log and its sha256."""
    logs = sorted([*HOME.rglob("*.tsv"), HOME / "summary.csv"])
    sums = [hashlib.sha256(log.read_bytes()).hexdigest() for log in logs]
    names = [str(log.relative_to(HOME)) for log in logs]
    return markdown([{"file": a, "sha256": b} for a, b in zip(names, sums, strict=True)])


def tables() -> dict[str, str]:
    """All of them by name."""
    table = certification.summarise(HOME)
    return {
        "n = 100,000": results(table, 100_000),
        "n = 100,000, beside the published": against_published(table),
        "n = 10,000": results(table, 10_000),
        "n = 10,000, beside Gaussian noise": against_gaussian(10_000),
        "predicted": predicted(table),
        "nights": nights(),
        "seeds": seeds(),
        "networks": networks(),
        "mismatch": mismatch(),
        "files": files(),
    }


def filled(text: str, made: dict[str, str]) -> str:
    """The text with each table between ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    for name, table in made.items():
        place = rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)"
        text, times = re.subn(
            place, lambda m, t=table: f"{m[1]}\n{t}\n\n{m[2]}", text, flags=re.DOTALL
        )
        if times != 1:
            raise ValueError(f"README.md: table {name!r} has {times} places")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    made = tables()
    if options.write:
        readme = HOME / "README.md"
        readme.write_text(filled(readme.read_text(encoding="utf-8"), made), encoding="utf-8")
    else:
        print("\n\n".join(f"## {name}\n\n{table}" for name, table in made.items()))


if __name__ == "__main__":
    main()
