"""Randomized smoothing: the smoothed classifier, what its votes prove, and how it is run."""

from trustml_helpers.smoothing.classifier import (
    AnytimeCertificates,
    Certificates,
    RadiusCertificates,
    SmoothedClassifier,
)
from trustml_helpers.smoothing.execution import (
    DTYPES,
    LAYOUTS,
    Execution,
    as_given,
    prepare,
    search,
)
from trustml_helpers.smoothing.votes import (
    ABSTAIN,
    BOUND,
    SHARES,
    abstention_probability,
    decide,
    enough,
    radii,
    samples_needed,
)

__all__ = [
    "ABSTAIN", "BOUND", "DTYPES", "LAYOUTS", "SHARES", "AnytimeCertificates", "Certificates",
    "Execution", "RadiusCertificates", "SmoothedClassifier", "abstention_probability", "as_given",
    "decide", "enough", "prepare", "radii", "samples_needed", "search",
]  # fmt: skip
