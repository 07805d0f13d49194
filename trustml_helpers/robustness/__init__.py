"""Robust accuracy, the model-by-attack matrix, and whether to believe them: a door to two rooms."""

from trustml_helpers._support.processes import progress_bar
from trustml_helpers.robustness.diagnosis import Diagnosis, Finding, diagnose
from trustml_helpers.robustness.evaluation import (
    accuracy,
    attack_matrix,
    broken_by,
    correct,
    robust_accuracy,
    robust_correct,
)

__all__ = [
    "Diagnosis", "Finding", "accuracy", "attack_matrix", "broken_by", "correct", "diagnose",
    "progress_bar", "robust_accuracy", "robust_correct",
]  # fmt: skip
