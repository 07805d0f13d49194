"""A false-certificate rate of at most alpha, at the hardest p, among 200,000 of each kind."""

from __future__ import annotations

import pytest
from error_rates import ALPHA, IMAGES, cases
from scipy import stats

pytestmark = pytest.mark.slow


def test_certificates_err_no_more_often_than_alpha():
    """False alarm: at most 8e-6 in all four together (1e-6 above and below, each).

    A rate of 2 alpha would be noticed with probability above 0.99; and the exact error is at
    least 0.9 alpha, so that the simulation is no easier than it looks.
    """
    limit = stats.binom.isf(1e-6, IMAGES, ALPHA)
    assert stats.binom.sf(limit, IMAGES, 2 * ALPHA) > 0.99
    for case in cases():
        assert 0.9 * ALPHA * (1 - 1e-6) <= case.exact <= ALPHA, case
        assert case.false <= limit, case
        # Nor fewer than there must be: the count is that of the exact error.
        assert stats.binom.isf(1 - 1e-6, IMAGES, case.exact) <= case.false, case
