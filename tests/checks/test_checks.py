"""The homework's checks: every right answer passes, every wrong one is told what is wrong."""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from homework_answers import RIGHT, WRONG, fgsm, over_all_moves, plain_pgd, read, with_the_package
from scipy.stats import norm
from torch import nn

from trustml_helpers import attacks, checks
from trustml_helpers.checks import attacks as attack_checks
from trustml_helpers.checks import harness, masked
from trustml_helpers.checks import homework as homework_checks

TASKS = [name for name in RIGHT if name != "break_masked"]
OPEN = pytest.param("break_masked", marks=pytest.mark.slow)
# The tasks of the homework, its alternatives among them; the others are the lecture's.
HOMEWORK = {
    "linear_attack", "step_towards", "pgd_best", "free_step", "numerical_gradient",
    "danskin_gradient_l2", "shared_bounds", "sample_batch", "abstention", "certify_two_class",
    "probability_band", "radius_at", "average_certified_radius", "reading", "break_masked",
    "momentum_pgd", "radius_p_value",
}  # fmt: skip
PATIENT = {plain_pgd, *(WRONG["break_masked"][name] for name in WRONG["break_masked"]
                        if "1,000 times" in name or "asks the network" in name)}  # fmt: skip


@pytest.mark.parametrize("task", [*TASKS, OPEN])
@pytest.mark.parametrize("seed", [0, pytest.param(4711, marks=pytest.mark.slow)])
def test_right_answers_pass_in_every_style(task, seed, capfd):
    # The open task takes long: one style is enough for the second seed.
    answers = RIGHT[task][:1] if (task, seed) == ("break_masked", 4711) else RIGHT[task]
    for answer in answers:
        getattr(checks, task)(answer, seed=seed)
    out, err = capfd.readouterr()
    assert out.count("cases right") == len(answers)
    assert err == ""


@pytest.mark.parametrize(("task", "message"), [
    pytest.param(task, message, marks=[pytest.mark.slow] * (answer in PATIENT))
    for task in WRONG for message, answer in WRONG[task].items()
])  # fmt: skip
def test_wrong_answers_are_named(task, message):
    with pytest.raises(checks.CheckFailed) as failure:
        getattr(checks, task)(WRONG[task][message])
    assert message in str(failure.value)
    assert 0 <= failure.value.share < 1


def is_check(name):
    known = inspect.signature(getattr(checks, name)).parameters if name[0].islower() else {}
    return "answer" in known and known["seed"].kind is inspect.Parameter.KEYWORD_ONLY


def test_every_task_knows_enough_answers():
    public = {name for name in checks.__all__ if is_check(name)}
    assert set(RIGHT) == set(WRONG) == public - {"score"}
    assert public > HOMEWORK
    for task in RIGHT:
        styles, mistakes = (4, 10) if task in HOMEWORK else (2, 3)
        assert len({*RIGHT[task]}) >= styles, task
        assert len({*WRONG[task].values()}) >= mistakes, task


@pytest.mark.parametrize("task", [*TASKS, OPEN])
def test_the_untouched_stub_and_constant_answers_earn_nothing(task):
    """A constant may hit one case in passing, of those without a number to miss by chance."""

    def stub(*_):
        raise NotImplementedError

    check = getattr(checks, task)
    assert checks.score(7, check, stub, seed=3) == 0
    for constant in (0.0, -1, (-1, 0.0), None, "x"):
        assert checks.score(7, check, lambda *_, c=constant: c, seed=3) == 0, constant


def test_points_are_the_share_of_right_cases_and_stderr_stays_empty(capfd):
    def half(model, x, y, eps):
        warnings.warn("careless", stacklevel=1)
        print("into stderr", file=sys.stderr)
        return x + eps * (fgsm(model, x, y, eps) - x).sign()  # not clipped: wrong where it matters

    assert checks.score(8, checks.fgsm, half, seed=1) == 6.0
    out, err = capfd.readouterr()
    assert "3 of 4 cases right" in out
    assert "pixels leave [0, 1]" in out
    assert err == ""
    assert checks.score(8, checks.fgsm, fgsm, seed=1) == 8.0
    assert checks.score(8, checks.fgsm, "not a function", seed=1) == 0.0
    with pytest.raises(TypeError, match="without calling it"):
        checks.fgsm(0.5)


def test_the_verdict_groups_cases_by_what_is_wrong():
    case = harness.Cases("task")
    with case("a"):
        pass
    for name, what in (("b", "x"), ("c", "y"), ("d", "x")):
        with case(name):
            raise harness.Wrong(what)
    with pytest.raises(checks.CheckFailed) as failure:
        case.verdict()
    lines = ["task: 1 of 4 cases right", "  right: a", "  wrong: b; d:", "      x", "  wrong: c:"]
    assert str(failure.value).splitlines() == [*lines, "      y"]
    assert failure.value.share == 0.25


def test_an_answer_of_an_unexpected_kind_is_wrong_and_not_an_error():
    case = harness.Cases("task")
    with case("odd"):
        float({})
    assert "cannot be compared (TypeError" in case.wrong["odd"]


def test_the_line_that_failed_is_shown_and_an_interrupt_gets_through():
    with pytest.raises(checks.CheckFailed, match=r"RuntimeError at line \d+, `.*view"):
        checks.fgsm(WRONG["fgsm"]["RuntimeError"])

    def endless(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checks.fgsm(endless)


def test_a_notebook_shows_the_message_alone():
    failure = checks.CheckFailed("what is wrong", 0.5)
    assert failure._render_traceback_() == ["what is wrong"]
    assert harness.Wrong("leaves the ball")._render_traceback_() == ["leaves the ball"]


def test_checks_leave_the_global_generators_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    checks.sample_under_noise(RIGHT["sample_under_noise"][0])
    with pytest.raises(checks.CheckFailed):
        checks.sample_under_noise(WRONG["sample_under_noise"]["global generator"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_borrowing_is_seen_through_a_helper():
    def helper(*given):
        return attacks.fgsm(*given)

    for answer in (attacks.fgsm, lambda *given: helper(*given)):
        with pytest.raises(checks.CheckFailed, match="Write this one yourself"):
            checks.fgsm(answer)


def borrowed_path(model, x, y, eps, step_size, steps, start):
    return attack_checks.path_of(model, x, y, eps, step_size, steps, start, norm="linf")


@pytest.mark.parametrize(("check", "answer", "name"), [
    (checks.pgd_linf, borrowed_path, "path_of"),
    (checks.pgd_linf, partial(attack_checks.path_of, norm="linf"), "path_of"),
    (checks.danskin_gradient, partial(attack_checks.logistic_gradient, norm="linf"),
     "logistic_gradient"),
    (checks.step_towards, lambda model, x, target, eps: (
        x - eps * homework_checks._margin_gradient(model, x, target).sign()).clamp(0, 1),
     "_margin_gradient"),
    (checks.fgsm, lambda model, x, y, eps: (
        x + eps * attack_checks.gradient_of(model, x, y).sign()).clamp(0, 1), "gradient_of"),
])  # fmt: skip
def test_the_inside_of_a_check_is_no_answer(check, answer, name):
    """What a check hands in (networks, attacks, samplers) may be called; its functions may not."""
    assert checks.score(5, check, answer, seed=0) == 0
    with pytest.raises(checks.CheckFailed, match=f"calls trustml_helpers.checks.{name}. Write"):
        check(answer)


def test_a_setting_reaches_the_check_and_an_unknown_one_is_named(capsys):
    given = {"radii": (0.5, 2.0, 0.5), "curves": (0.25, 0.5), "n": 20_000}
    values = (0.25, 1.0, 0.964, 1.6, 1.7)
    checks.reading(lambda: values, **given)
    assert checks.score(4, checks.reading, lambda: values, seed=112, **given) == 4
    assert checks.score(4, checks.reading, read, seed=112, **given) < 2
    assert "at radius 0.5? look" in capsys.readouterr().out
    assert list(inspect.signature(checks.reading).parameters) == [
        "answer", "seed", "sigmas", "radii", "curves", "n"]  # fmt: skip
    for call in (checks.reading, partial(checks.score, 4, checks.reading, seed=0)):
        with pytest.raises(TypeError, match="'radius'; those are sigmas, radii, curves, n"):
            call(read, radius=1)
    with pytest.raises(TypeError, match=r"checks\.fgsm has no setting 'norm'; it has none"):
        checks.fgsm(fgsm, norm="l2")
    with pytest.raises(ValueError, match="'steeper', expected some of steep, coarse, restless"):
        checks.masked_defenses(kinds=["steeper"])


EARLIER = """
def linear_attack(w, b, x, y, eps, norm):
    return x + eps * y[:, None] * w / w.norm()  # towards larger scores

def danskin_gradient_l2(w, b, x, y, eps):
    z = linear_attack(w, b, x, y, eps, "l2")
    return -(y * torch.sigmoid(-y * (z @ w + b)))[:, None].mul(z).mean(0) * {factor}

def shared_bounds(counts, top, alpha):
    return 0.5, 0.4

def certify_two_class(sample, n0, n, alpha, sigma):
    guess = int(sample(n0).argmax())
    p_a, p_b = shared_bounds(sample(n), guess, {level})
    if p_a <= p_b:
        return -1, 0.0
    return guess, float(sigma / 2 * (norm.ppf(p_a) - norm.ppf(p_b)))
"""


def written(**numbers):
    space = {"torch": torch, "norm": norm}
    exec(EARLIER.format(**{"factor": 1, "level": "alpha"} | numbers), space)
    return space


@pytest.mark.parametrize(("task", "earlier", "mistake"), [
    ("danskin_gradient_l2", "linear_attack", {"factor": 2}),
    ("certify_two_class", "shared_bounds", {"level": "alpha / 2"}),
])  # fmt: skip
def test_a_mistake_in_an_earlier_task_costs_nothing_in_this_one(task, earlier, mistake, capsys):
    check = getattr(checks, task)
    space = written()
    own = space[earlier]
    assert checks.score(6, getattr(checks, earlier), own, seed=3) < 6
    assert checks.score(6, check, space[task], seed=3) == 6
    assert f"right, with a right {earlier} in the place of yours" in capsys.readouterr().out
    assert space[earlier] is own
    assert checks.score(6, check, written(**mistake)[task], seed=3) < 3
    del space[earlier]
    assert checks.score(6, check, space[task], seed=3) == 0
    assert earlier not in space


def test_the_right_answer_that_a_check_lends_is_nobodys_own(capsys):
    right = homework_checks._right("linear_attack")["linear_attack"]
    for answer in (right, lambda *given: right(*given)):
        assert checks.score(6, checks.linear_attack, answer, seed=3) == 0
        assert "calls trustml_helpers.checks._right" in capsys.readouterr().out
    assert not harness._LENT


def test_what_goes_wrong_before_all_cases_is_told_in_each():
    case = harness.Cases("task")
    with case.before_all():
        float({})
    with case("a"):
        pass
    assert "cannot be compared (TypeError" in case.wrong["a"]


@pytest.mark.slow
def test_borrowing_is_allowed_in_the_last_task():
    with pytest.raises(checks.CheckFailed) as failure:
        checks.break_masked(with_the_package)  # breaks two of three
    assert failure.value.share == pytest.approx(2 / 3, abs=0.23)
    assert "trustml_helpers" not in str(failure.value)


@pytest.mark.slow
def test_the_masked_defenses_look_strong_and_are_not(capsys):
    kinds = tuple(masked.GOALS)
    assert len(kinds) == 5
    assert kinds[:3] == masked.KINDS
    left = checks.accuracy_left(plain_pgd, seed=1, kinds=kinds)
    assert min(left.values()) > 0.9
    left = checks.accuracy_left(over_all_moves, seed=1, kinds=kinds)
    assert all(left[kind] <= goals[-1] for kind, goals in masked.GOALS.items())
    chosen = ("squeezed", "steep", "rippled")
    checks.break_masked(over_all_moves, seed=1, kinds=chosen)
    said = ", ".join(f"{kind} {left[kind]:.1%}" for kind in chosen)
    assert capsys.readouterr().out.splitlines() == [
        f"left: {said}", "break_masked: all 9 cases right"]  # fmt: skip


def test_an_attack_is_judged_in_the_ball_that_it_is_given():
    given = []

    def attack(defense, x, y, eps):
        given.append(eps)
        return x + 0.05

    with pytest.raises(checks.CheckFailed, match="pixels leave"):
        checks.break_masked(attack, eps=0.06, kinds=["steep"])
    with pytest.raises(checks.CheckFailed, match="leaves the ball"):
        checks.break_masked(attack, eps=0.04, kinds=["steep"])
    assert given == [0.06, 0.04]


@pytest.mark.parametrize("kind", masked.GOALS)
def test_every_way_to_ask_a_defense_counts_and_other_networks_do_not(kind):
    x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    defense = checks.masked_defenses(kinds=[kind])[kind]
    first = next(layer for layer in defense.network if isinstance(layer, nn.Conv2d))

    def gradient(z):
        return torch.func.grad(lambda image: defense.network(image[None]).sum())(z)

    for ask, least in (
        (lambda: defense(x), 6), (lambda: copy.deepcopy(defense)(x), 6),
        (lambda: defense(x.clone().requires_grad_()).sum().backward(), 6),
        (lambda: F.conv2d(x, -2 * first.weight, None, 2, 1), 6),
        (lambda: F.conv2d(x[0], first.weight, first.bias), 1),
        (lambda: torch.func.vmap(gradient)(x), 6),
        (lambda: torch.func.functional_call(defense.network, {}, (x,)), 6),
        (lambda: masked.load("mnist_smallcnn_standard")(x), 0), (lambda: x.roll(1), 0),
    ):  # fmt: skip
        with masked.Budget(defense, 6) as budget:
            ask()
        assert budget.asked == least
    with masked.Budget(defense, 6) as budget, torch.inference_mode():
        defense(x)
    assert budget.asked == 6
    with pytest.raises(harness.Wrong, match="more than 1,000 times"), masked.Budget(defense, 5):
        defense(x)
    assert defense.asked > 0  # readable


def test_what_a_message_compares():
    """agree: right within the tolerance, named faults first, then the size of the difference."""
    ones = torch.ones(4)
    harness.agree(ones + 5e-5, ones, {})
    with pytest.raises(harness.Wrong, match=r"^doubled$"):
        harness.agree(2 * ones, ones, {"doubled": 2 * ones})
    with pytest.raises(harness.Wrong, match="50% of the values differ, by at most 3 px"):
        harness.agree(torch.tensor([1.0, 1.0, 4.0, 0.0]), ones, {}, unit=" px")
    with pytest.raises(harness.Wrong, match="got 2 px, expected 1 px"):
        harness.agree(2.0, 1.0, {}, unit=" px")
    for bad, message in ((torch.nan * ones, "NaN"), ((ones, ones), "of 2 values"), ("x", "str")):
        with pytest.raises(harness.Wrong, match=message):
            harness.tensor(bad, ones, "four")
    assert harness.integer(torch.tensor(3), "an int") == 3
    with pytest.raises(harness.Wrong, match=r"returns 0\.5"):
        harness.integer(0.5, "an int")
    with pytest.raises(harness.Wrong, match="returns inf, expected an int"):
        harness.integer(float("inf"), "an int")


class Ends:
    """No number, and asking for one ends the process."""

    def __float__(self):
        sys.exit(3)


@pytest.mark.parametrize("answer", [lambda *_: sys.exit(3), lambda *_: Ends()])
def test_an_answer_cannot_end_the_grading(answer, capsys):
    assert checks.score(4, checks.two_class_radius, answer, seed=0) == 0
    assert "SystemExit" in capsys.readouterr().out


def test_who_grades_can_end_it():
    def answer(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checks.score(4, checks.two_class_radius, answer, seed=0)
