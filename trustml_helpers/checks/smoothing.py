"""Checks on smoothing: bounds, votes, PREDICT, noise in training, CERTIFY, radii, the worst f."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from trustml_helpers import theory
from trustml_helpers.bounds import lower_conf_bound as exact_bound
from trustml_helpers.checks.harness import (
    Answer,
    Cases,
    Wrong,
    agree,
    check,
    integer,
    left_alone,
    number,
    tensor,
    two_values,
    untouched,
)
from trustml_helpers.smoothing import ABSTAIN


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def whole(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=generator))


def lower(k: int, n: int, alpha: float) -> float:
    return float(exact_bound(k, n, alpha))


@check
def lower_conf_bound(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """In notebook 05: LOWERCONFBOUND, ``(k, n, alpha) -> p``."""
    few = whole(generator, 60, 200)
    for name, ks, n, alpha in (
        ("some successes", [int(0.8 * few)], few, 0.01),
        ("every one a success", [few], few, 0.001),
        ("few successes, and none", [3, 0], few, 0.05),
        ("many trials, small alpha", [97_500 + few], 100_000, 1e-6),
    ):  # fmt: skip
        with case(name):
            for k in ks:
                _bound(answer, k, n, alpha)


def _bound(answer: Answer, k: int, n: int, alpha: float) -> None:
    found = number(answer(k, n, alpha), "a probability; for k = 0 the bound is 0")
    faults = {
        "alpha / 2: a two-sided interval; only the lower end is used, so all of alpha is "
        "its": lower(k, n, alpha / 2),
    } | bound_faults(k, n, alpha)  # fmt: skip
    agree(found, lower(k, n, alpha), faults, tolerance=1e-6)


def bound_faults(k: int, n: int, alpha: float) -> dict[str, float]:
    """What some mistakes give for the lower bound; 1 minus that of n - k is the upper one's."""
    share = k / n
    spread = math.sqrt(share * (1 - share) / n)
    loose = share - math.sqrt(math.log(1 / alpha) / (2 * n))
    plain = "this is k / n, no bound: the true p lies on the other side about half of the time"
    if share in (0, 1):
        plain = "this is 0 or 1, no bound: that all trials agree does not prove that all ever will"
    return {
        plain: share,
        "this is the bound of the other side": 1 - lower(n - k, n, alpha),
        "alpha and 1 - alpha are swapped": lower(k, n, 1 - alpha),
        "the normal approximation (Wald): not exact, and too narrow near p = 0 and p = 1":
            share + stats.norm.ppf(alpha) * spread,
        "the two-sided normal approximation": share + stats.norm.ppf(alpha / 2) * spread,
        # Cut at 0 it is no longer told from other bounds of 0.
        "Hoeffding's bound: valid, but looser than Clopper and Pearson's": loose,
        "Hoeffding's bound, cut to [0, 1]: valid, but looser than Clopper and Pearson's":
            loose if loose > 0 else math.nan,
        "k itself belongs to the tail: P(Bin(n, p) >= k), not > k, for a lower bound":
            float(stats.beta.ppf(alpha, k + 1, max(n - k, 1e-9))),
        "the parameters of the Beta distribution are off by one: k and n - k + 1 for a lower "
        "bound, k + 1 and n - k for an upper one": float(stats.beta.ppf(alpha, k + 1, n - k + 1)),
        "the parameters of the Beta distribution are k and n - k: one of them is off by one":
            float(stats.beta.ppf(alpha, max(k, 1e-9), max(n - k, 1e-9))),
        "the median of the posterior, not a bound":
            float(stats.beta.median(k + 1, n - k + 1)),
    }  # fmt: skip


@check
def samples_needed(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """In notebook 05: ``(radius, sigma, alpha) -> n``, the least if all votes agree."""
    for name, sigma, ratios, alpha in (
        ("sigma 1", 1.0, (1, 2.5), 0.001), ("another sigma and alpha", 0.25, (0.8, 3), 0.05),
        ("a radius of many sigmas", 0.5, (5, 7), 0.001),
    ):  # fmt: skip
        with case(name):
            for ratio in ratios:
                radius = sigma * (ratio + 0.1 * torch.rand((), generator=generator).item())
                _samples(answer(radius, sigma, alpha), radius, sigma, alpha)


def _samples(answered: Any, radius: float, sigma: float, alpha: float) -> None:
    found = integer(answered, "a whole number of samples: round up")
    exact = math.log(alpha) / stats.norm.logcdf(radius / sigma)
    faults = {
        "rounds down: with this n the radius is not reached": math.floor(exact),
        "sigma is missing: Phi takes radius / sigma": math.ceil(
            math.log(alpha) / stats.norm.logcdf(radius)
        ),
        "alpha / 2: the bound is one-sided": math.ceil(exact * math.log(alpha / 2)
                                                       / math.log(alpha)),
        "the fraction is turned: log(alpha) / log(Phi)": math.ceil(1 / exact),
    }  # fmt: skip
    for what, value in faults.items():
        if found == value != math.ceil(exact):
            raise Wrong(what)
    # Logarithms of other libraries may differ in the last digits of a number of billions.
    if abs(found - math.ceil(exact)) > 1e-9 * exact:
        raise Wrong(f"got {found:,}, expected {math.ceil(exact):,} at radius {radius:.4g}, sigma "
                    f"{sigma:g}, alpha {alpha:g}")  # fmt: skip


class Recorder(nn.Module):
    """Remembers what it is asked; answers one of four classes by the mean of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)
        self.inert = nn.Identity()
        self.asked: list[Tensor] = []
        self.answers: list[Tensor] = []
        self.modes: list[bool] = []
        self.eval()
        self.inert.train()  # who calls eval() or train() changes a mode

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise RuntimeError(f"expected images (n, 1, height, width), got {tuple(x.shape)}")
        self.asked.append(x.detach().clone())
        self.modes.append(self.training)
        share = self.dropout(x.detach().double()).flatten(1).mean(1, keepdim=True)
        logits = -((share - torch.tensor([0.3, 0.49, 0.51, 0.8], dtype=torch.float64)) ** 2)
        self.answers.append(logits.argmax(1))
        return logits.to(x.dtype)


@check
def sample_under_noise(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """In notebook 03: ``(model, x, sigma, n, batch_size, num_classes, generator) -> counts``."""
    seed = whole(generator, 0, 10_000)
    for name, sigma, n, batch in (
        ("sigma 0.5", 0.5, 600, 200), ("sigma 0.25, the last batch smaller", 0.25, 650, 200),
        ("fewer samples than a batch", 1.5, 90, 200),
    ):  # fmt: skip
        x = torch.rand(1, 16, 16, generator=generator)
        with case(name):
            model = Recorder()
            found = sampled(answer, model, x, sigma, n, batch, seed)
            noise_of(model, x[None], sigma, n, batch)
            counts_agree(found, torch.bincount(torch.cat(model.answers), minlength=4), n)


def sampled(
    answer: Answer, model: Recorder, x: Tensor, sigma: float, n: int, batch: int, seed: int
) -> Any:
    """The counts of an answer; Wrong if it draws from elsewhere or changes the network."""
    state, before = torch.random.get_rng_state(), x.clone()
    with left_alone(model):
        counts = answer(model, x, sigma, n, batch, 4, torch.Generator().manual_seed(seed))
        if any(model.modes):
            raise Wrong("puts the network into train mode; leave the mode as it is")
    untouched(before, x, "x")
    if not torch.equal(state, torch.random.get_rng_state()):
        raise Wrong("draws from the global generator: pass generator=generator")
    return counts


def noise_of(model: Recorder, x: Tensor, sigma: float, n: int, batch: int) -> Tensor:
    """Which of the images (b, ...) each answer was for.

    Wrong unless the network saw each n times, under fresh noise of the right size.
    """
    if not model.asked:
        raise Wrong("the network is never asked")
    if (largest := max(len(each) for each in model.asked)) > batch:
        raise Wrong(f"asks about {largest} images at once; batch_size = {batch}")
    seen = torch.cat([each.reshape(-1, *x.shape[1:]) for each in model.asked]).double()
    which = torch.cdist(seen.flatten(1), x.double().flatten(1)).argmin(1)
    times = which.bincount(minlength=len(x)).tolist()
    if len(x) > 1 and min(times) == 0:
        raise Wrong(f"never asks about image {times.index(0)} of the batch: each has n copies")
    if times != [n] * len(x):
        each = f"{times[0]} noisy images" if len(x) == 1 else f"{times} copies of the images"
        raise Wrong(f"asks about {each}, n = {n}")
    if seen.min() >= 0 and seen.max() <= 1:
        raise Wrong("clips the noisy images to [0, 1]: the theorem holds for the noise as it is")
    rows = (seen - x.double()[which]).flatten(1)
    _fresh(rows, which, [len(each) for each in model.asked])
    _spread(rows, sigma)
    return which


def _fresh(rows: Tensor, which: Tensor, sizes: list[int]) -> None:
    """Wrong unless every copy of every image has noise of its own."""
    images = [rows[which == i] for i in range(int(which.max()) + 1)]
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    # Noise is what is left of float32 images: the same one may differ in the last digits.
    if len(images) > 1 and torch.cdist(images[0][:1], images[1]).min() < 1e-3:
        raise Wrong("adds the same noise to every image: draw noise of its own for each")
    at_once = [
        rows[(which == i) & (batch == j)] for i in range(len(images)) for j in batch.unique()
    ]
    if any(len(own) > 1 and (own == own[0]).all() for own in [*images, *at_once]):
        raise Wrong("adds the same noise to every copy: draw fresh noise for each")
    if any(len(own.unique(dim=0)) < len(own) for own in images):
        raise Wrong("draws the same noise in every batch: do not seed the generator again")


def _spread(rows: Tensor, sigma: float) -> None:
    """Wrong unless the noise is normal, with standard deviation sigma."""
    # With 90 * 256 = 23,040 normal values the spread is off by 4 % with probability below 1e-16.
    spread = rows.std().item()
    if abs(spread / sigma - 1) >= 0.04:
        for value, what in (
            (math.sqrt(sigma), "its variance is sigma; sigma is the standard deviation"),
            (sigma**2, "sigma is squared: multiply standard normal noise by sigma"),
            (1.0, "standard normal noise: multiply it by sigma"),
            (sigma / 255, "divided by 255: sigma is in pixel units of [0, 1]"),
        ):
            if abs(spread / value - 1) < 0.04:
                raise Wrong(f"the noise has standard deviation {spread:.3g}, not {sigma}: {what}")
        raise Wrong(f"the noise has standard deviation {spread:.3g}, expected sigma = {sigma}")
    if stats.kurtosis(rows.flatten().numpy()) < -0.5:
        raise Wrong("the noise is uniform, not normal: torch.randn, not torch.rand")


class _Scored(nn.Module):
    """Remembers what it is asked; logits of three classes, with weights that can learn."""

    def __init__(self, pixels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(pixels, 3, generator=generator) / pixels**0.5)
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return x.flatten(1) @ self.weight


@check
def noisy_loss(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Notebook 03: ``(model, x, y, sigma, generator) -> loss``, cross-entropy under fresh noise."""
    for name, sigma, calls in (("sigma 0.5", 0.5, 1), ("sigma 0.25, two calls", 0.25, 2)):
        x = torch.rand(100, 1, 16, 16, generator=generator)
        y = torch.randint(3, (100,), generator=generator)
        own = torch.Generator().manual_seed(whole(generator, 0, 10_000))
        model = _Scored(256, generator)
        with case(name):
            state = torch.random.get_rng_state()
            losses = [answer(model, x.clone(), y, sigma, own) for _ in range(calls)]
            if not torch.equal(state, torch.random.get_rng_state()):
                raise Wrong("draws from the global generator: pass generator=generator")
            _trained_under(model, x, sigma, calls)
            _noisy_loss(losses[-1], model, y)


def _trained_under(model: _Scored, x: Tensor, sigma: float, calls: int) -> None:
    """Wrong unless the network saw each image once a call, under noise of its own."""
    if any(each.shape != x.shape for each in model.asked) or len(model.asked) != calls:
        raise Wrong(f"asks the network {len(model.asked)} times in {calls} calls, about images of "
                    f"shape {[tuple(each.shape) for each in model.asked][:2]}: expected the batch, "
                    f"{tuple(x.shape)}, once a call")  # fmt: skip
    noise = torch.cat(model.asked).double() - x.double().repeat(calls, 1, 1, 1)
    if not noise.any():
        raise Wrong("the network sees the clean images: add the noise before asking it")
    seen = torch.cat(model.asked)
    if seen.min() >= 0 and seen.max() <= 1:
        raise Wrong("clips the noisy images to [0, 1]: g is defined by the noise as it is")
    rows = noise.flatten(1)
    if (rows[0] - rows[1]).abs().max() < 1e-6:
        raise Wrong("adds the same noise to every image: draw noise of the shape of x")
    if calls > 1 and torch.allclose(rows[:100], rows[100:], atol=1e-6):
        raise Wrong("draws the same noise in every call: do not seed the generator again")
    _spread(rows, sigma)


def _noisy_loss(found: Any, model: _Scored, y: Tensor) -> None:
    if not isinstance(found, Tensor) or found.numel() != 1:
        size = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
        raise Wrong(f"returns {type(found).__name__}{size}, expected one number, a tensor: the "
                    "mean over the batch, from which training takes the gradient")  # fmt: skip
    logits = model.asked[-1].flatten(1) @ model.weight
    loss = F.cross_entropy(logits, y)
    agree(found, loss, {
        "sums the loss over the batch: take its mean, as cross_entropy does": loss * len(y),
        "applies softmax before cross_entropy: it takes logits":
            F.cross_entropy(logits.softmax(1), y),
        "the sign is wrong: training minimises": -loss,
    })  # fmt: skip
    if not found.requires_grad:
        raise Wrong("the loss has no gradient: training needs it, so no torch.no_grad(), no item()")


def counts_agree(found: Any, expected: Tensor, n: int) -> None:
    if not isinstance(found, Tensor | np.ndarray | list | tuple) or np.ndim(found) != 1:
        raise Wrong(f"returns {type(found).__name__}, expected 4 counts")
    values = [integer(each, "whole numbers: counts, not shares") for each in found]
    if len(values) != 4:
        raise Wrong(f"returns {len(values)} counts, num_classes = 4: bincount(minlength=...)")
    if values != expected.tolist():
        total = f" (they add up to {sum(values)}, n = {n})" if sum(values) != n else ""
        raise Wrong(f"counts {values}, the network's answers were {expected.tolist()}{total}")


def _decide(n_a: int, n_b: int, alpha: float) -> bool:
    return bool(stats.binomtest(n_a, n_a + n_b, 0.5).pvalue <= alpha)


def _border(total: int, alpha: float) -> int:
    """The smallest top count among ``total`` votes for which PREDICT answers."""
    return next(k for k in range(total // 2, total + 1) if _decide(k, total - k, alpha))


_PREDICT_FAULTS: Mapping[str, Callable[[int, int, int, float], bool]] = {
    "never abstains: a lead by chance is answered as if it were sure": lambda a, b, n, alpha: True,
    "one-sided test: the winner was chosen after looking, so both sides count":
        lambda a, b, n, alpha: stats.binomtest(a, a + b, 0.5, "greater").pvalue <= alpha,
    "alpha / 2: binomtest is two-sided already":
        lambda a, b, n, alpha: stats.binomtest(a, a + b, 0.5).pvalue <= alpha / 2,
    "tests the top count against all n votes: only the votes of the two top classes count":
        lambda a, b, n, alpha: stats.binomtest(a, n, 0.5).pvalue <= alpha,
    "asks for a lower bound above 1/2, as CERTIFY does":
        lambda a, b, n, alpha: lower(a, n, alpha) > 0.5,
    "the comparison is turned: answer where the p-value is small":
        lambda a, b, n, alpha: stats.binomtest(a, a + b, 0.5).pvalue > alpha,
    "always abstains": lambda a, b, n, alpha: False,
}  # fmt: skip


@check
def predict(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """In notebook 03: PREDICT from counts, ``(counts, alpha) -> class or -1``."""
    total = whole(generator, 80, 140)
    for name, alpha, third in (
        ("two classes, at the border of the test", 0.05, 0),
        ("many votes for other classes", 0.05, total // 2), ("small alpha", 0.001, 7),
    ):  # fmt: skip
        least = _border(total, alpha)
        with case(name):
            wanted, found = [], []
            tops = [total, least + 2, least + 1, least, least - 1, least - 2, total // 2 + 1]
            for top in tops:
                place = torch.randperm(4, generator=generator)
                counts = torch.zeros(4, dtype=torch.int64)
                counts[place] = torch.tensor([top, total - top, min(third, total - top), 0])
                wanted.append((int(place[0]), top, total - top, int(counts.sum()), alpha))
                found.append(integer(answer(counts, alpha), "a class or -1"))
            _predictions(found, wanted)
    with case("a tie, and the votes left as they are"):
        counts = torch.tensor([5, 90, 3])
        if integer(answer(counts, 0.01), "a class or -1") != 1:
            raise Wrong("does not answer class 1 at 90 against 5 votes, alpha = 0.01")
        if counts.tolist() != [5, 90, 3]:
            raise Wrong("changes counts in place: copy or use topk")
        if integer(answer(torch.tensor([40, 40, 2]), 0.05), "a class or -1") != ABSTAIN:
            raise Wrong("answers at a tie of 40 against 40 votes")


def _predictions(found: list[int], wanted: list[tuple[int, int, int, int, float]]) -> None:
    right = [label if _decide(a, b, alpha) else ABSTAIN for label, a, b, _, alpha in wanted]
    if found == right:
        return
    for what, rule in _PREDICT_FAULTS.items():
        if found == [v[0] if rule(*v[1:]) else ABSTAIN for v in wanted]:
            raise Wrong(what)
    at = next(i for i, (f, r) in enumerate(zip(found, right, strict=True)) if f != r)
    label, a, b, n, alpha = wanted[at]
    raise Wrong(f"{a} votes for class {label}, {b} for the next, {n} in all, alpha = {alpha}: got "
                f"{found[at]}, expected {right[at]}")  # fmt: skip


class Votes:
    """A sampler that hands out prepared counts and remembers what was asked."""

    def __init__(self, first: list[int], second: list[int]) -> None:
        self.prepared = [first, second]
        self.asked: list[int] = []

    def __call__(self, n: int) -> Tensor:
        self.asked.append(int(n))
        return torch.tensor(self.prepared[min(len(self.asked), 2) - 1])


def _certified(
    counts: list[int], top: int, alpha: float, sigma: float, fault: str = ""
) -> float | None:
    """The radius of CERTIFY, or with one mistake; None where it abstains."""
    k, n = counts[top], sum(counts)
    p = k / n if fault == "plug-in" else lower(k, n, alpha / 2 if fault == "two-sided" else alpha)
    if p <= 0.5 and fault != "never abstains":
        return None
    quantile = stats.norm.cdf(p) if fault == "cdf" else stats.norm.ppf(p)
    scale = {"no sigma": 1.0, "variance": sigma**2, "half": sigma / 2}.get(fault, sigma)
    return float(scale * quantile)


_CERTIFY_FAULTS = {
    "plug-in": "uses the observed share k / n: its lower confidence bound is missing",
    "two-sided": "alpha / 2: only a lower bound is needed, so it gets all of alpha",
    "cdf": "takes Phi where its inverse is needed: norm.ppf, not norm.cdf",
    "no sigma": "sigma is missing: the radius is sigma * Phi^-1(p)",
    "variance": "sigma squared: sigma is the standard deviation",
    "half": "half of it: with p_B = 1 - p_A both halves are equal and add up",
    "never abstains": "answers although the bound is at most 1/2: abstain",
}


@dataclass(frozen=True)
class Rule:
    """How a certificate follows from the counts that are counted.

    Attributes:
        radius: of ``(counts, class, alpha, sigma, fault)``; None where it abstains.
        faults: what the mistakes that ``radius`` knows are, in words.
        holds: when it answers, in words.
    """

    radius: Callable[..., float | None]
    faults: Mapping[str, str]
    holds: str


@check
def certify(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """In notebook 05: CERTIFY, ``(sample, n0, n, alpha, sigma) -> (class or -1, radius)``."""
    n0, n = 50, whole(generator, 800, 1200)
    top, other = torch.randperm(4, generator=generator)[:2].tolist()

    def votes(total: int, k: int, label: int = top, rest: int = other) -> list[int]:
        counts = [0] * 4
        counts[label], counts[rest] = k, total - k
        return counts

    many, few = int(uniform(generator, 0.75, 0.95) * n), int(0.515 * n)
    clear = (votes(n0, 45), votes(n, many), 0.5)
    for name, runs in (
        ("a clear class", [clear]),
        ("all votes agree", [(votes(n0, n0), votes(n, n), 0.25)]),
        ("clear, and just above one half", [clear, (votes(n0, 30), votes(n, few), 0.5)]),
        ("clear, and the two samples disagree", [clear, (votes(n0, 40), votes(n, n // 3), 1.0)]),
    ):
        with case(name):
            rule = Rule(_certified, _CERTIFY_FAULTS, "its bound is above 1/2")
            for first, second, sigma in runs:
                certificate(answer, first, second, sigma, top, other, rule)


def certificate(
    answer: Answer, first: list[int], second: list[int], sigma: float, top: int, other: int,
    rule: Rule,
) -> None:  # fmt: skip
    """Wrong unless CERTIFY asks for both samples and answers right; ``first`` favours ``top``."""
    n0, n, k, alpha = sum(first), sum(second), second[top], 0.001
    sample = Votes(first, second)
    found = answer(sample, n0, n, alpha, sigma)
    first_value, second_value = two_values(found, "class and radius")
    label = integer(first_value, "a class or -1")
    radius = number(second_value, "a radius, 0.0 when abstaining")
    if len(sample.asked) == 1:
        raise Wrong(f"draws one sample of {sample.asked[0]}: the samples that select may not be "
                    "counted again. Draw n0 to select and n fresh ones to count")  # fmt: skip
    if sample.asked != [n0, n]:
        more = ", ..." * (len(sample.asked) > 4)
        raise Wrong(f"draws samples of {sample.asked[:4]}{more}, expected n0 = {n0} first and then "
                    f"n = {n}, in two calls")  # fmt: skip
    if label == other and k < second[other]:
        raise Wrong("selects the class by the second sample: the one that is counted may not also "
                    "choose. Take the top class of the n0 samples")  # fmt: skip
    if label == top and k < second[other]:
        raise Wrong("answers the class of the first sample, which has a third of the votes of the "
                    f"second: count it there, and abstain unless {rule.holds}")  # fmt: skip
    expected = rule.radius(second, top, alpha, sigma)
    if label == ABSTAIN and expected is not None:
        raise Wrong(f"abstains with {k} of {n} votes: {rule.holds}")
    if label == ABSTAIN:
        agree(radius, 0.0, {}, unit=" for the radius while abstaining")
        return
    if label != top:
        raise Wrong(f"class {label}, expected {top}")
    if math.isinf(radius):
        raise Wrong("an infinite radius: all votes agree, but neither p = 1 nor p = 0 is known "
                    "from n samples. Take confidence bounds; for k = n none is 1")  # fmt: skip
    both = [a + b for a, b in zip(first, second, strict=True)]
    faults = {
        what: value
        for fault, what in rule.faults.items()
        if (value := rule.radius(second, top, alpha, sigma, fault)) is not None
    } | {
        "counts the votes of the first sample: they selected the class, so they cannot also "
        "vouch for it": rule.radius(first, top, alpha, sigma) or math.inf,
        "adds both samples up: those that selected cannot also vouch":
            rule.radius(both, top, alpha, sigma) or math.inf,
        "the sign is wrong: a radius is not negative": -(expected or math.inf),
    }  # fmt: skip
    if expected is None:
        agree(radius, math.inf, faults, tolerance=1e-6)
    agree(radius, expected or 0.0, faults, unit=" pixel units", tolerance=1e-6)


@check
def two_class_radius(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """In notebook 04: ``(p_a, p_b, sigma) -> radius``."""
    high = (uniform(generator, 0.6, 0.8), uniform(generator, 0.05, 0.15), 0.5)
    low = (uniform(generator, 0.42, 0.49), uniform(generator, 0.1, 0.2), 0.25)
    lost = (0.3, uniform(generator, 0.35, 0.45), 0.75)
    for name, runs in (
        ("p_a above 1/2", [high]), ("p_a below 1/2", [low]), ("p_a below p_b", [high, lost])
    ):  # fmt: skip
        with case(name):
            for a, b, sigma in runs:
                _radius(answer, a, b, sigma)


def _radius(answer: Answer, a: float, b: float, sigma: float) -> None:
    ppf, cdf = stats.norm.ppf, stats.norm.cdf
    found = number(answer(a, b, sigma), "a radius")
    faults = {
        "the factor 1/2 is missing": sigma * (ppf(a) - ppf(b)),
        "takes Phi where its inverse is needed: norm.ppf, not norm.cdf":
            sigma / 2 * (cdf(a) - cdf(b)),
        "uses 1 - p_a for p_b: that is the one-class radius": sigma * ppf(a),
        "zero unless p_a > 1/2: with p_b known, p_a > p_b is enough":
            sigma / 2 * (ppf(a) - ppf(b)) if a > 0.5 else 0.0,
        "sigma is missing": (ppf(a) - ppf(b)) / 2,
        "sigma squared: sigma is the standard deviation": sigma**2 / 2 * (ppf(a) - ppf(b)),
        "adds the two quantiles: the second one is subtracted":
            sigma / 2 * (ppf(a) + ppf(b)),
        "the sign is wrong": sigma / 2 * (ppf(b) - ppf(a)),
        "Phi^-1 of the difference: take it of each, then subtract": sigma / 2 * ppf(abs(a - b)),
    }  # fmt: skip
    expected = sigma / 2 * (ppf(a) - ppf(b)) if a > b else 0.0
    if a <= b and found != 0:
        raise Wrong(f"{found:.4g} where p_a < p_b: nothing is certified there, the radius is 0")
    agree(found, expected, faults, unit=" pixel units", tolerance=1e-6)


@check
def worst_classifier(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Notebook 04: ``(mass_at_x, mass_at_x_delta, p_a_lower) -> (f, probability at x + delta)``.

    The f on cells, in [0, 1], with at least ``p_a_lower`` at x and least at x + delta.
    """
    edges = np.concatenate([[-np.inf], np.linspace(-2.5, 2.5, 12), [np.inf]])
    at_x = np.diff(stats.norm.cdf(edges))
    ahead = np.diff(stats.norm.cdf(edges, uniform(generator, 0.4, 0.9)))
    behind = np.diff(stats.norm.cdf(edges, -uniform(generator, 0.4, 0.9)))
    mixed = torch.rand(2, 9, generator=generator, dtype=torch.float64).numpy() + 0.05
    mixed = mixed / mixed.sum(1, keepdims=True)
    for name, p, q, least in (
        ("a line, moved to the right", at_x, ahead, 0.8),
        ("a line, moved to the left", at_x, behind, uniform(generator, 0.55, 0.9)),
        ("cells in no order", *mixed, uniform(generator, 0.6, 0.8)),
        ("p_a below one half", *mixed, uniform(generator, 0.2, 0.4)),
    ):
        with case(name):
            _worst(answer(p.copy(), q.copy(), least), p, q, least)


def _worst(found: Any, p: Any, q: Any, least: float) -> None:
    """Wrong unless f is allowed, has the smallest probability at x + delta, and says so."""
    shares, said = two_values(found, "f and its probability at x + delta")
    if shares is None:
        raise Wrong("f is None: linprog found no solution; are the signs of A_ub and b_ub right?")
    f = tensor(shares, torch.as_tensor(p), "f, one share per cell").numpy()
    said = number(said, "the probability of A at x + delta")
    if f.max() > 1 + 1e-6 or f.min() < -1e-6:
        raise Wrong(f"f reaches from {f.min():.3g} to {f.max():.3g}: a share lies in [0, 1]. The "
                    "default of linprog is 0 to infinity: bounds=(0, 1)")  # fmt: skip
    at_x, moved, best = float(f @ p), float(f @ q), theory.neyman_pearson(p, q, least)[1]
    if at_x < 1e-6:
        raise Wrong("f is 0 everywhere: p . f >= p_a is missing or turned. linprog knows <= only, "
                    "so change the signs on both sides")  # fmt: skip
    rest = theory.neyman_pearson(p, q, 1 - least)[0]  # without it f is the dearest purchase
    if np.abs(f - rest).max() < 1e-4:
        raise Wrong(f"has probability {at_x:.3g} of A at x, which is 1 - p_a: p_a belongs to A, "
                    "not to the rest")  # fmt: skip
    if np.abs(f - theory.neyman_pearson(q, p, least)[0]).max() < 1e-4:
        raise Wrong("the two masses are swapped: the constraint is at x, the minimum at x + delta")
    if f.min() > 1 - 1e-6 or np.abs(f + rest - 1).max() < 1e-4:
        raise Wrong("the maximum instead of the minimum: linprog minimises c . f as it stands, and "
                    "the cheapest cells are those with the smallest q / p")  # fmt: skip
    if at_x < least - 1e-6:
        raise Wrong(f"f has probability {at_x:.4g} of A at x, expected at least {least:.4g}")
    if moved > best + 1e-6:
        part = " Take only a part of the last cell." if ((f < 1e-6) | (f > 1 - 1e-6)).all() else ""
        raise Wrong(f"f has probability {moved:.5g} of A at x + delta and {at_x:.5g} at x; there "
                    f"is one with {best:.5g} and {least:.5g}.{part}")  # fmt: skip
    agree(said, moved, {
        "returns the probability at x: that at x + delta is asked for": at_x,
        "returns minus the probability": -moved,
        "returns the probability of the other classes: 1 minus that of A": 1 - moved,
    }, tolerance=1e-6)  # fmt: skip
