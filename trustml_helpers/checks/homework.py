"""Checks of the homework's own tasks: what the lecture does not ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from trustml_helpers.bounds import lower_conf_bound, upper_conf_bound
from trustml_helpers.checks.attacks import (
    ONE_NORM,
    PATH_FAULTS,
    TRAIN_MODE,
    TRAINING_FAULTS,
    attacked,
    best_of,
    chosen,
    climbs,
    danskin,
    gradient_of,
    length,
    losses_at,
    one_step,
    path_of,
    small_network,
    some_images,
    stays,
    visited,
)
from trustml_helpers.checks.harness import (
    Answer,
    Cases,
    Wrong,
    agree,
    check,
    modes,
    number,
    tensor,
    two_values,
    untouched,
)
from trustml_helpers.checks.smoothing import (
    Recorder,
    Rule,
    bound_faults,
    certificate,
    counts_agree,
    noise_of,
    sampled,
    uniform,
    whole,
)
from trustml_helpers.smoothing import ABSTAIN


def _two_numbers(found: Any, names: str) -> tuple[float, float]:
    first, second = (number(each, names) for each in two_values(found, names))
    return first, second


# --- attacks and training -------------------------------------------------------------------------


def _with_gradients(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """A network in whose parameters somebody else's gradients lie."""
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
    return network


_MARGIN_FAULTS = {
    "own": "the maximum runs over all classes: leave out the target, or an image that is there "
    "already stops moving",
    "target": "raises the logit of the target alone: the largest of the other logits has to fall",
    "mean": "takes the mean of the other logits: the largest is the one to beat",
    "sum": "takes the sum of the other logits: the largest is the one to beat",
    "smallest": "takes the smallest of the other logits: the largest is the one to beat",
    "probabilities": "takes the margin of probabilities: softmax saturates, take logits",
    "cross-entropy": "descends the cross-entropy of the target: here it is the margin, the largest "
    "other logit minus that of the target",
    "answer": "moves towards the network's own answer, not towards the target",
}


def _margin_gradient(network: nn.Module, x: Tensor, target: Tensor, fault: str = "") -> Tensor:
    """The gradient in the images of each one's margin of the target, or with one mistake."""
    if fault == "cross-entropy":
        return gradient_of(network, x, target)
    x = x.clone().requires_grad_()
    z = network(x)
    target = z.argmax(1) if fault == "answer" else target
    z = z.softmax(1) if fault == "probabilities" else z
    at = target[:, None]
    rivals = z if fault == "own" else z.scatter(1, at, -math.inf)
    others = {
        "target": 0 * z[:, 0], "sum": z.sum(1) - z.gather(1, at)[:, 0],
        "mean": (z.sum(1) - z.gather(1, at)[:, 0]) / (z.shape[1] - 1),
        "smallest": z.scatter(1, at, math.inf).amin(1),
    }.get(fault, rivals.amax(1))  # fmt: skip
    margin = (others - z.gather(1, at)[:, 0]).sum()
    return torch.autograd.grad(margin, x)[0].detach()


@check
def step_towards(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """One step that lowers the margin of a target, ``(model, x, target, eps) -> x_adv``."""
    wrong_way = "goes the wrong way: the margin rises. To get to the target, x - eps * sign"
    for name, dtype, eps, rows in (
        ("float64", torch.float64, 0.1, 5), ("float32", torch.float32, 0.1, 5),
        ("pixels near 0 and 1", torch.float64, 0.5, 5), ("one image", torch.float64, 0.2, 1),
        ("the network as it was found", torch.float64, 0.1, 5),
    ):  # fmt: skip
        network = _with_gradients(small_network(dtype, generator), generator)
        x, target = (part[:rows] for part in some_images(generator, dtype))
        with torch.no_grad():
            order = network(x).argsort(1, descending=True)
        target[0] = order[0, 2]
        target[1:2] = order[1:2, 0]  # one is there already
        with case(name):
            found = attacked(answer, network, x, target, eps, gradients=name.startswith("the"))
            at = partial(_margin_gradient, network, x, target)
            others = {what: -at(fault) for fault, what in _MARGIN_FAULTS.items()}
            one_step(found, x, -at(), eps, others, wrong_way)


@check
def pgd_best(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """PGD in l2 that keeps the best point of each image.

    ``(model, x, y, eps, step_size, steps, start) -> x_adv``
    """
    for name, eps, size, steps, dtype, far, wanted in (
        ("short steps, from outside the ball", 0.25, 0.4, 3, torch.float32, 3.0, ""),
        ("long steps, the best point is one in the middle", 0.3, 3.0, 5, torch.float64, 0.9, "mid"),
        ("long steps, the best point is the start", 0.3, 5.0, 3, torch.float64, 0.9, "start"),
        ("pixels near 0 and 1", 1.5, 0.3, 6, torch.float64, 0.5, ""),
        ("the network as it was found", 0.25, 4.0, 4, torch.float64, 0.5, "mid"),
    ):
        given = _drawn(generator, eps, size, steps, dtype, far, wanted)
        with case(name):
            network, x, y = given[:3]
            found = attacked(answer, *given, gradients=name.startswith("the"))
            # Box first or ball first: two valid orders, two paths.
            paths = [partial(visited, *given, norm="l2", box_first=each) for each in (False, True)]
            ends = [best_of(network, path(), y).double() for path in paths]
            if any(torch.allclose(found, end, atol=1e-4) for end in ends):
                continue
            for path in paths:
                _other_choice(found, path(), losses_at(network, path(), y))
            for path, (fault, what) in product(paths, PATH_FAULTS.items()):
                other = best_of(network, path(fault=fault), y).double()
                if torch.allclose(found, other, atol=1e-4):
                    raise Wrong(_L2.get(fault, what))
            stays(found, x.double(), eps, "l2")
            if name.startswith("pixels"):  # there may be more orders
                climbs(network, x, y, found.to(dtype), ends[0].to(dtype))
            else:
                agree(found, ends[0], {}, unit=" pixel units")


_L2 = {
    "norm": "the step is that of l-inf: divide the gradient by its l2 norm, image by image",
    "raw": "steps along the gradient itself: divide it by its l2 norm, image by image",
    "raw mean": "steps along the gradient itself: divide it by its l2 norm, image by image",
}


def _drawn(
    generator: torch.Generator, eps: float, size: float, steps: int, dtype: torch.dtype,
    far: float, wanted: str,
) -> tuple[Any, ...]:  # fmt: skip
    """Arguments of an attack for which the best point of some image is the wanted one."""
    for _ in range(1000):
        network = _with_gradients(small_network(dtype, generator), generator)
        if wanted:  # a curved loss, which long steps do not climb evenly
            _bend(network, 5)
        x, y = some_images(generator, dtype)
        start = torch.randn(x.shape, generator=generator).to(dtype)
        start *= far * eps / length(start, "l2").view(-1, 1, 1, 1)
        given = (network, x, y, eps, size * eps, steps)
        if wanted == "start":
            best = best_of(network, visited(*given[:5], steps=20, start=start, norm="l2"), y)
            start[:2] = (best - x)[:2]
        losses = losses_at(network, visited(*given, start=start, norm="l2"), y)
        first_two = losses.topk(2, 0).values
        clear = bool((first_two[0] - first_two[1] > 1e-3).all())
        best_one, at_once = losses.argmax(0), int(losses.mean(1).argmax())
        if not wanted or (clear and _is_met(wanted, best_one, at_once, steps)):
            return (*given, start)
    raise RuntimeError(f"no network found with the best point at {wanted}")


def _bend(network: nn.Module, factor: float) -> None:
    """Make the first layer steeper, and with it the loss more curved."""
    next(iter(network.parameters())).data *= factor


def _is_met(wanted: str, best: Tensor, at_once: int, steps: int) -> bool:
    """Whether some images have the wanted best point; others, and all together, another one."""
    inside = (best == 0) if wanted == "start" else (best > 0) & (best < steps)
    ends = (best > 0) if wanted == "start" else (best == steps)
    return bool(inside.any() and ends.any() and (best != at_once).any() and at_once < steps)


def _other_choice(found: Tensor, points: list[Tensor], losses: Tensor) -> None:
    """Wrong, by name, if another point of the path was chosen."""
    at_once = losses.mean(1).argmax().expand(losses.shape[1])
    for what, value in {
        "returns the last point: the one with the largest loss is asked for, image by image":
            points[-1],
        "takes one point for the whole batch: the largest loss of each image counts":
            chosen(points, at_once),
        "the start is not among the candidates: it is a point visited, too":
            chosen(points[1:], losses[1:].argmax(0)),
        "the last point is not among the candidates, or a step is missing: after the last step "
        "take the loss once more":
            chosen(points[:-1], losses[:-1].argmax(0)),
        "keeps the point with the smallest loss: the attacker wants the largest":
            chosen(points, losses.argmin(0)),
        "pairs each loss with the point after it: keep the point at which it was taken":
            chosen(points[1:], losses[:-1].argmax(0)),
    }.items():  # fmt: skip
        if torch.allclose(found, value.double(), atol=1e-4):
            raise Wrong(what)


@check
def momentum_pgd(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """MI-FGSM (Dong et al. 2018), ``(model, x, y, eps, step_size, steps, mu) -> x_adv``."""
    for name, eps, steps, mu, dtype in (
        ("mu 1, inside [0, 1]", 0.25, 5, 1.0, torch.float64),
        ("mu 0.5, pixels near 0 and 1", 0.8, 6, 0.5, torch.float64),
        ("mu 0, that is PGD", 0.2, 3, 0.0, torch.float32),
        ("mu 0.9, the network as it was found", 0.25, 4, 0.9, torch.float64),
    ):
        network = _with_gradients(small_network(dtype, generator), generator)
        _bend(network, 2)  # the gradient turns on the way
        x, y = some_images(generator, dtype)
        given = (network, x, y, eps, 0.4 * eps, steps)
        with case(name):
            found = attacked(answer, *given, mu, gradients=name.endswith("found"))
            path = partial(path_of, *given, torch.zeros_like(x), norm="linf")
            expected = path(memory=_momentum(mu)).double()
            if torch.allclose(found, expected, atol=1e-4):
                continue
            for fault, what in _MOMENTUM_FAULTS.items():
                if torch.allclose(found, path(memory=_momentum(mu, fault)).double(), atol=1e-4):
                    raise Wrong(what)
            for fault, what in (PATH_FAULTS | ONE_NORM).items():
                other = path(fault=fault, memory=_momentum(mu))
                if torch.allclose(found, other.double(), atol=1e-4):
                    raise Wrong(what)
            stays(found, x.double(), eps, "linf")
            agree(found, expected, {}, unit=" pixel units")


_MOMENTUM_FAULTS = {
    "forgets": "the momentum is missing: g is mu times the last g plus the new gradient",
    "norm": "adds the gradient as it is: divide it by its l1 norm first, image by image",
    "l2": "divides the gradient by its l2 norm: it is the l1 norm",
    "batch": "divides by the norm over the whole batch: each image has its own",
    "sign": "adds up signs: add up the gradients, divided by their l1 norm, and take the sign of "
    "the sum",
    "turned": "mu weighs the new gradient: it weighs the last g",
    "all": "mu is not used: g is the plain sum of the gradients",
    "average": "weighs the new gradient by 1 - mu: that is a moving average, here it is a sum",
    "after": "divides the sum by its norm: only the new gradient is divided",
    "after mean": "divides the sum by its norm: only the new gradient is divided",
}


def _momentum(mu: float, fault: str = "") -> Callable[[Tensor, Tensor], Tensor]:
    """The momentum of MI-FGSM, or with one mistake."""

    def size(g: Tensor) -> Tensor:
        rows = g.flatten(1)
        return (rows.norm(dim=1) if fault == "l2" else rows.abs().sum(1)).view(-1, 1, 1, 1)

    def memory(last: Tensor, g: Tensor) -> Tensor:
        unit = {
            "norm": g, "after": g, "after mean": g / len(g), "batch": g / g.abs().sum(),
            "sign": g.sign(),
        }.get(fault, g / size(g))  # fmt: skip
        if fault == "turned":
            return last + mu * unit
        if fault == "average":
            return mu * last + (1 - mu) * unit
        total = {"forgets": 0.0, "all": 1.0}.get(fault, mu) * last + unit
        return total / size(total) if fault.startswith("after") else total

    return memory


@check
def free_step(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Free adversarial training (Shafahi et al. 2019) on one minibatch.

    ``(model, optimizer, x, y, delta, eps, replays) -> delta``
    """
    for name, replays, momentum, eps in (
        ("one replay", 1, 0.0, 0.1), ("three replays", 3, 0.0, 0.1),
        ("four replays, with momentum", 4, 0.9, 0.2), ("pixels near 0 and 1", 3, 0.0, 0.6),
    ):  # fmt: skip
        x, y = some_images(generator)
        delta = eps * (2 * torch.rand(x.shape, generator=generator).double() - 1)
        first = small_network(torch.float64, generator)
        old = [torch.randn(p.shape, generator=generator).double() for p in first.parameters()]
        with case(name):
            start = partial(_free_start, first, old, momentum)
            given: tuple[Any, ...] = (x, y, delta, eps, replays)
            found = _free_answer(answer, *start(), *given)
            # The gradient may be that at the clipped image, or zero where clipping cuts it off.
            ways = [partial(_free, through=each) for each in (True, False)]
            ends = [way(*start(), *given) for way in ways]
            if any(torch.allclose(found, end, atol=1e-6) for end in ends):
                continue
            for way, (fault, what) in product(ways, _FREE_FAULTS.items()):
                if torch.allclose(found, way(*start(), *given, fault=fault), atol=1e-6):
                    raise Wrong(what)
            agree(found, ends[0], {}, tolerance=1e-6)


_FREE_FAULTS = TRAINING_FAULTS | {
    "zero": "old gradients are added: call optimizer.zero_grad() before every backward",
    "zero once": "the gradients of all replays add up: call optimizer.zero_grad() in every replay",
    "descend": "delta goes the wrong way: it climbs, delta + eps * sign",
    "raw": "delta moves along the gradient itself: take its sign, times eps",
    "open": "delta leaves [-eps, eps]: clamp it after every step",
    "fresh": "every replay begins with the delta that was given: it goes on from the last one",
    "zeros": "begins with delta = 0: begin with the delta that was given",
    "late": "returns delta as it was before the last replay: update it in every replay",
    "once": "the weights move only once: the optimizer steps in every replay",
    "alpha": "the step of delta is eps / replays: it is eps",
    "fast": "the step of delta is 1.25 eps, that of fast adversarial training: here it is eps",
    "unclipped": "the network sees pixels outside [0, 1]: clip x + delta",
    "mixed": "mixes in the loss at the clean images: only that at x + delta counts",
    "still": "delta does not move: delta + eps * sign of the gradient in delta",
}


def _free_start(
    first: nn.Module, old: list[Tensor], momentum: float
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of the network, with old gradients in it, and its optimizer."""
    network = small_network(torch.float64, torch.Generator())
    network.load_state_dict(first.state_dict())
    for parameter, gradient in zip(network.parameters(), old, strict=True):
        parameter.grad = gradient.clone()
    return network, torch.optim.SGD(network.parameters(), lr=0.1, momentum=momentum)


def _free_answer(
    answer: Answer, network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor,
    delta: Tensor, eps: float, replays: int,
) -> Tensor:  # fmt: skip
    """Weights and delta after the answer in one row; Wrong if it works in another way."""
    modules = list(network.modules())
    before, seen, given = [each.training for each in modules], modes(network), delta.clone()
    images = x.clone()
    found = tensor(answer(network, optimizer, images, y, given, eps, replays), delta,
                   "one perturbation per image")  # fmt: skip
    if any(seen):
        raise Wrong(TRAIN_MODE + ". The loop around your step chooses it")
    if [each.training for each in modules] != before:
        raise Wrong("changes the mode of the network: leave every module in the one it was in")
    untouched(x, images, "x")
    untouched(delta, given, "delta")
    if len(seen) != replays:
        raise Wrong(f"asks the network {len(seen)} times in {replays} replays: one forward and one "
                    "backward pass give the gradients in the weights and in delta")  # fmt: skip
    return torch.cat([parameters_to_vector(network.parameters()).detach(), found.flatten()])


def _free(
    network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, delta: Tensor,
    eps: float, replays: int, *, through: bool, fault: str = "",
) -> Tensor:  # fmt: skip
    """Weights and delta after free adversarial training, or with one mistake, in one row."""
    given = 0 * delta if fault == "zeros" else delta
    delta, last = given, given
    for k in range(replays):
        last, at = delta, (given if fault == "fresh" else delta)
        at = at.clone().requires_grad_()
        loss, seen = _free_loss(network, x, y, at, fault, through)
        if fault != "zero" and not (fault == "zero once" and k):
            optimizer.zero_grad()
        (-loss if fault == "ascend" else loss).backward()
        for _ in range(2 if fault == "twice" else fault != "no step"):
            if fault != "once" or k == replays - 1:
                optimizer.step()
        gradient = torch.as_tensor((at if through else seen).grad)
        size = {"descend": -1, "alpha": 1 / replays, "fast": 1.25, "still": 0}.get(fault, 1) * eps
        delta = at.detach() + size * (gradient if fault == "raw" else gradient.sign())
        delta = delta if fault == "open" else delta.clamp(-eps, eps)
    weights = parameters_to_vector(network.parameters()).detach()
    return torch.cat([weights, (last if fault == "late" else delta).flatten()])


def _free_loss(
    network: nn.Module, x: Tensor, y: Tensor, delta: Tensor, fault: str, through: bool
) -> tuple[Tensor, Tensor]:
    """The loss of one replay, and the images at which it was taken."""
    seen = x + delta if fault == "unclipped" else (x + delta).clamp(0, 1)
    seen = seen if through else seen.detach().requires_grad_()
    loss = F.cross_entropy(network(seen), y, reduction="sum" if fault == "sum" else "mean")
    return (loss + F.cross_entropy(network(x), y)) / 2 if fault == "mixed" else loss, seen


def _right(name: str) -> dict[str, Answer]:
    """A right answer to what a later task builds on; an inner function, which answers may call."""

    def linear_attack(w: Tensor, b: float, x: Tensor, y: Tensor, eps: float, norm: str) -> Tensor:
        return x - eps * y[:, None] * (w.sign() if norm == "linf" else w / w.norm())

    def shared_bounds(counts: Tensor, top: int, alpha: float) -> tuple[float, float]:
        k, n = int(counts[top]), int(counts.sum())
        rival = max(int(count) for c, count in enumerate(counts) if c != top)
        p_a, p_b = stats.beta.ppf(
            [alpha / 2, 1 - alpha / 2], [k, rival + 1], [n - k + 1, n - rival]
        )
        return float(p_a) if k > 0 else 0.0, float(p_b) if rival < n else 1.0

    right: dict[str, Answer] = {"linear_attack": linear_attack, "shared_bounds": shared_bounds}
    return {name: right[name]}


@partial(check, builds_on=_right("linear_attack"))
def danskin_gradient_l2(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Danskin's gradient with an l2 ball, ``(w, b, x, y, eps) -> gradient``."""
    danskin(answer, case, generator, "l2")


# --- votes ----------------------------------------------------------------------------------------


def _pair(counts: list[int], top: int, alpha: float, fault: str = "") -> tuple[float, float]:
    """A lower bound for ``top`` and an upper one for all others, or with one mistake."""
    n, classes = sum(counts), len(counts)
    share = {"whole": alpha, "bonferroni": alpha / classes, "quarter": alpha / 4,
             "rivals": alpha / (classes - 1)}.get(fault, alpha / 2)  # fmt: skip
    rivals = [k for c, k in enumerate(counts) if c != top or fault == "top among"]
    rival = min(rivals) if fault == "smallest" else max(rivals)
    p_a = float(lower_conf_bound(counts[top], n, share))
    p_b = float(upper_conf_bound(rival, n, share))
    return p_a, p_b


# Whose part of alpha is wrong.
_SHARED = {
    "whole": "gives each bound the whole alpha: two bounds hold, so each gets alpha / 2",
    "bonferroni": "alpha / K for each bound: valid but wasteful. Two bounds are enough, that of "
    "top and that of the truly strongest rival: alpha / 2 each",
    "rivals": "alpha / (K - 1): valid but wasteful. Two bounds are enough, that of top and that of "
    "the truly strongest rival: alpha / 2 each",
    "quarter": "alpha / 4: each bound is one-sided, so its alpha / 2 is not halved again",
}


@check
def shared_bounds(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Bounds that share alpha, ``(counts, top, alpha) -> (p_a, p_b)``."""
    n = whole(generator, 400, 600)
    for name, runs, alpha in (
        ("a clear lead", [[0.7, 0.12, 0.08, 0.05, 0.03, 0.02]], 0.01),
        ("ten classes, no lead", [[0.2, 0.17, 0.15, 0.12, 0.1, 0.08, 0.07, 0.05, 0.04, 0.02]],
         0.001),
        ("another class has more votes", [[0.3, 0.5, 0.2]], 0.05),
        ("all votes agree", [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]], 0.001),
        ("no vote for top, and all for another", [[0.0, 0.6, 0.4], [0.0, 1.0, 0.0]], 0.01),
    ):  # fmt: skip
        with case(name):
            for shares in runs:
                votes = [int(share * n) for share in shares]
                place = torch.randperm(len(votes), generator=generator)
                counts = torch.zeros(len(votes), dtype=torch.int64)
                counts[place] = torch.tensor(votes)
                _bounded(answer, counts, int(place[0]), alpha)


def _bounded(answer: Answer, counts: Tensor, top: int, alpha: float) -> None:
    given = counts.clone()
    found = answer(given, top, alpha)
    ends = "two probabilities; for k = 0 the lower bound is 0, for k = n the upper one is 1"
    p_a, p_b = _two_numbers(found, ends)
    untouched(counts, given, "counts")
    _bounds_agree(p_a, p_b, counts.tolist(), top, alpha)


def _bounds_agree(p_a: float, p_b: float, counts: list[int], top: int, alpha: float) -> None:
    a, b = _pair(counts, top, alpha)
    if abs(p_a - b) + abs(p_b - a) < 1e-6 < abs(a - b):
        raise Wrong("the order is wrong: first the lower bound of top, then the upper one of the "
                    "others")  # fmt: skip
    n, most = sum(counts), counts.index(max(counts))
    if most != top and abs(p_a - _pair(counts, most, alpha)[0]) < 1e-6:
        raise Wrong("bounds the class with most votes: another sample has chosen top")
    others = sorted((k for c, k in enumerate(counts) if c != top), reverse=True)
    parts = {what: _pair(counts, top, alpha, fault) for fault, what in _SHARED.items()}
    below = {what: pair[0] for what, pair in parts.items()} | {
        f"p_a: {what}": value for what, value in bound_faults(counts[top], n, alpha / 2).items()
    }
    above = {f"p_b alone: {what}": pair[1] for what, pair in parts.items()} | {
        "top itself is among the rivals: the largest bound of the other classes is asked for":
            _pair(counts, top, alpha, "top among")[1],
        "p_b belongs to the weakest rival: the largest bound of the others counts":
            _pair(counts, top, alpha, "smallest")[1],
        "p_b is 1 - p_a: that is the one-class form, or top is among its own rivals. The votes of "
        "the strongest rival count": 1 - a,
        "p_b adds the rivals' bounds up: the largest of them counts":
            min(1.0, sum(float(upper_conf_bound(k, n, alpha / 2)) for k in others)),
    } | {f"p_b: {what}": 1 - value
         for what, value in bound_faults(n - others[0], n, alpha / 2).items()}  # fmt: skip
    agree(p_a, a, below, tolerance=1e-6)
    agree(p_b, b, above, tolerance=1e-6)


@check
def sample_batch(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """SAMPLEUNDERNOISE for several images at once.

    ``(model, x (b, 1, h, w), sigma, n, batch_size, num_classes, generator) -> counts (b, classes)``
    """
    seed = whole(generator, 0, 10_000)
    for name, images, sigma, n, batch in (
        ("three images", 3, 0.5, 200, 100), ("the last batch smaller", 2, 0.25, 130, 60),
        ("fewer copies than a batch holds", 3, 0.5, 40, 64), ("one image", 1, 0.5, 120, 50),
    ):  # fmt: skip
        x = _far_apart(images, generator)
        with case(name):
            model = Recorder()
            found = sampled(answer, model, x, sigma, n, batch, seed)
            which = noise_of(model, x, sigma, n, batch)
            answers = torch.cat(model.answers)
            expected = torch.stack([answers[which == i].bincount(minlength=4)
                                    for i in range(images)])  # fmt: skip
            _rows_agree(found, expected, n)


def _far_apart(images: int, generator: torch.Generator) -> Tensor:
    """Images that no noise confuses, with means at which the recorder is divided."""
    pattern = (torch.rand(images, 1, 28, 28, generator=generator) < 0.5).float()
    means = torch.tensor([0.5, 0.395, 0.655])[:images].view(-1, 1, 1, 1)
    return means + 0.6 * (pattern - pattern.mean((1, 2, 3), keepdim=True))


def _rows_agree(found: Any, expected: Tensor, n: int) -> None:
    images, classes = expected.shape
    if not isinstance(found, Tensor | np.ndarray | list | tuple):
        raise Wrong(f"returns {type(found).__name__}, expected counts ({images}, {classes})")
    rows = found if isinstance(found, Tensor | np.ndarray) else list(found)
    shape = tuple(rows.shape) if isinstance(rows, Tensor | np.ndarray) else (len(rows),)
    if images > 1 and shape == (classes,) and np.ndim(rows[0]) == 0:
        raise Wrong("returns one row of counts: each image has its own, do not add them up")
    if shape[0] != images or (len(shape) > 1 and shape[1:] != (classes,)):
        raise Wrong(f"returns shape {shape}, expected ({images}, {classes}): a row for each image")
    values = torch.stack([torch.as_tensor(row) for row in rows])
    if images > 1 and torch.equal(values, expected.sum(0).expand_as(expected)):
        raise Wrong("gives each image the counts of all: count them image by image")
    if torch.equal(values.sum(0), expected.sum(0)) and not torch.equal(values, expected):
        raise Wrong("all votes are there, but in the rows of other images: which copy was of "
                    "which image?")  # fmt: skip
    for row, right in zip(values, expected, strict=True):
        counts_agree(row, right, n)


@partial(check, builds_on=_right("shared_bounds"))
def certify_two_class(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """CERTIFY with a bound for each rival, ``(sample, n0, n, alpha, sigma) -> (class, radius)``."""
    n0, n = 50, whole(generator, 800, 1200)
    place = torch.randperm(6, generator=generator).tolist()

    def votes(total: int, *shares: float) -> list[int]:
        counts = [0] * 6
        for at, share in zip(place[1:], [*shares, 0, 0, 0, 0], strict=False):
            counts[at] = int(share * total)
        counts[place[0]] = total - sum(counts)
        return counts

    rest = 1 - uniform(generator, 0.7, 0.9)
    first, divided = votes(n0, 0.02, 0.12, 0.06), votes(n0, 0.2, 0.1, 0.1)
    clear = (first, votes(n, 0.5 * rest, 0.3 * rest, 0.1 * rest, 0.1 * rest), 0.6)
    low = (votes(n0, 0.1, 0.3, 0.2), votes(n, 0.2, 0.18, 0.14, 0.06), 0.25)
    lost, turned = (divided, votes(n, 0.34, 0.2, 0.1), 0.5), (divided, votes(n, 0.5, 0.3), 1.0)
    agreed = (votes(n0), votes(n), 0.25)
    for name, runs in (
        ("a clear class", [clear]), ("all votes agree", [agreed]),
        ("p_a below 1/2", [low]), ("clear, and no clear lead", [clear, lost]),
        ("clear, and the two samples disagree", [clear, turned]),
    ):  # fmt: skip
        with case(name):
            for first, second, sigma in runs:
                runner_up = sorted(range(6), key=first.__getitem__)[-2]
                rule = Rule(partial(_two_class, runner_up=runner_up), _TWO_CLASS_FAULTS,
                            "p_a is above p_b; it need not be above 1/2")  # fmt: skip
                certificate(answer, first, second, sigma, place[0], place[1], rule)


def _two_class(
    counts: list[int], top: int, alpha: float, sigma: float, fault: str = "", *, runner_up: int
) -> float | None:
    """The radius from both bounds, or with one mistake; None where it abstains."""
    n, rivals = sum(counts), [k for c, k in enumerate(counts) if c != top]
    p_a, p_b = _pair(counts, top, alpha, fault)
    p_a = counts[top] / n if fault == "plug-in" else p_a
    p_b = max(rivals) / n if fault in ("plug-in", "share") else p_b
    p_b = {
        "one": 1 - p_a, "lower": float(lower_conf_bound(max(rivals), n, alpha / 2)),
        "whole b": float(upper_conf_bound(max(rivals), n, alpha)),
        "first": float(upper_conf_bound(counts[runner_up], n, alpha / 2)),
    }.get(fault, p_b)  # fmt: skip
    if p_a <= p_b and fault != "never abstains":
        return None
    q = stats.norm.cdf if fault == "cdf" else stats.norm.ppf
    scale = {"no sigma": 0.5, "variance": sigma**2 / 2, "no half": sigma}.get(fault, sigma / 2)
    spread = q(p_a) + q(p_b) if fault == "plus" else q(p_a) - q(p_b)
    return float(scale * (spread if fault != "difference" else q(abs(p_a - p_b))))


_TWO_CLASS_FAULTS = _SHARED | {
    "one": "this is the one-class radius, with p_b = 1 - p_a: bound the rivals by their own votes",
    "plug-in": "uses the observed shares k / n: their confidence bounds are missing",
    "share": "p_b is the observed share of the rival: take its upper bound",
    "lower": "p_b is the lower bound of the rival: take the upper one",
    "smallest": "p_b belongs to the weakest rival: the largest bound of the others counts",
    "first": "bounds the runner-up of the first sample: the largest bound of all others counts",
    "whole b": "the bound of the rival gets the whole alpha: alpha / 2 each",
    "no half": "the factor 1/2 is missing",
    "cdf": "takes Phi where its inverse is needed: norm.ppf, not norm.cdf",
    "no sigma": "sigma is missing: sigma / 2 times the difference of the quantiles",
    "variance": "sigma squared: sigma is the standard deviation",
    "plus": "adds the two quantiles: the second one is subtracted",
    "difference": "Phi^-1 of the difference: take it of each, then subtract",
    "never abstains": "answers although p_a is not above p_b: abstain",
}  # fmt: skip


# --- probabilities --------------------------------------------------------------------------------


def _p_values(k: Any, n: int, sides: int = 2) -> Any:
    """Of the binomial test of the larger of k and n - k against 1/2."""
    return np.minimum(1.0, sides * stats.binom.sf(np.maximum(k, n - k) - 1, n, 0.5))


# Which counts k are summed over, and which a mistake sums over. A p-value of alpha may be rounded.
_ABSTAINS: Mapping[str, Callable[[Any, int, float], Any]] = {
    "": lambda k, n, alpha: _p_values(k, n) > alpha * (1 + 1e-9),
    "this is the probability that it answers: 1 minus that of abstaining":
        lambda k, n, alpha: _p_values(k, n) <= alpha * (1 + 1e-9),
    "abstains at a p-value of exactly alpha: PREDICT answers if it is at most alpha":
        lambda k, n, alpha: _p_values(k, n) >= alpha * (1 - 1e-9),
    "one-sided test: the winner was chosen after looking, so both sides count":
        lambda k, n, alpha: _p_values(k, n, 1) > alpha,
    "alpha / 2: binomtest is two-sided already": lambda k, n, alpha: _p_values(k, n) > alpha / 2,
    "counts only the votes in which the first class leads: it abstains, too, where the other "
    "leads by as little": lambda k, n, alpha: (2 * k >= n) & (_p_values(k, n) > alpha),
    "counts only the votes in which the first class leads, and no tie: the other side counts too":
        lambda k, n, alpha: (2 * k > n) & (_p_values(k, n) > alpha),
    "the normal approximation of the test: take the exact binomial test":
        lambda k, n, alpha: 2 * stats.norm.sf(abs(2 * k - n) / math.sqrt(n)) > alpha,
    "this is the probability that the first class is answered":
        lambda k, n, alpha: (2 * k > n) & (_p_values(k, n) <= alpha),
    "a tie alone: it abstains at every lead that may be chance": lambda k, n, alpha: 2 * k == n,
}  # fmt: skip


@check
def abstention(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Probability that PREDICT abstains with two classes, ``(p, n, alpha) -> probability``."""
    p = uniform(generator, 0.55, 0.65)
    for name, runs in (
        ("a lead", [(p, whole(generator, 80, 120), 0.05)]),
        ("p and 1 - p", [(p, 61, 0.01), (1 - p, 61, 0.01)]),
        ("p-values of exactly alpha", [(p, 9, 2 / 512), (p, 11, 24 / 2048)]),
        ("a tie of both classes, many votes", [(0.5, 200, 0.001)]),
        ("few votes", [(0.9, 4, 0.05), (0.9, 7, 0.05)]),
    ):
        with case(name):
            for given in runs:
                found = number(answer(*given), "a probability")
                _abstains(found, partial(answer, *given), *given)


def _abstains(found: float, again: Callable[[], Any], p: float, n: int, alpha: float) -> None:
    k = np.arange(n + 1)
    votes, bell = stats.binom(n, p).pmf(k), stats.norm(n * p, math.sqrt(n * p * (1 - p))).cdf
    masses = {what: float(votes[rule(k, n, alpha)].sum()) for what, rule in _ABSTAINS.items()}
    expected, inside = masses.pop(""), k[_ABSTAINS[""](k, n, alpha)]
    tests = np.array([stats.binomtest(int(each), n, p).pvalue for each in k])
    faults = masses | {
        "the normal approximation of the votes: sum the binomial probabilities":
            float(bell(inside[-1]) - bell(inside[0])),
        "the normal approximation of the votes, corrected: sum the binomial probabilities":
            float(bell(inside[-1] + 0.5) - bell(inside[0] - 0.5)),
        "sums under p = 1/2: the votes have probability p, only the test asks about 1/2":
            float(stats.binom(n, 0.5).pmf(inside).sum()),
        "tests against p: PREDICT tests whether the votes are those of a coin":
            float(votes[tests > alpha].sum()),
        "a share of the outcomes: each k counts with its probability": len(inside) / (n + 1),
    }  # fmt: skip
    gap = abs(found - expected)
    unknown = all(abs(found - value) > 1e-6 for value in [expected, *faults.values()])
    if unknown and (gap < 0.03 or number(again(), "a probability") != found):
        raise Wrong(f"differs by {gap:.2g}, as a simulation would: sum exactly")
    agree(found, expected, faults, tolerance=1e-6)


@check
def probability_band(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """What a class with p at x can have nearby, ``(p, distance, sigma) -> (lowest, highest)``."""
    for name, low, high, sigma, most in (
        ("a likely class", 0.7, 0.95, 0.6, 1.2), ("an unlikely class", 0.05, 0.3, 0.25, 1.2),
        ("a probability of 1/2", 0.5, 0.5, 1.7, 0.8), ("far away", 0.6, 0.9, 0.8, 4.0),
    ):  # fmt: skip
        p = uniform(generator, low, high)
        distance = sigma * uniform(generator, 0.6 * most, most)
        with case(name):
            found = _two_numbers(answer(p, distance, sigma),
                                 "the lowest and the highest probability: Phi of a moved quantile"
                                 )  # fmt: skip
            _band(found, p, distance, sigma)


def _band(found: tuple[float, float], p: float, distance: float, sigma: float) -> None:
    cdf, ppf = stats.norm.cdf, stats.norm.ppf

    def band(moved: float, centre: float | None = None) -> Tensor:
        z = ppf(p) if centre is None else centre
        return torch.tensor([cdf(z - moved), cdf(z + moved)], dtype=torch.float64)

    def line(moved: float) -> Tensor:
        return torch.tensor([p - moved, p + moved], dtype=torch.float64)

    expected, d = band(distance / sigma), distance / sigma
    with np.errstate(invalid="ignore"):
        turned = torch.tensor([ppf(cdf(p) - d), ppf(cdf(p) + d)], dtype=torch.float64)
    faults = {
        "the order is wrong: first the lowest, then the highest": expected.flip(0),
        "sigma is missing: the quantile moves by distance / sigma": band(distance),
        "sigma squared: the quantile moves by distance / sigma": band(distance / sigma**2),
        "times sigma: the quantile moves by distance / sigma": band(distance * sigma),
        "half of it: the quantile moves by distance / sigma": band(d / 2),
        "twice of it: the quantile moves by distance / sigma": band(2 * d),
        "takes Phi and its inverse in the other order: first norm.ppf of p, then norm.cdf": turned,
        "p itself is moved: take its quantile, norm.ppf(p)": band(d, p),
        "Phi of p is moved: take its quantile, norm.ppf(p)": band(d, float(cdf(p))),
        "moves p by distance / sigma: it is its quantile that moves": line(d),
        "moves p by distance / sigma and clips: it is its quantile that moves": line(d).clamp(0, 1),
        "moves p by the distance: it is its quantile that moves": line(distance),
        "moves p by the distance and clips: it is its quantile that moves":
            line(distance).clamp(0, 1),
        "this is the band of the other classes together, 1 - p": 1 - expected.flip(0),
        "1 minus each end: no complement is needed": 1 - expected,
        "the quantiles, not the probabilities: Phi of them is missing":
            torch.tensor([ppf(p) - d, ppf(p) + d], dtype=torch.float64),
        "twice the lowest: the highest is Phi(Phi^-1(p) + distance / sigma)":
            expected[:1].expand(2),
        "twice the highest: the lowest is Phi(Phi^-1(p) - distance / sigma)":
            expected[1:].expand(2),
    }  # fmt: skip
    agree(torch.tensor(found, dtype=torch.float64), expected, faults, tolerance=1e-6)


@check
def radius_p_value(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """P-value of "the radius is smaller" after k of n votes, ``(k, n, radius, sigma) -> p``."""
    for name, n, sigma, ratio, above in (
        ("a radius that holds", 200, 0.8, 1.0, 2.5), ("one in doubt", 60, 0.8, 0.5, 1.0),
        ("one too large", 100, 1.4, 1.5, -1.0), ("all votes agree", 300, 0.8, 2.5, math.inf),
    ):  # fmt: skip
        radius = sigma * ratio * uniform(generator, 0.9, 1.0)
        p = float(stats.norm.cdf(radius / sigma))
        spread = math.sqrt(n * p * (1 - p))
        k = n if math.isinf(above) else min(n - 1, round(n * p + above * spread))
        with case(name):
            found = number(answer(k, n, radius, sigma), "a probability")
            _tail(found, k, n, radius, sigma)


def _tail(found: float, k: int, n: int, radius: float, sigma: float) -> None:
    p, cdf = float(stats.norm.cdf(radius / sigma)), stats.norm.cdf
    spread = math.sqrt(n * p * (1 - p))
    tail = partial(stats.binom.sf, k - 1, n)
    faults = {
        "k itself belongs to the tail: P(Bin >= k) is binom.sf(k - 1, n, p)":
            stats.binom.sf(k, n, p),
        "the other tail: small must mean that so many votes would be a surprise":
            stats.binom.cdf(k, n, p),
        "the other tail, without k: P(Bin >= k) is asked for": stats.binom.cdf(k - 1, n, p),
        "the probability of exactly k: that of k or more is asked for": stats.binom.pmf(k, n, p),
        "two-sided: only more votes speak for a larger radius": stats.binomtest(k, n, p).pvalue,
        "twice the tail: only more votes speak for a larger radius": min(1.0, 2 * tail(p)),
        "sigma is missing: Phi takes radius / sigma": tail(cdf(radius)),
        "sigma squared: Phi takes radius / sigma": tail(cdf(radius / sigma**2)),
        "times sigma: Phi takes radius / sigma": tail(cdf(radius * sigma)),
        "Phi(-radius / sigma) is what the others may have: the class has Phi(radius / sigma)":
            tail(1 - p),
        "tests against 1/2: the radius is certified above Phi(radius / sigma)": tail(0.5),
        "half of the radius: the one-class form has no factor 1/2": tail(cdf(radius / sigma / 2)),
        "twice the radius: the one-class form has no factor 1/2": tail(cdf(2 * radius / sigma)),
        "the normal approximation: take the exact binomial tail":
            stats.norm.sf((k - n * p) / spread),
        "the normal approximation, corrected: take the exact binomial tail":
            stats.norm.sf((k - 0.5 - n * p) / spread),
    }  # fmt: skip
    expected = float(tail(p))
    for what, value in faults.items():  # by their ratio: many mistakes give next to 0
        if abs(found - value) <= 1e-6 * value and abs(value - expected) > 1e-6 * expected:
            raise Wrong(what)
    agree(found, expected, {}, tolerance=1e-6)


@check
def radius_at(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """The largest radius with enough accuracy, ``(label, prediction, radius, share) -> r``."""
    label = torch.randint(3, (128,), generator=generator).numpy()
    prediction = label.copy()
    prediction[::4] = (label[::4] + 1) % 3
    prediction[1::8] = ABSTAIN
    smooth = torch.rand(128, generator=generator).double().numpy() + 0.1
    steps = (torch.randint(1, 9, (128,), generator=generator) / 8).double().numpy()
    for name, radius, wanted in (
        ("between two shares", smooth, [30.5 / 128, 57.3 / 128]),
        ("a share met exactly", smooth, [0.25, 0.375]), ("equal radii", steps, [0.3, 0.5]),
        ("reached, and out of reach", smooth, [0.55, 0.7]),
    ):  # fmt: skip
        radius = np.where(prediction == ABSTAIN, 0.0, radius)
        with case(name):
            for share in wanted:
                given = (label.copy(), prediction.copy(), radius.copy(), share)
                found = number(answer(*given), "a radius")
                _highest(found, prediction == label, prediction != ABSTAIN, radius, share)


def _highest(
    found: float, right: np.ndarray, answered: np.ndarray, radius: np.ndarray, share: float
) -> None:
    """Wrong unless found is the largest radius at which enough images are right."""
    n, kept = len(right), np.sort(radius[right])[::-1]

    def at(values: np.ndarray, images: float, more: int = 0) -> float:
        k = max(math.ceil(images - 1e-9) + more, 1)
        return float(np.sort(values)[::-1][k - 1]) if k <= len(values) else 0.0

    expected = at(kept, share * n)
    counted = np.where(right, radius, 0.0)
    if expected == 0 and found != 0:
        raise Wrong(f"{found:.4g} where not even radius 0 reaches the share: the answer is 0.0")
    faults = {
        "wrong predictions count as well: compare with the label": at(radius, share * n),
        "a share of the correct images: it is one of all images": at(kept, share * len(kept)),
        "a share of the images with an answer: an abstention counts as an error":
            at(kept, share * int(answered.sum())),
        "one image too few: at this radius the share is not reached": at(kept, share * n, -1),
        "one image too many: at least the share is enough, and a larger radius has it":
            at(kept, share * n, 1),
        "more than the share is asked for here: at least the share is enough":
            at(kept, math.floor(share * n + 1e-9) + 1),
        "the smallest radius of a correct image: the largest that reaches the share is asked for":
            float(kept[-1]),
        "the largest radius of all: fewer images than the share have it": float(kept[0]),
        "the share from below: it is the upper part of the radii that counts":
            float(np.quantile(counted, share, method="inverted_cdf")),
        "radius 0 reaches the share, and larger ones do as well: the largest is asked for": 0.0,
        "interpolates between two radii, as numpy.quantile does: the curve falls in steps":
            float(np.quantile(counted, 1 - share)),
        "interpolates over the correct images alone: all images count, and the curve falls in "
        "steps": float(np.quantile(kept, 1 - share)),
        "this is the accuracy at some radius, not a radius": float(right.mean()),
    }  # fmt: skip
    if 1e-6 < abs(found - expected) < 0.012 and not any(
        abs(found - value) < 1e-6 for value in faults.values()
    ):
        raise Wrong(f"near, but not exact, by {abs(found - expected):.2g}: the curve steps at the "
                    "radii of the log, so no grid and no interpolation is needed")  # fmt: skip
    agree(found, expected, faults, unit=" pixel units", tolerance=1e-6)
