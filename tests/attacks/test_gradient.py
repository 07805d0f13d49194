"""Attacks against closed forms, an independent solver, and everything they must leave alone."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import scipy.optimize
import scipy.stats
import torch
from helpers import Awkward, Linear, assert_same, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from trustml_helpers import attacks, models
from trustml_helpers.attacks import losses, search

ALL = list(itertools.product(["linf", "l2", "l1"], [attacks.fgsm, attacks.pgd, attacks.auto_pgd]))


def linear_case(dtype=torch.float64, d=30, n=20):
    g = torch.Generator().manual_seed(1)
    w = torch.randn(d, generator=g, dtype=dtype)
    x = torch.rand(n, d, generator=g, dtype=dtype)
    y = torch.randint(2, (n,), generator=g)
    return Linear(w), w, x, y


def dual_norm(w, norm):
    return {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm]


@pytest.mark.parametrize(("norm", "attack"), ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_linear_model_closed_form(norm, attack, dtype, loss, generator):
    """On a linear model the largest margin is the clean margin plus eps times the dual norm."""
    model, w, x, y = linear_case(dtype)
    rest = {} if attack is attacks.fgsm else {"generator": generator}
    x_adv = attack(model, x, y, 0.2, norm=norm, bounds=None, loss=loss, **rest)
    gain = attacks.margin(model(x_adv), y) - attacks.margin(model(x), y)
    assert torch.allclose(gain, 0.2 * dual_norm(w, norm).expand_as(gain), rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.pgd])
def test_linear_model_targeted_closed_form(norm, attack):
    model, w, x, y = linear_case()
    x_adv = attack(model, x, y, 0.2, norm=norm, bounds=None, targeted=True)
    drop = attacks.margin(model(x), y) - attacks.margin(model(x_adv), y)
    assert torch.allclose(drop, 0.2 * dual_norm(w, norm).expand_as(drop), rtol=1e-4)


def test_linf_with_bounds_is_the_exact_corner():
    model, w, x, y = linear_case()
    direction = torch.where(y[:, None] == 0, -w.sign(), w.sign())
    expected = (x + 0.3 * direction).clamp(0, 1)
    for attack in (attacks.fgsm, attacks.pgd):
        assert torch.allclose(attack(model, x, y, 0.3), expected, atol=1e-12)


def test_l2_with_bounds_reaches_the_optimum_of_an_independent_solver():
    """max w.delta over ball and box, solved by SLSQP; the box is active in many pixels."""
    model, w, x, y = linear_case(d=8, n=6)
    x_adv = attacks.pgd(model, x, y, 0.8, norm="l2", steps=300, step_size=0.5)
    for row, label, found in zip(x.numpy(), y.tolist(), x_adv.numpy(), strict=True):
        c = (w if label == 0 else -w).numpy()
        best = scipy.optimize.minimize(
            lambda z, c=c: c @ z, row, jac=lambda z, c=c: c, bounds=[(0, 1)] * 8,
            constraints={"type": "ineq", "fun": lambda z, row=row: 0.64 - ((z - row) ** 2).sum()},
            method="SLSQP", options={"ftol": 1e-12, "maxiter": 500},
        )  # fmt: skip
        assert c @ found == pytest.approx(best.fun, abs=1e-4)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    eps=st.floats(0, 1),
    norm=st.sampled_from(["linf", "l2", "l1"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    bounds=st.sampled_from([(0.0, 1.0), None]),
    n=st.integers(0, 3),
)
def test_feasible(seed, eps, norm, dtype, bounds, n):
    """Inside the bounds always; inside the ball exactly in l-inf and to 1e-6 in l2 and l1."""
    g = torch.Generator().manual_seed(seed)
    model = Linear(torch.randn(12, generator=g, dtype=dtype))
    x = torch.rand(n, 3, 2, 2, generator=g, dtype=dtype)
    y = torch.randint(2, (n,), generator=g)
    candidates = [
        attacks.fgsm(model, x, y, eps, norm=norm, bounds=bounds),
        attacks.pgd(model, x, y, eps, norm=norm, bounds=bounds, steps=3, generator=g),
        attacks.auto_pgd(model, x, y, eps, norm=norm, bounds=bounds, steps=6, generator=g),
        attacks.square(model, x, y, eps, norm=norm, bounds=bounds, queries=6, generator=g),
    ]
    if norm == "linf":
        candidates.append(attacks.sign_noise(model, x, y, eps, bounds=bounds, generator=g))
    for x_adv in candidates:
        assert x_adv.shape == x.shape
        assert x_adv.dtype == dtype
        delta = (x_adv - x).flatten(1)
        if bounds is not None and n:
            assert x_adv.min() >= 0
            assert x_adv.max() <= 1
        if norm == "linf":
            assert all(value <= eps for value in delta.abs().flatten().tolist())
        else:
            sizes = delta.double().norm(p=int(norm[1]), dim=1)
            # The images themselves are rounded: 12 pixels, each to half a unit in the last place.
            assert (sizes <= eps * (1 + 1e-6) + 12 * torch.finfo(dtype).eps).all()


def test_pgd_without_steps_is_its_random_start():
    """The start must reach the whole ball, and be drawn anew for each restart."""
    model, _, x, y = linear_case()
    x = torch.full_like(x, 0.5)
    start = partial(attacks.pgd, model, x, y, 0.3, steps=0, keep="last")
    first, second = (start(generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert 0.25 < (first - x).abs().max() <= 0.3
    assert not torch.equal(first, second)
    still = attacks.pgd(model, x, y, 0.3, steps=0, random_start=False, keep="last")
    assert torch.equal(still, x)


def coin_model(seen=None):
    """Fooled where the first pixel moved up, and then with the *smaller* cross-entropy."""
    won, lost = torch.tensor([0.45, 0.50, 0.05]).log(), torch.tensor([0.36, 0.32, 0.32]).log()

    def model(z):
        if seen is not None:
            seen.append(len(z))
        up = (z[:, :1] > 0.5).float()
        return up * won + (1 - up) * lost + 0 * z.sum()

    return model


def test_restarts_are_counted_per_example():
    """Each start fools a row with probability 1/2, so 20 starts miss any of 40 with 4e-5."""
    x, y = torch.full((40, 2), 0.5), torch.zeros(40, dtype=torch.long)
    once, often = (
        attacks.pgd(coin_model(), x, y, 0.1, steps=0, restarts=restarts,
                    generator=torch.Generator().manual_seed(0))
        for restarts in (1, 20)
    )  # fmt: skip
    stands = lambda z: (coin_model()(z).argmax(1) == 0).float().mean()  # noqa: E731
    assert 0.1 < stands(once) < 0.9
    assert stands(often) == 0


def test_a_restart_attacks_only_what_still_stands():
    x, y, seen = torch.full((40, 2), 0.5), torch.zeros(40, dtype=torch.long), []
    attacks.pgd(coin_model(seen), x, y, 0.1, steps=0, restarts=50, generator=torch.Generator())
    assert seen[0] == 40
    assert all(a >= b > 0 for a, b in itertools.pairwise(seen))
    assert len(seen) < 50  # nothing was left to attack


def test_keep_best_prefers_a_fooling_result_to_a_larger_loss():
    x = torch.zeros(1, 2)
    best = search.Best(x)
    row = torch.tensor([0])
    best.update(row, x + 1, torch.tensor([True]), torch.tensor([0.8]))
    best.update(row, x + 2, torch.tensor([False]), torch.tensor([1.1]))
    assert torch.equal(best.x_adv, x + 1)
    best.update(row, x + 3, torch.tensor([True]), torch.tensor([0.9]))
    assert torch.equal(best.x_adv, x + 3)


def test_last_step_is_evaluated():
    """With one step from a standing start, only the point after that step can fool."""
    model, _, x, _ = linear_case()
    y = models.predict(model, x)
    x_adv = attacks.pgd(model, x, y, 1.0, steps=1, step_size=1.0, random_start=False)
    expected = attacks.fgsm(model, x, y, 1.0)
    assert torch.allclose(x_adv, expected)
    assert (models.predict(model, x_adv) != y).any()


@pytest.mark.parametrize(("keep", "forwards"), [("last", 7), ("best", 8), ("first", 8)])
def test_work_is_counted(keep, forwards):
    """k steps cost k forward passes in training, one more in evaluation."""
    model, _, x, y = linear_case()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    attacks.pgd(model, x, y, 0.1, steps=7, keep=keep)
    assert len(calls) == forwards


@pytest.mark.parametrize(
    "attack",
    [
        attacks.fgsm,
        partial(attacks.pgd, steps=2, restarts=2),
        partial(attacks.pgd, steps=2, norm="l2", keep="last"),
        partial(attacks.pgd, steps=2, norm="l1", keep="first"),
        attacks.fgsm_rs,
        partial(attacks.auto_pgd, steps=3, loss="dlr"),
        partial(attacks.square, queries=3),
    ],
)
def test_model_and_rng_are_left_as_found(awkward: Awkward, attack):
    before = snapshot(awkward)
    attack(awkward, torch.rand(2, 1, 8, 8, generator=torch.Generator()), torch.tensor([0, 1]), 0.1)
    assert_same(before, snapshot(awkward))


def test_model_and_rng_are_left_as_found_after_an_exception(awkward: Awkward):
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator())
    before = snapshot(awkward)

    def explode(*_):
        torch.rand(1)
        raise KeyError("inside the model")

    handle = awkward.head.register_forward_hook(explode)
    with pytest.raises(KeyError):
        attacks.pgd(awkward, x, torch.tensor([0, 1]), 0.1)
    handle.remove()
    assert_same(before, snapshot(awkward))


def test_a_random_model_does_not_move_the_global_rng():
    state = torch.get_rng_state()
    x = torch.rand(2, 4, generator=torch.Generator())
    attacks.pgd(lambda z: z + torch.randn_like(z), x, torch.tensor([0, 1]), 0.1, steps=2)
    assert torch.equal(state, torch.get_rng_state())


def test_same_seed_same_result():
    model, _, x, y = linear_case()
    run = lambda seed: attacks.pgd(  # noqa: E731
        model, x, y, 0.1, steps=1, step_size=0.01, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_inside_no_grad_and_inference_mode():
    model, _, x, y = linear_case()
    expected = attacks.fgsm(model, x, y, 0.1)
    with torch.no_grad():
        assert torch.equal(attacks.fgsm(model, x, y, 0.1), expected)
    with torch.inference_mode():
        inside = attacks.fgsm(model, x.clone(), y.clone(), 0.1)
    assert torch.equal(inside, expected)
    assert not inside.is_inference()


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n):
    model = models.build("SmallCNN")
    x, y = torch.rand(n, 1, 28, 28), torch.zeros(n, dtype=torch.long)
    for norm in ("linf", "l2", "l1"):
        assert attacks.pgd(model, x, y, 0.1, steps=2, norm=norm).shape == x.shape
        assert attacks.auto_pgd(model, x, y, 0.1, steps=2, norm=norm).shape == x.shape
        assert attacks.auto_pgd(model, x, y, 0.1, steps=2, norm=norm, targets=2).shape == x.shape
        assert attacks.square(model, x, y, 0.1, queries=2, norm=norm).shape == x.shape
        assert attacks.fgsm(model, x, y, 0.1, norm=norm).shape == x.shape


def test_batch_equals_its_rows_attacked_alone():
    """Nothing leaks between rows: no norm over the batch, no mean in the loss (float64)."""
    model = models.build("SmallCNN").double()
    x, start = torch.rand(2, 4, 1, 28, 28, dtype=torch.float64, generator=torch.Generator())
    y = torch.tensor([1, 2, 3, 4])
    for norm, eps in (("linf", 0.1), ("l2", 1.0), ("l1", 5.0)):
        for momentum in (0.0, 0.7):
            attack = partial(attacks.pgd, eps=eps, norm=norm, steps=5, momentum=momentum)
            alone = [attack(model, x[i : i + 1], y[i : i + 1], start=start[i : i + 1])
                     for i in range(4)]  # fmt: skip
            assert torch.allclose(attack(model, x, y, start=start), torch.cat(alone), atol=1e-10)


def test_margin_loss_breaks_saturated_logits_that_blind_cross_entropy():
    model, _, x, _ = linear_case(torch.float32)
    y = models.predict(model, x)
    saturated = lambda z: 1e5 * model(z)  # noqa: E731
    assert torch.equal(attacks.fgsm(saturated, x, y, 0.5), x)
    won = models.predict(model, attacks.fgsm(saturated, x, y, 0.5, loss="margin")) != y
    assert torch.equal(won, models.predict(model, attacks.fgsm(model, x, y, 0.5)) != y)
    assert won.any()


def test_rows_do_not_dilute_each_other():
    """A mean over the batch would push gradients of 1e-44 below the smallest float32."""
    x, y = torch.full((300, 2), 0.5), torch.zeros(300, dtype=torch.long)
    found = attacks.fgsm(lambda z: 1e-44 * z, x, y, 0.1, loss="margin")
    assert torch.allclose(found, torch.tensor([0.4, 0.6]).expand(300, 2))


def test_l2_step_survives_a_tiny_gradient():
    """A gradient of 1e-42 is below the smallest normal float32; its direction is not lost."""
    model, _, x, y = linear_case(torch.float32)
    found = attacks.fgsm(lambda z: 1e-42 * model(z), x, y, 0.1, norm="l2", bounds=None)
    assert torch.allclose((found - x).norm(dim=1), torch.tensor(0.1), rtol=1e-3)


def test_logits_times_1000_are_still_attacked():
    """margin and dlr do not underflow; auto_pgd and the suite use one of them."""
    model, _, x, _ = linear_case(torch.float32)
    three = lambda z: torch.cat([model(z), -100 * torch.ones(len(z), 2)], 1)  # noqa: E731
    y = three(x).argmax(1)
    won = models.predict(three, attacks.fgsm(three, x, y, 0.5, loss="margin")) != y
    assert won.any()
    loud = lambda z: 1000 * three(z)  # noqa: E731
    for attack in (
        partial(attacks.pgd, loss="margin"),
        partial(attacks.pgd, loss="dlr"),
        partial(attacks.auto_pgd, loss="dlr", steps=20),
        partial(attacks.auto_pgd, targets=3, steps=20),
    ):
        found = attack(loud, x, y, eps=0.5, generator=torch.Generator().manual_seed(0))
        assert torch.equal(models.predict(three, found) != y, won)


def test_dlr_by_hand_and_its_invariance():
    logits = torch.tensor([[4.0, 1.0, 0.0, -2.0], [0.0, 3.0, 5.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([0, 1])
    assert torch.allclose(losses.dlr(logits, y), torch.tensor([-3 / 4, 2 / 4]).double())
    assert torch.allclose(losses.dlr(7 * logits - 3, y), losses.dlr(logits, y))
    towards = losses.dlr_targeted(logits, y, torch.tensor([2, 0]))
    # (z_t - z_y) / (first - mean of third and fourth)
    assert torch.allclose(towards, torch.tensor([-4 / (4 + 1.0), -3 / (5 - 0.5)]).double())
    for bad, loss in ((logits[:, :2], losses.dlr), (logits[:, :3], losses.dlr_targeted)):
        with pytest.raises(ValueError, match="classes"):
            loss(bad, *[y] * (1 if loss is losses.dlr else 2))


def test_momentum_by_hand():
    """Two steps: g0 / |g0|_1, then mu times that plus g1 / |g1|_1 (Dong et al. 2018, eq. 6, 7)."""
    a = torch.tensor([[3.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    scores = lambda z: (z @ a).pow(3)  # noqa: E731
    model = lambda z: torch.stack([-scores(z).sum(1), torch.zeros(len(z)).double()], 1)  # noqa: E731
    x, y = torch.tensor([[0.5, 0.2]], dtype=torch.float64), torch.tensor([0])

    def unit(z):
        z = z.clone().requires_grad_()
        (g,) = torch.autograd.grad(-model(z)[0, 0], z)  # the margin loss, 0 - z_0
        return g / g.abs().sum()

    first = unit(x)
    middle = x + 0.1 * first / first.norm()
    second = 0.9 * first + unit(middle)
    expected = middle + 0.1 * second / second.norm()
    found = attacks.pgd(
        model, x, y, 5.0, norm="l2", bounds=None, steps=2, step_size=0.1, keep="last",
        momentum=0.9, random_start=False, loss="margin",
    )  # fmt: skip
    assert torch.allclose(found, expected, atol=1e-12)
    assert not torch.allclose(second / second.norm(), unit(middle) / unit(middle).norm(), atol=1e-3)


def test_a_given_start_is_projected_and_used():
    model, _, x, y = linear_case()
    start = x + torch.linspace(-2, 2, x.numel(), dtype=x.dtype).view_as(x)
    found = attacks.pgd(model, x, y, 0.1, steps=0, start=start, keep="last")
    assert torch.equal(found, attacks.NORMS["linf"].projection(x, 0.1, (0, 1))(start))


def test_an_example_is_not_evaluated_again_once_it_is_fooled():
    """keep="first": rows vanish from the batches at the step that fools them, never later."""
    model, w, x, _ = linear_case(n=40)
    y = models.predict(model, x)
    seen: list[int] = []
    spy = lambda z: seen.append(len(z)) or model(z)  # noqa: E731
    found = attacks.pgd(spy, x, y, 0.3, steps=30, step_size=0.01, random_start=False, keep="first",
                        bounds=None)  # fmt: skip
    # The margin falls by 0.01 |w|_1 a step: the step at which each row falls is known.
    falls_at = (attacks.margin(model(x), y) / (-0.01 * w.abs().sum())).ceil().long()
    assert seen[:31] == [int((falls_at >= k).sum()) for k in range(31) if (falls_at >= k).any()]
    assert seen[0] == 40
    assert len(seen) == int(falls_at.max().clamp(max=30)) + 1
    assert torch.equal(models.predict(model, found) != y, falls_at <= 30)
    best = attacks.pgd(model, x, y, 0.3, steps=30, step_size=0.01, random_start=False, bounds=None)
    assert (attacks.margin(model(best), y) >= attacks.margin(model(found), y)).all()


def test_fgsm_rs_start_is_clipped_only_if_asked():
    """Black pixels: the unclipped start is seen by the model outside [0, 1], the result is not."""
    x, y, seen = torch.zeros(50, 4), torch.zeros(50, dtype=torch.long), []
    spy = lambda z: seen.append(z.detach()) or z  # noqa: E731
    for clip in (False, True):
        found = attacks.fgsm_rs(spy, x, y, 0.3, clip_start=clip, generator=torch.Generator())
        assert found.min() >= 0
        assert found.max() <= 0.3
    assert len(seen) == 2  # one forward pass each
    assert -0.3 <= seen[0].min() < -0.2
    assert seen[1].min() == 0


def test_fgsm_rs_steps_by_a_quarter_more_than_eps():
    """Linear, unbounded: start + 1.25 eps along the sign, cut to the ball."""
    model, w, x, y = linear_case()
    seeded = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    start = attacks.fgsm_rs(model, x, y, 0.2, step_size=0.0, bounds=None, generator=seeded())
    direction = torch.where(y[:, None] == 0, -w.sign(), w.sign())
    expected = x + (start - x + 0.25 * direction).clamp(-0.2, 0.2)
    found = attacks.fgsm_rs(model, x, y, 0.2, bounds=None, generator=seeded())
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_model_without_gradient_is_named():
    for blind in (lambda z: (z > 0.5).float(), lambda z: z.detach(), lambda z: z.detach() * ONE):
        with pytest.raises(attacks.NotDifferentiable, match="detach, round or compare"):
            attacks.fgsm(blind, torch.full((3, 2), 0.4), torch.zeros(3).long(), 0.1)


ONE = torch.ones(1, requires_grad=True)


def test_margin_and_cross_entropy_values():
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0]])
    y = torch.tensor([0, 2])
    assert torch.allclose(attacks.margin(logits, y), torch.tensor([-1.0, 2.0]))
    by_hand = torch.logsumexp(logits, 1) - torch.tensor([2.0, 1.0])
    assert torch.allclose(attacks.cross_entropy(logits, y), by_hand)


def test_nan_is_never_robust():
    logits = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    assert attacks.is_fooled(logits, torch.tensor([0, 0])).tolist() == [True, False]


def test_sign_noise_moves_every_pixel_by_eps_both_ways(generator):
    x = torch.full((10, 100), 0.5)
    delta = (
        attacks.sign_noise(None, x, torch.zeros(10, dtype=torch.long), 0.2, generator=generator) - x
    )
    assert torch.allclose(delta.abs(), torch.tensor(0.2))
    ups = int((delta > 0).sum())
    # Binomial(1000, 1/2): outside 400..600 with probability below 1e-9.
    assert 400 <= ups <= 600


@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.pgd])
@pytest.mark.parametrize(("y", "message"), [([0, 4], "labels 0 to 4"), ([-1, 0], "labels -1 to 0")])
def test_labels_that_are_no_classes_of_the_model(attack, y, message):
    with pytest.raises(ValueError, match=f"{message}, but the model has 4 classes"):
        attack(lambda z: z, torch.full((2, 4), 0.5), torch.tensor(y), 0.1)


def test_rounding_outside_the_bounds_is_forgiven():
    x = torch.tensor([[-3e-8, 1.0]])
    attacks.fgsm(lambda z: z, x, torch.tensor([0]), 0.1)


def test_labels_may_be_int32():
    x = torch.full((2, 4), 0.5)
    y = torch.tensor([0, 1], dtype=torch.int32)
    assert attacks.pgd(lambda z: z, x, y, 0.1, steps=1).shape == x.shape
