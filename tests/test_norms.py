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

from trustml_helpers import norms


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


@settings(max_examples=100)
@given(st.integers(0, 2**31), st.floats(0.01, 5), st.floats(0.01, 20))
def test_l2_projection_is_exact(seed, eps, spread):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 12, generator=g, dtype=torch.float64)
    z = x + spread * torch.randn(3, 12, generator=g, dtype=torch.float64)
    found = norms.NORMS["l2"].projection(x, eps, (0, 1))(z)
    for a, b, c in zip(z.numpy(), x.numpy(), found.numpy(), strict=True):
        assert np.allclose(c, bisected_projection(a, b, eps, 0.0, 1.0), atol=2e-4)


def quadratic_program(z, x, eps):
    """min |p - z|^2 over |p - x|_1 <= eps, 0 <= p <= 1, by SLSQP on p = x + up - down."""
    d = len(x)
    point = lambda v: x + v[:d] - v[d:]  # noqa: E731
    found = scipy.optimize.minimize(
        lambda v: 0.5 * ((point(v) - z) ** 2).sum(),
        np.zeros(2 * d),
        jac=lambda v: np.concatenate([point(v) - z, z - point(v)]),
        bounds=[(0, 1 - t) for t in x] + [(0, t) for t in x],
        constraints={"type": "ineq", "fun": lambda v: eps - v.sum()},
        method="SLSQP", options={"ftol": 1e-14, "maxiter": 1000},
    )  # fmt: skip
    return point(found.x)


@settings(max_examples=100)
@given(st.integers(0, 2**31), st.floats(0.01, 6), st.floats(0.01, 5))
def test_l1_projection_against_a_quadratic_program(seed, eps, spread):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 8, generator=g, dtype=torch.float64)
    z = x + spread * torch.randn(3, 8, generator=g, dtype=torch.float64)
    found = norms.NORMS["l1"].projection(x, eps, (0, 1))(z)
    for a, b, c in zip(z.numpy(), x.numpy(), found.numpy(), strict=True):
        assert np.allclose(c, quadratic_program(a, b, eps), atol=1e-5)


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
@given(st.integers(0, 2**31), st.floats(0.05, 6))
def test_l1_step_is_the_best_of_the_ball_and_box(seed, length):
    """max w.delta over |delta|_1 <= length and the box is a linear program."""
    g = torch.Generator().manual_seed(seed)
    x, w = torch.rand(2, 1, 8, generator=g, dtype=torch.float64)
    w = w - 0.5
    step = (norms.NORMS["l1"].ascend(x, w, length, (0, 1)) - x)[0].numpy()
    c, row = w[0].numpy(), x[0].numpy()
    best = scipy.optimize.linprog(
        np.concatenate([-c, c]), A_ub=np.ones((1, 16)), b_ub=[length],
        bounds=[(0, 1 - t) for t in row] + [(0, t) for t in row],
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
