"""Checks of the notebooks beyond the lecture: audits, stopping early, training for the vote, other
noise."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from trustml_helpers import bounds, sequential, smoothing
from trustml_helpers.checks.harness import (
    Answer,
    Cases,
    Wrong,
    agree,
    check,
    integer,
    number,
    tensor,
    two_values,
)


def _rungs(k: np.ndarray, n: np.ndarray | int, alpha: float, sigma: float) -> Tensor:
    radii = bounds.certified_radius(bounds.lower_conf_bound(k, n, alpha), sigma)
    return torch.as_tensor(radii)


@check
def ladder(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """The largest possible radii, ``(alpha, n, sigma, steps) -> (steps,)``; may use the package."""
    n = int(torch.randint(5_000, 20_000, (), generator=generator))
    for name, alpha, sigma, steps in (
        ("the top alone", 0.001, 0.25, 1), ("five steps", 0.01, 0.5, 5),
        ("nine steps, a large sigma", 0.05, 2.0, 9),
    ):  # fmt: skip
        down = np.arange(steps)
        expected = _rungs(n - down, n, alpha, sigma)
        with case(name):
            returned = answer(alpha, n, sigma, steps, may_borrow=True)
            if np.ndim(returned) == 1 and np.isinf(np.asarray(returned, dtype=float)).any():
                raise Wrong("an infinite radius: the share k / n is no bound. Take the lower "
                            "confidence bound of k votes of n")  # fmt: skip
            found = tensor(returned, expected, f"the {steps} largest radii")
            faults = {
                "begins one vote below the top: all n votes can agree":
                    _rungs(n - 1 - down, n, alpha, sigma),
                "the smallest first: begin with all n votes": expected.flip(0),
                "sigma is missing": expected / sigma,
                "alpha / 2: the bound is one-sided": _rungs(n - down, n, alpha / 2, sigma),
                "draws fewer votes at each step: n stays, the count k falls":
                    _rungs(n - down, n - down, alpha, sigma),
            }  # fmt: skip
            agree(found, expected, faults, unit=" pixel units", tolerance=1e-6)


@check
def group_votes(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """The votes of groups of classes, ``(counts (K,), group (K,)) -> (G,)``."""
    for name, group in (
        ("neighbours", [0, 0, 1, 1, 2]), ("apart", [1, 0, 2, 0, 1, 1]), ("one group", [0, 0, 0]),
    ):  # fmt: skip
        of_class = torch.tensor(group)
        counts = torch.randint(1, 90, of_class.shape, generator=generator)
        per = [counts[of_class == g] for g in range(max(group) + 1)]
        expected = torch.stack([votes.sum() for votes in per])
        with case(name):
            found = tensor(answer(counts.clone(), of_class), expected, "the votes of each group")
            agree(found, expected, {
                "the largest votes in each group: its classes add up":
                    torch.stack([votes.max() for votes in per]),
                "how many classes a group has, not their votes": of_class.bincount(),
                "shares, not votes": expected / counts.sum(),
                "the mean of the classes: they add up":
                    torch.stack([votes.double().mean() for votes in per]),
            })  # fmt: skip


@check
def ever_crosses(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Probability that a count ever reaches a boundary, ``(p, looks, success) -> float``."""
    p = 0.6 + 0.2 * torch.rand((), generator=generator).item()
    for name, looks, success in (
        ("one look", [40], [32]), ("two looks", [20, 50], [17, 41]),
        ("a first look at which nobody can stop", [10, 30], [11, 24]),
        ("ten looks", list(range(10, 101, 10)), [9, 17, 26, 34, 42, 50, 58, 66, 74, 82]),
    ):  # fmt: skip
        sizes, least = np.array(looks), np.array(success)
        each = stats.binom.sf(least - 1, sizes, p)
        expected = sequential.crossing_probability(p, sizes, least)
        with case(name):
            found = number(answer(p, sizes.copy(), least.copy()), "a probability")
            faults = {
                "adds up all looks as if nobody had stopped: remove the runs that crossed before":
                    float(each.sum()),
                "takes the looks for independent: they share their votes":
                    float(1 - np.prod(1 - each)),
                "more than success: a count of exactly success crosses too":
                    sequential.crossing_probability(p, sizes, least + 1),
                "the last look alone": float(each[-1]),
                "this is the probability of never crossing": 1 - expected,
            }  # fmt: skip
            agree(found, expected, faults, tolerance=1e-9)


@check
def when_to_stop(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """The stopping rule, ``(votes, looks, success, futility) -> (certified, samples)``."""
    looks = 50 * np.arange(1, 6) + int(torch.randint(0, 40, (), generator=generator))
    success, futility = looks - 8, looks - 30
    futility[-1] = success[-1] - 1
    for name, after, how, votes in (
        ("clear, certified at the second look", 1, True, looks - np.array([9, 6, 6, 6, 6])),
        ("exactly the boundary counts", 0, True, looks - 8),
        ("divided, given up at the third look", 2, False, looks - np.array([9, 20, 30, 40, 50])),
        ("given up, though it would cross later", 1, False, looks - np.array([9, 35, 9, 5, 2])),
        ("undecided until the last look", 4, False, looks - np.array([9, 9, 9, 9, 9])),
    ):  # fmt: skip
        with case(name):
            given = (votes.copy(), looks.copy(), success.copy(), futility.copy())
            found = answer(*given)
            certified, samples = two_values(found, "(certified, samples)")
            certified = number(certified, "True or False")
            samples = integer(samples, "a number of votes")
            if samples == after != looks[after]:
                raise Wrong(f"samples is {samples}, the place of the look; give its number of "
                            f"votes, {looks[after]}")  # fmt: skip
            if samples != looks[after]:
                raise Wrong(f"stops after {samples} votes, expected {looks[after]}: at the first "
                            "look with votes >= success or votes <= futility")  # fmt: skip
            if certified != how:
                words = "certified" if certified else "given up"
                raise Wrong(f"{words} with {votes[after]} of {looks[after]} votes; success is "
                            f"{success[after]}, futility {futility[after]}")  # fmt: skip


@check
def consistency_loss(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Consistency regularisation, ``(logits (n, m, K), y (n,), lam, eta) -> scalar``."""
    logits = 2 * torch.randn(5, 3, 4, generator=generator)
    y = torch.randint(4, (5,), generator=generator)
    for name, lam, eta in (
        ("cross-entropy alone", 0.0, 0.0), ("with the divergence", 7.0, 0.0),
        ("with the entropy", 0.0, 0.6), ("all three terms", 5.0, 0.5),
    ):  # fmt: skip
        with case(name):
            found = number(answer(logits.clone(), y.clone(), lam, eta), "one number, the mean")
            right, apart, entropy, wrong = _terms(logits.double(), y)
            expected = right + lam * apart + eta * entropy
            faults = {
                "the cross-entropy of the mean: it is the mean of -log p_iy over the copies":
                    wrong["of the mean"] + lam * apart + eta * entropy,
                "KL(p_i || mean): the mean comes first": right + lam * wrong["swapped"]
                + eta * entropy,
                "adds the divergence of the copies up: take their mean":
                    right + lam * 3 * apart + eta * entropy,
                "the entropy has the wrong sign": right + lam * apart - eta * entropy,
                "the divergence has the wrong sign": right - lam * apart + eta * entropy,
                "averages the logits: average the probabilities": wrong["logits"]
                + lam * wrong["logits apart"] + eta * wrong["logits entropy"],
                "a sum over the images: take their mean": 5 * expected,
                "lam and eta are swapped": right + eta * apart + lam * entropy,
            }  # fmt: skip
            agree(found, expected, faults, tolerance=1e-5)


def _terms(logits: Tensor, y: Tensor) -> tuple[float, float, float, dict[str, float]]:
    """Cross-entropy, divergence and entropy, and what some mistakes give in their place."""
    log_p = logits.log_softmax(2)
    p, mean = log_p.exp(), log_p.exp().mean(1)
    at_y = y[:, None, None].expand(-1, logits.shape[1], 1)

    def apart(centre: Tensor) -> float:
        return float((centre[:, None] * (centre.log()[:, None] - log_p)).sum(2).mean())

    def entropy(centre: Tensor) -> float:
        return float(-(centre * centre.log()).sum(1).mean())

    blurred = logits.mean(1).softmax(1)
    right = float(-log_p.gather(2, at_y).mean())
    return right, apart(mean), entropy(mean), {
        "of the mean": float(-mean.log().gather(1, y[:, None]).mean()),
        "swapped": float((p * (log_p - mean.log()[:, None])).sum(2).mean()),
        "logits": right, "logits apart": apart(blurred), "logits entropy": entropy(blurred),
    }  # fmt: skip


@check
def paired_gain(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Mean difference and its standard error, ``(new, old) -> (gain, error)``, radii ``(n,)``."""
    for name, size, spread in (
        ("the same images, small differences", 200, 0.05), ("few images", 12, 0.3),
        ("equal but for a few images", 60, 0.0),
    ):  # fmt: skip
        old = torch.rand(size, generator=generator).double().numpy()
        new = old + 0.1 * spread + spread * torch.randn(size, generator=generator).double().numpy()
        new[:5] += 0.4
        apart = new - old
        error = float(apart.std(ddof=1)) / math.sqrt(size)
        with case(name):
            found = answer(new.copy(), old.copy())
            found = two_values(found, "(gain, error)")
            gain = number(found[0], "a mean difference")
            signs = {"old minus new: a gain is new minus old": float(-apart.mean())}
            agree(gain, float(apart.mean()), signs, unit=" pixel units", tolerance=1e-9)
            alone = math.sqrt((new.var(ddof=1) + old.var(ddof=1)) / size)
            faults = {
                "the two errors added up as if the images were different ones: take the deviation "
                "of the differences": alone,
                "the deviation of one image: divide by the root of the number of images":
                    float(apart.std(ddof=1)),
                "divides by n twice: the error of a mean falls with the root of n":
                    float(apart.std(ddof=1)) / size,
                "the error of one ACR, not of the difference":
                    float(new.std(ddof=1)) / math.sqrt(size),
                "numpy's std divides by n; ddof=1 divides by n - 1":
                    float(apart.std()) / math.sqrt(size),
            }  # fmt: skip
            agree(number(found[1], "a standard error"), error, faults, unit=" pixel units",
                  tolerance=1e-6)  # fmt: skip


@check
def ablation_radius(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Pixels that may change if k of d are kept, ``(p_a, d, k) -> int``, 0 where none may."""
    shares = 0.5 + 0.5 * torch.rand(40, generator=generator, dtype=torch.float64)
    p_a = np.concatenate([[0.4, 0.5, 1.0], shares.sort().values.numpy()])
    for name, d, k in (("digits", 784, 45), ("twenty pixels, six kept", 20, 6), ("one kept", 9, 1)):
        expected = torch.as_tensor(smoothing.Ablation(k, d).radius(p_a))
        with case(name):
            returned = [integer(answer(float(p), d, k), "a number of pixels") for p in p_a]
            found = tensor(np.array(returned), expected, f"the radius at {len(p_a)} values of p_a")
            faults = {
                "one too many: the first number that is no longer certified": expected + 1,
                "1/2 is missing: A must keep more than half of the votes":
                    _pixels(p_a, d, k, level=0.0),
                "takes the change off twice: B need not gain what A loses, with p_B = 1 - p_A it "
                "is counted already": _pixels(p_a, d, k, less=2.0),
                "removes k pixels: k are kept": _pixels(p_a, d, d - k),
                "puts the pixels back: they are kept without repeats, C(d - rho, k) / C(d, k)":
                    _pixels(p_a, d, k, back=True),
            }  # fmt: skip
            agree(found, expected, faults, unit=" pixels", tolerance=1e-9)


def _pixels(
    p_a: np.ndarray, d: int, k: int, *, less: float = 1.0, level: float = 0.5, back: bool = False
) -> Tensor:
    """What some mistakes give for the radius of ablation."""
    rhos = range(d - k + 1)
    if back:
        hidden = np.array([(1 - rho / d) ** k for rho in rhos])
    else:
        hidden = np.array([math.comb(d - rho, k) / math.comb(d, k) for rho in rhos])
    holds = p_a[:, None] - less * (1 - hidden) > level
    return torch.as_tensor(np.maximum(holds.sum(1) - 1.0, 0))


@check
def l1_radii(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """l1 radii of uniform and of Laplace noise, ``(p_a, sigma) -> (uniform, laplace)``."""
    for name, low in (("a narrow lead", 0.55), ("a clear lead", 0.8), ("nearly all votes", 0.99)):
        share, size = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        p_a, sigma = low + 0.009 * share, 0.2 + size
        half, scale = math.sqrt(3) * sigma, sigma / math.sqrt(2)
        with case(name):
            found = answer(p_a, sigma)
            found = two_values(found, "(uniform, laplace)")
            expected = float(smoothing.Uniform(sigma).radius(p_a))
            agree(number(found[0], "the radius of uniform noise"), expected, {
                "uniform: L is sqrt(3) sigma, so that the standard deviation is sigma":
                    2 * sigma * (p_a - 0.5),
                "uniform: the factor 2 is missing, the cube is 2 L wide": half * (p_a - 0.5),
                "uniform: what is above 1/2 counts, not p_a itself": 2 * half * p_a,
                "the two are swapped: uniform noise first":
                    float(smoothing.Laplace(sigma).radius(p_a)),
            }, unit=" pixel units", tolerance=1e-6)  # fmt: skip
            expected = float(smoothing.Laplace(sigma).radius(p_a))
            agree(number(found[1], "the radius of Laplace noise"), expected, {
                "Laplace: b is sigma / sqrt(2), so that the standard deviation is sigma":
                    expected * sigma / scale,
                "Laplace: the logarithm has the wrong sign: it is of a number below 1": -expected,
                "Laplace: the factor 2 in the logarithm is missing":
                    -scale * math.log(1 - p_a),
            }, unit=" pixel units", tolerance=1e-6)  # fmt: skip


@check
def defence_success(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Probability that a vote of N copies withstands a suffix, ``(m, suffix, swaps, k, N)``."""
    for name, suffix, k, copies in (
        ("one copy", 12, 2, 1), ("an odd number of copies", 15, 3, 7),
        ("a tie is no success for the attack", 15, 3, 6),
    ):  # fmt: skip
        m = int(torch.randint(60, 90, (), generator=generator))
        swaps = round(k * m / suffix)
        one = float(stats.hypergeom.sf(k - 1, m, suffix, swaps))
        with case(name):
            found = number(answer(m, suffix, swaps, k, copies), "a probability")

            def vote(share: float, least: float, copies: int = copies) -> float:
                return float(stats.binom.sf(math.ceil(least) - 1, copies, share))

            half = copies / 2
            expected = vote(one, half)
            faults = {
                "more than k: a suffix fails when exactly k of its characters are changed":
                    vote(float(stats.hypergeom.sf(k, m, suffix, swaps)), half),
                "swaps the same character twice: places are drawn without repeats":
                    vote(float(stats.binom.sf(k - 1, swaps, suffix / m)), half),
                "this is the probability that the attack succeeds": 1 - expected,
            }  # fmt: skip
            if copies > 1:
                faults["one copy alone: it is a vote of several"] = one
            if copies % 2 == 0:
                faults["a tie counts for the attack: it needs more than half of the copies"] = vote(
                    one, half + 0.5
                )
            agree(found, expected, faults, tolerance=1e-9)
