"""Attacks: find ``x_adv`` in a ball around x, and in the box of valid images, that fools a model.

Everything is in the units of the pixels, so ``eps=8 / 255`` for a budget of 8 grey levels.
A model is any callable from images to logits ``(n, K)``; it is left exactly as it was found.
"""

from trustml_helpers._support.tensors import Bounds
from trustml_helpers.attacks.gradient import fgsm, fgsm_rs, pgd, pgd_smoothed, sign_noise
from trustml_helpers.attacks.losses import (
    LOSSES,
    Loss,
    cross_entropy,
    dlr,
    dlr_targeted,
    log_mean_softmax,
    margin,
)
from trustml_helpers.attacks.norms import NORMS, columns
from trustml_helpers.attacks.search import (
    Attack,
    Goal,
    Model,
    NotDifferentiable,
    check_attacked,
    fits,
    is_fooled,
    threat,
)
from trustml_helpers.attacks.strong import auto_pgd, square, suite

__all__ = [
    "LOSSES", "NORMS", "Attack", "Bounds", "Goal", "Loss", "Model", "NotDifferentiable",
    "auto_pgd", "check_attacked", "columns", "cross_entropy", "dlr", "dlr_targeted", "fgsm",
    "fgsm_rs", "fits", "is_fooled", "log_mean_softmax", "margin", "pgd",
    "pgd_smoothed", "sign_noise", "square", "suite", "threat",
]  # fmt: skip
