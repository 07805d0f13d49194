"""What votes prove, with every possible outcome added up."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from trustml_helpers import bounds
from trustml_helpers.smoothing import votes

N = 60
OUTCOMES = np.array([(i, j, N - i - j) for i in range(N + 1) for j in range(N + 1 - i)])


@pytest.mark.parametrize("alpha", [0.05, 0.3])
@pytest.mark.parametrize("bound", ["one_class", "two_class"])
def test_the_error_of_a_certificate_is_at_most_alpha(bound, alpha):
    """Three classes, n = 60: the exact probability of a radius above the theorem's, that is of
    ``sigma / 2 (Phi^-1(p_A) - Phi^-1(p_B))``, or of any radius if A is not the top class."""
    counts = torch.as_tensor(OUTCOMES)
    radius, _ = votes.radii(
        counts, torch.zeros(len(counts), dtype=torch.long), N, alpha, 0.7, bound
    )
    largest = 0.0
    for p in ((0.45, 0.35, 0.2), (0.4, 0.3, 0.3), (0.6, 0.39, 0.01), (0.34, 0.33, 0.33),
              (0.3, 0.4, 0.3), (0.5, 0.5, 0.0), (0.9, 0.05, 0.05), (0.8, 0.2, 0.0)):  # fmt: skip
        true = bounds.two_class_radius(p[0], max(p[1:]), 0.7)
        error = scipy.stats.multinomial.pmf(OUTCOMES, N, p)[radius > true + 1e-12].sum()
        assert error <= alpha
        largest = max(largest, error)
    assert largest > alpha / 3  # of eight cases, one comes near: the test is not idle


def test_the_two_class_bound_certifies_without_a_majority():
    """40 of 100 against 5 each for twelve others, computed by hand from the two bounds."""
    counts = torch.tensor([[40] + [5] * 12])
    top = torch.tensor([0])
    assert votes.radii(counts, top, 100, 0.01, 1.0)[0].tolist() == [0.0]
    (radius,), (p_a,) = votes.radii(counts, top, 100, 0.01, 1.0, "two_class")
    low = scipy.stats.beta.ppf(0.009, 40, 61)
    high = scipy.stats.beta.isf(0.001, 6, 95)
    phi = scipy.stats.norm.ppf
    assert p_a == pytest.approx(low)
    assert radius == pytest.approx((phi(low) - phi(high)) / 2)
    assert radius > 0


def test_decisions_are_those_of_the_binomial_test():
    """Every pair of counts up to 25 beside three votes for a third class, by SciPy's own test."""
    pairs = [(i, j) for i in range(3, 26) for j in range(3, 26)]
    found = votes.decide(torch.tensor([(3, i, j) for i, j in pairs]), 0.05)
    for (i, j), decision in zip(pairs, found.tolist(), strict=True):
        sure = scipy.stats.binomtest(i, i + j, 0.5).pvalue <= 0.05
        assert decision == ((1 if i > j else 2) if sure else votes.ABSTAIN), (i, j)


def test_a_p_value_of_alpha_is_enough():
    """Seven of seven votes: a p-value of exactly 2 / 128."""
    assert votes.decide(torch.tensor([[7, 0]]), 2 / 128).tolist() == [0]
    assert votes.decide(torch.tensor([[7, 0]]), 2 / 128 - 1e-12).tolist() == [votes.ABSTAIN]


def test_the_images_of_a_batch_do_not_meet():
    """Radii of a batch, with lost votes, are those of its images one by one."""
    few = [[70, 4, 5, 3, 2, 4], [30, 60, 0, 0, 0, 10], [0, 0, 100, 0, 0, 0], [8, 9, 60, 8, 7, 8]]
    counts, top = torch.tensor(few), torch.tensor([0, 1, 2, 2])
    together = votes.radii(counts, top, 100, 0.01, 0.5, "two_class")
    alone = [votes.radii(counts[[i]], top[[i]], 100, 0.01, 0.5, "two_class") for i in range(4)]
    for k in (0, 1):
        assert together[k].tolist() == [float(each[k][0]) for each in alone]
    k, rival = np.array([70, 60, 100, 60]), np.array([17, 30, 0, 9])  # 5 + 12 lost
    low = scipy.stats.beta.ppf(0.009, k, 101 - k)
    high = np.minimum(scipy.stats.beta.isf(0.001, rival + 1, 100 - rival), 1 - low)
    phi = scipy.stats.norm.ppf
    expected = np.where(low > high, 0.25 * (phi(low) - phi(high)), 0)
    assert together[0] == pytest.approx(expected, rel=1e-9)


def test_no_images_and_odd_numbers_of_votes():
    none = torch.zeros(0, 3, dtype=torch.long)
    radius, _ = votes.radii(none, none[:, 0], 1, 0.01, 0.5, "one_class")
    assert radius.shape == (0,)
    radius, _ = votes.radii(torch.tensor([[11, 0]]), torch.tensor([0]), 11, 0.01, 0.5, "one_class")
    assert radius[0] == pytest.approx(0.5 * scipy.stats.norm.ppf(0.01 ** (1 / 11)), rel=1e-9)


def test_counts_of_a_narrow_type_do_not_wrap_around():
    """130 + 129 is 3 in eight bits, which would settle a tie with certainty."""
    close = torch.tensor([[130, 129]], dtype=torch.uint8)
    assert votes.decide(close, 0.001).tolist() == [votes.ABSTAIN]
    clear = torch.tensor([[200, 5]], dtype=torch.uint8)
    for bound in ("one_class", "two_class"):
        found = votes.radii(clear, torch.tensor([0]), 205, 0.001, 0.5, bound)
        wide = votes.radii(clear.long(), torch.tensor([0]), 205, 0.001, 0.5, bound)
        assert found[0] == wide[0] > 0


def test_abstention_with_very_many_votes():
    """Against the normal law, whose error is below 1e-4 at ten billion votes."""
    n, alpha = 10**10, 0.001
    p = 0.5 + 1.9 / n**0.5
    passed = scipy.stats.norm.isf(alpha / 2) / 2
    expected = scipy.stats.norm.cdf((passed - 1.9) / 0.5)
    assert abs(votes.abstention_probability(p, n, alpha) - expected) < 1e-4
    assert votes.samples_needed(0.50005, alpha) > 10**9


@pytest.mark.parametrize("alpha", [0.5, 0.1, 0.05, 0.01, 0.001])
def test_enough_samples_are_the_fewest_that_can_certify(alpha):
    fewest = next(n for n in range(1, 99) if alpha ** (1 / n) > 0.5)
    votes.enough(fewest, alpha, "one_class")
    if fewest > 1:
        with pytest.raises(ValueError, match=f"use at least n={fewest}"):
            votes.enough(fewest - 1, alpha, "one_class")
