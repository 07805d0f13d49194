"""Odd arguments everywhere: a correct result, or an error that names the argument. Nothing else."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers import named, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trustml_helpers import (
    attacks,
    bounds,
    losses,
    noise_objectives,
    objectives,
    robustness,
    sequential,
    theory,
    training,
    votes,
)
from trustml_helpers.smoothing import SmoothedClassifier

NUMBERS = st.sampled_from(
    [0.3, 0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, 2.0, math.nan, math.inf, -math.inf]
)
COUNTS = st.sampled_from([0, 1, 2, 3, -1])
NORM = st.sampled_from(["linf", "l2", "l1", "l3"])
BOX = st.sampled_from([(0, 1), None, (0.0, 0.5), (1, 0), (math.nan, 1)])


# --- images, labels, networks --------------------------------------------------------------------


def pictures():
    x = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    nan, inf, far = x.clone(), x.clone(), 255 * x
    nan[0, 0, 0, 0], inf[1, 0, 0, 0] = math.nan, math.inf
    return st.sampled_from(
        [x, x[:1], x[:0], x.flatten(1), x.double(), x.half(), x.bfloat16(), x.mT,
         x[:, :1].expand_as(x), x.contiguous(memory_format=torch.channels_last), x[0, 0, 0],
         x.long(), nan, inf, far, -x]
    )  # fmt: skip


def labels():
    y = torch.tensor([0, 1, 2])
    return st.sampled_from(
        [
            y,
            y,
            y,
            y[:1],
            y[:0],
            y.int(),
            y.to(torch.uint8),
            y.float(),
            y + 7,
            y - 1,
            y[:, None],
            y.bool(),
        ]
    )


class Flat(nn.Module):
    """A network for any size of picture, with dropout; its logits may be spoiled."""

    def __init__(self, spoil=None):
        super().__init__()
        self.spoil, self.dropout = spoil, nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0, 0.5]))

    def forward(self, x):
        x = x if x.is_floating_point() else x.float()
        logits = self.dropout(x.flatten(1)).mean(1)[:, None] * self.weight.to(x.dtype)
        return self.spoil(logits) if self.spoil else logits


SPOILERS = [
    None, None, None, lambda z: z[:, :1], lambda z: z[:, 0], lambda z: z[:1], lambda z: z.detach(),
    lambda z: z * math.nan, lambda z: z / 0, lambda z: z[:, :2], lambda z: torch.cat([z, z]),
]  # fmt: skip


def networks():
    def make(spoil, training):
        return Flat(spoil).train(training)

    return st.builds(make, st.sampled_from(SPOILERS), st.booleans())


def fits(x_adv, x, eps, norm, bounds):
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    if bounds is not None and x.numel():
        assert x_adv.min() >= bounds[0]
        assert x_adv.max() <= bounds[1]
    size = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    moved = torch.linalg.vector_norm((x_adv.double() - x.double()).flatten(1), size, dim=1)
    assert (moved <= eps * (1 + 1e-5)).all()


ATTACKS = {
    "fgsm": partial(attacks.fgsm),
    "pgd": partial(attacks.pgd, steps=2),
    "first": partial(attacks.pgd, steps=2, keep="first", restarts=2),
    "auto_pgd": partial(attacks.auto_pgd, steps=3),
    "square": partial(attacks.square, queries=3),
}


@pytest.mark.parametrize("attack", ATTACKS)
@settings(max_examples=150)
@given(x=pictures(), y=labels(), model=networks(), eps=NUMBERS, norm=NORM, box=BOX)
def test_attacks(attack, x, y, model, eps, norm, box):
    was = model.training
    names = ["model", "x", "y", "eps", "norm", "bounds"]
    x_adv = outcome(
        lambda: ATTACKS[attack](model, x, y, eps, norm=norm, bounds=box), *names
    )  # fmt: skip
    assert model.training == was
    if x_adv is not None:
        fits(x_adv, x, eps, norm, box)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", ATTACKS)
@settings(max_examples=30)
@given(seed=st.integers(0, 1000), eps=st.sampled_from([0.1, 0.3, 0.5, 1.0]),
       dtype=st.sampled_from([torch.half, torch.bfloat16, torch.float32]),
       box=st.sampled_from([(0, 1), None]))  # fmt: skip
def test_attacks_stay_in_the_ball_in_every_precision(attack, norm, seed, eps, dtype, box):
    """Where rounding a pixel is coarse and there are many of them."""
    x = torch.rand(3, 2, 12, 12, generator=torch.Generator().manual_seed(seed)).to(dtype)
    x_adv = ATTACKS[attack](Flat(), x, torch.tensor([0, 1, 2]), eps, norm=norm, bounds=box)
    fits(x_adv, x, eps, norm, box)


@settings(max_examples=100)
@given(x=pictures(), y=labels(), model=networks(), eps=NUMBERS, sigma=NUMBERS, samples=COUNTS)
def test_pgd_smoothed(x, y, model, eps, sigma, samples):
    x_adv = named(attacks.pgd_smoothed, model=model, x=x, y=y, eps=eps, sigma=sigma, steps=2,
                  samples=samples)  # fmt: skip
    if x_adv is not None:
        fits(x_adv, x, eps, "l2", (0, 1))


@settings(max_examples=100)
@given(steps=COUNTS, restarts=COUNTS, step_size=NUMBERS, momentum=NUMBERS,
       keep=st.sampled_from(["best", "first", "last", "worst"]),
       loss=st.sampled_from(["cross_entropy", "margin", "dlr", "hinge"]))  # fmt: skip
def test_settings_of_pgd(steps, restarts, step_size, momentum, keep, loss):
    x, y = torch.full((2, 1, 3, 3), 0.5), torch.tensor([0, 1])
    x_adv = named(attacks.pgd, model=Flat(), x=x, y=y, eps=0.1, steps=steps, restarts=restarts,
                  step_size=step_size, momentum=momentum, keep=keep, loss=loss)  # fmt: skip
    if x_adv is not None:
        fits(x_adv, x, 0.1, "linf", (0, 1))


@settings(max_examples=150)
@given(x=pictures(), y=labels(), model=networks(), batch_size=COUNTS)
def test_accuracy(x, y, model, batch_size):
    share = named(robustness.accuracy, model=model, x=x, y=y, batch_size=batch_size)
    assert share is None or 0 <= share <= 1


# --- smoothing -----------------------------------------------------------------------------------


@settings(max_examples=300)
@given(x=pictures(), model=networks(), sigma=NUMBERS, classes=COUNTS, n0=COUNTS,
       n=st.sampled_from([0, 1, 9, 40]), alpha=NUMBERS, batch_size=COUNTS,
       bound=st.sampled_from(["one_class", "two_class", "three"]))  # fmt: skip
def test_certify(x, model, sigma, classes, n0, n, alpha, bound, batch_size):
    was = model.training

    def call():
        g = SmoothedClassifier(model, sigma, classes)
        return g.certify(x, n0, n, alpha, bound, batch_size=batch_size)

    found = outcome(call, "x", "base_classifier", "sigma", "num_classes", "n0", "n", "alpha",
                    "bound", "batch_size")  # fmt: skip
    assert model.training == was
    if found is not None:
        assert found.radius.shape == found.prediction.shape == (len(x),)
        assert (found.radius >= 0).all()
        assert (found.radius > 0).equal(found.prediction >= 0)
        assert (found.counts.sum(1) <= n).all()


@settings(max_examples=200)
@given(x=pictures(), model=networks(), radius=NUMBERS, gain=NUMBERS, alpha=NUMBERS, n0=COUNTS,
       n_max=st.sampled_from([-1, 0, 1, 60, 100]))  # fmt: skip
def test_sequential_certificates(x, model, radius, gain, alpha, n0, n_max):
    g = SmoothedClassifier(model, 0.5, 3)
    names = ["x", "base_classifier", "radius", "gain", "alpha", "n_max", "n0"]
    for call in (lambda: g.certify_at_radius(x, radius, alpha, n_max, n0=n0),
                 lambda: g.certify_anytime(x, gain, alpha, n_max, n0=n0),
                 lambda: g.predict(x, n_max, alpha)):  # fmt: skip
        found = outcome(call, *names, "n")
        if isinstance(found, tuple):
            assert (found.radius >= 0).all()
            assert (found.samples <= n_max + n0).all()


# --- numbers -------------------------------------------------------------------------------------

WHOLE = st.sampled_from([0, 1, 2, 5, 100, -1, 0.5, math.nan, math.inf])


@given(k=WHOLE, n=WHOLE, alpha=NUMBERS)
def test_bounds(k, n, alpha):
    for function in (bounds.lower_conf_bound, bounds.upper_conf_bound):
        found = named(function, k=k, n=n, alpha=alpha)
        assert found is None or 0 <= found <= 1
    found = outcome(lambda: sequential.anytime_lower_bound(k, n, alpha), "k", "n", "alpha")
    assert found is None or 0 <= found <= 1
    names = "k", "n", "n_max", "alpha"
    found = outcome(lambda: sequential.best_case_bound(k, n, 100, alpha), *names)
    assert found is None or 0 <= found <= 1


@given(a=NUMBERS, b=NUMBERS, sigma=NUMBERS)
def test_radii(a, b, sigma):
    found = named(bounds.two_class_radius, p_a_lower=a, p_b_upper=b, sigma=sigma)
    assert found is None or found >= 0
    found = named(bounds.certified_radius, p_a_lower=a, sigma=sigma)
    assert found is None or found >= 0


@given(p=NUMBERS, alpha=NUMBERS, n=COUNTS, share=NUMBERS)
def test_how_many_votes(p, alpha, n, share):
    found = named(votes.abstention_probability, p_a=p, n=n, alpha=alpha)
    assert found is None or 0 <= found <= 1
    if p != 0.5 + 1e-300:
        found = named(votes.samples_needed, p_a=p, alpha=max(alpha, 1e-30), share=share)
        assert found is None or found >= 1


@settings(max_examples=200)
@given(p=NUMBERS, alpha=NUMBERS, beta=NUMBERS, n_max=st.sampled_from([-1, 0, 1, 30, 200]))
def test_plans(p, alpha, beta, n_max):
    sizes = named(sequential.looks, n_max=n_max)
    if sizes is not None:
        found = named(sequential.plan, p_null=p, alpha=alpha, sizes=sizes, beta=beta)
        assert found is None or found.error[0] <= alpha


@given(x=NUMBERS, radius=NUMBERS, sigma=NUMBERS, dimension=COUNTS)
def test_theory(x, radius, sigma, dimension):
    found = named(
        theory.ball_probability, distance=x, radius=radius, sigma=sigma, dimension=dimension
    )
    assert found is None or 0 <= found <= 1
    found = named(theory.ball_true_radius, radius=radius, sigma=sigma, dimension=dimension)
    assert found is None or found >= 0
    found = named(theory.cell_masses, edges=[x], mean=radius, sigma=sigma)
    assert found is None or math.isclose(found.sum(), 1)
    for function in (theory.worst_case_classifier, theory.neyman_pearson):
        found = named(function, grid_mass_at_x=[0.5, 0.5], grid_mass_at_x_delta=[0.1, 0.9], p_a=x)
        assert found is None or 0 <= found[1] <= 1


# --- training ------------------------------------------------------------------------------------

NOISY = {
    "gaussian": lambda s, w, k: partial(objectives.gaussian, s),
    "stability": lambda s, w, k: partial(noise_objectives.stability, s, w),
    "consistency": lambda s, w, k: partial(noise_objectives.consistency, s, w, samples=k),
    "smoothadv": lambda s, w, k: partial(noise_objectives.smoothadv, s, w, samples=k, steps=k),
    "macer": lambda s, w, k: partial(noise_objectives.macer, s, w, samples=k),
    "smoothmix": lambda s, w, k: partial(noise_objectives.smoothmix, s, w, samples=k, steps=k),
    "trades": lambda s, w, k: partial(objectives.trades, s, w, steps=k),
}


@pytest.mark.parametrize("name", NOISY)
@settings(max_examples=60)
@given(sigma=NUMBERS, weight=NUMBERS, count=COUNTS)
def test_objectives(name, sigma, weight, count):
    x, y = torch.full((2, 1, 3, 3), 0.5), torch.tensor([0, 1])
    names = ["sigma", "samples", "steps", "lam", "eta", "eps", "beta", "gamma", "bounds", "start"]

    def call():
        objective = NOISY[name](sigma, weight, count)(generator=torch.Generator())
        return objective(Flat().train(), x, y)

    loss = outcome(call, *names)
    assert loss is None or loss.ndim == 0


@settings(max_examples=100)
@given(x=pictures(), y=labels(), epochs=COUNTS, batch_size=COUNTS,
       best=st.sampled_from([None, "loss", "error"]))  # fmt: skip
def test_fit(x, y, epochs, batch_size, best):
    def call():
        return training.fit(Flat(), (x, y), epochs=epochs, batch_size=batch_size, best=best,
                            progress=False)  # fmt: skip

    try:
        history = outcome(call, "train", "epochs", "batch_size", "best")
    except FloatingPointError:  # its message is tested with the training loop
        assert not x.isfinite().all()
        return
    assert history is None or len(history) == epochs


@given(y=labels(), classes=st.sampled_from([2, 3, 5]))
def test_mean_losses(y, classes):
    log_p = torch.zeros(3, classes).log_softmax(1)
    for loss in (losses.mean_cross_entropy, losses.mean_negative_log):
        found = outcome(lambda loss=loss: loss(log_p, y), "y")
        assert found is None or math.isclose(found, math.log(classes), rel_tol=1e-6)


def test_losses_of_one_class_are_refused():
    with pytest.raises(ValueError, match="classes"):
        losses.dlr(torch.zeros(2, 2), torch.tensor([0, 1]))
    assert losses.margin(torch.zeros(2, 2), torch.tensor([0, 1])).isfinite().all()
