"""The checks of the homework, one per task: ``checks.fgsm(fgsm)`` says what is wrong, in units.

Each takes the student's function; ``seed`` draws other inputs. It prints one line if all cases are
right, and raises :class:`CheckFailed` otherwise, with a sentence for every case that is not.

>>> from scipy.stats import norm
>>> from trustml_helpers import checks
>>> def two_class_radius(p_a, p_b, sigma):
...     return max(0.0, sigma * (norm.ppf(p_a) - norm.ppf(p_b)))
>>> checks.score(4, checks.two_class_radius, two_class_radius, seed=0)
two_class_radius: 0 of 3 cases right
  wrong: p_a above 1/2; p_a below 1/2; p_a below p_b:
      the factor 1/2 is missing
0.0
"""

from trustml_helpers.checks.attacks import (
    adversarial_step,
    danskin_gradient,
    fgsm,
    linear_attack,
    numerical_gradient,
    pgd,
    pgd_linf,
    steepest,
    towards,
    trades_loss,
)
from trustml_helpers.checks.beyond import (
    ablation_radius,
    consistency_loss,
    defence_success,
    ever_crosses,
    group_votes,
    l1_radii,
    ladder,
    paired_gain,
    when_to_stop,
)
from trustml_helpers.checks.curves import average_certified_radius, certified_accuracy, reading
from trustml_helpers.checks.grading import HomeworkError, grade, release
from trustml_helpers.checks.harness import CheckFailed, score
from trustml_helpers.checks.masked import MASKED_EPS, accuracy_left, break_masked, masked_defenses
from trustml_helpers.checks.smoothing import (
    certify,
    lower_conf_bound,
    noisy_loss,
    predict,
    sample_under_noise,
    samples_needed,
    two_class_radius,
    worst_classifier,
)

__all__ = [
    "MASKED_EPS", "CheckFailed", "HomeworkError", "ablation_radius", "accuracy_left",
    "adversarial_step", "average_certified_radius", "break_masked", "certified_accuracy",
    "certify", "consistency_loss", "danskin_gradient", "defence_success", "ever_crosses",
    "fgsm", "grade", "group_votes", "l1_radii", "ladder", "linear_attack", "lower_conf_bound",
    "masked_defenses", "noisy_loss", "numerical_gradient", "paired_gain", "pgd", "pgd_linf",
    "predict", "reading", "release", "sample_under_noise", "samples_needed", "score",
    "steepest", "towards", "trades_loss", "two_class_radius", "when_to_stop",
    "worst_classifier",
]  # fmt: skip
