"""Checks of the homework on attacks, training against them, and Danskin's theorem."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import copysign, inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from trustml_helpers.checks.harness import (
    Answer,
    Cases,
    Wrong,
    agree,
    check,
    left_alone,
    modes,
    number,
    tensor,
    untouched,
)

Memory = Callable[[Tensor, Tensor], Tensor]

LOSS_FAULTS = {
    "answer": "attacks the network's own answer: the loss is that of the label y",
    "softmax": "applies softmax before cross_entropy: it takes logits",
}
WRONG_WAY = "goes the wrong way: the loss falls. An attack climbs, x + ..., not x - ..."
TRAIN_MODE = ("puts the network into train mode, so dropout falsifies the gradient; leave the "
               "mode as it is")  # fmt: skip


def small_network(dtype: torch.dtype, generator: torch.Generator) -> nn.Module:
    """A smooth network for images (n, 1, 4, 4) and three classes, with dropout, in eval mode.

    All but its last module, which does nothing: who calls ``eval()`` or ``train()`` changes one.
    """
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 3), nn.Identity()
    ).eval()
    network[-1].train()
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.8
    return network.to(dtype)


def some_images(
    generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """Five images inside the box, and labels."""
    x = 0.3 + 0.4 * torch.rand(5, 1, 4, 4, generator=generator)
    return x.to(dtype), torch.randint(3, (5,), generator=generator)


def gradient_of(network: nn.Module, x: Tensor, y: Tensor, fault: str = "") -> Tensor:
    """The gradient in the images of each one's cross-entropy, or with one mistake."""
    x = x.clone().requires_grad_()
    logits = network(x)
    labels = logits.argmax(1) if fault == "answer" else y
    logits = logits.softmax(1) if fault == "softmax" else logits
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return torch.autograd.grad(loss, x)[0].detach()


def length(x: Tensor, norm: str) -> Tensor:
    rows = x.flatten(1)
    return rows.abs().amax(1) if norm == "linf" else rows.norm(dim=1)


def stays(found: Tensor, x: Tensor, eps: float, norm: str, *, box: bool = True) -> None:
    """Wrong, with the size in pixel units, if a point lies outside the ball or [0, 1]."""
    far = length(found - x, norm).max().item()
    if far > eps * (1 + 1e-4) + 1e-6:
        cure = "project x_adv - x back onto the ball"
        if far > 100 * eps:
            cure = "it is used in units of 0 to 255; here a pixel is in [0, 1]"
        name = "largest pixel change" if norm == "linf" else "l2 length of the change"
        raise Wrong(f"leaves the ball: {name} {far:.4g}, allowed eps = {eps:g}; {cure}")
    outside = (found < -1e-6) | (found > 1 + 1e-6)
    if box and outside.any():
        raise Wrong(f"{int(outside.sum())} pixels leave [0, 1] (from {found.min():.3g} to "
                    f"{found.max():.3g}): clip the attacked image to [0, 1]")  # fmt: skip


@check
def linear_attack(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """The exact attack on a linear classifier, ``(w, b, x, y, eps, norm) -> x_adv``."""
    for norm, dtype, sparse in (
        ("linf", torch.float64, False), ("l2", torch.float64, False),
        ("linf", torch.float32, True), ("l2", torch.float32, True),
    ):  # fmt: skip
        w = torch.randn(7, generator=generator, dtype=torch.float64).to(dtype)
        x = torch.randn(6, 7, generator=generator, dtype=torch.float64).to(dtype)
        w[::3] *= not sparse
        y = torch.where(torch.rand(6, generator=generator) < 0.5, -1.0, 1.0).to(dtype)
        y[:2] = torch.tensor([1.0, -1.0])
        b, eps = 0.3, 0.25
        with case(f"{norm}, {str(dtype)[6:]}" + (", some weights 0" if sparse else "")):
            found = tensor(answer(w, b, x.clone(), y, eps, norm), x, "one point per row of x")
            w, x, y = w.double(), x.double(), y.double()
            steepest = w.sign() if norm == "linf" else w / w.norm()
            other = w.sign() if norm == "l2" else w / w.norm()
            lowest = x - eps * y[:, None] * steepest
            faults = {
                "goes the wrong way: the score y (w.x + b) rises. To lower it, move against y w":
                    x + eps * y[:, None] * steepest,
                "clips to [0, 1]: this data is not images, and has no range": lowest.clamp(0, 1),
                "returns the change alone, not x plus the change": lowest - x,
                "the label is missing: rows with y = -1 move the other way": x - eps * steepest,
                "eps is in the units of x: do not divide it by 255":
                    x - eps / 255 * y[:, None] * steepest,
                "this is the step of the other norm: it has to depend on norm":
                    x - eps * y[:, None] * other,
                "w itself is not a step of length eps: take its sign (l-inf) or divide it by its "
                "l2 norm": x - eps * y[:, None] * w,
            }  # fmt: skip
            for what, value in faults.items():  # before the ball: a fault says more than a size
                if torch.allclose(found, value, atol=1e-4):
                    raise Wrong(what)
            stays(found, x, eps, norm, box=False)
            # Not unique where a weight is 0, so the value decides.
            fell = (y * ((x - found) @ w)).min().item()
            possible = eps * (w.abs().sum() if norm == "linf" else w.norm()).item()
            if fell < possible * (1 - 1e-4):
                raise Wrong(f"the score y (w.x + b) falls by {fell:.4g}, possible is eps times the "
                            f"dual norm of w = {possible:.4g}")  # fmt: skip


@check
def steepest(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """In notebook 01: the step of length 1 that climbs fastest, ``(w, norm) -> step``."""
    for name in ("linf", "l2", "l1"):
        w = torch.randn(7, generator=generator, dtype=torch.float64)
        w[3] = -w.abs().max() - 0.5  # the largest is negative
        tip = torch.zeros_like(w)
        tip[3] = -1
        top = torch.zeros_like(w)
        top[w.argmax()] = 1
        best = {"linf": w.sign(), "l2": w / w.norm(), "l1": tip}
        lengths = {"linf": w.abs().max(), "l2": w.norm(), "l1": w.abs().sum()}
        with case(name):
            found = tensor(answer(w.clone(), name), w, "one entry per entry of w")
            faults = {
                "goes the wrong way: w . step is negative. To climb, move with w": -best[name],
                "w itself is not a step of length 1": w,
                "has length 1, but is only w made shorter: another step of length 1 climbs faster":
                    w / lengths[name],
                "the sign is missing: w is negative at its largest entry": best[name].abs(),
                "the largest entry of w: it is the largest |w| that counts, w.abs()": top,
            } | {f"this is the step of {other}: it has to depend on norm": step
                 for other, step in best.items()}  # fmt: skip
            if torch.allclose(found, best[name], atol=1e-6):
                continue
            for what, value in faults.items():
                if torch.allclose(found, value, atol=1e-6):
                    raise Wrong(what)
            size = {"linf": found.abs().max(), "l2": found.norm(), "l1": found.abs().sum()}[name]
            if size > 1 + 1e-6:
                raise Wrong(f"the step is {size:.4g} long in {name}, allowed is 1")
            raise Wrong(f"w . step is {found @ w:.4g}, possible is {best[name] @ w:.4g}")


def attacked(
    answer: Answer, network: nn.Module, x: Tensor, *rest: Any, gradients: bool = False
) -> Tensor:
    """What an attack returns; Wrong if it changes the images or the network."""
    seen, before = modes(network), x.clone()
    with left_alone(network, gradients=gradients):
        found = tensor(answer(network, x, *rest), x, "one attacked image per image")
        if any(seen):
            raise Wrong(TRAIN_MODE)
    untouched(before, x, "x")
    return found


@check
def fgsm(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """In notebook 01: one step, clipped, ``(model, x, y, eps) -> x_adv``."""
    for name, dtype, eps, rows in (
        ("float64", torch.float64, 0.1, 5), ("float32", torch.float32, 0.1, 5),
        ("pixels near 0 and 1", torch.float64, 0.5, 5), ("one image", torch.float64, 0.2, 1),
    ):  # fmt: skip
        network = small_network(dtype, generator)
        x, y = (part[:rows] for part in some_images(generator, dtype))
        with case(name):
            found = attacked(answer, network, x, y, eps)
            others = {what: gradient_of(network, x, y, key) for key, what in LOSS_FAULTS.items()}
            one_step(found, x, gradient_of(network, x, y), eps, others)


def one_step(
    found: Tensor, x: Tensor, g: Tensor, eps: float, others: dict[str, Tensor],
    wrong_way: str = WRONG_WAY,
) -> None:  # fmt: skip
    """Wrong unless found is one step along the sign of g, clipped; others: gradients by mistake."""
    x, g = x.double(), g.double()
    step, unit = g.sign(), g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    raw = {
        wrong_way: x - eps * step,
        "eps is in pixel units of [0, 1]: do not divide it by 255": x + eps / 255 * step,
        "eps is used in units of 0 to 255; here a pixel is in [0, 1]": x + 255 * eps * step,
        "adds the gradient, not its sign": x + eps * g,
        "adds the mean loss's gradient, not its sign": x + eps * g / len(g),
        "divides by the l2 norm of each image: take its sign": x + eps * unit,
        "divides by the norm over the whole batch: take its sign": x + eps * g / g.norm(),
        "divides by the largest gradient: take its sign": x + eps * g / g.abs().max(),
    } | {what: x + eps * other.double().sign() for what, other in others.items()}
    faults = {what: value.clamp(0, 1) for what, value in raw.items()}
    expected = (x + eps * step).clamp(0, 1)
    if torch.allclose(found, x + eps * step, atol=1e-5):
        stays(found, x, eps, "linf")
    if not torch.allclose(found, expected, atol=1e-5):
        for what in raw:
            if any(torch.allclose(found, each[what], atol=1e-5) for each in (raw, faults)):
                raise Wrong(what)
        stays(found, x, eps, "linf")
    agree(found, expected, faults, unit=" pixel units")


def visited(
    network: nn.Module, x: Tensor, y: Tensor, eps: float, size: float, steps: int, start: Tensor,
    *, norm: str, fault: str = "", memory: Memory | None = None, box_first: bool = False,
) -> list[Tensor]:  # fmt: skip
    """The points of PGD in the plainest form, or with one mistake; ``steps + 1`` of them.

    Args:
        memory: of the last direction and the gradient, the next direction; PGD has none.
        box_first: project onto [0, 1] and then onto the ball; in l2 that is another point.
    """

    def project(z: Tensor, skip: str = "project") -> Tensor:
        delta = (z.clamp(0, 1) if box_first else z) - x
        if fault != skip:
            far = length(delta, "l2").clamp(min=1e-12)
            if fault == "batch ball":
                far = delta.norm().expand(len(x))
            shrink = (eps / far).clamp(max=inf if fault == "rescale" else 1).view(-1, 1, 1, 1)
            delta = delta.clamp(-eps, eps) if norm == "linf" else delta * shrink
        return x + delta if fault == "clip" else (x + delta).clamp(0, 1)

    def direction(total: Tensor) -> Tensor:
        if fault in ("raw", "raw mean"):
            return total / (len(x) if fault == "raw mean" else 1)
        if (norm == "linf") != (fault == "norm"):
            return total.sign()
        unit = length(total, "l2").clamp(min=1e-12).view(-1, 1, 1, 1)
        return total / (total.norm() if fault == "batch" else unit)

    first = {"start": x, "point": start, "twice": x + 2 * start}.get(fault, x + start)
    points = [first if fault == "bare" else project(first, skip="first")]
    memory = memory or {"accumulate": torch.add}.get(fault) or (lambda total, g: g)
    total = torch.zeros_like(x)
    y = network(x).argmax(1) if fault == "first answer" else y
    for _ in range(max(steps + {"last": -1, "more": 1}.get(fault, 0), 0)):
        total = memory(total, gradient_of(network, x if fault == "same" else points[-1], y, fault))
        points.append(project(points[-1] + _size(size, eps, steps, fault) * direction(total)))
    return points


def path_of(*given: Any, **named: Any) -> Tensor:
    """The last point of :func:`visited`."""
    return visited(*given, **named)[-1]


def best_of(network: nn.Module, points: list[Tensor], y: Tensor) -> Tensor:
    """For each image the point with the largest cross-entropy, the first of several."""
    return chosen(points, losses_at(network, points, y).argmax(0))


def chosen(points: list[Tensor], which: Tensor) -> Tensor:
    return torch.stack(points)[which, torch.arange(len(which))]


@torch.no_grad()
def losses_at(network: nn.Module, points: list[Tensor], y: Tensor) -> Tensor:
    """The cross-entropy of each image at each point, ``(points, n)``."""
    return torch.stack([F.cross_entropy(network(z), y, reduction="none") for z in points])


def _size(size: float, eps: float, steps: int, fault: str) -> float:
    """The length of a step, in the direction of the right one."""
    ignored = {"eps": eps, "share": eps / steps, "usual": 2.5 * eps / steps}.get(fault)
    return {"descend": -1, "double": 2, "half": 0.5}.get(fault, 1) * (
        size if ignored is None else copysign(ignored, size)
    )


PATH_FAULTS = {
    "descend": WRONG_WAY,
    "norm": "the step is that of the other norm: it has to depend on norm",
    "accumulate": "adds up the gradients of all steps: set x.grad to None in every step, or take "
    "torch.autograd.grad",
    "start": "ignores start: the first point is x + start, projected",
    "point": "takes start for the first point: it is x + start, projected",
    "twice": "adds start twice",
    "first": "does not project the first point, x + start, onto the ball",
    "bare": "takes the first gradient at x + start as it is: project it onto the ball and clip it "
    "to [0, 1] first",
    "last": "makes one step too few",
    "more": "makes one step too many",
    "double": "the steps are twice as long as step_size",
    "half": "the steps are half as long as step_size",
    "eps": "ignores step_size: the steps are eps long",
    "share": "ignores step_size: the steps are eps / steps long",
    "usual": "ignores step_size: the steps are 2.5 eps / steps long",
    "first answer": LOSS_FAULTS["answer"],
    **LOSS_FAULTS,
    "rescale": "scales every change to length eps: a change that is shorter stays as it is",
    "same": "takes the gradient at x in every step, not at the current point",
    "raw": "steps along the gradient itself: take its sign (l-inf), or divide it by its l2 norm",
    "raw mean": "steps along the gradient itself: take its sign (l-inf), or divide it by its norm",
    "batch": "divides by the norm over the whole batch: each image has its own norm, over all "
    "dimensions but the first",
    "batch ball": "projects by the norm over the whole batch: each image has its own ball",
    "project": "does not project onto the ball after a step",
    "clip": "does not clip to [0, 1] after a step",
}

ONE_NORM = {
    "norm": "the step is that of l2: take the sign of the gradient",
    "raw": "steps along the gradient itself: take its sign",
    "raw mean": "steps along the gradient itself: take its sign",
}


def other_path(found: Tensor, path: partial[Tensor], faults: dict[str, str]) -> None:
    """Wrong, by name, if a path ends where a known mistake ends."""
    for fault, what in faults.items():
        if torch.allclose(found, path(fault=fault).double(), atol=1e-4):
            raise Wrong(what)


@check
def pgd_linf(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """In notebook 01, PGD in l-inf: ``(model, x, y, eps, step_size, steps, start) -> x_adv``."""
    named = PATH_FAULTS | ONE_NORM
    for name, eps, size, steps, dtype, far in (
        ("l-inf, inside [0, 1]", 0.1, 0.3, 4, torch.float64, 1.0),
        ("l-inf, pixels near 0 and 1", 0.5, 0.3, 4, torch.float64, 1.0),
        ("l-inf, float32, a start outside the ball", 0.3, 1.8, 3, torch.float32, 1.5),
    ):
        network = small_network(dtype, generator)
        x, y = some_images(generator, dtype)
        start = far * eps * (torch.rand(x.shape, generator=generator).to(dtype) * 2 - 1)
        given = (network, x, y, eps, size * eps, steps, start)
        with case(name):
            found = attacked(answer, *given)
            expected = path_of(*given, norm="linf").double()
            if torch.allclose(found, expected, atol=1e-4):
                continue
            other_path(found, partial(path_of, *given, norm="linf"), named)
            best = best_of(network, visited(*given, norm="linf"), y)
            if torch.allclose(found, best.double(), atol=1e-4):
                raise Wrong("returns the point with the largest loss: the last one is asked for")
            stays(found, x.double(), eps, "linf")
            agree(found, expected, {}, unit=" pixel units")


@check
def towards(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """In "A real network": targeted PGD, ``(model, x, target, eps, step_size, steps) -> x_adv``."""
    own = "moves towards the network's own answer: the loss is that of the target"
    named = PATH_FAULTS | ONE_NORM | {
        "descend": "the loss of the target rises: subtract the step", "answer": own,
        "first answer": own,
    }  # fmt: skip
    for name, eps, steps, dtype in (
        ("inside [0, 1]", 0.1, 4, torch.float64), ("pixels near 0 and 1", 0.5, 4, torch.float64),
        ("float32, three steps", 0.2, 3, torch.float32),
    ):  # fmt: skip
        network = small_network(dtype, generator)
        x, target = some_images(generator, dtype)
        given = (network, x, target, eps, -0.3 * eps, steps, torch.zeros_like(x))
        with case(name):
            found = attacked(answer, network, x, target, eps, 0.3 * eps, steps)
            path = partial(path_of, *given, norm="linf")
            expected = path().double()
            if torch.allclose(found, expected, atol=1e-4):
                continue
            other_path(found, path, named)
            stays(found, x.double(), eps, "linf")
            agree(found, expected, {}, unit=" pixel units")


def climbs(network: nn.Module, x: Tensor, y: Tensor, found: Tensor, expected: Tensor) -> None:
    """Wrong unless the loss rose about as far as PGD's; another valid order of steps may differ."""
    with torch.no_grad():
        clean, ours, theirs = (
            F.cross_entropy(network(z), y, reduction="none").mean() for z in (x, expected, found)
        )
    if theirs - clean < 0.95 * (ours - clean):
        raise Wrong(f"the loss rises from {clean:.4g} to {theirs:.4g} only; PGD with these steps "
                    f"reaches {ours:.4g}")  # fmt: skip


TRAINING_FAULTS = {
    "sum": "sums the loss over the batch: take its mean, as cross_entropy does",
    "ascend": "climbs: the weights descend, only the attacker climbs",
    "no step": "the weights do not move: optimizer.step() is missing",
    "twice": "makes two optimizer steps",
}


@check
def adversarial_step(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """In notebook 02: ``(model, optimizer, x, y, attack) -> loss``."""
    for name, momentum, steps, loss_only in (
        ("plain descent", 0.0, 1, False), ("three steps, with momentum", 0.9, 3, False),
        ("the loss that is returned", 0.0, 1, True),
    ):  # fmt: skip
        with case(name):
            _adversarial_steps(answer, generator, momentum, steps, loss_only)


def _adversarial_steps(
    answer: Answer, generator: torch.Generator, momentum: float, steps: int, loss_only: bool
) -> None:
    x, y = some_images(generator)
    shift = 0.2 * torch.rand(x.shape, generator=generator).double()
    first = {k: v.clone() for k, v in small_network(torch.float64, generator).state_dict().items()}

    def attack(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        # As careless as many published ones: it leaves gradients in the network.
        F.cross_entropy(network(x.clone().requires_grad_()), y).backward()
        weights = parameters_to_vector(network.parameters())
        return x + shift + (weights - weights.detach()).sum()  # remembers how it was made

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        network = small_network(torch.float64, generator)
        network.load_state_dict(first)
        return network, torch.optim.SGD(network.parameters(), lr=0.1, momentum=momentum)

    def reference(fault: str = "") -> tuple[Tensor, float]:
        network, optimizer = start()
        for _ in range(steps):
            seen = attack(network, x, y)
            seen = {"clean": x, "graph": seen}.get(fault, seen.detach())
            if fault != "zero":
                optimizer.zero_grad()
            loss = F.cross_entropy(network(seen), y, reduction="sum" if fault == "sum" else "mean")
            if fault == "mixed":
                loss = (loss + F.cross_entropy(network(x), y)) / 2
            (-loss if fault == "ascend" else loss).backward()
            for _ in range(2 if fault == "twice" else fault != "no step"):
                optimizer.step()
            after = F.cross_entropy(network(seen), y)
        return parameters_to_vector(network.parameters()), (
            after if fault == "after" else loss
        ).item()

    network, optimizer = start()
    seen = modes(network)
    loss = float("nan")
    for _ in range(steps):
        returned = answer(network, optimizer, x.clone(), y, attack)
        loss = number(returned, "the loss as a number") if loss_only else loss
    if any(seen):
        raise Wrong(TRAIN_MODE + ". The loop around your step chooses it")
    texts = {
        "clean": "trains on the clean images: the loss must be taken at attack(model, x, y)",
        "zero": "the gradients that the attack left in the network are added: call "
        "optimizer.zero_grad() after the attack, before backward",
        "graph": "differentiates through the attack: its images still record how they were made. "
        "Detach them, x_adv is a constant of the step",
        "mixed": "mixes in the loss at the clean images: only that at attack(model, x, y) counts",
        "after": "this is the loss after the step: return the one that was minimised",
    } | TRAINING_FAULTS
    index = int(loss_only)
    found = (parameters_to_vector(network.parameters()), loss)[index]
    faults = {text: reference(fault)[index] for fault, text in texts.items()}
    agree(found, reference()[index], faults, tolerance=1e-6)


def _trades(
    network: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, beta: float, fault: str = ""
) -> Tensor:
    """The TRADES loss, or that with one mistake."""
    clean, moved = network(x).log_softmax(1), network(x_adv).log_softmax(1)
    p, q = (moved, clean) if fault == "swapped" else (clean, moved)
    p = p.detach() if fault == "fixed" else p
    each = (p.exp() * (p - q)).sum(1)
    divergence = {"sum": each.sum(), "classes": each.mean() / p.shape[1]}.get(fault, each.mean())
    loss = F.nll_loss(moved if fault == "attacked" else clean, y)
    weight = {"minus": -beta, "none": 0.0, "one": 1.0}.get(fault, beta)
    return (0 if fault == "only" else loss) + weight * divergence


_TRADES_FAULTS = {
    "swapped": "the divergence is the wrong way round: KL(p(x) || p(x_adv)) is a mean under p(x)",
    "minus": "the sign of the divergence is wrong: it is added, the network must not change its "
    "mind",
    "none": "the divergence is missing, or beta is not used: this is the loss at the clean images",
    "one": "beta is not used: the divergence has weight 1",
    "sum": "sums the divergence over the batch: take the mean over the images",
    "classes": "takes the mean of the divergence over the classes as well: sum over the classes, "
    "then take the mean over the images",
    "attacked": "takes the cross-entropy at x_adv: the first term is the loss at x",
    "only": "the cross-entropy at x is missing",
}


@check
def trades_loss(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """The loss of TRADES at given attacked images, ``(model, x, y, x_adv, beta) -> loss``."""
    for name, beta, gradient in (
        ("beta 6", 6.0, False), ("beta 0.5", 0.5, False),
        ("the gradient in the weights", 2.0, True),
    ):  # fmt: skip
        network = small_network(torch.float64, generator)
        x, y = some_images(generator)
        x_adv = (x + 0.4 * torch.rand(x.shape, generator=generator).double()).clamp(0, 1)
        with case(name):
            seen = modes(network)
            loss = answer(network, x.clone(), y, x_adv.clone(), beta)
            if any(seen):
                raise Wrong(TRAIN_MODE)
            given, faults = (network, x, y, x_adv, beta), dict(_TRADES_FAULTS)
            if gradient:
                faults["fixed"] = "p(x) is detached: both terms move the network at x"
            value = partial(_slope, network) if gradient else partial(number, what="the loss")
            agree(
                value(loss), value(_trades(*given)),
                {text: value(_trades(*given, fault)) for fault, text in faults.items()},
                tolerance=1e-6,
            )  # fmt: skip


def _slope(network: nn.Module, loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise Wrong("the loss has no gradient: return the tensor, without .item() or detach()")
    parts = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def _slope_of(f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    w = w.clone().requires_grad_()
    return torch.autograd.grad(f(w), w)[0]


@check
def numerical_gradient(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """Central differences, ``(f, w, h) -> gradient``."""
    for name, size in (("three weights", 3), ("one weight", 1)):
        w = torch.rand(size, generator=generator, dtype=torch.float64) + 0.5
        h = 1e-2

        def f(w: Tensor) -> Tensor:
            return (w**3).sum() + w[0] * w[-1]

        with case(name):
            given = w.clone()
            found = tensor(answer(f, given, h), w, "one derivative per weight")
            untouched(w, given, "w")
            steps = h * torch.eye(size, dtype=torch.float64)
            up = torch.stack([f(w + e) for e in steps])
            down = torch.stack([f(w - e) for e in steps])
            faults = {
                "a one-sided difference: its error is of order h, that of (f(w + h) - f(w - h)) / "
                "(2 h) of order h^2": (up - f(w)) / h,
                "a one-sided difference, backwards": (f(w) - down) / h,
                "divides by h: the two points are 2 h apart": (up - down) / h,
                "not divided by 2 h": up - down,
                "multiplies by h: brackets are missing in / (2 * h)": (up - down) / 2 * h,
                "all zero: up and down are the same tensor as w; make copies with w.clone()": 0 * w,
                "the sign is wrong: f(w + h) - f(w - h)": (down - up) / (2 * h),
                "the exact derivative: here it is to be approximated, by (f(w + h) - f(w - h)) / "
                "(2 h)": _slope_of(f, w),
                "moves by h / 2 to each side: the two points are w + h and w - h":
                    torch.stack([(f(w + e / 2) - f(w - e / 2)) / h for e in steps]),
                "moves all weights at once: one after the other, each on its own": 0 * w
                + (f(w + h) - f(w - h)) / (2 * h),
            }  # fmt: skip
            agree(found, (up - down) / (2 * h), faults, tolerance=1e-6)


def logistic_gradient(
    w: Tensor, b: float, x: Tensor, y: Tensor, eps: float, norm: str, fault: str = ""
) -> Tensor:
    """Danskin's gradient for a linear classifier, or with one mistake."""
    norm = {"linf": "l2", "l2": "linf"}[norm] if fault == "norm" else norm
    steepest = {"w": w, "square": w / w.square().sum()}.get(
        fault, w.sign() if norm == "linf" else w / w.norm()
    )
    z = x - eps * (1 if fault == "label" else y[:, None]) * steepest
    score = y * (z @ w + (0 if fault == "b" else b))
    share = y * torch.sigmoid(score if fault == "sigmoid" else -score)
    return -(share[:, None] * (x if fault == "clean factor" else z)).mean(0)


@check
def danskin_gradient(answer: Answer, case: Cases, generator: torch.Generator) -> None:
    """In notebook 02: gradient of the worst-case logistic loss, ``(w, b, x, y, eps) -> gradient``.

    The worst case is over the l-inf ball.
    """
    danskin(answer, case, generator, "linf")


def danskin(answer: Answer, case: Cases, generator: torch.Generator, norm: str) -> None:
    """The cases of Danskin's gradient in one norm."""
    length = {"linf": "take the sign of w", "l2": "divide w by its l2 norm"}[norm]
    for dtype in (torch.float64, torch.float32):
        w = torch.randn(6, generator=generator, dtype=torch.float64)
        x = torch.randn(9, 6, generator=generator, dtype=torch.float64)
        y = torch.where(torch.rand(9, generator=generator) < 0.5, -1.0, 1.0).double()
        y[:2] = torch.tensor([1.0, -1.0])
        b, eps = 0.2, 0.15
        with case(str(dtype)[6:]):
            found = answer(w.to(dtype), b, x.to(dtype), y.to(dtype), eps)
            found = tensor(found, w, "one derivative per weight")
            at = partial(logistic_gradient, w, b, x, y, norm=norm)
            expected = at(eps)
            faults = {
                "this is the gradient at the clean x: plug in x + delta*": at(0.0),
                "delta* has the wrong sign: the attacker raises the loss": at(-eps),
                "the sum over the examples: the loss is their mean": expected * len(x),
                "the sign is wrong: this is minus the gradient": -expected,
                "the last factor is the clean x: differentiate at x + delta*, with delta* held "
                "fixed": at(eps, fault="clean factor"),
                "eps is in the units of x: do not divide it by 255": at(eps / 255),
                "the sigmoid is of minus the score: examples that are right count less":
                    at(eps, fault="sigmoid"),
                "b is missing": at(eps, fault="b"),
                "the label is missing in delta*": at(eps, fault="label"),
                f"delta* is that of the other ball: {length}": at(eps, fault="norm"),
                f"delta* is eps y w, not eps long: {length}": at(eps, fault="w"),
                f"delta* is divided by the square of the norm of w: {length}":
                    at(eps, fault="square"),
            }  # fmt: skip
            agree(found, expected, faults, tolerance=1e-4)
