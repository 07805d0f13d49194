"""The homework's checks: every right answer passes, every wrong one is told what is wrong."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from homework_answers import RIGHT, WRONG, fgsm, plain_pgd, with_the_package

from trustml_helpers import attacks, checks
from trustml_helpers.checks import harness, masked

TASKS = [name for name in RIGHT if name != "break_masked"]
OPEN = pytest.param("break_masked", marks=pytest.mark.slow)


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
    pytest.param(task, message, marks=[pytest.mark.slow] * (task == "break_masked"))
    for task in WRONG for message in WRONG[task]
])  # fmt: skip
def test_wrong_answers_are_named(task, message):
    with pytest.raises(checks.CheckFailed) as failure:
        getattr(checks, task)(WRONG[task][message])
    assert message in str(failure.value)
    assert 0 <= failure.value.share < 1


def test_every_task_knows_enough_answers():
    public = {name for name in checks.__all__ if name[0].islower()}
    no_checks = {"score", "accuracy_left", "masked_defenses", "grade", "release"}
    assert set(RIGHT) == set(WRONG) == public - no_checks
    assert all(len(WRONG[task]) >= 3 for task in WRONG)
    assert all(len(RIGHT[task]) >= 2 for task in TASKS)


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


@pytest.mark.slow
def test_borrowing_is_allowed_in_the_last_task():
    with pytest.raises(checks.CheckFailed) as failure:
        checks.break_masked(with_the_package)  # breaks two of three
    assert failure.value.share == pytest.approx(2 / 3, abs=0.23)
    assert "trustml_helpers" not in str(failure.value)


@pytest.mark.slow
def test_the_masked_defenses_look_strong_and_are_not():
    left = checks.accuracy_left(plain_pgd, seed=1)
    assert min(left.values()) > 0.9
    left = checks.accuracy_left(RIGHT["break_masked"][0], seed=1)
    assert all(left[kind] <= goals[-1] for kind, goals in masked.GOALS.items())


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
