"""Balls: what an attack needs to know about l-inf, l2 and l1, inside the box of valid images.

Each norm is four small functions: a uniform draw from the ball, a step of steepest ascent, the
exact projection on ball and box, and how long a step should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trustml_helpers._support.randomness import draw
from trustml_helpers._support.tensors import Bounds


class Ball(NamedTuple):
    """What an attack needs to know about a norm; rows are independent throughout."""

    uniform: Callable[[Tensor, torch.Generator | None], Tensor]  # uniform in the unit ball
    ascend: Callable[[Tensor, Tensor, float | Tensor, Bounds], Tensor]  # x, gradient, length
    projection: Callable[[Tensor, float, Bounds], Callable[[Tensor], Tensor]]
    default_step: Callable[[float, int], float]  # eps, steps -> length of a step
    size: Callable[[Tensor], Tensor]  # norm of each row, (n,)


def columns(values: Tensor, x: Tensor) -> Tensor:
    """``(n,)`` reshaped to multiply ``(n, ...)`` row by row."""
    return values.view(-1, *[1] * (x.ndim - 1))


def _clamp(x: Tensor, bounds: Bounds) -> Tensor:
    return x if bounds is None else x.clamp(*bounds)


def _despite_rounding(
    project: Callable[[Tensor], Tensor], x: Tensor, eps: float, size: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """The projection, its result drawn nearer to x where rounding put it outside the ball.

    In half precision, and with very many pixels, what rounding adds to each of them adds up.
    """
    exact = x.double()
    less = 1 - max(torch.finfo(x.dtype).eps, 1e-7)

    def inside(z: Tensor) -> Tensor:
        z = project(z)
        moved = wanted = z.double() - exact
        while (outside := size(moved) > eps * (1 + 1e-6)).any():
            wanted = wanted * columns(torch.where(outside, less * eps / size(moved), 1.0), x)
            z = torch.where(columns(outside, x), (exact + wanted).to(x.dtype), z)
            moved = z.double() - exact
        return z

    return inside


# --- l-inf ---------------------------------------------------------------------------------------


def _linf_uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return draw(x, torch.rand, generator).mul_(2).sub_(1)


def _linf_ascend(x: Tensor, gradient: Tensor, length: float | Tensor, bounds: Bounds) -> Tensor:
    return x + length * gradient.sign()


def _linf_projection(x: Tensor, eps: float, bounds: Bounds) -> Callable[[Tensor], Tensor]:
    radius = torch.tensor(eps, dtype=x.dtype)
    if radius.item() > eps:  # 0.3 rounds up in float32: no pixel may move by more than eps
        radius = radius.nextafter(torch.zeros_like(radius))
    lower, upper = x - radius, x + radius
    # Where x - radius was rounded outwards, one unit in the last place inwards. (Arithmetic on
    # signs: torch.where is several times slower on a CPU, and this runs at every training step.)
    largest = (
        x.abs().max().item() if bounds is None and x.numel() else max(map(abs, bounds or (0,)))
    )
    unit = torch.finfo(x.dtype).eps * max(largest + eps, 1)
    exact = x.float() if x.dtype.itemsize < 4 else x  # half precision rounds the difference, too
    lower.add_((exact - lower).sub_(radius).clamp_(min=0).sign_(), alpha=unit)
    upper.sub_((upper - exact).sub_(radius).clamp_(min=0).sign_(), alpha=unit)
    # An eps below one such unit leaves x alone.
    lower, upper = torch.minimum(lower, x), torch.maximum(upper, x)
    if bounds is not None:
        lower, upper = lower.clamp_(min=bounds[0]), upper.clamp_(max=bounds[1])
    return lambda z: torch.clamp(z, lower, upper)


# --- l2 ------------------------------------------------------------------------------------------


def _l2_size(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _l2_norm(x: Tensor) -> Tensor:
    return columns(_l2_size(x), x)


def _l2_unit(direction: Tensor) -> Tensor:
    # Scaled by its largest entry first: the norm of a tiny gradient would fall below `tiny`.
    tiny = torch.finfo(direction.dtype).tiny
    largest = direction.flatten(1).abs().amax(1) if direction[:1].numel() else direction.flatten(1)
    scaled = direction / columns(largest.clamp(min=tiny), direction)
    return scaled / _l2_norm(scaled).clamp(min=tiny)


def _l2_uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    direction = _l2_unit(draw(x, torch.randn, generator))
    radius = draw(x.flatten(1)[:, 0], torch.rand, generator) ** (1 / max(x[:1].numel(), 1))
    return direction * columns(radius, x)


def _l2_ascend(x: Tensor, gradient: Tensor, length: float | Tensor, bounds: Bounds) -> Tensor:
    return x + length * _l2_unit(gradient)


def _l2_projection(x: Tensor, eps: float, bounds: Bounds) -> Callable[[Tensor], Tensor]:
    """The nearest point of ball and box: ``x + clip(s * (z - x))`` for one s in (0, 1] per row."""
    tiny = torch.finfo(x.dtype).tiny
    if bounds is None:
        return _despite_rounding(
            lambda z: x + (z - x) * (eps / _l2_norm(z - x).clamp(min=tiny)).clamp(max=1),
            x,
            eps,
            _l2_size,
        )
    lower, upper = bounds[0] - x, bounds[1] - x

    def project(z: Tensor) -> Tensor:
        delta = z - x
        scale = (eps / _l2_norm(delta).clamp(min=tiny)).clamp(max=1)
        while True:
            step = (scale * delta).clamp(lower, upper)
            # What the box cut off may be spent on the other pixels. The set of cut pixels only
            # grows, so this ends; each round solves for s with the present set.
            free = step == scale * delta
            left = eps**2 - _l2_norm(step.masked_fill(free, 0)) ** 2
            room = _l2_norm(delta.masked_fill(~free, 0))
            larger = (left.clamp(min=0).sqrt() / room.clamp(min=tiny)).clamp(max=1)
            moved = larger > scale * (1 + 1e-5)
            if not moved.any():
                break
            scale = torch.where(moved, larger, scale)  # a settled row must not feel the others
        step = step * (eps / _l2_norm(step).clamp(min=tiny)).clamp(max=1)
        return _clamp(x + step, bounds)

    return _despite_rounding(project, x, eps, _l2_size)


# --- l1 ------------------------------------------------------------------------------------------


def _l1_size(x: Tensor) -> Tensor:
    return x.flatten(1).abs().sum(1)


def _room(x: Tensor, direction: Tensor, bounds: Bounds) -> Tensor:
    """How far each pixel can move in the sign of ``direction`` before it meets the box."""
    if bounds is None:
        return torch.full_like(x, math.inf)
    return torch.where(direction > 0, bounds[1] - x, x - bounds[0]).clamp(min=0)


def _l1_uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    # d of d + 1 exponential variables over their sum are uniform in the simplex (Devroye 1986,
    # theorem V.2.1); random signs make it the ball.
    tiny = torch.finfo(x.dtype).tiny
    signs = draw(x, torch.rand, generator).sub_(0.5).sign_()
    parts = -draw(x, torch.rand, generator).clamp_(min=tiny).log()
    last = -draw(x.flatten(1)[:, 0], torch.rand, generator).clamp_(min=tiny).log()
    return signs * parts / columns(parts.flatten(1).sum(1) + last, x)


def _l1_ascend(x: Tensor, gradient: Tensor, length: float | Tensor, bounds: Bounds) -> Tensor:
    """Spend ``length`` on the pixels of largest gradient, each as far as the box allows."""
    room = _room(x, gradient, bounds).flatten(1)
    order = gradient.flatten(1).abs().argsort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    budget = torch.as_tensor(length, dtype=x.dtype, device=x.device).view(-1, 1)
    spent_before = torch.cat([torch.zeros_like(room[:, :1]), room.cumsum(1)[:, :-1]], 1)
    moves = torch.minimum((budget - spent_before).clamp(min=0), room)
    return x + gradient.sign() * torch.zeros_like(room).scatter(1, order, moves).view_as(x)


def _l1_projection(x: Tensor, eps: float, bounds: Bounds) -> Callable[[Tensor], Tensor]:
    """The nearest point of ball and box: ``sign(d) * clip(|d| - t, 0, room)`` for one t per row.

    The length of that perturbation falls in t, linearly between the values |d| (where a pixel
    stops moving) and |d| - room (where it leaves the box's wall): sorted, they give t exactly.
    Source: Croce & Hein (2021), "Mind the box", proposition 2.1; without a box Duchi et al. (2008).
    """

    def project(z: Tensor) -> Tensor:
        delta = z - x
        size, room = delta.flatten(1).abs(), _room(x, delta, bounds).flatten(1)
        inside = torch.minimum(size, room)
        if not (inside.sum(1) > eps).any():
            return _clamp(x + delta.sign() * inside.view_as(x), bounds)
        corners = torch.cat([size, size - room], 1).clamp(min=0)
        slopes = torch.ones_like(corners)
        slopes[:, size.shape[1] :] = -1
        corners, order = corners.sort(dim=1, descending=True)
        slope = slopes.gather(1, order).cumsum(1)
        # Length of the perturbation at t = each corner, from the largest corner (length 0) down.
        drop = corners[:, :-1] - corners[:, 1:]
        length = torch.cat([torch.zeros_like(drop[:, :1]), (slope[:, :-1] * drop).cumsum(1)], 1)
        last = (length <= eps).sum(1, keepdim=True) - 1
        below = slope.gather(1, last).clamp(min=1)
        t = corners.gather(1, last) - (eps - length.gather(1, last)) / below
        step = torch.minimum((size - t.clamp(min=0)).clamp(min=0), room)
        # Rounding may leave the sum a hair above eps.
        step = step * (eps / step.sum(1, keepdim=True).clamp(min=eps)) if eps else step * 0
        return _clamp(x + delta.sign() * step.view_as(x), bounds)

    return _despite_rounding(project, x, eps, _l1_size)


NORMS: dict[str, Ball] = {
    "linf": Ball(
        _linf_uniform,
        _linf_ascend,
        _linf_projection,
        lambda eps, steps: 2.5 * eps / max(steps, 1),
        lambda x: x.flatten(1).abs().amax(1),
    ),
    "l2": Ball(
        _l2_uniform,
        _l2_ascend,
        _l2_projection,
        lambda eps, steps: min(10 * eps / max(steps, 1), eps),
        _l2_size,
    ),
    "l1": Ball(_l1_uniform, _l1_ascend, _l1_projection, lambda eps, steps: eps / 4, _l1_size),
}
