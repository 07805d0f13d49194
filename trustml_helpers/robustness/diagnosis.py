"""Can an accuracy under attack be believed? The evaluation checklist of the literature as code.

Use it as ``robustness.diagnose``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trustml_helpers._support.arguments import declared, whole
from trustml_helpers._support.calling import logits_of, unchanged
from trustml_helpers._support.randomness import given_or_fresh
from trustml_helpers.attacks import (
    Attack,
    Bounds,
    Goal,
    NotDifferentiable,
    cross_entropy,
    fits,
    margin,
    pgd,
    square,
    threat,
)
from trustml_helpers.robustness.evaluation import not_empty, robust_correct

ZERO_SHARE = 0.1  # of examples without any gradient: more than a few dead ones
FEWEST = 10  # images: where 9 of 9 differ, that is 3 standard errors, sqrt(9), and not more
ENOUGH = 225  # images: 3 standard errors of a share, 1.5 / sqrt(n), are 10 points at most


@dataclass(frozen=True)
class Finding:
    """One question of the checklist and its answer."""

    name: str  # short, fixed: "zero gradient", "gradient-free attack", ...
    passed: bool
    detail: str  # what was measured, and what to do if not passed

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FLAG'}  {self.name}: {self.detail}"


@dataclass(frozen=True)
class Diagnosis:
    """The answers; prints as a table, one line each."""

    findings: list[Finding]
    accuracy: dict[str, float] = field(default_factory=dict)  # under each attack that was tried

    @property
    def passed(self) -> bool:
        """Whether nothing was flagged. Then the attack is not shown to be strong, but not blind."""
        return all(finding.passed for finding in self.findings)

    @property
    def flagged(self) -> list[str]:
        """Names of the findings that did not pass."""
        return [finding.name for finding in self.findings if not finding.passed]

    def __str__(self) -> str:
        verdict = "nothing flagged" if self.passed else f"FLAGGED: {', '.join(self.flagged)}"
        return "\n".join([*map(str, self.findings), verdict])


@declared(
    not_empty, fits, **threat("norm", "generator"), steps=whole(1), queries=whole(1),
    batch_size=whole(1),
)  # fmt: skip
def diagnose(
    model: Any, x: Tensor, y: Tensor, eps: float, *, norm: str = "linf", bounds: Bounds = (0, 1),
    attack: Attack | None = None, steps: int = 40, queries: int = 500, batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> Diagnosis:  # fmt: skip
    """Ask of an evaluation what would show that its attack failed for the wrong reason.

    The questions, by the name of the finding: are there enough images to see a difference
    (``number of images``), is the output the same twice (``randomness``), are
    there NaN logits (``nan logits``), are the outputs logits (``probabilities``), is there a
    gradient (``differentiable``, ``zero gradient``), do several steps beat one (``single step``),
    do more steps, restarts and another loss change little (``more steps``, ``other loss``), does
    accuracy fall to chance as eps grows (``growing eps``), and do random noise and a search
    without gradient never do better (``random noise``, ``gradient-free attack``)?

    Args:
        model: images to logits ``(n, K)``; left as found.
        x, y: images and labels, a few hundred; fewer make the tolerance wide, and fewer than 10
            are flagged.
        eps, norm, bounds: the threat, as for :func:`attacks.fgsm`.
        attack: the attack ``(model, x, y) -> x_adv`` whose result is in question; PGD with the
            cross-entropy if not given.
        steps: of PGD, also where ``attack`` is given.
        queries: of the search without gradient, and a tenth of it for random noise.
        batch_size: images per call.
        generator: of all attacks; fresh entropy if not given.

    Returns:
        A :class:`Diagnosis`: ``.passed``, ``.flagged`` (names), ``.findings``, ``.accuracy``.
        A difference counts beyond 5 points (10 for more steps) and 3 standard errors of a share.

    Source: Carlini et al. (2019), "On evaluating adversarial robustness", section 3; Athalye,
    Carlini, Wagner (2018), "Obfuscated gradients give a false sense of security", section 3.

    >>> x = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    >>> report = diagnose(lambda x: 1000 * x, x, x.argmax(1), 0.1)
    >>> report.passed, "zero gradient" in report.flagged
    (False, True)
    """
    y = y.long()
    generator = given_or_fresh(generator, x)
    threat: dict[str, Any] = {"norm": norm, "bounds": bounds, "generator": generator}
    white = partial(pgd, steps=steps, keep="first", **threat)
    evidence = _Evidence(model, x, y, batch_size)
    findings = [_enough(evidence), *_outputs(evidence)]
    gradient = _gradient(evidence)
    findings += gradient
    if gradient[0].passed:
        findings += _attacks(evidence, white, attack or partial(white, eps=eps), eps, norm, bounds)
    else:
        evidence.stands("attack", lambda model, x, y: x)
    findings += _searches(evidence, eps, norm, bounds, queries, generator)
    return Diagnosis(findings, evidence.accuracy)


class _Evidence:
    """A model, its examples, and which of them stood after each attack."""

    def __init__(self, model: Any, x: Tensor, y: Tensor, batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size
        with unchanged(model), torch.inference_mode():
            self.logits, self.again = (
                torch.cat([logits_of(model, part) for part in x.split(batch_size)])
                for _ in range(2)
            )
        Goal(lambda _: self.logits, y, margin).logits(x)  # refuses shapes and labels that misfit
        right = (self.logits.argmax(1) == y) & ~self.logits.isnan().any(1)
        self.clean = right.double().mean().item()
        self.x, self.y, self.total = x[right], y[right], len(x)
        self.standing: dict[str, Tensor] = {}
        self.accuracy = {"clean": self.clean}

    def stands(self, name: str, attack: Attack) -> float:
        """Accuracy under an attack, over all examples; the outcome of each is kept."""
        self.standing[name] = robust_correct(
            self.model, self.x, self.y, attack, batch_size=self.batch_size
        )
        self.accuracy[name] = self.standing[name].sum().item() / self.total
        return self.accuracy[name]

    def tolerance(self, points: float = 0.05) -> float:
        """What a difference must exceed to be believed: 3 standard errors of a share, at their
        largest (a share of one half), and some points."""
        return max(points, 3 * 0.5 / math.sqrt(self.total))

    def missed(self, name: str, by: str = "attack") -> float:
        """Share of examples that ``name`` fools and the attack in question does not."""
        return (self.standing[by] & ~self.standing[name]).sum().item() / self.total


def _enough(evidence: _Evidence) -> Finding:
    n, few = evidence.total, evidence.total < FEWEST
    what = (
        f"fewer than {FEWEST} images cannot tell any difference of accuracies from chance" if few
        else f"differences below {100 * evidence.tolerance():.0f} points do not count"
    )  # fmt: skip
    cure = f"; use at least {ENOUGH} images, with which differences of 10 points count"
    return Finding("number of images", not few, f"{n}: {what}{cure if n < ENOUGH else ''}")


def _outputs(evidence: _Evidence) -> Iterator[Finding]:
    logits, again = evidence.logits, evidence.again
    broken = int(logits.isnan().any(1).sum())
    yield Finding("nan logits", broken == 0, f"{broken} of {len(logits)} outputs hold NaN")
    same = torch.equal(logits.nan_to_num(), again.nan_to_num())
    yield Finding(
        "randomness", same,
        "the same input gives the same output" if same else
        "the same input gives different outputs: average the gradient over the randomness (EOT)",
    )  # fmt: skip
    smallest, sums = logits.amin(), logits.sum(1)
    shares = bool(smallest >= 0) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    yield Finding(
        "probabilities", not shares,
        "outputs are non-negative and add up to 1: a softmax inside the model hides the logits; "
        "attack the model without it" if shares else "outputs are not probabilities",
    )  # fmt: skip


def _gradient(evidence: _Evidence) -> list[Finding]:
    parts = zip(evidence.x.split(evidence.batch_size), evidence.y.split(evidence.batch_size),
                strict=True)  # fmt: skip
    zero = 0
    try:
        with unchanged(evidence.model), torch.no_grad():
            for x, y in parts:
                gradient = Goal(evidence.model, y, cross_entropy).ascend(x, y)[2]
                zero += int((gradient.flatten(1) == 0).all(1).sum())
    except NotDifferentiable as error:
        return [Finding("differentiable", False, f"{error}; replace the step in question by a "
                        "smooth one for the backward pass (BPDA)")]  # fmt: skip
    share = zero / max(len(evidence.x), 1)
    cure = "; use the margin loss, or replace the step without gradient (BPDA)"
    return [
        Finding("differentiable", True, "logits have a gradient"),
        Finding("zero gradient", share <= ZERO_SHARE,
                f"{share:.1%} of the gradients of the cross-entropy are exactly zero"
                f"{'' if share <= ZERO_SHARE else cure}"),
    ]  # fmt: skip


def _attacks(
    evidence: _Evidence, white: Any, attack: Attack, eps: float, norm: str, bounds: Bounds
) -> Iterator[Finding]:
    result = evidence.stands("attack", attack)
    close, wide = evidence.tolerance(), evidence.tolerance(0.1)
    one = evidence.stands("single step", partial(white, eps=eps, steps=1, step_size=eps,
                                                 random_start=False))  # fmt: skip
    yield Finding("single step", result <= one + close,
                  f"accuracy {one:.1%} after one step, {result:.1%} under the attack")  # fmt: skip
    steps = 4 * white.keywords["steps"]
    more = evidence.stands("more steps", partial(white, eps=eps, steps=steps, restarts=3))
    yield Finding("more steps", more >= result - wide,
                  f"accuracy {more:.1%} with {steps} steps and 3 restarts")  # fmt: skip
    other = evidence.stands("other loss", partial(white, eps=eps, loss="margin"))
    yield Finding("other loss", other >= result - wide,
                  f"accuracy {other:.1%} with the margin loss")  # fmt: skip
    if bounds is None:
        return
    width = bounds[1] - bounds[0]
    pixels = evidence.x[:1].numel()
    everything = {"linf": width, "l2": width * math.sqrt(pixels), "l1": width * pixels}[norm]
    chance, curve = 1 / evidence.logits.shape[1], [result]
    for share in (0.5, 1.0):
        radius = eps + share * max(everything - eps, 0)
        curve.append(evidence.stands(f"eps {radius:.3g}", partial(white, eps=radius)))
    falls = curve[1] <= curve[0] + close and curve[2] <= curve[1] + close
    text = ", ".join(f"{value:.1%}" for value in curve)
    yield Finding("growing eps", falls and curve[2] <= chance + close,
                  f"accuracy {text} up to the whole range; chance is {chance:.1%}")  # fmt: skip


def _searches(
    evidence: _Evidence, eps: float, norm: str, bounds: Bounds, queries: int,
    generator: torch.Generator,
) -> Iterator[Finding]:  # fmt: skip
    """Attacks without gradient; whatever they find, a gradient attack should have found."""
    draws = max(queries // 10, 1)
    threat: dict[str, Any] = {"eps": eps, "norm": norm, "bounds": bounds, "generator": generator}
    noise = partial(pgd, steps=0, restarts=draws, keep="first", **threat)
    blind = partial(square, queries=queries, **threat)
    for name, attack, what in (
        ("random noise", noise, f"{draws} random points of the ball"),
        ("gradient-free attack", blind, f"{queries} queries of Square"),
    ):
        left = evidence.stands(name, attack)
        missed, limit = evidence.missed(name), evidence.tolerance()
        yield Finding(name, missed <= limit,
                      f"accuracy {left:.1%} after {what}; they fool {missed:.1%} that the attack "
                      f"did not")  # fmt: skip
