"""What a study runs: a list of ordinary commands, so any one of them can be run again by hand.

What is finished is not repeated, what was stopped goes on. The choice between methods is made on
validation images; the test set is certified once per network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trustml_helpers import models
from trustml_helpers._support.arguments import SEED, SIGMA, declared, each, one_of, whole
from trustml_helpers.certification import METHOD_NAMES, read_log
from trustml_helpers.smoothing import enough
from trustml_helpers.training import RECIPES

SIGMAS = (0.25, 0.5, 1.0)
# Are part of a study only where they are named.
NAMED = ("easy", "night", "night_cat_rs")
METHODS = tuple(name for name in METHOD_NAMES if name not in NAMED)
# Trained without an attack, and stored in 16 bits; the others in 8, as the cards of ours say.
_UNATTACKED = ("gaussian", "stability", "consistency", "macer")
TEST = 10_000  # images
ALPHA = 0.001  # of certify, where nothing else is said
# With few samples the cap would hide what the methods differ in.
_VALIDATION = ["--split", "validation", "--n", "10000", "--every", "20"]  # of 5,000 images
_VALIDATION_ROWS = 250


@dataclass(frozen=True)
class Step:
    """One command of a study."""

    words: list[str]  # what stands after ``trustml``
    output: Path  # the file that it makes
    rows: int = 0  # of the log that it makes
    serves: tuple[Step, ...] = ()  # the certifications of the network that it trains

    @property
    def done(self) -> bool:
        """Whether there is nothing to do: a network is not needed once its logs are complete."""
        if self.words[0] == "train":
            return self.output.exists() or all(step.done for step in self.serves)
        return self.output.exists() and len(read_log(self.output)) == self.rows


@declared(
    methods=each(one_of(*METHOD_NAMES)), sigmas=each(SIGMA), n=whole(1), every=whole(1), seed=SEED,
)  # fmt: skip
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
    1,000 samples, for ``certification.mismatch``.

    Args:
        folder: where logs go; networks that are not among the shipped ones go to
            ``folder / "checkpoints"``.
        methods, sigmas: which networks; each is certified under the noise it was trained with.
        n, every, seed: samples per image, which test images, the seed of training and noise.
        prefix: of the recipe: ``"quick_"``, or ``""`` for the published settings. The method
            "night" always has the recipe ``night_smoothadv_consistency``, "night_cat_rs" its own.
        execution: further options of every ``certify``, such as ``["--dtype", "bfloat16"]``.

    Raises:
        ValueError: if a method has no recipe of this prefix.

    >>> first = steps(Path("out"), methods=["macer"], sigmas=[0.5])[0]
    >>> " ".join(first.words[:5])
    'train mnist_lenet_macer_0.5 --recipe quick_macer --sigma'
    """
    enough(n, ALPHA, "two_class")  # certify would refuse it after hours of training
    recipes = {name: f"{prefix}{name}" for name in METHOD_NAMES}
    recipes |= {"night": "night_smoothadv_consistency", "night_cat_rs": "night_cat_rs"}
    methods = tuple(methods)
    for method in methods:
        if recipes[method] not in RECIPES:
            has = [name for name, recipe in recipes.items() if recipe in RECIPES]
            raise ValueError(f"method={method!r}: no recipe {recipes[method]}; there are recipes "
                             f"for {', '.join(has)}")  # fmt: skip
    rows, found = len(range(0, TEST, every)), []
    how = ["--bound", "two_class", "--seed", str(seed), *execution]
    for method, sigma in ((method, sigma) for method in methods for sigma in sigmas):
        key = f"{method}_{sigma}" + (f"_seed{seed}" if seed else "")
        name = f"mnist_lenet_{key}"
        made = folder / "checkpoints" / f"{name}.safetensors"
        ships = name in models.available()
        logs = [(folder / f"{key}_n{n}.tsv", rows, ["--n", str(n), "--every", str(every)])]
        if seed == 0:  # with another seed, others are held out of training
            logs.insert(0, (folder / "validation" / f"{key}.tsv", _VALIDATION_ROWS, _VALIDATION))
        if seed == 0 and method == "gaussian":
            logs += [
                (folder / "mismatch" / f"{sigma}_at_{other}.tsv", rows,
                 ["--sigma", str(other), "--n", "1000", "--every", str(every)])
                for other in sigmas
            ]  # fmt: skip
        serves = tuple(
            Step(["certify", name if ships else str(made), str(log), *which, *how], log, expected)
            for log, expected, which in logs
        )
        if not ships:
            words = ["train", name, "--recipe", recipes[method], "--sigma", str(sigma),
                     "--seed", str(seed), "--bits", "16" if method in _UNATTACKED else "8",
                     "--out", str(made.parent)]  # fmt: skip
            found.append(Step(words, made, serves=serves))
        found += serves
    return found
