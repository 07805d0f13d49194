"""Robust accuracy, the model-by-attack matrix, whether to believe them, and logs of attacks."""

from trustml_helpers.robustness.diagnosis import Diagnosis, Finding, diagnose
from trustml_helpers.robustness.evaluation import (
    accuracy,
    attack_matrix,
    broken_by,
    correct,
    robust_accuracy,
    robust_correct,
    targeted_success,
)
from trustml_helpers.robustness.log import attack_dataset, read_attack_log, summary

__all__ = [
    "Diagnosis", "Finding", "accuracy", "attack_dataset", "attack_matrix", "broken_by", "correct",
    "diagnose", "read_attack_log", "robust_accuracy", "robust_correct", "summary",
    "targeted_success",
]  # fmt: skip
