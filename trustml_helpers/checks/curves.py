"""Checks of the homework on certified accuracy: two numbers of a log, and reading its picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats

from trustml_helpers.certification import certified_accuracy as curve
from trustml_helpers.certification import read_log
from trustml_helpers.checks.harness import Answer, Cases, Wrong, agree, check, number
from trustml_helpers.data import data_folder
from trustml_helpers.smoothing import ABSTAIN


@check
def certified_accuracy(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """In notebook 05: ``(label, prediction, radius, r) -> share``."""
    label = torch.randint(3, (97,), generator=generator).numpy()
    radius = (torch.randint(0, 9, (97,), generator=generator) / 8).double().numpy()
    prediction = label.copy()
    prediction[::4] = (label[::4] + 1) % 3
    prediction[1::7], radius[1::7] = ABSTAIN, 0.0
    right = prediction == label
    radii = {"at a small radius": 0.05, "between two radii": 0.3, "at a radius met": 0.5}
    for name, r in radii.items():
        with case(name):
            found = number(answer(label, prediction, radius, r), "a share of all images")
            expected = float((right & (radius >= r)).mean())
            faults = {
                "wrong predictions count as well: compare with the label":
                    float((radius >= r).mean()),
                "a share of the correct images: divide by all of them":
                    float((radius >= r)[right].mean()),
                "a share of the images with an answer: an abstention counts as an error":
                    float((right & (radius >= r))[prediction != ABSTAIN].mean()),
                "a number of images, not a share": float((right & (radius >= r)).sum()),
                "in percent: give a share in [0, 1]": 100 * expected,
                "a radius of exactly r is certified too: >=, not >":
                    float((right & (radius > r)).mean()),
                "this is a mean radius, not a share": float((right * radius).mean()),
                "counts images whose radius is below r": float((right & (radius < r)).mean()),
                "this is 1 minus the certified accuracy": 1 - expected,
            }  # fmt: skip
            agree(found, expected, faults, tolerance=1e-9)


@check
def average_certified_radius(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """The average certified radius, ``(label, prediction, radius) -> ACR``."""
    for name, share in (("some answers wrong", 3), ("a larger set", 5)):
        label = torch.randint(5, (40 * share,), generator=generator).numpy()
        radius = torch.rand(40 * share, generator=generator).double().numpy()
        prediction = label.copy()
        prediction[::share] = (label[::share] + 2) % 5
        prediction[1::7], radius[1::7] = ABSTAIN, 0.0
        right = prediction == label
        with case(name):
            found = number(answer(label, prediction, radius), "a mean radius")
            faults = {
                "wrong predictions count with their radius: they count as 0": float(radius.mean()),
                "the mean over the correct images: divide by all of them":
                    float(radius[right].mean()),
                "abstentions are left out: they count as 0, divide by all images":
                    float((right * radius)[prediction != ABSTAIN].mean()),
                "the median, not the mean": float(np.median(right * radius)),
                "a sum, not a mean": float((right * radius).sum()),
                "wrong predictions count with minus their radius: they count as 0":
                    float(np.where(right, radius, -radius).mean()),
                "the share of correct images, not a radius": float(right.mean()),
                "in percent: a radius is in pixel units": 100 * float((right * radius).mean()),
                "counts the images that are wrong, not those that are right":
                    float((~right * radius).mean()),
                "the largest radius, not the mean": float((right * radius).max()),
                "the mean over all but one: divide by the number of images":
                    float((right * radius).sum() / (len(radius) - 1)),
            }  # fmt: skip
            agree(found, float((right * radius).mean()), faults, unit=" pixel units",
                  tolerance=1e-9)  # fmt: skip


@check
def reading(
    answer: Answer, case: Cases, generator: torch.Generator, *,
    sigmas: Sequence[float] = (0.25, 0.5, 1.0), radii: Sequence[float] = (1.0, 1.75, 1.25),
    curves: Sequence[float] = (0.5, 0.25), n: int = 100_000,
) -> None:  # fmt: skip
    """Five numbers from the picture of three shipped logs, ``() -> tuple``.

    Settings: the logs ``gaussian_{sigma}_n10000``, the radii of questions a, b and c, the sigma of
    question c and that of d and e, and the samples of question e.
    """
    folder = data_folder() / "results" / "mnist_study"
    logs = {
        float(sigma): read_log(folder / f"gaussian_{float(sigma)}_n10000.tsv", "one_class")
        for sigma in sigmas
    }
    second, first = map(float, curves)
    found: list[float] = []
    with case.before_all():
        values = answer()
        if not isinstance(values, tuple | list) or len(values) != 5:
            raise Wrong(f"returns {values!r}, expected five numbers (a), (b), (c), (d), (e)")
        found = [number(value, "a number") for value in values]

    def best(r: float) -> float:
        return max(logs, key=lambda sigma: curve(logs[sigma], r)[0])

    def last(sigma: float, samples: int, alpha: float = 0.001) -> float:
        return sigma * float(stats.norm.ppf(alpha ** (1 / samples)))

    heights = {sigma: float(curve(log, radii[2])[0]) for sigma, log in logs.items()}
    others = [sigma for sigma in logs if sigma != second]
    picture = "look along a vertical line of the picture"
    mistakes: dict[str, dict[str, float]] = {
        "c": {f"this is the height of the curve of sigma = {s:g}": heights[s] for s in others}
        | {"in percent: give a share in [0, 1]": 100 * heights[second]},
        "d": {f"this is where the curve of sigma = {s:g} falls": last(s, 10_000) for s in logs},
        "e": {"the radius of n = 10,000, as in (d): more votes reach further":
              last(first, 10_000),
              "sigma is missing: it is sigma * Phi^-1 of the bound": last(1.0, n),
              "no radius is infinite: n votes of n do not prove p = 1": np.inf,
              "this is the bound on p, alpha ** (1 / n): a radius is asked for": 0.001 ** (1 / n)},
    }  # fmt: skip
    for letter, expected, allowed, hint in (
        ("a", best(radii[0]), 0.0, f"which curve is on top at radius {radii[0]:g}? {picture}"),
        ("b", best(radii[1]), 0.0, f"which curve is on top at radius {radii[1]:g}? {picture}"),
        ("c", heights[second], 0.03, f"the height of the curve of sigma = {second:g} at radius "
         f"{radii[2]:g}, in [0, 1]"),
        ("d", last(first, 10_000), 0.03, f"where the curve of sigma = {first:g} falls to 0, in "
         "pixel units"),
        ("e", last(first, n), 0.02, "all votes agree: sigma * Phi^-1 of the bound "
         "alpha ** (1 / n)"),
    ):  # fmt: skip
        with case(f"({letter})"):
            value = found["abcde".index(letter)]
            if abs(value - expected) <= allowed + 1e-9:
                continue
            for what, mistake in mistakes.get(letter, {}).items():
                if abs(value - mistake) <= max(allowed, 1e-9) or value == mistake:
                    raise Wrong(what)
            raise Wrong(f"{value:g} is not right: {hint}")
