"""Every figure of the course: takes results, computes nothing, returns a matplotlib Figure."""

from trustml_helpers.figures.general import (
    LINES,
    MARKERS,
    PALETTE,
    STYLE,
    UPPER_BOUND,
    curves,
    matrix,
    perturbations,
    pictures,
    show,
)
from trustml_helpers.figures.lessons import (
    danskin,
    loss_surface,
    norm_balls,
    plane,
    shifted_densities,
)
from trustml_helpers.figures.smoothing import certified, regions, sandwich, vote

__all__ = [
    "LINES", "MARKERS", "PALETTE", "STYLE", "UPPER_BOUND", "certified", "curves", "danskin",
    "loss_surface", "matrix", "norm_balls", "perturbations", "pictures", "plane", "regions",
    "sandwich", "shifted_densities", "show", "vote",
]  # fmt: skip
