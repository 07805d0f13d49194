"""Other noise: what it draws, and the radii that follow, against exact probabilities.

Each statistical test states the probability that it fails although the code is right.
"""

from __future__ import annotations

import itertools
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch

from trustml_helpers import bounds, models, smoothing, theory
from trustml_helpers.smoothing import (
    ABSTAIN,
    Ablation,
    Gaussian,
    Laplace,
    SmoothedClassifier,
    Uniform,
    noise_from,
)

ADDED = [Gaussian, Uniform, Laplace]
LAWS = {
    Gaussian: scipy.stats.norm(scale=0.5),
    Uniform: scipy.stats.uniform(-math.sqrt(3) / 2, math.sqrt(3)),
    Laplace: scipy.stats.laplace(scale=0.5 / math.sqrt(2)),
}
SHARES = [0.501, 0.6, 0.75, 0.9, 0.99, 0.999]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def halfspace(x):
    """Class 0 where the first value is positive."""
    return torch.stack([x.flatten(1)[:, 0], -x.flatten(1)[:, 0]], 1)


# --- what is drawn --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ADDED)
def test_added_noise_has_its_law(kind):
    """100,000 draws against SciPy's distribution of standard deviation 0.5: fails with 1e-6."""
    law, x = LAWS[kind], torch.full((100, 2, 5), 0.25, dtype=torch.float64)
    assert law.std() == pytest.approx(0.5)
    found = torch.cat([each.flatten().clone() for _, each in
                       kind(0.5).copies(x, 100, 64, seeded())])  # fmt: skip
    assert scipy.stats.kstest(found.numpy() - 0.25, law.cdf).pvalue > 1e-6
    assert found.min() < -0.25  # not clipped
    assert len(found.unique()) == len(found) == 100_000
    one = kind(0.5)(x.repeat(10, 1, 1), seeded(1))
    assert one.shape == (1000, 2, 5)
    assert scipy.stats.kstest(one.flatten().numpy() - 0.25, law.cdf).pvalue > 1e-6


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ADDED)
def test_no_noise_is_infinite(kind, dtype):
    """Of a million numbers in any precision; half precision has 65,504 as its largest."""
    found = kind(0.5)(torch.zeros(1000, 1000, dtype=dtype), seeded())
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert abs(found.double().std() - 0.5) < 0.01


def test_every_set_of_pixels_is_kept_equally_often():
    """30,000 copies of 15 possible masks: chi-square, fails with 1e-6."""
    x = torch.full((3, 2, 2, 3), 0.25)
    x[:, 1] = 0.5
    copies = torch.cat([each.flatten(0, 1).clone() for _, each in
                        Ablation(2, 6).copies(x, 10_000, 999, seeded())])  # fmt: skip
    assert copies.shape == (30_000, 4, 2, 3)
    kept = copies[:, 0] != 0
    assert (kept.flatten(1).sum(1) == 2).all()
    for channel, value in enumerate((0.25, 0.5, 0.75, 0.5)):  # x in two channels, then 1 - x
        assert torch.equal(copies[:, channel], value * kept)
    which = (kept.flatten(1) * 2 ** torch.arange(6)).sum(1)
    times = which.unique(return_counts=True)[1].numpy()
    assert len(times) == 15
    assert scipy.stats.chisquare(times).pvalue > 1e-6


def test_black_is_not_absent():
    copies = Ablation(1, 2)(torch.zeros(20, 1, 2), seeded())
    assert copies.shape == (20, 2, 2)
    assert (copies[:, 0] == 0).all()
    assert (copies[:, 1].sum(1) == 1).all()


@pytest.mark.parametrize("noise", [Gaussian(0.5), Uniform(0.5), Laplace(0.5), Ablation(5, 35)])
def test_the_copies_do_not_depend_on_the_batch_size(noise):
    """Nor on the number of threads; and no two are alike."""
    x, threads = torch.rand(4, 1, 5, 7, generator=seeded(1)), torch.get_num_threads()

    def drawn(n, batch_size):
        parts = [[] for _ in x]
        for first, noisy in noise.copies(x, n, batch_size, seeded(2)):
            for k, each in enumerate(noisy):
                parts[first + k].append(each.clone())
        return torch.stack([torch.cat(part) for part in parts])

    try:
        for n in (1, 30):
            torch.set_num_threads(1)
            alone = drawn(n, 1)
            assert len(alone.flatten(0, 1).unique(dim=0)) == 4 * n
            for batch_size, count in ((7, 1), (30, 2), (64, 2), (1000, 1)):
                torch.set_num_threads(count)
                assert torch.equal(drawn(n, batch_size), alone)
    finally:
        torch.set_num_threads(threads)


# --- radii in closed form -------------------------------------------------------------------------


def test_radii_by_hand():
    p = np.array(SHARES)
    half, scale = 0.5 * math.sqrt(3), 0.5 / math.sqrt(2)
    assert Gaussian(0.5).radius(p) == pytest.approx(bounds.certified_radius(p, 0.5), abs=0)
    assert Uniform(0.5).radius(p) == pytest.approx(2 * half * (p - 0.5))
    assert Laplace(0.5).radius(p) == pytest.approx(-scale * np.log(2 * (1 - p)))
    assert Uniform(0.5).radius(0.6, 0.1) == pytest.approx(half * 0.5)
    # Either formula of Laplace noise may be the larger one.
    assert Laplace(0.5).radius(0.4, 0.1) == pytest.approx(scale * math.log(4) / 2)
    assert Laplace(0.5).radius(0.9, 0.05) == pytest.approx(-scale * math.log(0.15))


@pytest.mark.parametrize("noise", [*(kind(0.5) for kind in ADDED), Ablation(45), Ablation(3, 9)])
def test_nothing_is_certified_without_a_lead(noise):
    assert noise.radius([0.0, 0.3, 0.5]).tolist() == [0, 0, 0]
    assert noise.radius([0.3, 0.3, 0.0], [0.3, 0.4, 0.0]).tolist() == [0, 0, 0]
    for p in SHARES:  # what exceeds 1 - p_a is cut off
        assert noise.radius(p, 1.0) == noise.radius(p, 1 - p) == noise.radius(p)
        assert noise.radius(p, (1 - p) / 2) >= noise.radius(p)
    assert noise.radius(np.full((2, 3), 0.9)).shape == (2, 3)


@pytest.mark.parametrize("kind", ADDED)
def test_needed_is_the_inverse_of_the_radius(kind):
    noise, radii = kind(0.5), np.array([0.0, 0.1, 0.5, 0.8])
    assert noise.radius(noise.needed(radii)) == pytest.approx(radii)
    assert noise.needed(0.0) == 0.5
    assert noise.needed(50.0) == 1


@pytest.mark.parametrize("noise", [Ablation(45), Ablation(2, 6), Ablation(1, 7), Ablation(9, 10)])
def test_needed_is_exact_to_the_last_bit(noise):
    """The smallest float not below the share, which is a fraction of whole numbers."""
    d, k = noise.pixels, noise.keep
    for rho in range(d + 1):
        p = float(noise.needed(rho))
        kept_out = Fraction(math.comb(d - rho, k), math.comb(d, k))
        assert noise.needed(rho + 0.5) == p  # half a pixel is none
        if kept_out <= Fraction(1, 2):
            assert p == 1
            assert noise.radius(1.0) < rho
            continue
        below, above = math.nextafter(p, 0.0), math.nextafter(p, 2.0)
        assert Fraction(below) < Fraction(3, 2) - kept_out <= Fraction(p)
        assert noise.radius(above) == rho
        assert noise.radius(below) == max(rho - 1, 0)


def test_the_published_settings():
    """k = 45 of 784: at most 11 pixels, and 8 from a share of 0.8783 on; Levine & Feizi (2020)
    print 8 as their median."""
    noise = Ablation(45)
    hidden = math.prod((784 - 45 - i) / (784 - i) for i in range(8))  # none of eight is kept
    assert noise.needed(8) == pytest.approx(1.5 - hidden, abs=1e-12)
    assert noise.radius([noise.needed(8) - 1e-9, noise.needed(8) + 1e-9, 1.0]).tolist() == [
        7,
        8,
        11,
    ]


# --- radii are true, and as large as they can be --------------------------------------------------


def worst(law, move, p, cells=4000):
    """The smallest probability after a move along the line, of a set that has p before: exact up
    to the cells, none of which lies across a kink of the density."""
    far = [-1e3, 1e3] + [m + s for m in (0.0, move) for s in law.support() if abs(s) < 1e3]
    edges = np.unique(np.append(np.linspace(-3, 3 + move, cells), [0.0, move, *far]))
    now, then = np.diff(law.cdf(edges)), np.diff(law.cdf(edges - move))
    return theory.neyman_pearson(now / now.sum(), then / then.sum(), p)[1]


@pytest.mark.parametrize("p", SHARES)
@pytest.mark.parametrize("kind", ADDED)
def test_one_class_radii_are_those_of_neyman_and_pearson(kind, p):
    """Along one axis: the worst set of probability p has 1/2 at the radius, and more before it."""
    radius = float(kind(0.5).radius(p))
    assert worst(LAWS[kind], radius, p) == pytest.approx(0.5, abs=2e-3)
    assert worst(LAWS[kind], 0.9 * radius, p) > 0.5 + 1e-5
    assert worst(LAWS[kind], 1.1 * radius, p) < 0.5 - 1e-5


@pytest.mark.parametrize("pair", [(0.6, 0.1), (0.4, 0.3), (0.9, 0.05), (0.3, 0.02), (0.55, 0.45)])
@pytest.mark.parametrize("kind", ADDED)
def test_two_class_radii_are_true(kind, pair):
    """At the radius even the worst A keeps up with the best B; for uniform noise they are equal."""
    p_a, p_b = pair
    radius = float(kind(0.5).radius(p_a, p_b))
    a, b = worst(LAWS[kind], radius, p_a), 1 - worst(LAWS[kind], radius, 1 - p_b)
    assert a >= b - 2e-3
    if kind is Uniform:
        assert a == pytest.approx(b, abs=1e-9)
    assert radius > 0


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1])
@pytest.mark.parametrize("kind", [Uniform, Laplace])
def test_no_direction_in_the_plane_is_worse_than_an_axis(kind, share):
    """A move of l1 length R, divided over two coordinates: the worst set keeps at least 1/2."""
    law, p = LAWS[kind], 0.8
    radius = float(kind(0.5).radius(p))
    masses = []
    for move in (share * radius, (1 - share) * radius):
        kinks = [m + s for m in (0.0, move) for s in law.support() if abs(s) < 1e3]
        edges = np.unique(np.append(np.linspace(-2.5, 3, 220), [-1e3, 0, move, 1e3, *kinks]))
        masses.append([np.diff(law.cdf(edges)), np.diff(law.cdf(edges - move))])
    now, then = (np.outer(masses[0][i], masses[1][i]) for i in (0, 1))
    found = theory.neyman_pearson(now / now.sum(), then / then.sum(), p)[1]
    assert found > 0.5
    assert found < 0.62  # and not by much: the test is not idle


@pytest.mark.parametrize(("d", "k"), [(6, 2), (7, 1), (7, 3), (8, 5), (5, 5)])
def test_ablation_is_tight_for_the_worst_classifier(d, k):
    """All masks, all numbers of them for A, all sets of changed pixels: if f calls A first what
    sees a changed pixel, and B after the change, the certificate is the truth exactly."""
    masks = [set(mask) for mask in itertools.combinations(range(d), k)]
    for votes in range(len(masks) + 1):
        left = []  # votes for A after a change of rho pixels; A takes seen masks first
        for rho in range(d + 1):
            seen = [sum(bool(mask & set(changed)) for mask in masks)
                    for changed in itertools.combinations(range(d), rho)]  # fmt: skip
            assert len(set(seen)) == 1  # every set of rho pixels is seen equally often
            left.append(votes - min(votes, seen[0]))
        true = max((rho for rho in range(d + 1) if 2 * left[rho] > len(masks)), default=0)
        # A hair above the share of a float that may have been rounded down, as no bound is.
        share = votes / len(masks)
        share = math.nextafter(share, 1.0) if Fraction(share) < Fraction(votes, len(masks)) else (
            share)  # fmt: skip
        assert Ablation(k, d).radius(share) == true


def exact_votes(f, x, k):
    """Shares of two classes over all masks, for one image (1, d)."""
    d = x.shape[-1]
    masks = torch.zeros(math.comb(d, k), d)
    for row, mask in zip(masks, itertools.combinations(range(d), k), strict=True):
        row[list(mask)] = 1
    copies = torch.stack([x[0] * masks, (1 - x[0]) * masks], 1)
    return torch.bincount(f(copies).argmax(1), minlength=2).double() / len(masks)


def by_the_pixels_seen(seed):
    """Two classes, by the number of bright pixels seen, with weights of either sign."""
    w = torch.randn(2, 9, generator=seeded(seed)) + 0.6
    return lambda copies: torch.stack([(copies * w).sum((1, 2)), 0 * copies[:, 0, 0]], 1)


def test_no_change_within_the_radius_succeeds():
    """Twelve networks on nine pixels, exact votes: every change of at most R pixels to 0 or 1,
    and a greedy attack with R + 1 pixels, which sometimes succeeds."""
    k, certified, broken = 2, 0, 0
    for seed in range(12):
        f, x = by_the_pixels_seen(seed), torch.rand(1, 9, generator=seeded(50 + seed))
        shares = exact_votes(f, x, k)
        top = int(shares.argmax())
        radius = int(Ablation(k, 9).radius(float(shares[top])))
        for rho in range(radius + 1):
            for places in itertools.combinations(range(9), rho):
                for values in itertools.product([0.0, 1.0], repeat=rho):
                    near = x.clone()
                    near[0, list(places)] = torch.tensor(values)
                    assert exact_votes(f, near, k).argmax() == top
        certified += radius
        moved = x
        for _ in range(radius + 1):
            tried = []
            for place, value in itertools.product(range(9), [0.0, 1.0]):
                near = moved.clone()
                near[0, place] = value
                tried.append((float(exact_votes(f, near, k)[top]), near))
            moved = min(tried, key=lambda pair: pair[0])[1]
        broken += int(exact_votes(f, moved, k).argmax() != top)
    assert certified >= 6  # the loops above were entered
    assert broken >= 2


# --- the smoothed classifier ----------------------------------------------------------------------

METHODS = {  # alpha, images, call
    "certify": (0.05, 4000, lambda g, x: g.certify(x, 20, 200, 0.05, generator=seeded(3))),
    "two_class": (0.05, 4000, lambda g, x: g.certify(x, 20, 200, 0.05, "two_class",
                                                     generator=seeded(4))),
    "at_radius": (0.05, 4000, lambda g, x: g.certify_at_radius(x, [0.1, 0.3, 0.41], 0.05, 300,
                                                               n0=20, generator=seeded(5))),
    "anytime": (0.2, 300, lambda g, x: g.certify_anytime(x, 0.01, 0.2, 300, n0=20,
                                                         generator=seeded(6))),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [Uniform, Laplace])
def test_certificates_exceed_the_distance_as_rarely_as_promised(kind, method):
    """A half-space across an axis, whose true l1 radius is 0.4: false alarm below 1e-6."""
    (alpha, images, call), distance = METHODS[method], 0.4
    found = call(SmoothedClassifier(halfspace, kind(0.5), 2), torch.full((images, 1), distance))
    false = (found.prediction == 0) & (found.radius > distance) | (found.prediction == 1)
    assert int(false.sum()) <= scipy.stats.binom.isf(1e-6, images, alpha)
    assert int(false.sum()) > 0  # some there are: the bound is not loose
    assert found.radius.median() > 0.2


def seen_pixels(copies):
    """Class 0 where a pixel is seen that is not black."""
    bright = copies.flatten(2)[:, 0].sum(1)
    return torch.stack([bright, 0.01 + 0 * bright], 1)


def test_ablation_certificates_are_those_of_their_votes():
    """White pictures but for one black pixel; radii from counts, by every method."""
    g, x = SmoothedClassifier(seen_pixels, Ablation(2, 16), 2), torch.ones(2, 1, 4, 4)
    x[1, 0, :3] = 0  # four white pixels: class 0 with probability 1 - C(12, 2) / C(16, 2) = 0.45
    found = g.certify(x, 100, 4000, 0.001, generator=seeded())
    assert found.prediction.tolist() == [0, 1]
    low = bounds.lower_conf_bound(found.counts.gather(1, found.prediction[:, None])[:, 0], 4000,
                                  0.001)  # fmt: skip
    assert found.radius.tolist() == Ablation(2, 16).radius(low).tolist() == [4, 0]
    two = g.certify(x, 100, 4000, 0.001, "two_class", generator=seeded())
    assert two.radius.tolist() == [4, 0]
    at = g.certify_at_radius(x, [1, 3], 0.001, 2000, generator=seeded(1))
    assert at.radius.tolist() == [3, 0]
    assert at.prediction.tolist() == [0, ABSTAIN]
    some = g.certify_anytime(x, 0.5, 0.001, 4000, generator=seeded(2))
    assert some.radius.tolist() == [4, 0]
    assert some.prediction[0] == 0
    assert some.samples[1] < 4000  # no pixel is to be gained there
    with pytest.raises(ValueError, match=r"radius=\[5.\].*Ablation\(keep=2, pixels=16\); expected "
                                         "at most 4"):  # fmt: skip
        g.certify_at_radius(x, 5, 0.001, 2000)


def test_a_radius_of_no_pixels_is_not_an_abstention():
    """Votes that bound p_A just above 1/2, and just below."""
    noise = Ablation(45)
    counts, top = torch.tensor([[530, 470], [560, 440], [9000, 1000]]), torch.zeros(3).long()
    radius, p_a = smoothing.radii(counts[:2], top[:2], 1000, 0.01, noise)
    assert radius.tolist() == [0, 0]
    assert p_a[0] < 0.5 < p_a[1] < noise.needed(1)
    assert smoothing.answered(top[:2], radius, p_a).tolist() == [ABSTAIN, 0]
    radius, p_a = smoothing.radii(counts[2:], top[2:], 10_000, 0.001, noise, "two_class")
    assert radius.tolist() == [8]
    assert smoothing.answered(top[2:], radius, p_a).tolist() == [0]


def test_a_number_is_gaussian_noise():
    g, same = (SmoothedClassifier(halfspace, each, 2) for each in (0.5, Gaussian(0.5)))
    assert g.noise == same.noise == Gaussian(0.5)
    assert g.sigma == same.sigma == 0.5
    x = torch.full((5, 3), 0.2)
    for a, b in zip(*(each.certify(x, 9, 90, 0.1, generator=seeded()) for each in (g, same)),
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)
    assert SmoothedClassifier(halfspace, Ablation(4, 9), 2).sigma is None


@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (2, 16), (2, 16, 1)])
def test_images_of_another_size_are_refused(shape):
    g = SmoothedClassifier(seen_pixels, Ablation(2, 16), 2)
    calls = [lambda x: g.sample_under_noise(x, 5), lambda x: g.predict(x, 5, 0.1),
             lambda x: g.certify(x, 5, 50, 0.1), lambda x: g.certify_at_radius(x, 1, 0.1, 50),
             lambda x: g.certify_anytime(x, 1, 0.1, 50),
             lambda x: Ablation(2, 16)(x, seeded())]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match=r"x=.*of 16 pixels; for others pass Ablation\(2, pix"):
            call(torch.zeros(shape))


def test_wrong_values_are_refused_at_once():
    for kind in ADDED:
        for sigma in (0, -1, math.inf, math.nan, "0.5", None):
            with pytest.raises(ValueError, match=f"^sigma={sigma!r}: expected a finite number abo"):
                kind(sigma)
    for keep in (0, 1.5, "4"):
        with pytest.raises(
            ValueError, match=f"^keep={keep!r}: expected a whole number, at least 1"
        ):
            Ablation(keep)
    with pytest.raises(ValueError, match=r"^keep=785: expected at most pixels=784"):
        Ablation(785)
    assert Ablation(4.0) == Ablation(4, 784)
    with pytest.raises(ValueError, match="or a noise such as Uniform"):
        SmoothedClassifier(halfspace, "uniform", 2)


@pytest.mark.parametrize("noise", [Gaussian(0.25), Uniform(0.5), Laplace(1.0), Ablation(4, 100)])
def test_a_noise_is_made_again_from_its_settings(noise):
    about = noise.settings
    assert noise_from(about | {"n": 100}) == noise
    assert about["norm"] == noise.norm
    with pytest.raises(ValueError, match=r"(sigma|keep): .* noise needs it"):
        noise_from({"noise": about["noise"]})
    with pytest.raises(ValueError, match=r"^noise='salt': expected one of gaussian, uniform, lap"):
        noise_from(about | {"noise": "salt"})
    assert noise_from({"sigma": 0.25}) == Gaussian(0.25)


def test_other_noise_than_the_checkpoints_is_reported():
    network = models.AblationCNN().eval()
    network.__dict__["card"] = {"keep": 45}
    with pytest.warns(UserWarning, match="keep=30: this checkpoint was trained with keep 45"):
        SmoothedClassifier(network, Ablation(30), 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SmoothedClassifier(network, Ablation(45), 10)
