"""Robust accuracy, the model-by-attack matrix, and whether to believe them: a door to two rooms."""

from trustml_helpers.diagnosis import Diagnosis, Finding, diagnose
from trustml_helpers.evaluation import (
    accuracy,
    attack_matrix,
    broken_by,
    correct,
    progress_bar,
    robust_accuracy,
    robust_correct,
)

__all__ = [
    "Diagnosis", "Finding", "accuracy", "attack_matrix", "broken_by", "correct", "diagnose",
    "progress_bar", "robust_accuracy", "robust_correct",
]  # fmt: skip
