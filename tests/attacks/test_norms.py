"""Balls: exact projections against independent solvers, uniform starts, steps, feasibility."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trustml_helpers._support.randomness import keyed_generator
from trustml_helpers.attacks import norms


def bisected_projection(z, x, eps, low, high):
    """Nearest point of ball and box by bisection on the multiplier: an independent algorithm."""
    delta = z - x
    at = lambda s: np.clip(s * delta, low - x, high - x)  # noqa: E731
    if np.linalg.norm(at(1.0)) <= eps:
        return x + at(1.0)
    small, large = 0.0, 1.0
    for _ in range(200):
        middle = (small + large) / 2
        small, large = (middle, large) if np.linalg.norm(at(middle)) <= eps else (small, middle)
    return x + at(small)


def images_in(box, shape, g, dtype=torch.float64):
    return box[0] + (box[1] - box[0]) * torch.rand(shape, generator=g, dtype=dtype)


BOXES = st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-2.5, -0.5), (0.1, 0.7)])


@settings(max_examples=100)
@given(st.integers(0, 2**31), st.floats(0.01, 5), st.floats(0.01, 20), BOXES)
def test_l2_projection_is_exact(seed, eps, spread, box):
    g = torch.Generator().manual_seed(seed)
    x = images_in(box, (3, 12), g)
    z = x + spread * torch.randn(3, 12, generator=g, dtype=torch.float64)
    found = norms.NORMS["l2"].projection(x, eps, box)(z)
    for a, b, c in zip(z.numpy(), x.numpy(), found.numpy(), strict=True):
        assert np.allclose(c, bisected_projection(a, b, eps, *box), atol=2e-4)


def quadratic_program(z, x, eps, low, high):
    """min |p - z|^2 over |p - x|_1 <= eps and the box, by SLSQP on p = x + up - down."""
    d = len(x)
    point = lambda v: x + v[:d] - v[d:]  # noqa: E731
    found = scipy.optimize.minimize(
        lambda v: 0.5 * ((point(v) - z) ** 2).sum(),
        np.zeros(2 * d),
        jac=lambda v: np.concatenate([point(v) - z, z - point(v)]),
        bounds=[(0, high - t) for t in x] + [(0, t - low) for t in x],
        constraints={"type": "ineq", "fun": lambda v: eps - v.sum()},
        method="SLSQP", options={"ftol": 1e-14, "maxiter": 1000},
    )  # fmt: skip
    # The solver ends up to 1e-6 outside the ball, where it is nearer to z than any point inside.
    return point(found.x * min(1, eps / found.x.sum()))


@settings(max_examples=100)
@given(st.integers(0, 2**31), st.floats(0.01, 6), st.floats(0.01, 5), BOXES)
def test_l1_projection_against_a_quadratic_program(seed, eps, spread, box):
    g = torch.Generator().manual_seed(seed)
    x = images_in(box, (3, 8), g)
    z = x + spread * torch.randn(3, 8, generator=g, dtype=torch.float64)
    found = norms.NORMS["l1"].projection(x, eps, box)(z)
    for a, b, c in zip(z.numpy(), x.numpy(), found.numpy(), strict=True):
        assert np.abs(c - b).sum() <= eps + 1e-9
        assert box[0] <= c.min() <= c.max() <= box[1]
        # In the square of the distance: the solver may stop 5e-4 beside the only best point.
        best = quadratic_program(a, b, eps, *box)
        assert ((c - a) ** 2).sum() <= ((best - a) ** 2).sum() + 1e-9


@given(st.integers(0, 2**31), st.sampled_from([0.5, 0.3, 8 / 255]), BOXES)
def test_linf_projection_is_a_clip(seed, eps, box):
    g = torch.Generator().manual_seed(seed)
    x = images_in(box, (3, 8), g)
    z = x + torch.randn(3, 8, generator=g, dtype=torch.float64)
    clipped = z.clip(x - eps, x + eps).clip(*box)
    found = norms.NORMS["linf"].projection(x, eps, box)(z)
    assert np.allclose(found, clipped, rtol=0, atol=1e-14)
    free = norms.NORMS["linf"].projection(x, eps, None)(z)
    assert np.allclose(free, z.clip(x - eps, x + eps), rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("eps", [0.5, 0.3, 0.1, 8 / 255])
def test_float32_pixels_move_by_eps_and_never_by_more(scale, eps):
    """In exact arithmetic; little is lost: a unit in the last place, rounded."""
    x = scale * torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0))
    for far in (-1000.0, 1000.0):
        z = torch.full_like(x, far)
        free = norms.NORMS["linf"].projection(x, eps, None)(z)
        boxed = norms.NORMS["linf"].projection(x, eps, (-scale - 1, scale + 1))(z)
        unit = 2.0**-23 * max(scale + eps, 1)
        for found, slack in ((free, unit), (boxed, 2.0**-23 * (scale + 1 + eps))):
            moved = (found.double() - x.double()).abs()
            assert moved.max() <= eps
            assert moved.min() >= eps - 1.3 * slack - 2.0**-23 * eps


@pytest.mark.parametrize("norm", list(norms.NORMS))
def test_a_projection_ends_inside_any_box_and_at_x_for_eps_0(norm):
    """Exactly, in float32, where x + (high - x) may come out above high."""
    g = torch.Generator().manual_seed(2)
    for box in ((0.0, 1.0), (0.1, 0.7), (-2.118, 2.64)):
        low, high = torch.tensor(box)
        x = images_in(box, (20, 784), g, torch.float32).clamp(low, high)
        z = x + 20 * torch.randn(x.shape, generator=g)
        for eps in (0.5, 3.0, 1e5):
            found = norms.NORMS[norm].projection(x, eps, (low.item(), high.item()))(z)
            assert found.min() >= low
            assert found.max() <= high
        assert torch.equal(norms.NORMS[norm].projection(x, 0.0, box)(z), x)
        assert torch.equal(norms.NORMS[norm].projection(x, 0.0, None)(z), x)


def test_l1_projection_without_box_by_hand():
    """Soft thresholding: (3, 1, -0.5) on the ball of 2 is cut by 1; with ties by symmetry."""
    project = norms.NORMS["l1"].projection(torch.zeros(1, 3, dtype=torch.float64), 2.0, None)
    given_to = torch.tensor([[3.0, 1.0, -0.5]], dtype=torch.float64)
    assert project(given_to).tolist() == [[2.0, 0.0, 0.0]]
    tied = torch.tensor([[2.0, -2.0, 2.0]], dtype=torch.float64)
    assert torch.allclose(project(tied), torch.tensor([[1.0, -1.0, 1.0]]).double() * 2 / 3)
    near = torch.tensor([[0.5, -0.5, 0.25]], dtype=torch.float64)
    assert torch.equal(project(near), near)  # inside: left alone


def test_l1_step_fills_the_pixels_of_largest_gradient():
    """A fractional knapsack: 0.3 left in the first, 0.2 in the second, the rest in the third."""
    x = torch.tensor([[0.7, 0.2, 0.5, 1.0]], dtype=torch.float64)
    gradient = torch.tensor([[9.0, -8.0, 2.0, 10.0]], dtype=torch.float64)
    moved = norms.NORMS["l1"].ascend(x, gradient, 0.6, (0, 1))
    assert torch.allclose(moved, torch.tensor([[1.0, 0.0, 0.6, 1.0]], dtype=torch.float64))
    free = norms.NORMS["l1"].ascend(x, gradient, 0.6, None)
    assert torch.allclose(free, torch.tensor([[0.7, 0.2, 0.5, 1.6]], dtype=torch.float64))


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.floats(0.05, 6), BOXES)
def test_l1_step_is_the_best_of_the_ball_and_box(seed, length, box):
    """max w.delta over |delta|_1 <= length and the box is a linear program."""
    g = torch.Generator().manual_seed(seed)
    x, w = images_in(box, (1, 8), g), images_in((-0.5, 0.5), (1, 8), g)
    step = (norms.NORMS["l1"].ascend(x, w, length, box) - x)[0].numpy()
    c, row = w[0].numpy(), x[0].numpy()
    best = scipy.optimize.linprog(
        np.concatenate([-c, c]), A_ub=np.ones((1, 16)), b_ub=[length],
        bounds=[(0, box[1] - t) for t in row] + [(0, t - box[0]) for t in row],
    )  # fmt: skip
    assert c @ step == pytest.approx(-best.fun, abs=1e-9)
    assert np.abs(step).sum() <= length + 1e-9


@pytest.mark.parametrize("norm", list(norms.NORMS))
def test_a_projection_is_idempotent_and_keeps_what_is_inside(norm):
    g = torch.Generator().manual_seed(1)
    x = torch.rand(20, 3, 4, 4, generator=g, dtype=torch.float64)
    for bounds in ((0.0, 1.0), None):
        project = norms.NORMS[norm].projection(x, 0.5, bounds)
        once = project(x + torch.randn(x.shape, generator=g, dtype=torch.float64))
        assert torch.allclose(project(once), once, atol=1e-7)
        assert torch.equal(project(x), x)


def test_l2_steps_have_unit_length_whatever_the_size_of_the_gradient():
    """Rows must not feel each other: beside 1e30, a gradient of 1e-30 would be nothing."""
    gradient = torch.tensor([1e-30, 1.0, 1e30])[:, None] * torch.tensor([[3.0, -4.0]])
    moved = norms.NORMS["l2"].ascend(torch.zeros(3, 2), gradient, 5.0, None)
    assert torch.allclose(moved, torch.tensor([[3.0, -4.0]]).expand(3, 2))


@pytest.mark.parametrize("norm", list(norms.NORMS))
def test_a_start_is_repeated_by_its_generator_and_by_nothing_else(norm):
    x, before = torch.zeros(4, 3), torch.get_rng_state()
    first, again, other = (
        norms.NORMS[norm].uniform(x, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(norms.NORMS[norm].uniform(x, None), norms.NORMS[norm].uniform(x, None))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("norm", list(norms.NORMS))
def test_images_of_one_pixel_start_anywhere_between_minus_one_and_one(norm):
    """A KS test; it fails by chance with probability 1e-6."""
    x = torch.zeros(4000, 1, dtype=torch.float64)
    found = norms.NORMS[norm].uniform(x, torch.Generator().manual_seed(1)).flatten().numpy()
    assert scipy.stats.kstest(found, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-6


def test_the_streams_of_images_stay_what_they_are():
    """Stored logs can only be repeated while seed and number give the same stream."""
    low, high = np.random.SeedSequence([3, 5]).generate_state(2)
    assert keyed_generator(3, 5).initial_seed() == (int(high) << 32 | int(low)) >> 1
    assert keyed_generator(3, 5).initial_seed() == 4_895_867_234_429_419_378
    seeds = {keyed_generator(a, b).initial_seed() for a in range(30) for b in range(30)}
    assert len(seeds) == 900


def test_sizes():
    x = torch.tensor([[3.0, -4.0], [0.0, 1.0]])
    sizes = {norm: ball.size(x).tolist() for norm, ball in norms.NORMS.items()}
    assert sizes == {"linf": [4, 1], "l2": [5, 1], "l1": [7, 1]}


def test_random_start_is_uniform_in_the_ball():
    """KS tests; each fails by chance with probability 1e-6."""
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(4000, 5, dtype=torch.float64)
    cube = norms.NORMS["linf"].uniform(x, g).flatten().numpy()
    assert scipy.stats.kstest(cube, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-6
    ball = norms.NORMS["l2"].uniform(x, g)
    radius = ball.norm(dim=1).numpy()  # P(radius <= r) = r^5: not uniform in the radius
    assert scipy.stats.kstest(radius, lambda r: r**5).pvalue > 1e-6
    diamond = norms.NORMS["l1"].uniform(x, g)
    length = diamond.abs().sum(1).numpy()
    assert scipy.stats.kstest(length, lambda r: r**5).pvalue > 1e-6
    # One coordinate of the uniform l1 ball has the density 5/2 (1 - |t|)^4.
    first = diamond[:, 0].numpy()
    cdf = lambda t: 0.5 + np.sign(t) * (1 - (1 - np.abs(t)) ** 5) / 2  # noqa: E731
    assert scipy.stats.kstest(first, cdf).pvalue > 1e-6
    angle = torch.atan2(ball[:, 0], ball[:, 1]).numpy() / (2 * math.pi)
    assert scipy.stats.kstest(angle, scipy.stats.uniform(-0.5, 1).cdf).pvalue > 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("box", [(0.0, 1.0), None])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 10.0)])
def test_nothing_leaves_the_ball_by_rounding(norm, eps, box, dtype):
    """Measured in float64, also where each of many pixels rounds by more than it may move."""
    for pixels in (784, 50_000):
        g = torch.Generator().manual_seed(0)
        x = images_in((0.0, 1.0), (2, 1, 1, pixels), g).to(dtype)
        z = x + torch.randn(x.shape, generator=g).to(dtype)
        found = norms.NORMS[norm].projection(x, eps, box)(z)
        length = norms.NORMS[norm].size(found.double() - x.double())
        assert (length <= eps * (1 + 1e-6)).all()
        assert found.dtype == dtype
        assert (length > 0.9 * eps).all()
