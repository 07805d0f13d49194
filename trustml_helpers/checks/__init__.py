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
from trustml_helpers.checks.grading import (
    HomeworkError,
    check_before,
    enter_points,
    grade,
    relabel,
    release,
    scoreboard,
    write_numbers,
)
from trustml_helpers.checks.harness import CheckFailed, score
from trustml_helpers.checks.homework import (
    abstention,
    certify_two_class,
    danskin_gradient_l2,
    free_step,
    momentum_pgd,
    pgd_best,
    probability_band,
    radius_at,
    radius_p_value,
    sample_batch,
    shared_bounds,
    step_towards,
)
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
    "MASKED_EPS", "CheckFailed", "HomeworkError", "ablation_radius", "abstention", "accuracy_left",
    "adversarial_step", "average_certified_radius", "break_masked", "certified_accuracy", "certify",
    "certify_two_class", "check_before", "consistency_loss", "danskin_gradient",
    "danskin_gradient_l2", "defence_success", "enter_points", "ever_crosses", "fgsm", "free_step",
    "grade", "group_votes", "l1_radii", "ladder", "linear_attack", "lower_conf_bound",
    "masked_defenses", "momentum_pgd", "noisy_loss", "numerical_gradient", "paired_gain",
    "pgd_best", "pgd_linf", "predict", "probability_band", "radius_at", "radius_p_value", "reading",
    "relabel", "release", "sample_batch", "sample_under_noise", "samples_needed", "score",
    "scoreboard", "shared_bounds", "steepest", "step_towards", "towards", "trades_loss",
    "two_class_radius", "when_to_stop", "worst_classifier", "write_numbers",
]  # fmt: skip
