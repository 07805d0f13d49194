"""Certification of whole data sets: the run, its log, what the log says, and its audit."""

from trustml_helpers._support.calling import fingerprint
from trustml_helpers._support.files import LogError
from trustml_helpers._support.randomness import keyed_generator as noise_generator
from trustml_helpers.certification.audit import Audit, audit_log, predict_acr
from trustml_helpers.certification.log import (
    COLUMNS,
    average_certified_radius,
    certified_accuracy,
    read_log,
    rebound,
    summary,
    vote_counts,
)
from trustml_helpers.certification.run import certify_dataset
from trustml_helpers.certification.study import (
    METHOD_NAMES,
    draw_study,
    mismatch,
    study_curves,
    summarise,
)

__all__ = [
    "COLUMNS", "METHOD_NAMES", "Audit", "LogError", "audit_log", "average_certified_radius",
    "certified_accuracy", "certify_dataset", "draw_study", "fingerprint", "mismatch",
    "noise_generator", "predict_acr", "read_log", "rebound", "study_curves", "summarise",
    "summary", "vote_counts",
]  # fmt: skip
