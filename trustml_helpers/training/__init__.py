"""Training: one loop for every objective, its state after a kill, and named recipes."""

from trustml_helpers.training.loop import (
    Data,
    MakeOptimizer,
    MakeScheduler,
    adam,
    catastrophic_overfitting,
    fit,
    triangular,
)
from trustml_helpers.training.recipes import BEHIND, PUBLISHED, QUICK, RECIPES, Recipe

__all__ = [
    "BEHIND", "PUBLISHED", "QUICK", "RECIPES", "Data", "MakeOptimizer", "MakeScheduler", "Recipe",
    "adam", "catastrophic_overfitting", "fit", "triangular",
]  # fmt: skip
