"""Recipes: the settings that the papers state, and the schedule of what changes in training."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import beta, norm
from torch import nn

from trustml_helpers import attacks, data, models, objectives
from trustml_helpers.objectives import ByEpoch
from trustml_helpers.smoothing import SmoothedClassifier
from trustml_helpers.training import recipes

GENERATOR = torch.Generator()


@pytest.fixture
def made(monkeypatch):
    """What a recipe asks of the objectives: ``(name, positional, named)`` at some epoch."""

    def ask(name, sigma, epoch=0.0):
        calls = []
        for kind in ("gaussian", "stability", "consistency", "smoothadv", "macer", "smoothmix",
                     "cat_rs"):  # fmt: skip

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
    ("smoothadv", 0.0, 0.0), ("smoothadv_consistency", 1.0, 0.5),
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


@pytest.mark.parametrize("sigma", [0.25, 0.5, 1.0])
def test_cat_rs_learns_from_one_teacher_for_all_sigma(made, monkeypatch, sigma):
    monkeypatch.setattr(recipes, "_counted_once", lambda *given: given)
    teacher = ("mnist_lenet_gaussian_0.25", 0.25, 10_000)
    expected = ("cat_rs", (sigma, teacher), {"samples": 4, "steps": 4})
    assert made("cat_rs", sigma) == expected


def test_a_teachers_votes_are_counted_once_and_the_same_in_any_order(monkeypatch):
    network, counted = models.load("mnist_lenet_gaussian_1.0"), []
    network.register_forward_hook(lambda m, inputs, _: counted.append(len(inputs[0])))
    monkeypatch.setattr(models, "load", lambda name: network)
    x = data.load_mnist("validation")[0][:40]
    shares, again = (recipes._counted_once("mnist_lenet_gaussian_1.0", 1.0, 50) for _ in "ab")
    first = shares(x)
    assert sum(counted) == 40 * 50
    assert torch.equal(shares(x[10:30]), first[10:30])
    assert sum(counted) == 40 * 50
    assert torch.equal(again(x.flip(0)).flip(0), first)
    expected = SmoothedClassifier(network, 1.0, 10).sample_under_noise(
        x, 4000, torch.Generator().manual_seed(0)
    )  # each share of 50 votes within 5 standard deviations: one in 4,000 runs would fail
    p = expected / 4000
    assert ((first - p).abs() <= 5 * (p * (1 - p) / 50).sqrt() + 0.02).all()
    assert 0.5 < first.amax(1).mean() < 0.98


def test_hard_images_are_discarded_and_the_others_drawn_by_their_radius(made, monkeypatch):
    shares = torch.tensor([[0.4, 0.6], [0.5, 0.5], [0.9, 0.1], [1.0, 0.0]])
    monkeypatch.setattr(recipes, "_counted_once", lambda *given: lambda x: shares)
    weights = []
    monkeypatch.setattr(objectives, "reweighted", lambda inner, weigh, generator: weights.append(
        weigh(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))) or inner)  # fmt: skip
    assert made("quick_easy", 1.0, 5.0)[0] == "smoothadv"
    radii = [norm.ppf(beta.ppf(0.1, k, 33 - k)) for k in (24, 29, 32)]
    assert weights[0].tolist() == pytest.approx([0, *radii])


AVERAGED = sorted(name for name in recipes.QUICK if recipes.QUICK[name].average)


@pytest.mark.parametrize("name", [name for name in AVERAGED if name != "quick_easy"])
def test_quick_attacks_begin_with_noise_alone(made, name):
    for epoch in (0.0, 2.99):
        assert made(name, 0.5, epoch) == ("gaussian", (0.5,), {})
    for epoch, grown in ((3.0, 0.5), (3.99, 0.5), (4.0, 1.0), (11.0, 1.0)):
        kind, given, named = made(name, 0.5, epoch)
        assert kind == name.removeprefix("quick_").removesuffix("_consistency")
        if kind == "smoothadv":
            assert given[1] == pytest.approx(255 / 256 * grown)
        if kind == "smoothmix":
            assert named["warm"] == grown


def test_published_optimisation():
    """SGD at 0.01, momentum 0.9, weight decay 1e-4; batches of 256; times 0.1 every third."""
    for name, recipe in recipes.PUBLISHED.items():
        assert recipe.epochs == (150 if name == "cat_rs" else 90)
        # These go through 64 images, 4 copies each, per step.
        attacking = name.startswith(("smoothadv", "smoothmix", "cat_rs"))
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
    network, seen = models.build(recipe.architecture), []
    network.register_forward_hook(lambda m, inputs, _: seen.append(len(inputs[0])))
    goal = recipe.objective(torch.Generator())
    goal = goal.at(recipe.epochs - 0.5) if isinstance(goal, ByEpoch) else goal
    goal(network, torch.rand(3, 1, 28, 28), torch.arange(3)).backward()
    assert sum(seen) == 3 * recipe.copies


@pytest.mark.parametrize(("name", "attack", "fixed", "ramp"), [
    ("adversarial", attacks.pgd, {"steps": 10, "keep": "last"}, 2),
    ("fgsm_rs", attacks.fgsm_rs, {}, 2),
    ("fgsm_rs_sudden", attacks.fgsm_rs, {}, 0),
    ("fgsm_rs_sudden_clipped", attacks.fgsm_rs, {"clip_start": True}, 0),
])  # fmt: skip
def test_attacks_of_the_course_grow_to_their_eps(monkeypatch, name, attack, fixed, ramp):
    monkeypatch.setattr(objectives, "adversarial", lambda attack: attack)
    goal = recipes.RECIPES[name].objective(GENERATOR)
    for epoch, share in ((0.0, 0.0), (0.5, 0.25), (2.0, 1.0), (9.9, 1.0)):
        asked = goal.at(epoch)
        eps = 0.3 * (share if ramp else 1.0)
        assert asked.func is attack
        assert asked.keywords == fixed | {"eps": pytest.approx(eps), "generator": GENERATOR}


def test_trades_grows_to_its_eps(monkeypatch):
    monkeypatch.setattr(objectives, "trades", lambda eps, *given, **named: (eps, given, named))
    goal = recipes.RECIPES["trades"].objective(GENERATOR)
    for epoch, eps in ((0.0, 0.0), (0.5, 0.08), (2.0, 0.32), (19.0, 0.32)):
        assert goal.at(epoch) == (pytest.approx(eps), (), {"generator": GENERATOR})


def test_a_denoiser_learns_the_error_first_and_then_for_the_network_behind_it(monkeypatch):
    monkeypatch.setattr(objectives, "denoising", lambda *given, **named: (given, named))
    goal = recipes.RECIPES["denoiser"].objective(GENERATOR)
    for epoch in (0.0, 7.99):
        assert goal.at(epoch) == ((1.0,), {"generator": GENERATOR})
    for epoch in (8.0, 11.5):
        (sigma, classifier), _ = goal.at(epoch)
        assert sigma == 1.0
        assert classifier.card == models.card("mnist_smallcnn_standard")


# As the networks of the course were made; their cards name these recipes.
@pytest.mark.parametrize(("name", "network", "epochs", "batch", "optimizer", "peak", "lean"), [
    ("standard", "SmallCNN", 8, 128, torch.optim.Adam, 0.002, False),
    ("standard_constant", "SmallCNN", 5, 128, torch.optim.Adam, None, False),
    ("adversarial", "SmallCNN", 16, 100, torch.optim.Adam, 0.002, False),
    ("fgsm_rs", "SmallCNN", 10, 100, torch.optim.Adam, 0.005, True),
    ("trades", "WideCNN", 20, 128, torch.optim.Adam, 0.003, True),
    ("course_gaussian", "LeNet", 30, 256, torch.optim.SGD, 0.1, False),
    ("denoiser", "Denoiser", 12, 256, torch.optim.Adam, 0.004, False),
])  # fmt: skip
def test_settings_of_the_course(name, network, epochs, batch, optimizer, peak, lean):
    recipe = recipes.RECIPES[name]
    assert (recipe.architecture, recipe.epochs, recipe.batch_size) == (network, epochs, batch)
    assert recipe.precision == ("bfloat16" if lean else "float32")
    assert recipe.channels_last == (lean or name in ("course_gaussian", "denoiser"))
    assert recipe.best == ("error pgd" if lean else None)
    descent = recipe.optimizer([nn.Parameter(torch.zeros(1))])
    assert type(descent) is optimizer
    if optimizer is torch.optim.SGD:
        assert (descent.defaults["momentum"], descent.defaults["nesterov"]) == (0.9, True)
        assert descent.defaults["weight_decay"] == 1e-4
    schedule = recipe.scheduler(descent, 100) if recipe.scheduler else None
    rates = []
    for _ in range(100):
        rates.append(descent.param_groups[0]["lr"])
        descent.step()
        if schedule:
            schedule.step()
    if peak is None:
        assert rates == [0.001] * 100
    else:
        assert max(rates) == pytest.approx(peak, rel=0.02)
        assert rates.index(max(rates)) == pytest.approx(39, abs=1)


def test_a_title_names_what_can_be_chosen():
    assert recipes.RECIPES["trades"].title == "TRADES, beta 6, 10 steps, linf, eps 0.32"
    assert recipes.RECIPES["course_gaussian"].title == (
        "cross-entropy under Gaussian noise, sigma 0.5"
    )
    assert recipes.RECIPES["standard"].title == "standard cross-entropy"


def test_quick_recipes_are_the_same_methods():
    assert {f"quick_{name}" for name in recipes.PUBLISHED} | {"quick_easy"} == set(recipes.QUICK)


def test_the_recipes_pass_their_weights_on(monkeypatch):
    """Lambda, eta, copies and steps of the attacked objectives; MACER's weight by epoch."""
    monkeypatch.setattr(objectives, "gaussian", lambda sigma, **rest: "gaussian")
    monkeypatch.setattr(objectives, "macer", lambda sigma, lam, **rest: lam)
    monkeypatch.setattr(
        objectives, "smoothadv",
        lambda sigma, eps, lam=0.0, eta=0.0, **rest: (lam, eta, rest["samples"], rest["steps"]),
    )  # fmt: skip

    def at(name, epoch):
        return recipes.RECIPES[name].objective(GENERATOR).at(epoch)

    assert at("quick_smoothadv_consistency", 4) == (1.0, 0.5, 2, 3)
    assert at("night_smoothadv_consistency", 2) == "gaussian"
    assert at("night_smoothadv_consistency", 4) == (1.0, 0.5, 4, 3)
    assert [at("quick_macer", epoch) for epoch in (2, 3)] == [0.0, 16.0]


@pytest.mark.parametrize(("name", "peak"), [
    ("quick_smoothadv", 0.05), ("quick_cat_rs", 0.05), ("quick_macer", 0.01),
])  # fmt: skip
def test_the_learning_rate_of_quick_recipes(name, peak):
    recipe, rates = recipes.RECIPES[name], []
    optimizer = recipe.optimizer([nn.Parameter(torch.zeros(1))])
    scheduler = recipe.scheduler(optimizer, 48)
    for _ in range(48):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(peak, rel=0.04)
    assert recipe.average == (None if name == "quick_macer" else 0.998)
