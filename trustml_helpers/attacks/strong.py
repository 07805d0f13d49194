"""Attacks for evaluation: Auto-PGD, which needs no step size, and Square, which needs no gradient.

Use them as ``attacks.auto_pgd``, ``attacks.square`` and ``attacks.suite``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from trustml_helpers._support.arguments import declared, number, one_of, trusted, whole
from trustml_helpers._support.calling import call, unchanged
from trustml_helpers._support.randomness import draw
from trustml_helpers._support.tensors import BOUNDS, GENERATOR, Bounds
from trustml_helpers.attacks.losses import Loss, dlr_targeted, named
from trustml_helpers.attacks.norms import NORMS, Ball, columns
from trustml_helpers.attacks.search import (
    THREAT,
    Attack,
    Best,
    Goal,
    Model,
    attacking,
    fits,
    threat,
)

RHO, INERTIA = 0.75, 0.75  # of Croce & Hein (2020), section 3


def _one_kind_of_target(targets: int, targeted: bool) -> None:
    if targets and targeted:
        raise ValueError(f"targets={targets}: with targeted=True the class is y; leave it out")


@declared(
    fits, _one_kind_of_target, **threat("norm", "loss", "generator", "batch_size"), steps=whole(),
    restarts=whole(1), targets=whole(), keep=one_of("best", "first"),
)  # fmt: skip
def auto_pgd(
    model: Model, x: Tensor, y: Tensor, eps: float, *, norm: str = "linf", bounds: Bounds = (0, 1),
    steps: int = 100, restarts: int = 1, targets: int = 0, targeted: bool = False,
    loss: str | Loss = "cross_entropy", keep: str = "best",
    generator: torch.Generator | None = None, batch_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Auto-PGD: PGD with inertia, whose step halves where it no longer helps.

    Args:
        model, x, y, eps, norm, bounds, targeted, loss, batch_size: as for :func:`attacks.fgsm`.
        steps: of each run.
        restarts: independent runs from uniform starts; each attacks only what still stands.
        targets: attack towards each of that many other classes, the likeliest on the clean image
            first, with the targeted DLR loss (APGD-T); ``loss`` is then not used. 0: untargeted.
        keep: ``"best"`` or ``"first"``, as for :func:`attacks.pgd`.
        generator: source of the starts; fresh entropy if not given.

    Returns:
        ``x_adv``, shaped like x, inside the bounds and the ball.

    Source: Croce & Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks", algorithm 1; the checkpoints are rounded as in the authors'
    code. In l1 each step is :func:`attacks.fgsm`'s.

    >>> W = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    >>> auto_pgd(lambda x: x @ W.T, x, y, 0.1, steps=5)
    tensor([[0.4000, 0.6000]])
    """
    ball = NORMS[norm]
    wanted = _towards if targets else loss
    with attacking(model, x, y, wanted, targeted, batch_size) as (x, y, goal):
        best = Best(x)
        others = _likeliest_others(goal.logits(x), y, targets) if targets else y[:, None]
        for attempt in range(restarts * others.shape[1]):
            start = x + eps * ball.uniform(x, generator)
            rows = (~best.fooled).nonzero()[:, 0]
            if len(rows) == 0:
                break
            label = torch.stack([y, others[:, attempt % others.shape[1]]], 1) if targets else y
            if targets:
                best.value.fill_(-torch.inf)  # losses towards different classes are not compared
            _auto_run(goal, ball, x[rows], label[rows], eps, bounds, steps, start[rows], best,
                      rows, keep == "first")  # fmt: skip
        return best.x_adv


def _auto_run(
    goal: Goal, ball: Ball, x: Tensor, y: Tensor, eps: float, bounds: Bounds, steps: int,
    start: Tensor, best: Best, rows: Tensor, stop_early: bool,
) -> None:  # fmt: skip
    """One run from one start; everything is kept per row, since rows halve at different times."""
    project = ball.projection(x, eps, bounds)
    now = project(start)
    logits, value, gradient = goal.ascend(now, y)
    stands = ~best.update(rows, now, goal.fooled(logits, y), value)
    row = {
        "x": x, "y": y, "rows": rows, "now": now, "before": now, "value": value,
        "gradient": gradient, "step": torch.full_like(value, 2 * eps), "top": now.clone(),
        "top_value": value.clone(), "top_gradient": gradient.clone(), "checked": value.clone(),
        "rises": torch.zeros_like(value), "halved": torch.ones_like(stands),
    }  # fmt: skip
    gap = check_at = max(int(0.22 * steps), 1)
    for step in range(1, steps + 1):
        if stop_early and not stands.all():
            row = {name: each[stands] for name, each in row.items()}
            project = ball.projection(row["x"], eps, bounds)
        if len(row["rows"]) == 0:
            return
        now, length = row["now"], columns(row["step"], x)
        ahead = project(ball.ascend(now, row["gradient"], length, bounds))
        inertia = INERTIA if step > 1 else 1.0
        row["now"] = project(now + inertia * (ahead - now) + (1 - inertia) * (now - row["before"]))
        row["before"] = now
        if step == steps:
            best.update(row["rows"], row["now"], *goal.evaluate(row["now"], row["y"]))
            return
        logits, value, row["gradient"] = goal.ascend(row["now"], row["y"])
        stands = ~best.update(row["rows"], row["now"], goal.fooled(logits, row["y"]), value)
        row["rises"] = row["rises"] + (value > row["value"])
        row["value"] = value
        higher = value > row["top_value"]
        _where(row, higher, {"top": "now", "top_value": "value", "top_gradient": "gradient"})
        if step == check_at:
            stuck = row["rises"] < RHO * gap
            flat = ~row["halved"] & (row["top_value"] <= row["checked"])
            row["halved"] = stuck | flat
            row["step"] = torch.where(row["halved"], row["step"] / 2, row["step"])
            _where(row, row["halved"], {"now": "top", "gradient": "top_gradient"})
            row["checked"], row["rises"] = row["top_value"], torch.zeros_like(value)
            gap = max(gap - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            check_at += gap


def _where(row: dict[str, Tensor], chosen: Tensor, names: dict[str, str]) -> None:
    """Replace the chosen rows of each named tensor by those of another."""
    for to, source in names.items():
        row[to] = torch.where(columns(chosen, row[to]), row[source], row[to])


def _towards(logits: Tensor, y: Tensor) -> Tensor:
    return trusted(dlr_targeted)(logits, y[:, 0], y[:, 1])


def _likeliest_others(logits: Tensor, y: Tensor, targets: int) -> Tensor:
    if targets >= logits.shape[1]:
        raise ValueError(f"targets={targets}: the model has {logits.shape[1] - 1} other classes")
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True)[:, :targets]


# Square halves its windows after these shares of the queries (section 3 and appendix of the paper).
HALVE_AT = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


@declared(
    fits, **threat("norm", "generator", "batch_size"), queries=whole(1),
    window=number("(0, 1]", "a share of the image"),
)  # fmt: skip
def square(
    model: Model, x: Tensor, y: Tensor, eps: float, *, norm: str = "linf", bounds: Bounds = (0, 1),
    queries: int = 1000, window: float = 0.8, generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Square: random search with shrinking windows, without any gradient.

    A window of pixels is moved up or down (per channel) as far as ball and box allow; the change
    is kept where the margin loss does not fall (the authors keep it only where it rises). In l-inf
    this is the published attack but for that; in l2 and l1 the same search, with the change
    projected on ball and box. Stops on an example once it is fooled.

    Args:
        model, x, y, eps, norm, bounds, batch_size: as for :func:`attacks.fgsm`; the model need not
            be differentiable. x that is not ``(n, C, H, W)`` is treated as one row of pixels.
        queries: evaluations of the model per example.
        window: share of the image that the first window covers, in (0, 1].
        generator: source of the windows and signs; fresh entropy if not given.

    Returns:
        ``x_adv``, shaped like x, inside the bounds and the ball.

    Source: Andriushchenko, Croce, Flammarion, Hein (2020), "Square attack", algorithm 1 and 2.

    >>> x, y = torch.full((1, 4), 0.5), torch.tensor([0])
    >>> x_adv = square(lambda x: x, x, y, 0.25, queries=50, generator=torch.Generator())
    >>> x_adv[0, 0].item(), x_adv.max().item()
    (0.25, 0.75)
    """
    ball, shape = NORMS[norm], x.shape if x.ndim == 4 else (len(x), 1, 1, x[:1].numel())
    with unchanged(model), torch.inference_mode():
        images, y = x.reshape(shape), y.long()
        goal = Goal(lambda z: call(model, z.view(-1, *x.shape[1:])), y, named("margin"),
                    batch_size=batch_size)  # fmt: skip
        best, rows = Best(images), torch.arange(len(x), device=x.device)
        # Stripes one pixel wide: the first guess of the paper.
        stripes = draw(images[:, :, :1], torch.rand, generator).sub(0.5).sign().expand(shape)
        project = ball.projection(images, eps, bounds)
        now = project(_moved(images, stripes, eps, norm))
        for query in range(queries):
            fooled, value = goal.evaluate(now, y[rows])
            stands = ~best.update(rows, now, fooled, value)
            if not stands.all():
                rows = rows[stands]
                project = ball.projection(images[rows], eps, bounds)
            if len(rows) == 0 or query == queries - 1:
                break
            share = window / 2 ** sum(query / queries > at for at in HALVE_AT)
            moves = _windows(images, share, generator)[rows]
            now = project(_moved(best.x_adv[rows], moves, eps, norm))
        found = best.x_adv.view_as(x)
    return found.clone()


def _moved(x: Tensor, moves: Tensor, eps: float, norm: str) -> Tensor:
    """x moved along ``moves`` by twice the radius, so that l-inf's projection goes to the wall."""
    size = NORMS[norm].size(moves).clamp(min=torch.finfo(x.dtype).tiny)
    return x + 2 * eps * moves / columns(size, x)


def _windows(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Per image one random window of about ``share`` of its pixels, +1 or -1 per channel, else 0.

    Drawn for all images, also those that are fooled: a row's search does not depend on the others.
    """
    n, channels, height, width = x.shape
    tall = min(max(round((share * height * width) ** 0.5), 1), height)
    wide = min(max(round(share * height * width / tall), 1), width)
    sizes, full = torch.tensor([tall, wide]), torch.tensor([height, width])
    place = draw(x.new_empty(n, 2), torch.rand, generator)
    corner = (place * (full - sizes + 1).to(place)).floor()
    inside = []
    for axis, extent, length in ((0, height, tall), (1, width, wide)):
        at = torch.arange(extent, device=x.device)
        first = corner[:, axis, None]
        inside.append((at >= first) & (at < first + length))
    signs = draw(x.new_empty(n, channels, 1, 1), torch.rand, generator).sub(0.5).sign()
    return signs * (inside[0][:, None, :, None] & inside[1][:, None, None, :])


@declared(
    eps=THREAT["eps"], norm=THREAT["norm"], bounds=BOUNDS, num_classes=whole(2), steps=whole(),
    queries=whole(1), generator=GENERATOR,
)  # fmt: skip
def suite(
    eps: float, *, norm: str = "linf", bounds: Bounds = (0, 1), num_classes: int = 10,
    steps: int = 100, queries: int = 5000, generator: torch.Generator | None = None,
) -> dict[str, Attack]:  # fmt: skip
    """Attacks whose worst case is to be reported, strong and diverse, in the order to run them.

    Auto-PGD on the cross-entropy, Auto-PGD on the targeted DLR loss towards every other class (at
    most 9; below 4 classes untargeted on the margin), and Square: AutoAttack without its FAB.

    Args:
        eps, norm, bounds: as for :func:`attacks.fgsm`.
        num_classes: of the model.
        steps, queries: of Auto-PGD and of Square.
        generator: shared by all; fresh entropy if not given.

    Returns:
        ``{name: (model, x, y) -> x_adv}``, for :func:`robustness.broken_by` and
        :func:`robustness.attack_matrix`; its ``.values()`` for :func:`robustness.robust_accuracy`.

    Source: Croce & Hein (2020), section 5.

    >>> list(suite(0.3))
    ['APGD-CE', 'APGD-T', 'Square']
    """
    common: dict[str, Any] = {"eps": eps, "norm": norm, "bounds": bounds, "generator": generator}
    run = partial(auto_pgd, steps=steps, keep="first", **common)
    many = num_classes >= 4
    second = partial(run, targets=min(num_classes - 1, 9)) if many else partial(run, loss="margin")
    return {
        "APGD-CE": run,
        "APGD-T" if many else "APGD-margin": second,
        "Square": partial(square, queries=queries, **common),
    }
