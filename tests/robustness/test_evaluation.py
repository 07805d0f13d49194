"""Accuracy under attack, counted per example."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from trustml_helpers import attacks, models, robustness

IDENTITY = lambda z: z  # noqa: E731


def flip(rows):
    """An attack on the identity model that fools the rows whose mark (last column) is listed."""

    def attack(model, x, y):
        hit = torch.tensor([round(float(mark)) in rows for mark in x[:, 2] * 100])
        return torch.where(hit[:, None], x[:, [1, 0, 2]], x)

    return attack


@pytest.fixture
def six():
    """Six examples of class 0 with margin, marked 0..5; the last is misclassified."""
    x = torch.tensor([[0.9, 0.1]] * 5 + [[0.1, 0.9]])
    return torch.cat([x, torch.arange(6)[:, None] / 100], 1), torch.zeros(6, dtype=torch.long)


def test_counts_per_example(six):
    assert robustness.accuracy(IDENTITY, *six) == pytest.approx(5 / 6)
    found = robustness.robust_correct(IDENTITY, *six, flip({1, 3}), batch_size=2)
    assert found.tolist() == [True, False, True, False, True, False]


def test_worst_case_over_attacks(six):
    pair = [flip({0, 1, 2}), flip({2, 3, 4})]
    assert robustness.robust_accuracy(IDENTITY, *six, pair) == 0
    assert robustness.robust_accuracy(IDENTITY, *six, pair[:1]) == pytest.approx(2 / 6)


def test_what_is_fooled_or_wrong_is_not_attacked_again(six):
    seen = []

    def spy(name, rows):
        inner = flip(rows)

        def attack(model, x, y):
            seen.append((name, (x[:, 2] * 100).round().long().tolist()))
            return inner(model, x, y)

        return attack

    robustness.robust_correct(
        IDENTITY, *six, [spy("a", {0, 1}), spy("b", {2, 3, 4}), spy("c", set())]
    )
    assert seen == [("a", [0, 1, 2, 3, 4]), ("b", [2, 3, 4])]


def test_restarts_that_each_fool_half_leave_nothing():
    """Two attacks, or two restarts, that each fool half: the worst case is 0, not one half."""
    x, y = torch.full((8, 2), 0.49), torch.zeros(8, dtype=torch.long)
    x[:, 1] = torch.arange(8) / 8
    model = lambda z: torch.stack([0.5 - z[:, 0], z[:, 0] - 0.5], 1)  # noqa: E731
    push = torch.tensor([0.4, 0.0])
    low = lambda m, a, b: a + push * (a[:, 1:] < 0.5)  # noqa: E731
    high = lambda m, a, b: a + push * (a[:, 1:] >= 0.5)  # noqa: E731
    assert robustness.robust_accuracy(model, x, y, low) == 0.5
    assert robustness.robust_accuracy(model, x, y, high) == 0.5
    assert robustness.robust_accuracy(model, x, y, [low, high]) == 0
    # And as two starts of one attack: the first draw pushes the low half, the second the high.
    draws = iter([push * (x[:, 1:] < 0.5) / 0.4, push * (x[:, 1:] >= 0.5) / 0.4])
    start = lambda z, g: next(draws)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(attacks.NORMS, "linf", attacks.NORMS["linf"]._replace(uniform=start))
        twice = partial(attacks.pgd, eps=0.4, steps=0, restarts=2)
        assert robustness.robust_accuracy(model, x, y, twice) == 0


def test_broken_by_names_the_first_success(six):
    found = robustness.broken_by(IDENTITY, *six, {"a": flip({1, 3}), "b": flip({1, 4})})
    assert found == ["", "a", "", "a", "b", "clean"]


def test_matrix(six):
    table = robustness.attack_matrix(
        {"id": IDENTITY, "zero": lambda z: -z}, {"a": flip({0, 1}), "b": flip({1, 2})}, *six
    )
    assert table.columns.tolist() == ["clean", "a", "b", "worst case"]
    assert table.loc["id"].tolist() == pytest.approx([5 / 6, 3 / 6, 3 / 6, 2 / 6])
    assert table.loc["zero", "clean"] <= 1 / 6


def test_nan_is_reported_and_not_robust(six):
    x, y = six

    def broken(z):
        return torch.where(z[:, 2:] * 100 < 1.5, torch.full_like(z, float("nan")), z)

    with pytest.warns(RuntimeWarning, match="NaN for 2 of 6"):
        assert robustness.accuracy(broken, x, y) == pytest.approx(3 / 6)


def test_an_attack_that_draws_or_trains_does_not_disturb(awkward):
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator())
    y = models.predict(awkward, x)
    state = torch.get_rng_state()

    def rude(model, x, y):
        model.train()
        torch.rand(3)
        return x

    for evaluate in (robustness.robust_correct, robustness.targeted_success):
        evaluate(awkward, x, y, rude)
        assert torch.equal(torch.get_rng_state(), state)
        assert not awkward.body[4].training
        assert awkward.body[1].training


def test_an_attack_that_returns_other_images(six):
    x, y = six
    with pytest.raises(ValueError, match="x_adv of shape"):
        robustness.robust_accuracy(IDENTITY, x, y, lambda m, x, y: x[:1])


def test_targeted_success_counts_the_wanted_class_alone(six):
    """One of four becomes what was wanted, one was it before, one becomes another, one stays."""
    x = torch.eye(4)
    wanted = torch.tensor([1, 1, 0, 0])
    moved = x[[1, 1, 3, 3]]
    seen = []

    def attack(model, images, target):
        seen.append(len(images))
        rows = [int(image.argmax()) for image in images]
        return moved[rows]

    share = robustness.targeted_success(lambda z: z, x, wanted, attack, batch_size=3)
    assert share == 0.5
    assert seen == [3, 1]
    with pytest.raises(ValueError, match="x is empty"):
        robustness.targeted_success(lambda z: z, x[:0], wanted[:0], attack)
