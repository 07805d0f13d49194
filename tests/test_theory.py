"""The exact cases behind the theorem, against closed forms and independent computations."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from trustml_helpers import bounds, theory


def test_halfspace_values():
    p = theory.halfspace_probability(0.8, np.array([-0.5, 0.0, 0.5]), 0.5)
    z = scipy.stats.norm.ppf(0.8)
    assert np.allclose(p, scipy.stats.norm.cdf([z + 1, z, z - 1]))


def test_nothing_and_everything_stay_so_however_far_the_centre_moves():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for p in (0.0, 1.0):
            for distance in (0.0, 3.0, -3.0, 1e308, -1e308):
                assert theory.halfspace_probability(p, distance, 1e-3) == p
        assert theory.halfspace_probability(0.5, 1e308, 1e-3) == 0
        assert theory.halfspace_probability(0.5, -1e308, 1e-3) == 1


def test_results_have_double_precision_for_any_input():
    """float32 input is exact here, so the result must not be rounded to it."""
    half, quarter = np.float32(0.5), np.float32(0.25)
    for arguments in ((quarter, half, half), (np.float32(0.25), 0.5, half), ([0.25], [0.5], [0.5])):
        found = theory.halfspace_probability(*arguments)
        assert found.dtype == np.float64
        exact = scipy.stats.norm.cdf(scipy.stats.norm.ppf(0.25) - 1)
        assert found == pytest.approx(exact, rel=1e-12)
    assert theory.cell_masses(np.float32([0.5]), 0.0, 1.0)[0] == scipy.stats.norm.cdf(0.5)
    exact = theory.ball_probability(0.5, 1.0, 0.5, 3)
    assert theory.ball_probability(half, 1.0, 0.5, 3) == exact
    masses = np.float32([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
    f, worst = theory.neyman_pearson(*masses, 0.6)
    assert f.dtype == np.float64
    assert worst == pytest.approx(0.25 + 0.1, rel=1e-12)


@given(st.floats(0.5001, 0.9999), st.floats(0.01, 5))
def test_the_radius_is_where_the_halfspace_crosses_one_half(p_a, sigma):
    radius = bounds.certified_radius(p_a, sigma)
    assert theory.halfspace_probability(p_a, radius, sigma) == pytest.approx(0.5, abs=1e-9)


def test_cell_masses_are_exact_in_both_tails():
    edges = np.array([-9.0, -1.0, 0.5, 9.0])
    found = theory.cell_masses(edges, 0.5, 0.5)
    cdf = scipy.stats.norm(0.5, 0.5)
    assert found.sum() == pytest.approx(1, abs=1e-15)
    assert found[0] == pytest.approx(cdf.cdf(-9.0), rel=1e-9, abs=0)
    assert found[-1] == pytest.approx(cdf.sf(9.0), rel=1e-9, abs=0)
    assert found[2] == pytest.approx(cdf.cdf(0.5) - cdf.cdf(-1.0))


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(2, 12), st.floats(0, 1))
def test_linear_program_is_neyman_pearson(seed, cells, p_a):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(cells)), rng.dirichlet(np.ones(cells))
    f, worst = theory.worst_case_classifier(p, q, p_a)
    g, expected = theory.neyman_pearson(p, q, p_a)
    # The solver may miss a constraint by its tolerance; p_a below that is met by f = 0.
    assert worst == pytest.approx(expected, abs=1e-6)
    for solution in (f, g):
        assert solution @ p >= p_a - 1e-6
        assert (solution >= 0).all()
        assert (solution <= 1).all()


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_cells_without_mass_on_one_side_or_both(seed, p_a):
    """They are filled last if x + delta alone reaches them, and change nothing if neither does."""
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(12)), rng.dirichlet(np.ones(12))
    p[:4], q[3:6] = 0, 0
    p, q = (p / p.sum()).reshape(3, 4), (q / q.sum()).reshape(3, 4)
    _, expected = theory.worst_case_classifier(p, q, p_a)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f, worst = theory.neyman_pearson(p, q, p_a)
    assert f.shape == (3, 4)
    assert worst == pytest.approx(expected, abs=1e-6)
    assert (f * p).sum() == pytest.approx(p_a, abs=1e-9)
    assert not f[p == 0].any()


def test_the_worst_classifier_is_a_halfspace_and_tight():
    """In one dimension with an edge at the border, the optimum is Phi(Phi^-1(p_a) - d / sigma)."""
    p_a, delta = 0.8, 0.7
    border = scipy.stats.norm.ppf(p_a)
    edges = np.sort(np.append(np.linspace(-5, 5, 201), border))
    f, worst = theory.worst_case_classifier(
        theory.cell_masses(edges, 0, 1), theory.cell_masses(edges, delta, 1), p_a
    )
    assert worst == pytest.approx(float(theory.halfspace_probability(p_a, delta, 1)), abs=1e-9)
    left = np.concatenate([[-np.inf], edges]) < border - 1e-9
    assert np.allclose(f, left, atol=1e-6)


def test_worst_case_on_a_plane_depends_on_the_direction_of_delta_alone():
    edges = np.linspace(-4, 4, 33)
    delta = np.array([0.6, 0.3])
    at = lambda mean: np.outer(  # noqa: E731
        theory.cell_masses(edges, mean[0], 1), theory.cell_masses(edges, mean[1], 1)
    )
    f, worst = theory.worst_case_classifier(at([0, 0]), at(delta), 0.75)
    limit = float(theory.halfspace_probability(0.75, np.hypot(*delta), 1))
    assert limit <= worst <= limit + 0.01  # a grid of cells is less free than the plane
    assert f.shape == (34, 34)
    assert f[0, 0] == pytest.approx(1)
    assert f[-1, -1] == pytest.approx(0)


def test_a_ball_far_away_is_never_met():
    """Also where SciPy's noncentral chi-square distribution gives up."""
    near = theory.ball_probability(0.3 + 0.3 * 15, 0.3, 0.3, 1)
    exact = scipy.stats.norm.sf(15) - scipy.stats.norm.sf(17)
    assert near == pytest.approx(exact, rel=1e-12, abs=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not theory.ball_probability([50.0, 1e6, 1e300], 0.3, 0.3, 1).any()
        assert theory.ball_probability(1e308, 1.0, 1e-3, 2) == 0


@pytest.mark.parametrize("distance", [0.0, 0.4, 1.5])
def test_ball_probability_against_quadrature(distance):
    """In the plane: integrate the density over the disc on a fine polar grid."""
    radius, sigma = 1.2, 0.5
    r = (np.arange(2000) + 0.5) * radius / 2000
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    x = r[:, None] * np.cos(angle) - distance
    y = r[:, None] * np.sin(angle)
    density = np.exp(-(x**2 + y**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    expected = (density * r[:, None]).sum() * (radius / 2000) * (2 * np.pi / 400)
    assert theory.ball_probability(distance, radius, sigma, 2) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dimension", [1, 2, 10, 50])
def test_the_certificate_is_below_the_true_radius_of_a_ball(dimension):
    sigma, radius = 0.25, 0.25 * np.sqrt(dimension) + 0.5
    true = theory.ball_true_radius(radius, sigma, dimension)
    p = theory.ball_probability(0.0, radius, sigma, dimension)
    certified = float(bounds.certified_radius(p, sigma))
    assert 0 < certified <= true
    assert theory.ball_probability(true, radius, sigma, dimension) == pytest.approx(0.5, abs=1e-9)


@given(st.floats(-9, 9))
def test_the_true_radius_has_the_unit_of_the_noise(exponent):
    unit = 10.0**exponent
    expected = theory.ball_true_radius(2.0, 0.5, 3)
    assert theory.ball_true_radius(2.0 * unit, 0.5 * unit, 3) == pytest.approx(expected * unit)


def test_a_small_ball_in_high_dimension_is_never_seen():
    assert theory.ball_true_radius(1.0, 1.0, 100) == 0.0


def test_float32_is_computed_in_float64():
    edges = np.float32([-1.1, 0.3, 2.7])
    wide = edges.astype(np.float64)
    assert theory.cell_masses(edges, 0.1, 0.7).tolist() == (
        theory.cell_masses(wide, 0.1, 0.7).tolist()
    )
    away = np.float32([0.3, 1.7])
    assert theory.ball_probability(away, 1.5, 0.5, 3).tolist() == (
        theory.ball_probability(away.astype(np.float64), 1.5, 0.5, 3).tolist()
    )
    p = np.float32([0.25, 0.25, 0.5])
    q = np.float32([0.5, 0.375, 0.125])
    for function in (theory.neyman_pearson, theory.worst_case_classifier):
        f, worst = function(p, q, 0.6)
        assert f.dtype == np.float64
        assert worst == pytest.approx(0.125 + 0.1 / 0.25 * 0.375, abs=1e-9)
