"""Every figure of the course: takes results, computes nothing, returns a matplotlib Figure."""

from trustml_helpers.figures.general import (
    LINES,
    MARKERS,
    PALETTE,
    STYLE,
    UPPER_BOUND,
    answers,
    bars,
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
    rungs,
    shifted_densities,
    smallest_eps,
    tie,
)
from trustml_helpers.figures.smoothing import (
    by_sigma,
    certified,
    certified_ball,
    regions,
    sandwich,
    vote,
)

__all__ = [
    "LINES", "MARKERS", "PALETTE", "STYLE", "UPPER_BOUND", "answers", "bars", "by_sigma",
    "certified", "certified_ball", "curves", "danskin", "loss_surface", "matrix", "norm_balls",
    "perturbations", "pictures", "plane", "regions", "rungs", "sandwich", "shifted_densities",
    "show", "smallest_eps", "tie", "vote",
]  # fmt: skip
