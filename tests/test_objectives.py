"""Objectives against values computed by hand, and Danskin's theorem against finite differences."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import Linear

from trustml_helpers import attacks, models, objectives, robustness

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


def test_trades_by_hand():
    """One image, two logits (score, 0), one step: the start, the move and both terms."""
    w = torch.tensor([2.0, -1.0], dtype=torch.float64)
    model, x, y = Linear(w), torch.tensor([[0.5, 0.4]], dtype=torch.float64), torch.tensor([0])
    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    objective = objectives.trades(0.2, 6.0, steps=1, step_size=0.15, generator=seeded())
    loss = objective(model, x, y)
    start = x + 0.001 * torch.randn(1, 2, generator=seeded(), dtype=torch.float64)
    score = lambda z: (z @ w).item()  # noqa: E731
    # KL(p || q) of two classes grows with the distance of the scores, so the first step goes on
    # in the direction in which the start already differs.
    side = 1.0 if score(start) > score(x) else -1.0
    x_adv = x + (start - x + 0.15 * side * w.sign()).clamp(-0.2, 0.2)
    p, q = torch.sigmoid(x @ w), torch.sigmoid(x_adv @ w)
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert torch.isclose(loss, (-p.log() + 6 * kl).squeeze(), atol=1e-10)
    (found,) = torch.autograd.grad(loss, model.w)  # both logits of the second term get a gradient
    free = w.clone().requires_grad_()
    p, q = torch.sigmoid(x @ free), torch.sigmoid(x_adv @ free)
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    (expected,) = torch.autograd.grad((-p.log() + 6 * kl).squeeze(), free)
    assert torch.allclose(found, expected, atol=1e-9)


SEED = torch.Generator()
ALL = {
    "standard": objectives.standard,
    "adversarial": objectives.adversarial(lambda model, x, y: x),
    "mixed": objectives.mixed(lambda model, x, y: x),
    "trades": objectives.trades(0.1, steps=1, bounds=None, generator=SEED),
    "gaussian": objectives.gaussian(0.5, generator=SEED),
    "stability": objectives.stability(0.5, generator=SEED),
    "consistency": objectives.consistency(0.5, 1.0, generator=SEED),
    "macer": objectives.macer(0.5, 1.0, samples=2, generator=SEED),
    "smoothadv": objectives.smoothadv(0.5, 0.1, steps=1, bounds=None, generator=SEED),
    "smoothmix": objectives.smoothmix(0.5, steps=1, bounds=None, generator=SEED),
    "cat_rs": objectives.cat_rs(0.5, lambda x: x.softmax(1), steps=1, generator=SEED),
    "reweighted": objectives.reweighted(
        objectives.standard, lambda x, y: torch.ones(len(x)), generator=SEED
    ),
    "per example": lambda model, x, y: attacks.cross_entropy(model(x), y),
}
ODD_LABELS = {
    "one is -100": torch.tensor([0, -100, 1, 0]),  # which torch passes over
    "all are -100": torch.full((4,), -100),
    "one is 99": torch.tensor([0, 99, 1, 0]),
    "list": Y.tolist(),
    "array": Y.numpy(),
}


@pytest.mark.parametrize("labels", ODD_LABELS)
@pytest.mark.parametrize("name", ALL)
def test_labels_that_are_no_classes_are_refused(name, labels):
    with pytest.raises((ValueError, TypeError), match=r"^y\b"):
        ALL[name](IDENTITY, X, ODD_LABELS[labels])


@pytest.mark.parametrize("name", ALL)
def test_any_whole_labels_will_do(name):
    value = torch.stack([ALL[name](IDENTITY, X, Y.to(kind)).mean()
                         for kind in (torch.int64, torch.int32, torch.uint8)])  # fmt: skip
    assert value.isfinite().all()
    if name in ("standard", "adversarial", "mixed", "per example"):  # the others draw anew
        assert torch.equal(value, value[:1].expand(3))


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"per example"}))
def test_a_model_without_logits_is_named(name):
    for odd in (lambda x: (x, x), lambda x: x.detach().numpy(), lambda x: x[:, 0]):
        with pytest.raises(ValueError, match="model: expected logits"):
            ALL[name](odd, X, Y)


@pytest.mark.parametrize("call", [
    *(partial(ALL[name], IDENTITY) for name in ALL if name != "per example"),
    partial(robustness.accuracy, IDENTITY),
    lambda x, y: attacks.pgd(IDENTITY, x, y, 0.1), lambda x, y: attacks.fgsm(IDENTITY, x, y, 0.1),
])  # fmt: skip
def test_arrays_are_no_tensors(call):
    with pytest.raises(TypeError, match=r"(?s)^x=.*: expected .*torch.from_numpy"):
        call(X.numpy(), Y)


@pytest.mark.parametrize("steps", [1, 4])
def test_trades_evaluates_the_clean_images_once(steps):
    """steps + 2 passes: clean, each step, attacked; no parameter gradient before backward."""
    model, x, y = models.build("SmallCNN"), torch.rand(3, 1, 28, 28), torch.arange(3)
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach()))
    loss = objectives.trades(0.1, steps=steps, generator=torch.Generator())(model, x, y)
    assert len(seen) == steps + 2
    assert sum(torch.equal(z, x) for z in seen) == 1
    assert all(p.grad is None for p in model.parameters())
    loss.backward()
    assert len(seen) == steps + 2


def test_trades_without_a_ball_is_standard_training():
    model, x, y = models.build("SmallCNN"), torch.rand(3, 1, 28, 28), torch.arange(3)
    assert torch.isclose(objectives.trades(0.0)(model, x, y), objectives.standard(model, x, y))


@pytest.mark.parametrize(("attack", "passes"), [
    (attacks.fgsm, 1), (attacks.fgsm_rs, 1), (partial(attacks.pgd, steps=7, keep="last"), 7),
])  # fmt: skip
def test_training_costs_the_passes_of_its_attack_and_one_more(attack, passes):
    """Counted: forward passes, backward passes to the input, and no parameter gradient in them."""
    model, x, y = models.build("SmallCNN"), torch.rand(3, 1, 28, 28), torch.arange(3)
    forwards, backwards = [], []
    model.register_forward_hook(lambda *_: forwards.append(1))
    real = torch.autograd.grad

    def grad(outputs, inputs, **rest):
        backwards.append(inputs.shape)
        return real(outputs, inputs, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", grad)
        objectives.adversarial(partial(attack, eps=0.1))(model, x, y)
    assert len(forwards) == passes + 1
    assert backwards == [x.shape] * passes  # to the images alone
    assert all(p.grad is None for p in model.parameters())


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


@pytest.mark.slow
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


def test_trades_with_a_frozen_batch_norm():
    """The clean logits still need the statistics that the attack, too, finds and leaves."""
    frozen = torch.nn.BatchNorm1d(4).eval()
    model = torch.nn.Sequential(frozen, torch.nn.Linear(4, 3)).train()
    frozen.eval()
    x, y = (
        torch.rand(5, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 0, 1]),
    )
    mean = frozen.running_mean
    objectives.trades(0.1, steps=2, generator=torch.Generator())(model, x, y).backward()
    assert frozen.running_mean is mean
    assert frozen.weight.grad.isfinite().all()


def test_a_reweighted_minibatch_holds_each_example_as_often_as_its_weight_says():
    """4,000 draws: each count within 5 standard deviations; one in 580,000 runs would fail."""
    seen, weights = [], torch.tensor([0.0, 1.0, 2.0, 5.0])
    objective = objectives.reweighted(
        lambda model, x, y: seen.append((x, y)) or x.sum(), lambda x, y: weights[y],
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    x, y = torch.eye(4), torch.arange(4)
    for _ in range(1000):
        objective(IDENTITY, x, y)
    drawn = torch.cat([labels for _, labels in seen])
    assert all(torch.equal(x, torch.eye(4)[y]) for x, y in seen)
    for label, share in enumerate((weights / weights.sum()).tolist()):
        spread = (4000 * share * (1 - share)) ** 0.5
        assert abs((drawn == label).sum().item() - 4000 * share) <= 5 * spread
    weights = torch.zeros(4)
    objective(IDENTITY, x, y)
    assert len(seen[-1][1]) == 4  # nothing is left: all are as good


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_trades_is_a_mean_over_the_images():
    """An image twice counts once; the starts are random, so only nearly."""
    x, y = torch.rand(4, 3, generator=seeded()), torch.tensor([0, 1, 2, 0])
    weights = torch.randn(3, 3, generator=seeded(1))
    found = [
        objectives.trades(0.1, 1000.0, bounds=None, generator=seeded(3))(
            lambda z: z @ weights.T, torch.cat([x] * times), torch.cat([y] * times)
        )
        for times in (1, 2)
    ]
    assert torch.isclose(*found, rtol=0.1)


def test_trades_keeps_to_its_ball_and_its_box():
    seen, weights = [], torch.tensor([[1.0, -1, 1, -1], [-1, 1, -1, 1]])

    def network(z):
        seen.append(z.detach().clone())
        return z @ weights.T

    x = torch.full((1, 4), 0.95)
    loss = objectives.trades(0.2, norm="l2", bounds=(0, 1), generator=seeded())
    loss(network, x, torch.tensor([0]))
    assert seen[-1].max() <= 1
    assert 0.15 < (seen[-1] - x).norm() <= 0.2001


def test_weights_that_are_not_given_are_the_published_ones():
    def default(function, name):
        return inspect.signature(function).parameters[name].default

    assert default(objectives.trades, "beta") == 6
    assert [default(objectives.macer, name) for name in ("gamma", "beta")] == [8, 16]
    assert [default(objectives.smoothmix, name) for name in ("eta", "step_size")] == [5, 1]
    assert [default(objectives.cat_rs, name) for name in ("eps", "steps")] == [1, 4]


def test_the_clean_share_of_mixed_is_rounded_to_the_nearest():
    seen = []

    def attack(model, x, y):
        seen.append(len(x))
        return x

    loss = objectives.mixed(attack, clean_share=0.3)
    loss(IDENTITY, torch.rand(9, 3, generator=seeded()), torch.arange(9) % 3)
    assert seen == [6]  # 2.7 clean ones are 3
