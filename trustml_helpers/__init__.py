"""Robust training and certification: every algorithm of the lecture, in full.

Its rooms and modules are the lecture's nouns; each is imported when it is first used, so that
``import trustml_helpers`` stays fast and pulls in neither torchvision, pandas nor matplotlib.

An argument that cannot be right ends in a ValueError or TypeError before any work: its name, its
value, what was expected. Docstrings name the other errors only.

>>> import trustml_helpers as trustml
>>> images, labels = trustml.data.load_mnist("test")
>>> tuple(images.shape)
(10000, 1, 28, 28)
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = (
    "attacks",
    "bounds",
    "certification",
    "checks",
    "data",
    "figures",
    "models",
    "objectives",
    "robustness",
    "sequential",
    "smoothing",
    "theory",
    "training",
    "widgets",
)
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
