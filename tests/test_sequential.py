"""The sequential test and the anytime bound, against enumeration in exact fractions and mpmath."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trustml_helpers import bounds, sequential


def by_enumeration(p, sizes, success):
    """Probability of ever crossing, carried in exact fractions over every count."""
    alive, crossed, before = {0: Fraction(1)}, Fraction(0), 0
    for size, boundary in zip(sizes, success, strict=True):
        m, after = int(size) - before, {}
        for count, mass in alive.items():
            for k in range(m + 1):
                weight = comb(m, k) * p**k * (1 - p) ** (m - k)
                after[count + k] = after.get(count + k, 0) + mass * weight
        crossed += sum(mass for count, mass in after.items() if count >= boundary)
        alive = {count: mass for count, mass in after.items() if count < boundary}
        before = int(size)
    return crossed


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 19), st.data())
def test_crossing_probability_is_exact(steps, twentieths, data):
    sizes = np.cumsum(steps)
    success = [data.draw(st.integers(0, int(n) + 1)) for n in sizes]
    p = Fraction(twentieths, 20)
    expected = float(by_enumeration(p, sizes, success))
    found = sequential.crossing_probability(float(p), sizes, success)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-23)


@pytest.mark.parametrize("p", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_boundaries_are_the_smallest_that_keep_the_spending_plan(p, alpha):
    sizes = [8, 15, 30, 40]
    plan = sequential.plan([p], alpha, sizes)
    spend = sequential.spending(4, alpha)
    for look in range(1, 5):
        u = plan.success[0][:look].copy()
        spent = float(by_enumeration(Fraction(p), sizes[:look], u))
        assert spent <= spend[look - 1]
        if u[-1] > 0:
            u[-1] -= 1
            assert float(by_enumeration(Fraction(p), sizes[:look], u)) > spend[look - 1]


def test_a_single_look_is_the_fixed_sample_test():
    """One look: certify exactly where the Clopper-Pearson bound reaches the null value."""
    for p, n, alpha in ((0.7, 50, 0.01), (0.9, 400, 0.001)):
        plan = sequential.plan([p], alpha, [n])
        k = np.arange(n + 1)
        certified = bounds.lower_conf_bound(k, n, alpha) >= p
        assert plan.success[0, 0] == (int(k[certified][0]) if certified.any() else n + 1)


SLOW = [pytest.param(alpha, marks=pytest.mark.slow) for alpha in (0.05, 1e-6)]


@pytest.mark.parametrize("alpha", [0.001, *SLOW])
def test_error_is_at_most_alpha_and_nearly_all_of_it_is_used(alpha):
    sizes = sequential.looks(20_000)
    grid = stats.norm.cdf(np.linspace(0.1, 3, 30))
    plan = sequential.plan(grid, alpha, sizes)
    assert (plan.error <= alpha).all()
    assert plan.error[:20].min() > 0.6 * alpha
    for p, success in zip(grid[:10], plan.success[:10], strict=True):
        for lower in (0.9 * p, 0.99 * p):
            assert sequential.crossing_probability(lower, sizes, success) <= alpha


@pytest.mark.slow
def test_boundaries_rise_with_the_radius_also_on_a_fine_grid():
    """Without the running maximum some boundaries of this grid fall."""
    grid, sizes = stats.norm.cdf(np.arange(0.5, 0.7, 0.0005)), sequential.looks(3000)
    plan = sequential.plan(grid, 0.001, sizes)
    assert (np.diff(plan.success, axis=0) >= 0).all()
    spend = sequential.spending(len(sizes), 0.001)
    raw = np.stack([sequential._boundary(p, plan.looks, spend) for p in grid])
    assert (np.diff(raw, axis=0) < 0).any()
    assert (plan.error <= 0.001).all()


def test_futility_never_meets_success_and_ends_every_path():
    plan = sequential.plan([0.6, 0.9], 0.001, sequential.looks(2000))
    assert (plan.futility < plan.success).all()
    assert (plan.futility[:, -1] == plan.success[:, -1] - 1).all()
    cdf = stats.binom.cdf(plan.futility[:, :-1], plan.looks[None, :-1], plan.p_null[:, None])
    reach = plan.futility[:, :-1] + (plan.looks[-1] - plan.looks[:-1])
    assert ((cdf <= 0.001) | (reach < plan.success[:, -1:])).all()


def test_looks_and_spending():
    found = sequential.looks(100_000)
    assert found[0] == 50
    assert found[-1] == 100_000
    assert (np.diff(found) > 0).all()
    assert sequential.looks(20).tolist() == [20]
    assert sequential.spending(1, 0.01).tolist() == [0.01]
    spend = sequential.spending(11, 0.01)
    assert spend[9] == pytest.approx(0.001)
    assert spend[10] == 0.01
    assert (np.diff(spend) > 0).all()


def test_crossing_for_sure_and_never():
    assert sequential.crossing_probability(0.0, [1, 3], [1, 2]) < 1e-20
    assert sequential.crossing_probability(1.0, [1, 3], [2, 3]) == pytest.approx(1, abs=1e-15)


def test_plans_are_cached():
    a = sequential.plan([0.7], 0.01, [10, 20])
    assert sequential.plan(np.array([0.7]), 0.01, np.array([10, 20])) is a


# --- the anytime bound ---------------------------------------------------------------------------


def evidence(p, k, n):
    """M(p) from its definition: a mixture of likelihood ratios over q in (p, 1)."""
    mpmath.mp.dps = 30
    weight = lambda q: q ** mpmath.mpf(-0.5) * (1 - q) ** mpmath.mpf(-0.5)  # noqa: E731
    ratio = lambda q: (q / p) ** k * ((1 - q) / (1 - p)) ** (n - k)  # noqa: E731
    points = sorted({mpmath.mpf(p), mpmath.mpf(max(p, min(k / n, 0.999))), mpmath.mpf(1)})
    return (mpmath.quad(lambda q: weight(q) * ratio(q), points)
            / mpmath.quad(weight, [mpmath.mpf(p), 1]))  # fmt: skip


@pytest.mark.parametrize(("k", "n"), [(7, 10), (45, 50), (90, 100), (30, 100), (1, 4)])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_anytime_bound_is_where_the_evidence_is_enough(k, n, alpha):
    found = float(sequential.anytime_lower_bound(k, n, alpha))
    assert 0 < found < k / n
    assert float(evidence(found, k, n)) * alpha == pytest.approx(1, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.5, 0.9])
def test_the_anytime_bound_holds_at_all_times_at_once(p):
    """Exact probability that it is ever above p within 200 trials."""
    sizes = np.arange(1, 201)
    first = []
    for n in sizes:
        k = np.arange(n + 1)
        above = np.nonzero(sequential.anytime_lower_bound(k, n, 0.05) > p)[0]
        first.append(int(above[0]) if len(above) else n + 1)
    error = sequential.crossing_probability(p, sizes, first)
    assert 0.005 < error <= 0.05
    # Clopper-Pearson, looked at after every vote, is not valid: the test can fail.
    naive = []
    for n in sizes:
        above = np.nonzero(bounds.lower_conf_bound(np.arange(n + 1), n, 0.05) > p)[0]
        naive.append(int(above[0]) if len(above) else n + 1)
    assert sequential.crossing_probability(p, sizes, naive) > 0.1


def test_the_anytime_bound_at_the_ends():
    assert float(sequential.anytime_lower_bound(0, 10, 0.01)) == 0
    found = sequential.anytime_lower_bound(
        [10, 1000, 100_000, 10**8], [10, 1000, 100_000, 10**8], 0.001
    )
    assert (np.diff(found) > 0).all()
    assert found[0] > 0
    assert found[-1] < 1


@pytest.mark.slow
def test_the_best_case_is_seldom_surpassed():
    """The bound after all votes lies above the best case at an early look in at most 2 alpha of
    runs, 400 of 4,000. Fewer are let pass, 300, since the two alphas are seldom spent together;
    with this seed there are none. The plug-in rate k / n is surpassed in about half of them: the
    test can fail."""
    alpha, p, n, n_max = 0.05, 0.9, 200, 2000
    random = np.random.default_rng(0)
    k = random.binomial(n, p, 4000)
    end = sequential.anytime_lower_bound(k + random.binomial(n_max - n, p, 4000), n_max, alpha)
    assert np.sum(end > sequential.best_case_bound(k, n, n_max, alpha)) <= 300
    naive = sequential.anytime_lower_bound(k + np.ceil((n_max - n) * k / n), n_max, alpha)
    assert np.sum(end > naive) > 1000


@pytest.mark.slow
def test_stopping_early_gives_up_no_more_than_was_said():
    """The rule of ``certify_anytime``: where it stops before n_max, all votes would enlarge the
    radius by more than ``gain`` in at most 2 alpha of runs. 400 runs at alpha 0.001 expect at most
    0.8; more than 6 have a probability below 1e-5. With the *expected* rest of the votes in place
    of a lucky one, there were 16."""
    alpha, p, n_max, gain = 0.001, 0.88, 1000, 0.03
    random, k, before = np.random.default_rng(0), np.zeros(400, dtype=int), 0
    stopped = np.full(400, np.inf)  # the radius at which
    largest = np.zeros(400)
    for size in sequential.looks(n_max):
        k, before = k + random.binomial(size - before, p, 400), size
        some, which = np.unique(k, return_inverse=True)  # few different counts
        lower = sequential.anytime_lower_bound(some, size, alpha)
        best = sequential.best_case_bound(some, size, n_max, alpha)
        now, hope = bounds.certified_radius(np.stack([lower, best]), 1.0)[:, which]
        largest = np.maximum(largest, now)
        stopped = np.where(np.isinf(stopped) & (hope - largest <= gain), largest, stopped)
    assert np.sum(now - stopped > gain) <= 6


def test_the_best_case_by_hand():
    upper = 1 - float(sequential.anytime_lower_bound(10, 100, 0.01))
    lucky = 890
    while stats.binom.sf(lucky - 1, 900, upper) <= 0.01:
        lucky -= 1
    future = 90 + lucky
    expected = sequential.anytime_lower_bound(future, 1000, 0.01)
    assert float(sequential.best_case_bound(90, 100, 1000, 0.01)) == float(expected)
    now = sequential.anytime_lower_bound([0, 50, 100], 100, 0.01)
    assert sequential.best_case_bound([0, 50, 100], 100, 100, 0.01).tolist() == now.tolist()


@pytest.mark.parametrize("k", [480, 500, 515, 540])
def test_a_replay_is_the_test_on_the_same_votes_in_another_order(k):
    """Against a plain walk through a permutation: mean samples and share of certificates of 4,000
    runs each; 5 standard errors apart has a probability below 1e-6 for each of the two."""
    plan = sequential.plan([0.8], 0.01, sequential.looks(600))
    n, random = 600, np.random.default_rng(1)
    found = sequential.replay([k] * 4000, n, plan, np.random.default_rng(0))
    walked, certified = [], []
    votes = np.arange(n) < k
    for _ in range(4000):
        counts = np.cumsum(random.permutation(votes))[plan.looks - 1]
        up, down = counts >= plan.success[0], counts <= plan.futility[0]
        end = int(np.argmax(up | down))
        walked.append(plan.looks[end])
        certified.append(up[end])
    for ours, plain in ((found.samples, walked), (found.certified, certified)):
        error = np.hypot(np.std(ours), np.std(plain)) / np.sqrt(4000)
        assert abs(np.mean(ours) - np.mean(plain)) < 5 * error + 1e-12
    assert np.std(walked) > 0
    assert np.mean(certified) < 0.1 if k <= 500 else np.mean(certified) > 0.5


def test_a_replay_uses_each_vote_once():
    plan = sequential.plan([0.5, 0.8], 0.01, [10, 20])
    rng = np.random.default_rng(0)
    found = sequential.replay([0, 14, 16, 17, 20], 20, plan, rng, row=0)
    assert found.certified[-1]
    assert not found.certified[0]
    assert set(found.samples) <= {10, 20}
    with pytest.raises(ValueError, match="n=19"):
        sequential.replay([5], 19, plan, rng)
    three = sequential.plan([0.5], 0.01, [10, 15, 20])
    with pytest.raises(ValueError, match="n=19"):
        sequential.replay([5], 19, three, rng)
    assert sequential.replay([21], 21, three, rng).certified.tolist() == [True]


def test_mass_that_is_dropped_counts_as_error():
    """A boundary beyond all counts is crossed by nothing but what each look drops, 1e-25 twice."""
    found = sequential.crossing_probability(0.5, [4, 8, 12], [5, 9, 13])
    assert found == pytest.approx(6e-25, rel=1e-9, abs=0)
    assert sequential.crossing_probability(0.5, [4], [5]) == pytest.approx(2e-25, rel=1e-9, abs=0)


def test_a_boundary_must_fit_its_looks():
    for sizes, success in (([5, 10], [4]), ([5, 10], [4.5, 8]), ([0, 10], [1, 8]),
                           ([-5, 5], [1, 2]), ([5.5, 10], [4, 8]), ([10, 5], [4, 8])):  # fmt: skip
        with pytest.raises(ValueError, match=r"sizes|success"):
            sequential.crossing_probability(0.5, sizes, success)


def test_counts_are_whole_numbers_and_a_single_one_is_a_batch_of_one():
    plan = sequential.plan([0.6], 0.001, [50.0, 100.0])
    assert plan.looks.dtype == plan.success.dtype == plan.futility.dtype == np.int64
    narrow = np.float32([0.61])
    assert sequential.plan(narrow, 0.001, [50]) is (
        sequential.plan(narrow.astype(np.float64), 0.001, [50])
    )
    single = sequential.replay(90, 100, plan, np.random.default_rng(0))
    assert single.samples.shape == single.certified.shape == (1,)


def test_beta_of_zero_never_gives_up_early():
    plan = sequential.plan([0.6], 0.001, [50, 100], beta=0.0)
    reach = plan.futility[0, :-1] + plan.looks[-1] - plan.looks[:-1]
    assert (reach < plan.success[0, -1]).all()  # only where the last look is out of reach


def test_one_look_is_enough_for_few():
    assert sequential.looks(50).tolist() == [50]


def test_looks_that_hardly_grow_go_up_one_by_one():
    assert sequential.looks(9, first=1, growth=1.01).tolist() == list(range(1, 10))
