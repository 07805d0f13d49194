"""What images, labels and generators may be, and the one place where their values are looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trustml_helpers._support.arguments import Rule, kind, maybe, shown

Bounds = tuple[float, float] | None


class Seen(NamedTuple):
    """What was found in the data of a run, so that its loop need not look again."""

    values: tuple[float, float]  # smallest and largest; NaN if any is
    labels: tuple[int, int]


_SEEN: ContextVar[Seen | None] = ContextVar("seen", default=None)


@contextmanager
def seen(found: Seen | None) -> Iterator[None]:
    """Inside, images and labels are taken to lie in these ranges, and nothing is read."""
    token = _SEEN.set(found)
    try:
        yield
    finally:
        _SEEN.reset(token)


def look(x: Tensor, y: Tensor) -> Seen:
    """The ranges of images and labels, read now."""
    with seen(None):
        return Seen(value_range(x), label_range(y))


def value_range(x: Tensor) -> tuple[float, float]:
    """Smallest and largest value, (0, 0) where there is none; NaN if any is."""
    if (known := _SEEN.get()) is not None:
        return known.values
    if x.numel() == 0:
        return 0.0, 0.0
    low, high = torch.stack(torch.aminmax(x.detach())).tolist()  # one message from a GPU
    return low, high


def label_range(y: Tensor) -> tuple[int, int]:
    """Smallest and largest label, (0, 0) where there is none."""
    if (known := _SEEN.get()) is not None:
        return known.labels
    if y.numel() == 0:
        return 0, 0
    low, high = torch.stack(torch.aminmax(y)).tolist()
    return low, high


# --- rules ----------------------------------------------------------------------------------------

_TENSOR = "a torch.Tensor, as torch.from_numpy(...) or torch.tensor(...) gives"


def _images(value: Any) -> Tensor:
    if not (isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2):
        raise TypeError
    return value


def _labels(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.is_floating_point() or value.ndim != 1:
        raise TypeError
    return value


def _bounds(value: Any) -> Bounds:
    if value is None:
        return None
    low, high = value
    if not -math.inf < low - high < 0:  # letters have an order, too, but no difference
        raise ValueError
    return low, high


_NO_TENSOR = (None, [[0.5]], np.zeros((2, 3), np.float32), "images", 17)
TENSOR = kind(_TENSOR, Tensor)
IMAGES = Rule(
    f"floating-point images (n, ...), {_TENSOR}", _images,
    (*_NO_TENSOR, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3)), TypeError,
)  # fmt: skip
LABELS = Rule(
    f"whole labels (n,), {_TENSOR}", _labels,
    (*_NO_TENSOR, torch.zeros(3), torch.zeros(3, 1, dtype=torch.int64)), TypeError,
)  # fmt: skip
LOGITS = Rule(
    f"floating-point logits (n, K), {_TENSOR}", _images,
    (*_NO_TENSOR, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3)), TypeError,
)  # fmt: skip
GENERATOR = maybe(
    kind("a torch.Generator, for example torch.Generator().manual_seed(0)", torch.Generator)
)
BOUNDS = Rule(
    "the smallest and the largest valid value, such as (0, 1), or None for unbounded data",
    _bounds, ((1, 0), (0, 0), 1, "01", (0, math.inf)),
)  # fmt: skip


# --- relations ------------------------------------------------------------------------------------


def one_label_each(x: Tensor, y: Tensor) -> None:
    """Refuse labels that are too many, too few, or on another device."""
    if len(x) != len(y):
        raise ValueError(f"y={shown(y)}: expected one label per image, x is {shown(x)}")
    if x.device != y.device:
        raise ValueError(f"y is on {y.device} and x on {x.device}: move one, y.to(x.device)")


def inside(x: Tensor, bounds: Bounds = None) -> None:
    """Refuse images outside their box, and NaN."""
    if x.numel() == 0:
        return
    low, high = value_range(x)
    if bounds is None:
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise ValueError("x: expected finite values, found NaN or infinity")
    elif not bounds[0] - 1e-6 <= low <= high <= bounds[1] + 1e-6:
        raise ValueError(
            f"x lies in [{low:.4g}, {high:.4g}], outside bounds={bounds}. Images are expected in "
            "[0, 1], with any normalisation inside the model; pass bounds=None for unbounded data"
        )


def labels_are_classes(logits: Tensor, y: Tensor) -> None:
    """Refuse labels that do not belong to these logits."""
    if y.shape != logits.shape[:1]:
        raise ValueError(f"y={shown(y)}: expected one label per row of logits, {shown(logits)}")
    classes(label_range(y), logits.shape[1])


def classes(labels: tuple[int, int], count: int, name: str = "y") -> None:
    """Refuse labels that are none of so many classes: torch passes over -100."""
    if not 0 <= labels[0] <= labels[1] < count:
        raise ValueError(
            f"{name} holds labels {labels[0]} to {labels[1]}, but the model has {count} classes: "
            f"expected 0 to {count - 1}"
        )
