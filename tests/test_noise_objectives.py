"""Objectives under noise against values computed image by image with NumPy and SciPy."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from helpers import Linear
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from scipy.stats import entropy, norm

from trustml_helpers import attacks, models, objectives, smoothing

SIGMA = 0.7
X = torch.rand(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1])
W = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def network(x):
    return torch.tanh(x) @ W * 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(samples, seed=0):
    return SIGMA * torch.randn(5, samples, 4, generator=seeded(seed), dtype=torch.float64)


def logits(samples):
    """Logits of every noisy copy, ``(5, samples, 3)``, one at a time."""
    drawn = noise(samples)
    return np.array([
        [network((X[i] + drawn[i, j])[None])[0].numpy() for j in range(samples)] for i in range(5)
    ])  # fmt: skip


def cross_entropy(z, label):
    return -log_softmax(z)[label]


ALL = {
    "gaussian": objectives.gaussian,
    "stability": objectives.stability,
    "consistency": partial(objectives.consistency, lam=5.0),
    "smoothadv": partial(objectives.smoothadv, eps=0.5, samples=2, steps=2),
    "macer": partial(objectives.macer, lam=4.0, samples=4),
    "smoothmix": partial(objectives.smoothmix, samples=2, steps=2),
    "cat_rs": partial(objectives.cat_rs, teacher=lambda x: teacher(x), samples=2, steps=2),
}


def teacher(x):
    """Any probabilities, of as many classes as the networks here have; one of them is 0."""
    return torch.eye(10 if x.ndim == 4 else 3, dtype=x.dtype)[0].expand(len(x), -1)


def test_noisy_by_hand_and_fresh():
    """With Gaussian noise it is the loss under Gaussian noise; with another, that of its copies."""
    found = objectives.noisy(smoothing.Gaussian(SIGMA), generator=seeded())(network, X, Y)
    expected = objectives.gaussian(SIGMA, generator=seeded())(network, X, Y)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    uniform, own = smoothing.Uniform(SIGMA), seeded(1)
    z = network(uniform(X, seeded(1))).numpy()
    objective = objectives.noisy(uniform, generator=own)
    first, second = objective(network, X, Y).item(), objective(network, X, Y).item()
    assert first == pytest.approx(np.mean([cross_entropy(z[i], Y[i]) for i in range(5)]), rel=1e-6)
    assert second != first


def test_stability_by_hand():
    clean, noisy = network(X).numpy(), logits(1)[:, 0]
    expected = np.mean([
        cross_entropy(clean[i], Y[i]) - 1.5 * softmax(clean[i]) @ log_softmax(noisy[i])
        for i in range(5)
    ])  # fmt: skip
    found = objectives.stability(SIGMA, 1.5, generator=seeded())(network, X, Y)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("samples", "lam", "eta"), [
    (1, 0.0, 0.0), (2, 10.0, 0.5), (3, 2.0, 0.0), (4, 0.0, 1.5),
])  # fmt: skip
def test_consistency_by_hand(samples, lam, eta):
    z, total = logits(samples), []
    for i in range(5):
        p = softmax(z[i], axis=1)
        mean = p.mean(0)
        divergence = np.mean([entropy(mean, p[j]) for j in range(samples)])
        fit = np.mean([cross_entropy(z[i, j], Y[i]) for j in range(samples)])
        total.append(fit + lam * divergence + eta * entropy(mean))
    objective = objectives.consistency(SIGMA, lam, eta, samples=samples, generator=seeded())
    assert objective(network, X, Y).item() == pytest.approx(np.mean(total), rel=1e-6)


def test_gaussian_is_consistency_of_one_copy_without_weights():
    z = logits(1)[:, 0]
    expected = np.mean([cross_entropy(z[i], Y[i]) for i in range(5)])
    found = objectives.gaussian(SIGMA, generator=seeded())(network, X, Y)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gamma", [8.0, 1.0])
def test_macer_by_hand(gamma):
    """With gamma = 1 some radii are beyond the hinge; some images are wrong and earn none."""
    z, total, kinds = logits(6), [], set()
    for i in range(5):
        loss = -np.log(softmax(z[i], axis=1).mean(0)[Y[i]])
        shares = softmax(2.0 * z[i], axis=1).mean(0)
        second, top = np.sort(shares)[-2:]
        margin = norm.ppf(top) - norm.ppf(second)
        right = shares.argmax() == Y[i].item()
        kinds.add("wrong" if not right else "counted" if margin < gamma else "beyond")
        loss += 3.0 * SIGMA / 2 * max(0.0, gamma - margin) if right else 0.0
        total.append(loss)
    assert kinds == {"wrong", "counted"} | ({"beyond"} if gamma == 1 else set())
    objective = objectives.macer(SIGMA, 3.0, gamma, 2.0, samples=6, generator=seeded())
    assert objective(network, X, Y).item() == pytest.approx(np.mean(total), rel=1e-6)


def test_macer_leaves_out_quantiles_that_are_not_finite():
    """A network so sure that the other shares are 0 in float64: a loss, and a finite gradient."""
    scale = torch.tensor(1e4, requires_grad=True)
    objective = objectives.macer(SIGMA, 3.0, samples=4, generator=seeded())
    loss = objective(lambda x: scale * torch.eye(3)[[0] * len(x)], X[:1].float(), Y[:1])
    (gradient,) = torch.autograd.grad(loss, scale)
    assert loss.item() == 0
    assert gradient.isfinite()


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"smoothadv", "smoothmix", "cat_rs"}))
def test_gradients_against_finite_differences(name):
    def loss(w):
        return ALL[name](SIGMA, generator=seeded())(lambda x: torch.tanh(x) @ w, X, Y)

    w = W.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(w), w)
    steps = 1e-6 * torch.eye(12, dtype=torch.float64).view(12, 4, 3)
    numeric = torch.stack([(loss(W + h) - loss(W - h)) / 2e-6 for h in steps]).view(4, 3)
    assert torch.allclose(found, numeric, rtol=1e-4, atol=1e-6)


def test_smoothadv_attacks_and_learns_under_the_same_noise_of_each_image():
    """Watched: what the network is shown, pass by pass."""
    seen = []

    def spy(x):
        seen.append(x.detach().clone().view(5, 3, 4))
        return network(x)

    objective = objectives.smoothadv(SIGMA, 0.4, samples=3, steps=4, generator=seeded())
    objective(spy, X, Y)
    assert len(seen) == 4 + 1
    expected = noise(3)
    for shown in seen:  # the image is common to its copies, so their differences are the noise
        assert torch.allclose(shown - shown[:, :1], expected - expected[:, :1], atol=1e-12)
    attacked = seen[-1] - expected
    assert torch.allclose(attacked, attacked[:, :1].expand_as(attacked), atol=1e-12)
    moved = (attacked[:, 0] - X).norm(dim=1)
    assert moved.max() <= 0.4 + 1e-9
    assert moved.min() > 0.1
    assert attacked.min() >= -1e-12
    assert attacked.max() <= 1 + 1e-12


def test_smoothadv_on_a_linear_network():
    """The worst image is known: against w, eps away. Four steps come close, never beyond."""
    w = torch.tensor([3.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    model, y = Linear(w), torch.tensor([0, 1, 0, 0, 1])
    side = torch.where(y == 0, -1.0, 1.0)[:, None]

    def by_hand(eps):
        both = torch.stack([(X + side * eps * w / w.norm() + noise(2)[:, j]) @ w for j in (0, 1)])
        return torch.nn.functional.softplus(side[:, 0] * both).mean().item()

    objective = objectives.smoothadv(SIGMA, 0.6, samples=2, steps=4, bounds=None,
                                     generator=seeded())  # fmt: skip
    found = objective(model, X, y).item()
    assert by_hand(0.0) < by_hand(0.5) < found <= by_hand(0.6) + 1e-9


def gradient_at(loss, z):
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z), z)
    return gradient


def shortened(way, eps):
    return way * min(1.0, eps / way.norm().item())


@pytest.mark.parametrize(("eps", "lam", "eta"), [(0.4, 0.0, 0.0), (1.0, 1.0, 0.5)])
def test_smoothadv_by_hand(eps, lam, eta):
    """As in the authors' program: from x, scaled back to the ball, then clipped; image by image."""
    drawn, total, cut = noise(3), [], 0
    for i in range(5):
        z = X[i]
        for _ in range(4):
            gradient = gradient_at(
                lambda z, i=i: -network(z + drawn[i]).softmax(1).mean(0)[Y[i]].log(), z
            )
            z = X[i] + shortened(z + 2 * eps / 4 * gradient / gradient.norm() - X[i], eps)
            cut += int(((z < 0) | (z > 1)).sum())
            z = z.clamp(0, 1)
        p = softmax(network(z + drawn[i]).numpy(), axis=1)
        mean = p.mean(0)
        total.append(
            -np.log(p[:, Y[i]]).mean() + lam * np.mean([entropy(mean, row) for row in p])
            + eta * entropy(mean)
        )  # fmt: skip
    assert cut > 0
    objective = objectives.smoothadv(SIGMA, eps, lam, eta, samples=3, steps=4, generator=seeded())
    assert objective(network, X, Y).item() == pytest.approx(np.mean(total), rel=1e-6)


@pytest.mark.parametrize("eps", [0.3, 2.0])
def test_cat_rs_by_hand(eps):
    """Copy by copy; among the images are some of which not all copies count."""
    generator = seeded(4)
    drawn = SIGMA * torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    z = np.array([network(X[i] + drawn[i]).numpy() for i in range(5)])
    right = torch.tensor((z.argmax(2) == Y.numpy()[:, None]).mean(1), dtype=torch.float32)
    kept = torch.binomial(torch.full((5,), 3.0), right, generator=generator).clamp(min=1).int()
    p = torch.tensor([[0.7, 0.3, 0.0]] * 5, dtype=torch.float64)
    total = []
    for i in range(5):
        costs = sorted(cross_entropy(row, Y[i]) for row in z[i])
        total.append(sum(costs[: kept[i]]) / 3)
        apart = []
        for first in drawn[i]:
            now = first
            for _ in range(4):
                gradient = gradient_at(
                    lambda e, i=i: -(p[i] * network((X[i] + e)[None])[0].log_softmax(0)).sum(), now
                )
                way = now + 2 * eps / 4 * gradient / gradient.norm() - first
                now = first + shortened(way, eps)
                now = (now - now.mean()) / now.square().mean().sqrt()
                now = first.mean() + first.square().mean().sqrt() * now
            apart.append(entropy(p[i], softmax(network((X[i] + now)[None])[0].numpy())))
        total[-1] += 2 * max(apart) * (kept[i] == 3).item()
    assert set(kept.tolist()) == {1, 2, 3}
    objective = objectives.cat_rs(
        SIGMA, lambda x: p, 2.0, eps=eps, samples=3, steps=4, generator=seeded(4)
    )
    assert objective(network, X, Y).item() == pytest.approx(np.mean(total), rel=1e-6)


@pytest.mark.parametrize(("steps", "warm"), [(1, 1.0), (2, 1.0), (3, 0.4)])
def test_smoothmix_by_hand(steps, warm):
    """The attack one image at a time, by autograd; the loss one copy at a time, with NumPy."""
    generator = seeded()
    drawn = SIGMA * torch.randn(5, 2, 4, generator=generator, dtype=torch.float64)
    share = 0.5 * torch.rand(5, generator=generator, dtype=torch.float64).numpy()
    total, rights = [], []
    for i in range(5):
        points = [X[i]]
        for _ in range(steps):
            z = points[-1].clone().requires_grad_()
            soft = network(z + drawn[i]).softmax(1).mean(0)
            (gradient,) = torch.autograd.grad(-soft[Y[i]].log(), z)
            points.append(points[-1] + 0.3 * gradient / gradient.norm())
        near = X[i] + warm * (points[1] - X[i])
        p = softmax(network(near + drawn[i]).numpy(), axis=1)
        mean = p.mean(0)
        mixed = (1 - share[i]) * near + share[i] * points[-1]
        target = (1 - share[i]) * mean + share[i] / 3
        q = softmax(network(mixed + drawn[i]).numpy(), axis=1)
        apart = np.mean([entropy(target, q[j]) for j in range(2)])
        rights.append(mean.argmax() == Y[i].item())
        total.append(-np.log(p[:, Y[i]]).mean() + 5 * warm * rights[-1] * apart)
    assert 0 < sum(rights) < 5
    objective = objectives.smoothmix(SIGMA, 5.0, samples=2, steps=steps, step_size=0.3, warm=warm,
                                     bounds=None, generator=seeded())  # fmt: skip
    assert objective(network, X, Y).item() == pytest.approx(np.mean(total), rel=1e-6)


def test_smoothadv_without_a_ball_is_consistency():
    """The same noise and weights: the published combination of the two."""
    one = objectives.smoothadv(SIGMA, 0.0, 5.0, 0.5, samples=2, steps=1, generator=seeded())
    two = objectives.consistency(SIGMA, 5.0, 0.5, samples=2, generator=seeded())
    assert one(network, X, Y).item() == pytest.approx(two(network, X, Y).item(), rel=1e-9)


@pytest.mark.parametrize("name", sorted(ALL))
def test_noise_is_fresh_per_call_and_image_and_the_global_generator_rests(name):
    model, state = models.build("SmallCNN"), torch.get_rng_state()
    x, y = torch.full((3, 1, 28, 28), 0.5), torch.zeros(3, dtype=torch.long)
    shown = []
    model.register_forward_pre_hook(lambda m, inputs: shown.append(inputs[0].detach().clone()))
    objective = ALL[name](0.5, generator=seeded())
    objective(model, x, y)
    first = shown[-1]
    losses = [objective(model, x, y).item(), ALL[name](0.5, generator=seeded())(model, x, y).item()]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(shown[-1], first)  # the same seed, the same images
    assert losses[0] != losses[1]
    assert len({z.sum().item() for z in first}) == len(first)  # no two copies alike


@pytest.mark.parametrize("name", sorted(ALL))
def test_half_precision_logits_are_summed_in_float32(name):
    model, x, y = models.build("SmallCNN"), torch.rand(3, 1, 28, 28), torch.zeros(3).long()
    with torch.autocast("cpu", torch.bfloat16):
        loss = ALL[name](0.5, generator=seeded())(model, x, y)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        ALL[name](0.5, generator=seeded())(model, x, y).item(), rel=0.02
    )


@given(
    scale=st.floats(0.01, 50), lam=st.floats(0, 20), eta=st.floats(0, 5), samples=st.integers(1, 5)
)
def test_consistency_never_lowers_the_loss(scale, lam, eta, samples):
    """Divergence and entropy are not negative, whatever the network."""
    make = partial(objectives.consistency, SIGMA, samples=samples)
    plain = make(lam=0.0, eta=0.0, generator=seeded())(lambda x: scale * network(x), X, Y)
    whole = make(lam=lam, eta=eta, generator=seeded())(lambda x: scale * network(x), X, Y)
    assert whole >= plain - 1e-9 * (1 + plain.abs())


def test_pgd_smoothed_with_given_noise():
    """Noise given as the function would draw it; and one set per image, all of them alike."""
    attack = partial(attacks.pgd_smoothed, network, X, Y, 0.3, SIGMA, keep="last", steps=3,
                     random_start=False)  # fmt: skip
    shared = SIGMA * torch.randn(6, 4, generator=seeded(), dtype=torch.float64)
    expected = attack(samples=6, generator=seeded())
    assert torch.equal(attack(noise=shared), expected)
    assert torch.allclose(attack(noise=shared.expand(5, 6, 4)), expected, atol=1e-12)
    other = attack(noise=noise(6))
    assert not torch.allclose(other, expected, atol=1e-3)


# --- denoisers ------------------------------------------------------------------------------------


def halved(noisy, sizes):
    """A denoiser that leaves a share of the image, the smaller the noisier."""
    return noisy / (1 + sizes[:, None])


def drawn_by_denoising(seed=0):
    generator = seeded(seed)
    sizes = SIGMA * torch.rand(5, generator=generator, dtype=torch.float64)
    return sizes, torch.randn(5, 4, generator=generator, dtype=torch.float64)


def test_denoising_by_hand():
    sizes, drawn = drawn_by_denoising()
    assert len(set(sizes.tolist())) == 5  # every image has noise of its own size
    assert 0 <= sizes.min() < sizes.max() <= SIGMA
    total = 0.0
    for x, size, one in zip(X.numpy(), sizes.numpy(), drawn.numpy(), strict=True):
        total += (((x + size * one) / (1 + size) - x) ** 2).sum()
    objective = objectives.denoising(SIGMA, generator=seeded())
    assert objective(halved, X, Y).item() == pytest.approx(total / X.numel(), rel=1e-12)


def test_denoising_for_a_classifier_by_hand():
    """As in the authors' train_denoiser.py: cross-entropy towards the answer for the clean image,
    whatever the labels."""
    sizes, drawn = drawn_by_denoising()
    clean = halved(X + sizes[:, None] * drawn, sizes)
    answers = network(X).argmax(1).numpy()
    assert (answers != Y.numpy()).any()
    expected = -log_softmax(network(clean).numpy(), 1)[np.arange(5), answers].mean()
    objective = objectives.denoising(SIGMA, network, generator=seeded())
    assert objective(halved, X, Y).item() == pytest.approx(expected, rel=1e-12)


def test_denoising_teaches_the_denoiser_alone():
    classifier = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.9)).double().train()
    denoiser = torch.nn.Linear(4, 4).double()
    objective = objectives.denoising(SIGMA, classifier, generator=seeded())
    losses = []
    for _ in range(2):
        objective = objectives.denoising(SIGMA, classifier, generator=seeded())
        losses.append(objective(lambda noisy, sizes: denoiser(noisy), X, Y))
    assert losses[0] == losses[1]  # without the classifier's dropout
    losses[0].backward()
    assert denoiser.weight.grad.abs().sum() > 0
    assert classifier[0].weight.grad is None
    assert classifier[0].weight.requires_grad
    assert classifier.training


@pytest.mark.parametrize("make", [
    lambda g: objectives.smoothmix(0.5, samples=2, steps=4, generator=g),
    lambda g: objectives.cat_rs(
        0.5, lambda x: torch.eye(3)[:1].repeat(len(x), 1), samples=2, steps=4, generator=g),
], ids=["smoothmix", "cat_rs"])  # fmt: skip
def test_the_steps_of_an_attack_leave_the_statistics_alone(make):
    """Batch norm counts the two passes of the loss and none of the attack's four."""
    g = torch.Generator().manual_seed(0)
    layers = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)
    net = torch.nn.Sequential(torch.nn.Flatten(), *layers).train()
    make(g)(net, torch.rand(6, 4, generator=g), torch.arange(6) % 3)
    assert layers[0].num_batches_tracked == 2


def test_smoothmix_stays_in_the_box():
    """Also what it mixes: between x, white here, and where its steps ended."""
    seen = []

    def net(z):
        seen.append(z.detach())
        return torch.stack([z.sum(1), -z.sum(1)], 1)

    loss = objectives.smoothmix(
        1e-6, samples=1, steps=3, generator=torch.Generator().manual_seed(0)
    )
    loss(net, torch.ones(1, 4), torch.tensor([1]))
    assert max(z.max() for z in seen) < 1.01
