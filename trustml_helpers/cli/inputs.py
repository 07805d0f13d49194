"""What the commands read: networks and images, the course's or one's own, named by a word."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trustml_helpers import data, models


class Images(NamedTuple):
    """The chosen images of a data set."""

    x: Tensor  # float32 (m, C, H, W) in [0, 1]
    y: Tensor  # int64 (m,)
    numbers: list[int]  # of each in its data set


def network(name: str) -> Any:
    """A checkpoint by its name or path, or what ``module:attribute`` holds or returns.

    Raises:
        ValueError: if there is no such attribute, or it gives no network.
    """
    if not _is_attribute(name):
        return models.load(name)
    found = _attribute("model", name)
    if isinstance(found, type) or not isinstance(found, nn.Module):
        found = found()
    if not callable(found):
        raise ValueError(f"model={name!r}: expected a network or a function that returns one, got "
                         f"{type(found).__name__}")  # fmt: skip
    return found.eval() if isinstance(found, nn.Module) else found


def images(name: str, split: str, root: Path | None, every: int, limit: int | None) -> Images:
    """Every k-th image of a data set.

    Args:
        name: ``mnist`` (ships with the course), another one that torchvision reads
            (``fashion_mnist``, ``cifar10``, ``imagenet``), the path of an ``.npz`` file with the
            arrays ``images`` and ``labels``, or ``module:function``, which returns both.
        split: ``"train"`` or ``"test"``, of the named data sets.
        root: where torchvision's files are.
        every, limit: images 0, k, 2k, ..., and at most so many of them.

    Raises:
        ValueError: if there is no such data set, or its arrays do not have the form of images.
        DataError: if its files are missing.
    """
    if name == "mnist" and root is None:
        x, y = data.load_mnist(split)
    elif name.endswith(".npz"):
        x, y = _arrays(name)
    elif _is_attribute(name):
        x, y = _attribute("data", name)()
    else:
        dataset: Any = data.torchvision_dataset(name, split, root=root)
        chosen = indices(len(dataset), every, limit)
        return Images(*data.to_tensors(dataset, chosen), chosen)
    _check(name, x, y)
    chosen = indices(len(x), every, limit)
    return Images(x[chosen], y[chosen], chosen)


def indices(length: int, every: int, limit: int | None) -> list[int]:
    """0, every, 2 * every, ...: at most ``limit`` numbers below ``length``."""
    if every < 1:
        raise ValueError(f"every={every}: expected at least 1")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1 image")
    return list(range(0, length, every))[:limit]


def device(name: str | None) -> torch.device:
    """The named device; without a name a GPU if there is one. Each process of torchrun has its
    own GPU."""
    kind = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(kind)
    except RuntimeError as error:
        raise ValueError(f"device={kind!r}: expected cpu, cuda, cuda:1, ...") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={kind!r}: torch finds no GPU here; use --device cpu")
    if found.type == "cuda" and found.index is None:
        found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    try:
        torch.randn(1, device=found, generator=torch.Generator(found)).item()
    except Exception as error:  # whatever a back end raises that is not there
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"device={kind!r}: torch cannot compute there ({reason}); use --device cpu"
        ) from error
    return found


def _is_attribute(name: str) -> bool:
    module, _, attribute = name.partition(":")
    return all(part.isidentifier() for part in module.split(".")) and attribute.isidentifier()


def _attribute(argument: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # as `python -m` does, so that one's own file is found
        sys.path.insert(0, os.getcwd())
    try:
        found: Callable[[], Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:  # `nets.py:f` ends here too
        raise ValueError(f"{argument}={name!r}: {error}; expected module:attribute (nets:f for f "
                         f"in nets.py), looked up from {os.getcwd()}") from error  # fmt: skip
    return found


def _arrays(path: str) -> tuple[Tensor, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["images"], arrays["labels"]
            kinds = x.dtype.kind, y.dtype.kind
    except Exception as error:  # a damaged file raises errors of zipfile, zlib, NumPy, ...
        raise ValueError(f"data={path!r}: expected a file of numpy.savez with the arrays images "
                         f"and labels ({error})") from error  # fmt: skip
    if not (kinds[0] in "fiub" and kinds[1] in "fiub" and np.all(np.mod(y, 1) == 0)):
        raise ValueError(
            f"data={path!r}: expected images of real numbers and whole labels, got {x.dtype} and "
            f"{y.dtype}"
        )
    scaled = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32)
    return torch.from_numpy(scaled), torch.from_numpy(y.astype(np.int64))


def _check(name: str, x: Any, y: Any) -> None:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.is_floating_point()
            and x.ndim >= 2 and y.shape == x.shape[:1] and not y.is_floating_point()):  # fmt: skip
        raise ValueError(
            f"data={name!r}: expected floating-point images (m, C, H, W) and m whole labels, got "
            f"{_form(x)} and {_form(y)}"
        )
    if len(x) == 0:
        raise ValueError(f"data={name!r}: has no images")
    low, high = (float(x.min()), float(x.max())) if x.numel() else (0.0, 0.0)
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN is neither
        raise ValueError(
            f"data={name!r}: expected values in [0, 1], got {low:g} to {high:g}; divide by 255 (or "
            "save uint8), and normalise inside the network"
        )


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return type(value).__name__
