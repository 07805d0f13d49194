"""Objectives against values computed by hand, and Danskin's theorem against finite differences."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import Linear

from trustml_helpers import attacks, models, objectives

X = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 0.5]])
Y = torch.tensor([0, 1, 1, 0])
IDENTITY = lambda z: z  # noqa: E731


def by_hand(x, y):
    return (torch.logsumexp(x, 1) - x.gather(1, y[:, None])[:, 0]).mean()


def test_standard():
    assert torch.isclose(objectives.standard(IDENTITY, X, Y), by_hand(X, Y))


def test_adversarial_uses_the_attacked_images_alone():
    objective = objectives.adversarial(lambda model, x, y: x + torch.tensor([0.0, 1.0]))
    assert torch.isclose(objective(IDENTITY, X, Y), by_hand(X + torch.tensor([0.0, 1.0]), Y))


@pytest.mark.parametrize(("share", "clean"), [(0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)])
def test_mixed_attacks_the_rest_only(share, clean):
    seen = []

    def attack(model, x, y):
        seen.append((len(x), y.tolist()))
        return -x

    expected = torch.cat([X[:clean], -X[clean:]])
    assert torch.isclose(objectives.mixed(attack, share)(IDENTITY, X, Y), by_hand(expected, Y))
    assert seen == ([] if clean == 4 else [(4 - clean, Y[clean:].tolist())])


def test_mixed_rejects_a_share_above_one():
    with pytest.raises(ValueError, match=r"clean_share=1\.5"):
        objectives.mixed(lambda m, x, y: x, 1.5)


def test_gaussian_noise_is_fresh_of_the_right_size_and_not_clipped():
    images = []

    def spy(x):
        images.append(x)
        return x.flatten(1)[:, :2] * 1.0

    x, y = torch.full((50, 1, 20, 20), 0.9), torch.zeros(50, dtype=torch.long)
    objective = objectives.gaussian(0.5, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    objective(spy, x, y)
    objective(spy, x, y)
    assert torch.equal(torch.get_rng_state(), state)
    noise = torch.stack(images) - 0.9
    assert not torch.equal(noise[0], noise[1])
    # 40,000 draws: the mean leaves +-0.015 with probability 2e-9, the s.d. +-0.01 with 2e-8.
    assert abs(noise.mean()) < 0.015
    assert abs(noise.std() - 0.5) < 0.01
    assert images[0].max() > 1
    again = objectives.gaussian(0.5, generator=torch.Generator().manual_seed(0))
    assert torch.isclose(again(spy, x, y), by_hand(images[0].flatten(1)[:, :2], y))
    assert torch.equal(images[2], images[0])


def test_gaussian_rejects_a_negative_sigma():
    with pytest.raises(ValueError, match="sigma=-1"):
        objectives.gaussian(-1, generator=torch.Generator())


def test_danskin_gradient_of_robust_logistic_regression():
    """Autodiff of log(1 + exp(-s w.x + eps |w|_1)) against the objective at the worst images."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(12, generator=g, dtype=torch.float64)
    x = torch.rand(30, 12, generator=g, dtype=torch.float64)
    y = torch.randint(2, (30,), generator=g)
    model = Linear(w)
    attack = partial(attacks.fgsm, eps=0.2, bounds=None)
    (found,) = torch.autograd.grad(objectives.adversarial(attack)(model, x, y), model.w)
    free = w.clone().requires_grad_()
    sign = torch.where(y == 0, 1.0, -1.0)
    worst = F.softplus(-sign * (x @ free) + 0.2 * free.abs().sum()).mean()
    (expected,) = torch.autograd.grad(worst, free)
    assert torch.allclose(found, expected, atol=1e-12)


def test_danskin_gradient_against_finite_differences():
    """A smooth network in one dimension, its inner maximum found by exhaustive search."""
    g = torch.Generator().manual_seed(4)
    theta = torch.randn(6, generator=g, dtype=torch.float64)
    deltas = torch.linspace(-0.5, 0.5, 20_001, dtype=torch.float64)

    def loss(theta, delta):
        return F.softplus(torch.tanh((0.3 + delta[:, None]) * theta[:3]) @ theta[3:])

    worst = deltas[loss(theta, deltas).argmax()]
    danskin = torch.func.grad(lambda t: loss(t, worst[None])[0])(theta)
    steps = 1e-5 * torch.eye(6, dtype=torch.float64)
    numeric = torch.stack(
        [(loss(theta + h, deltas).max() - loss(theta - h, deltas).max()) / 2e-5 for h in steps]
    )
    assert (danskin - numeric).norm() <= 1e-3 * numeric.norm()


def test_no_gradient_reaches_the_parameters_through_the_attack():
    model = models.build("SmallCNN")
    x, y = torch.rand(4, 1, 28, 28, generator=torch.Generator()), torch.arange(4)
    attack = partial(attacks.pgd, eps=0.1, steps=2, random_start=False, keep="last")
    objectives.adversarial(attack)(model, x, y).backward()
    x_adv = attack(model, x, y)
    expected = torch.autograd.grad(F.cross_entropy(model(x_adv), y), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)
