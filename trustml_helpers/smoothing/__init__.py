"""Randomized smoothing: the smoothed classifier, its noise, what votes prove, how it is run."""

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
from trustml_helpers.smoothing.noise import (
    NOISE,
    NOISES,
    Ablation,
    Gaussian,
    Laplace,
    Noise,
    Uniform,
    noise_from,
)
from trustml_helpers.smoothing.votes import (
    ABSTAIN,
    BOUND,
    SHARES,
    abstention_probability,
    answered,
    decide,
    enough,
    radii,
    samples_needed,
)

__all__ = [
    "ABSTAIN", "BOUND", "DTYPES", "LAYOUTS", "NOISE", "NOISES", "SHARES", "Ablation",
    "AnytimeCertificates", "Certificates", "Execution", "Gaussian", "Laplace", "Noise",
    "RadiusCertificates", "SmoothedClassifier", "Uniform", "abstention_probability", "answered",
    "as_given", "decide", "enough", "noise_from", "prepare", "radii", "samples_needed", "search",
]  # fmt: skip
