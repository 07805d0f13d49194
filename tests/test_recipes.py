"""Recipes: the settings that the papers state, and the schedule of what changes in training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trustml_helpers import objectives, recipes
from trustml_helpers.objectives import ByEpoch

GENERATOR = torch.Generator()


@pytest.fixture
def made(monkeypatch):
    """What a recipe asks of the objectives: ``(name, positional, named)`` at some epoch."""

    def ask(name, sigma, epoch=0.0):
        calls = []
        for kind in ("gaussian", "stability", "consistency", "smoothadv", "macer", "smoothmix"):

            def record(*given, _kind=kind, **named):
                named.pop("generator")
                calls.append((_kind, given, named))
                return calls[-1]

            monkeypatch.setattr(objectives, kind, record)
        found = recipes.RECIPES[name].make(sigma, GENERATOR)
        return found.at(epoch) if isinstance(found, ByEpoch) else found

    return ask


# Jeong & Shin (2020), section 4 and appendix: what the rows of their MNIST table were made with.
@pytest.mark.parametrize(("name", "sigma", "expected"), [
    ("gaussian", 0.5, ("gaussian", (0.5,), {})),
    ("stability", 0.25, ("stability", (0.25, 2.0), {})),
    ("consistency", 0.25, ("consistency", (0.25, 10.0, 0.5), {})),
    ("consistency", 0.5, ("consistency", (0.5, 5.0, 0.5), {})),
    ("consistency", 1.0, ("consistency", (1.0, 5.0, 0.5), {})),
])  # fmt: skip
def test_published_weights(made, name, sigma, expected):
    assert made(name, sigma) == expected


@pytest.mark.parametrize(("name", "lam", "eta"), [
    ("smoothadv", 0.0, 0.0), ("smoothadv_consistency", 5.0, 0.5),
])  # fmt: skip
def test_smoothadv_grows_to_its_radius_over_ten_epochs(made, name, lam, eta):
    for epoch, tenths in ((0.0, 1), (0.99, 1), (1.0, 2), (8.5, 9), (9.0, 10), (50.0, 10)):
        kind, given, named = made(name, 0.5, epoch)
        assert kind == "smoothadv"
        assert given == pytest.approx((0.5, 255 / 256 * tenths / 10, lam, eta))
        assert named == {"samples": 4, "steps": 10}


@pytest.mark.parametrize(("sigma", "lam"), [(0.25, 16.0), (0.5, 16.0), (1.0, 6.0)])
def test_macer_counts_the_radius_from_epoch_thirty_on(made, sigma, lam):
    for epoch, weight in ((0.0, 0.0), (29.9, 0.0), (30.0, lam), (89.0, lam)):
        assert made("macer", sigma, epoch) == ("macer", (sigma, weight), {"samples": 16})


@pytest.mark.parametrize(("sigma", "steps"), [(0.25, 2), (0.5, 4), (1.0, 8)])
def test_smoothmix_warms_up_over_ten_epochs(made, sigma, steps):
    for epoch, warm in ((0.0, 0.1), (4.9, 0.5), (9.0, 1.0), (70.0, 1.0)):
        kind, given, named = made("smoothmix", sigma, epoch)
        assert (kind, given) == ("smoothmix", (sigma, 5.0))
        assert named == {"samples": 4, "steps": steps, "warm": pytest.approx(warm)}


def test_published_optimisation():
    """SGD at 0.01, momentum 0.9, weight decay 1e-4; batches of 256; times 0.1 every 30 of 90."""
    for name, recipe in recipes.PUBLISHED.items():
        assert recipe.epochs == 90
        # These go through 64 images, 4 copies each, per step.
        attacking = name.startswith(("smoothadv", "smoothmix"))
        assert recipe.batch_size == (64 if attacking else 256)
        descent = recipe.optimizer([nn.Parameter(torch.zeros(1))])
        assert {key: descent.defaults[key] for key in ("lr", "momentum", "weight_decay")} == {
            "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4
        }  # fmt: skip
        assert not descent.defaults["nesterov"]
        schedule, rates = recipe.scheduler(descent, 900), []
        for _ in range(900):
            rates.append(descent.param_groups[0]["lr"])
            descent.step()
            schedule.step()
        assert rates == pytest.approx([0.01] * 300 + [0.001] * 300 + [0.0001] * 300)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_stated_copies_are_the_passes_of_a_step(name):
    """Counted: images that the network sees per image of the minibatch, late in training."""
    recipe = recipes.RECIPES[name]
    network, seen = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), []
    network.register_forward_hook(lambda m, inputs, _: seen.append(len(inputs[0])))
    goal = recipe.make(0.5, torch.Generator())
    goal = goal.at(recipe.epochs - 0.5) if isinstance(goal, ByEpoch) else goal
    goal(network, torch.rand(3, 1, 28, 28), torch.arange(3)).backward()
    assert sum(seen) == 3 * recipe.copies


def test_quick_recipes_are_the_same_methods():
    assert {f"quick_{name}" for name in recipes.PUBLISHED} == set(recipes.QUICK)
