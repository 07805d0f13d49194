"""SAMPLEUNDERNOISE, PREDICT and CERTIFY where the true probabilities are known.

Each statistical test states the probability that it fails although the code is right.
"""

from __future__ import annotations

import gc
import threading
import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from helpers import Awkward, assert_same, snapshot

from trustml_helpers import attacks, bounds, models, sequential, smoothing
from trustml_helpers.smoothing import ABSTAIN, Ablation, Laplace, SmoothedClassifier

Phi = scipy.stats.norm.cdf


def halfspace(x):
    """Class 0 where the first coordinate is positive."""
    return torch.stack([x[:, 0], -x[:, 0]], 1)


def three_classes(x):
    """Class 0 left of 0, class 1 between 0 and 1, class 2 right of 1."""
    z = x[:, 0]
    return torch.stack([-z, torch.minimum(z, 1 - z), z - 1], 1)


def three_class_probabilities(x, sigma):
    cuts = Phi((np.array([0.0, 1.0]) - x) / sigma)
    return np.array([cuts[0], cuts[1] - cuts[0], 1 - cuts[1]])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_counts_add_up_and_have_the_right_law():
    """Class counts of 2,000 images against the exact binomial: chi-square, fails with 1e-6."""
    g = SmoothedClassifier(halfspace, 0.5, 2)
    x = torch.full((2000, 3), 0.3)
    counts = g.sample_under_noise(x, 40, seeded())
    assert counts.dtype == torch.int64
    assert (counts.sum(1) == 40).all()
    cells = np.bincount(counts[:, 0].numpy(), minlength=41)
    expected = 2000 * scipy.stats.binom.pmf(np.arange(41), 40, Phi(0.6))
    wide = expected >= 5
    observed = np.append(cells[wide], cells[~wide].sum())
    wanted = np.append(expected[wide], expected[~wide].sum())
    assert scipy.stats.chisquare(observed, wanted).pvalue > 1e-6


@pytest.mark.parametrize(("n", "batch_size"), [(1, 256), (7, 3), (7, 20), (300, 128), (256, 256)])
def test_every_copy_is_evaluated_once(n, batch_size):
    """Also where the batch does not divide the work; every noise vector is fresh."""
    seen = []

    def spy(x):
        seen.append(x.clone())
        return halfspace(x)

    x = torch.arange(5.0)[:, None].repeat(1, 2)
    counts = SmoothedClassifier(spy, 1e-3, 2).sample_under_noise(x, n, seeded(), batch_size)
    inputs = torch.cat(seen)
    assert max(map(len, seen)) <= batch_size
    assert (counts.sum(1) == n).all()
    assert inputs[:, 0].round().long().bincount().tolist() == [n] * 5
    assert len(torch.unique(inputs)) == 10 * n or n > 100  # float32 noise may repeat in many draws


def test_noise_has_standard_deviation_sigma_and_is_not_clipped():
    """40,000 draws of sigma 0.5: the s.d. leaves +-0.01 with probability 2e-8."""
    seen = []

    def spy(x):
        seen.append(x.clone())
        return halfspace(x)

    x = torch.full((1, 400), 0.95)
    SmoothedClassifier(spy, 0.5, 2).sample_under_noise(x, 100, seeded())
    noise = torch.cat(seen) - 0.95
    assert abs(noise.std() - 0.5) < 0.01
    assert torch.cat(seen).max() > 1


def test_model_and_rng_are_left_as_found(awkward: Awkward):
    x = torch.rand(3, 1, 8, 8, generator=seeded())
    before = snapshot(awkward)
    with pytest.warns(UserWarning, match="training mode"):
        counts = SmoothedClassifier(awkward, 0.1, 3).sample_under_noise(x, 10, seeded())
    assert_same(before, snapshot(awkward))
    assert not counts.is_inference()


def test_same_seed_same_counts():
    g = SmoothedClassifier(halfspace, 1.0, 2)
    x = torch.zeros(20, 2)
    assert torch.equal(
        g.sample_under_noise(x, 50, seeded(1)), g.sample_under_noise(x, 50, seeded(1))
    )
    assert not torch.equal(
        g.sample_under_noise(x, 50, seeded(1)), g.sample_under_noise(x, 50, seeded(2))
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_votes_for_no_class(value):
    def broken(x):
        return torch.where(x[:, :1] > 0, torch.tensor([[value, 0.0]]), halfspace(x))

    g = SmoothedClassifier(broken, 1.0, 2)
    with pytest.warns(RuntimeWarning, match="NaN or infinite"):
        counts = g.sample_under_noise(torch.zeros(4, 2), 100, seeded())
    assert (counts[:, 0] == 0).all()
    with pytest.warns(RuntimeWarning):
        certificates = g.certify(torch.zeros(4, 2), 20, 100, 0.001, generator=seeded())
    assert (certificates.prediction == ABSTAIN).all()


def test_decide_is_the_published_test():
    counts = torch.tensor([[60, 40, 0], [40, 60, 300], [5, 5, 0], [0, 0, 0], [20, 0, 0]])
    for alpha in (0.001, 0.05, 0.2):
        expected = []
        for row in counts.tolist():
            order = np.argsort(row)[::-1]
            a, b = row[order[0]], row[order[1]]
            p = scipy.stats.binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
            expected.append(int(order[0]) if p <= alpha else ABSTAIN)
        assert smoothing.decide(counts, alpha).tolist() == expected


def test_predict_error_is_at_most_alpha():
    """A wrong class at p just below 1/2 (the worst case), 40,000 images, alpha 0.05.

    The exact error is about 0.02; the test fails by chance with probability below 1e-6, and
    would notice an error of 0.06 with probability above 0.99.
    """
    alpha, images = 0.05, 40_000
    g = SmoothedClassifier(halfspace, 1.0, 2)
    x = torch.full((images, 1), -1e-3)  # g(x) is class 1, barely
    predicted = g.predict(x, 60, alpha, generator=seeded())
    wrong = int((predicted == 0).sum())
    assert wrong <= scipy.stats.binom.isf(1e-6, images, alpha)
    assert wrong > 0.2 * alpha * images  # and the test is not vacuous
    assert (predicted == ABSTAIN).float().mean() > 0.9


def test_predict_error_with_three_classes_and_no_majority():
    """Two of three classes nearly tied below one half: class 1 wins by a hair, 40,000 images.

    False alarm below 1e-6; the exact error is about alpha / 2, and a one-sided test, whose error
    is about alpha, would still pass: what is tested is the promise, not its slack.
    """
    alpha, images, sigma = 0.05, 40_000, 0.8
    gap = lambda t: np.subtract(*three_class_probabilities(t, sigma)[[1, 0]])  # noqa: E731
    x = scipy.optimize.brentq(gap, -1.0, 0.5) + 1e-4
    p = three_class_probabilities(x, sigma)
    assert p.argmax() == 1
    assert p[0] < p[1] < 0.5
    g = SmoothedClassifier(three_classes, sigma, 3)
    found = g.predict(torch.full((images, 1), x), 80, alpha, generator=seeded(4), batch_size=2**15)
    wrong = int(((found == 0) | (found == 2)).sum())
    assert wrong <= scipy.stats.binom.isf(1e-6, images, alpha)
    assert wrong > 0.2 * alpha * images


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["one_class", "two_class"])
def test_certify_error_on_a_halfspace(bound):
    """The certified radius exceeds the true one in at most a share alpha of 40,000 images.

    False alarm below 1e-6; an error of 1.2 alpha would be noticed with probability above 0.99.
    """
    alpha, images, distance = 0.05, 40_000, 0.8
    g = SmoothedClassifier(halfspace, 1.0, 2)
    found = g.certify(torch.full((images, 1), distance), 20, 100, alpha, bound, generator=seeded(3))
    false = int(((found.prediction == 0) & (found.radius > distance)).sum())
    false += int((found.prediction == 1).sum())
    assert false <= scipy.stats.binom.isf(1e-6, images, alpha)
    assert false > 0.2 * alpha * images


@pytest.mark.slow
def test_certify_a_halfspace_of_a_photographs_dimension():
    """150,528 coordinates, a normal with all of them: the votes have the exact probability, and no
    radius exceeds the distance. False alarms: 1e-6, and at most 40 alpha = 4e-5."""
    alpha, sigma, shape, n = 1e-6, 0.25, (3, 224, 224), 100
    normal = torch.randn(shape, generator=seeded(1))
    normal /= normal.norm()
    pictures = torch.rand(40, *shape, generator=seeded(2))
    # Moved along the normal until each is at its own distance from the plane.
    distance = torch.linspace(0.05, 0.8, 40)
    along = torch.einsum("nchw,chw->n", pictures, normal)
    pictures += (distance - along)[:, None, None, None] * normal

    def sides(x):
        z = torch.einsum("nchw,chw->n", x, normal)
        return torch.stack([z, -z], 1)

    g = SmoothedClassifier(sides, sigma, 2)
    found = g.certify(pictures, 10, n, alpha, generator=seeded(3))
    votes, p = found.counts[:, 0].numpy(), Phi(distance.numpy() / sigma)
    z = (votes - n * p).sum() / np.sqrt((n * p * (1 - p)).sum())
    assert abs(z) < scipy.stats.norm.isf(0.5e-6)
    assert (found.radius <= distance).all()
    assert (found.radius > 0).sum() > 20


def true_radius(x, sigma, label):
    """Distance at which g leaves ``label``, in one dimension, from exact probabilities."""
    gap = lambda t: (  # noqa: E731
        three_class_probabilities(t, sigma)[label]
        - np.delete(three_class_probabilities(t, sigma), label).max()
    )
    ends = [scipy.optimize.brentq(gap, x, x + s * 3) for s in (-1, 1) if gap(x + s * 3) < 0]
    return min(abs(end - x) for end in ends)


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["one_class", "two_class"])
def test_certify_error_on_three_classes(bound):
    """As above with three classes and p_A below one half: the radius is exceeded with at most
    alpha (false alarm below 1e-6), and only the two-class bound certifies anything much."""
    alpha, images, x, sigma = 0.05, 20_000, 0.5, 0.8
    p = three_class_probabilities(x, sigma)
    assert p.argmax() == 1
    assert p[1] < 0.5
    g = SmoothedClassifier(three_classes, sigma, 3)
    found = g.certify(torch.full((images, 1), x), 100, 400, alpha, bound, generator=seeded(5))
    limit = true_radius(x, sigma, 1)
    false = int((((found.prediction == 1) & (found.radius > limit)) | (found.prediction == 0)
                 | (found.prediction == 2)).sum())  # fmt: skip
    assert false <= scipy.stats.binom.isf(1e-6, images, alpha)
    certified = (found.prediction == 1).float().mean()
    assert (certified > 0.3) if bound == "two_class" else (certified < alpha)


def test_certify_agrees_with_its_own_counts():
    g = SmoothedClassifier(three_classes, 0.5, 3)
    x = torch.tensor([[-1.0], [0.5], [1.2], [0.0]])
    found = g.certify(x, 50, 500, 0.001, generator=seeded())
    for prediction, radius, counts, p_a in zip(*found, strict=True):
        k = counts.max()
        expected = bounds.certified_radius(bounds.lower_conf_bound(int(k), 500, 0.001), 0.5)
        if prediction == ABSTAIN:
            assert radius == 0
        else:
            assert radius == pytest.approx(float(expected))
            assert counts[prediction] == k
            assert p_a < k / 500


def test_selection_samples_are_not_the_estimation_samples():
    seen = []

    def spy(x):
        seen.append(x.clone())
        return halfspace(x)

    SmoothedClassifier(spy, 1.0, 2).certify(torch.zeros(1, 1), 30, 40, 0.01, generator=seeded())
    inputs = torch.cat(seen)
    assert len(inputs) == 70
    assert len(set(inputs[:30, 0].tolist()) & set(inputs[30:, 0].tolist())) == 0


def test_the_class_is_chosen_by_the_selection_samples():
    """A network that changes its mind after 30 images: class 0 is chosen, and gets no votes."""
    asked = []

    def fickle(x):
        asked.extend([len(asked) >= 30] * len(x))
        late = torch.tensor(asked[-len(x) :])
        return torch.stack([1 - late.float(), late.float()], 1)

    found = SmoothedClassifier(fickle, 1.0, 2).certify(torch.zeros(1, 1), 30, 40, 0.01)
    assert found.counts.tolist() == [[0, 40]]
    assert found.prediction.tolist() == [smoothing.ABSTAIN]
    assert found.p_a.tolist() == [0]


def test_a_lost_vote_might_have_been_the_rivals():
    """Ten of 100 votes lost: the bound of the other class is that of 15 votes, not 5."""
    counts, top = torch.tensor([[80, 5, 5]]), torch.tensor([0])
    lost, _ = smoothing.radii(counts, top, 100, 0.01, 1.0, "two_class")
    given, _ = smoothing.radii(torch.tensor([[80, 15, 5]]), top, 100, 0.01, 1.0, "two_class")
    assert lost.tolist() == given.tolist()


def test_two_class_is_never_below_the_one_class_radius_at_its_share():
    counts = torch.tensor([[90, 10, 0], [50, 30, 20], [40, 31, 29], [100, 0, 0]])
    top = torch.zeros(4, dtype=torch.int64)
    two, _ = smoothing.radii(counts, top, 100, 0.01, 1.0, "two_class")
    one, _ = smoothing.radii(counts, top, 100, 0.009, 1.0, "one_class")
    assert (two >= one - 1e-12).all()


def test_empty_batch():
    g = SmoothedClassifier(halfspace, 1.0, 2)
    assert g.predict(torch.zeros(0, 2), 10, 0.1).shape == (0,)
    assert g.certify(torch.zeros(0, 2), 10, 20, 0.1).radius.shape == (0,)


def test_works_with_the_course_networks():
    g = SmoothedClassifier(models.build("LeNet").eval(), 0.25, 10)
    x = torch.rand(2, 1, 28, 28, generator=seeded())
    assert (g.sample_under_noise(x, 5, seeded()).sum(1) == 5).all()


def test_the_smallest_useful_n_is_useful():
    for alpha in (0.001, 0.01, 0.05, 0.5):
        n = int(np.floor(np.log2(1 / alpha))) + 1
        assert bounds.lower_conf_bound(n, n, alpha) > 0.5
        assert bounds.lower_conf_bound(n - 1, n - 1, alpha) <= 0.5 if n > 1 else True


def test_pgd_smoothed_attacks_g_along_the_known_direction():
    """On a half-space the best l2 attack on g goes straight to the border."""
    x, y = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.long)
    x_adv = attacks.pgd_smoothed(halfspace, x, y, 0.2, 0.3, bounds=None, steps=10, samples=16,
                                 generator=seeded())  # fmt: skip
    expected = x - 0.2 * torch.tensor([1.0, 0, 0, 0])
    assert torch.allclose(x_adv, expected, atol=1e-3)


def test_certify_at_radius_errs_as_rarely_as_its_plan_says():
    """Images exactly on the edge of the radius: the share certified is the exact error of the plan.

    40,000 images; false alarm 2e-6 (both sides); an error of 1.3 alpha would be noticed with
    probability above 0.99.
    """
    alpha, images, distance = 0.05, 40_000, 1.0
    g = SmoothedClassifier(halfspace, 1.0, 2)
    x = torch.full((images, 1), distance)
    found = g.certify_at_radius(
        x, distance, alpha, 300, n0=40, generator=seeded(1), batch_size=2**15
    )
    plan = sequential.plan([scipy.stats.norm.cdf(distance)], alpha, sequential.looks(300))
    false = int(found.certified.sum())
    assert plan.error[0] <= alpha
    assert false <= scipy.stats.binom.isf(1e-6, images, plan.error[0])
    # Giving up early, which is not binding, loses a little of it.
    assert false >= scipy.stats.binom.ppf(1e-6, images, 0.9 * plan.error[0])
    assert (found.prediction[found.certified] == 0).all()


def test_a_grid_of_radii_in_one_run_needs_no_correction():
    """A share above alpha of images with too large a radius: false alarm below 1e-6."""
    alpha, images, distance = 0.05, 20_000, 0.7
    g = SmoothedClassifier(halfspace, 1.0, 2)
    grid = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2]
    found = g.certify_at_radius(torch.full((images, 1), distance), grid, alpha, 400, n0=40,
                                generator=seeded(2), batch_size=2**15)  # fmt: skip
    assert int((found.radius > distance).sum()) <= scipy.stats.binom.isf(1e-6, images, alpha)
    assert set(found.radius.tolist()) <= {0.0, *grid}
    assert (found.radius >= 0.4).float().mean() > 0.9
    assert torch.equal(found.certified, found.radius > 0)
    assert torch.equal(found.prediction == ABSTAIN, ~found.certified)


def test_certify_at_radius_stops_when_the_answer_is_clear():
    seen = []

    def spy(x):
        seen.append(len(x))
        return halfspace(x)

    g = SmoothedClassifier(spy, 0.5, 2)
    x = torch.tensor([[3.0], [0.5], [0.01], [-3.0]])
    found = g.certify_at_radius(x, 0.48, 0.001, 20_000, generator=seeded())
    assert found.samples.sum() == sum(seen)
    assert found.certified.tolist() == [True, found.certified[1].item(), False, True]
    assert found.prediction[[0, 2, 3]].tolist() == [0, ABSTAIN, 1]
    clear, narrow, hopeless, _ = found.samples.tolist()
    assert max(clear, hopeless) < 400 < 10_000 < narrow <= 20_100


def test_the_n_max_that_the_sentence_names_is_enough():
    g = SmoothedClassifier(halfspace, 1.0, 2)
    with pytest.raises(ValueError, match="; n_max=41 is enough"):
        g.certify_at_radius(torch.zeros(1, 1), 1.0, 0.001, 10)
    g.certify_at_radius(torch.zeros(1, 1), 1.0, 0.001, 41)


@pytest.mark.slow
def test_certify_anytime_errs_rarely():
    """2,000 images at a known distance; more than 20 % of false radii would be a fault. More than
    490 have a probability below 1e-6 even if the error were all of alpha."""
    distance, alpha = 0.3, 0.2
    g = SmoothedClassifier(halfspace, 1.0, 2)
    x = torch.full((2000, 1), distance)
    found = g.certify_anytime(x, 0.05, alpha, 3000, n0=40, generator=seeded(1), batch_size=2**15)
    false = (found.prediction == 0) & (found.radius > distance) | (found.prediction == 1)
    assert 0 < int(false.sum()) <= 490
    assert torch.equal(found.prediction == ABSTAIN, found.radius == 0)


@pytest.mark.parametrize("share", [1.0, 0.95, 0.0])
def test_certify_anytime_stops_when_little_can_be_gained(share):
    """Votes that are not random: a share of them, always the same, for the selected class."""
    seen, gain, n_max, sigma = 0, 0.1, 50_000, 0.5

    def f(x):
        nonlocal seen
        vote = torch.arange(seen - 20, seen - 20 + len(x))
        seen += len(x)
        mine = (vote < 0) | (vote % 20 < 20 * share)
        return torch.stack([mine.float(), 1 - mine.float()], 1)

    g = SmoothedClassifier(f, sigma, 2)
    found = g.certify_anytime(torch.zeros(1, 1), gain, 0.001, n_max, n0=20, generator=seeded())
    assert int(found.samples) == seen
    for size in sequential.looks(n_max):
        k = np.sum(np.arange(size) % 20 < 20 * share)
        lower = sequential.anytime_lower_bound(k, size, 0.001)
        best = sequential.best_case_bound(k, size, n_max, 0.001)
        now, hope = bounds.certified_radius([lower, best], sigma)
        if hope - now <= gain:
            break
    assert int(found.samples) == size + 20 < n_max
    assert float(found.radius) == pytest.approx(float(now))
    assert int(found.prediction) == (0 if share else ABSTAIN)


def test_training_mode_is_reported_and_given_back():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(2, 2))
    g = SmoothedClassifier(model, 0.1, 2)
    x = torch.tensor([[3.0, 1.0]])
    with pytest.warns(UserWarning, match="training mode"):
        found = g.sample_under_noise(x, 50, seeded())
    assert model[1].training
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(g.sample_under_noise(x, 50, seeded()), found)


def test_another_sigma_than_the_checkpoints_is_reported():
    model = models.load("mnist_lenet_gaussian_0.5")
    with pytest.warns(UserWarning, match=r"sigma=0.25: this checkpoint was trained with sigma 0.5"):
        SmoothedClassifier(model, 0.25, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SmoothedClassifier(model, 0.5, 10)
        SmoothedClassifier(model, Laplace(0.5), 10)
        SmoothedClassifier(models.load("mnist_smallcnn_standard"), 0.5, 10)
    with pytest.warns(
        UserWarning, match=r"Ablation\(keep=45, pixels=784\): this checkpoint was trai"
    ):
        SmoothedClassifier(model, Ablation(45), 10)
    with pytest.warns(UserWarning, match=r"Gaussian\(sigma=0.5\): this checkpoint .* with keep 45"):
        SmoothedClassifier(models.load("mnist_ablation_45"), 0.5, 10)


@pytest.mark.parametrize(("n", "alpha"), [(3, 0.5), (20, 0.001), (101, 0.05), (400, 0.001)])
def test_abstention_probability_adds_up_all_outcomes(n, alpha):
    k = torch.arange(n + 1)
    answers = smoothing.decide(torch.stack([k, n - k], 1), alpha).numpy()
    for p in (0.5, 0.55, 0.8, 1.0):
        expected = scipy.stats.binom.pmf(k.numpy(), n, p)[answers != 0].sum()
        assert smoothing.abstention_probability(p, n, alpha) == pytest.approx(expected, abs=1e-12)


def test_abstention_at_the_edges():
    """Two votes of two have a p-value of exactly 1/2; three votes can never reach 0.001."""
    assert smoothing.abstention_probability(1.0, 2, 0.5) == 0
    assert smoothing.abstention_probability(0.9, 2, 0.5) == pytest.approx(1 - 0.81)
    assert smoothing.abstention_probability(0.9, 3, 0.001) == 1
    assert smoothing.samples_needed(1.0, 0.5) == 2


def test_samples_needed():
    for p, alpha, share in ((0.9, 0.001, 0.01), (0.6, 0.001, 0.1), (1.0, 0.05, 0.5)):
        n = smoothing.samples_needed(p, alpha, share)
        assert smoothing.abstention_probability(p, n, alpha) <= share
        assert smoothing.abstention_probability(p, n - 1, alpha) > share if n > 1 else True


@pytest.mark.parametrize(("images", "n", "batch_size"), [(3, 5, 2), (3, 2, 5), (1, 70, 32)])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_noise_is_that_of_the_generator_in_order(images, n, batch_size, threads, monkeypatch):
    """Drawn ahead on another thread, and yet batch by batch what a plain loop would draw."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    seen = []

    def f(x):
        seen.append(x.clone())
        return halfspace(x.flatten(1))

    x = torch.rand(images, 4, 8, generator=seeded())
    SmoothedClassifier(f, 0.5, 2).sample_under_noise(x, n, seeded(1), batch_size)
    generator, expected = seeded(1), []
    together, copies = max(1, batch_size // n), min(n, batch_size)
    for few in x.split(together):
        for part in torch.arange(n).split(copies):
            noise = torch.empty(len(few), len(part), 4, 8).normal_(0, 0.5, generator=generator)
            expected.append((noise + few[:, None]).flatten(0, 1))
    assert len(seen) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_an_error_of_the_network_ends_the_drawing(monkeypatch):
    def f(x):
        raise ArithmeticError("mine")

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    before = threading.active_count()
    with pytest.raises(ArithmeticError, match="mine"):
        SmoothedClassifier(f, 0.5, 2).sample_under_noise(torch.zeros(1, 2), 1000, seeded(), 10)
    gc.collect()
    assert threading.active_count() == before


@pytest.mark.parametrize("n", [1, 7, 101])
@pytest.mark.parametrize("shape", [(1,), (3,), (1, 5, 5), (1, 28, 28)])
def test_the_noise_does_not_depend_on_the_batch_size(shape, n):
    """Also where an image has no multiple of 16 numbers, by which PyTorch draws them."""
    seen = []

    def spy(x):
        seen.append(x.clone())
        return torch.zeros(len(x), 2)

    x = torch.zeros(5, *shape)
    streams = []
    for batch_size in (1, 3, 64, 10_000):
        g = seeded(1)
        SmoothedClassifier(spy, 0.5, 2).sample_under_noise(x, n, g, batch_size)
        streams.append((torch.cat(seen), g.get_state()))
        seen.clear()
    assert all(torch.equal(s, streams[0][0]) for s, _ in streams)
    assert all(torch.equal(state, streams[0][1]) for _, state in streams)


@pytest.mark.parametrize("alpha", [0.05, 0.001, 1e-6, 1e-310])
@pytest.mark.parametrize("bound", ["one_class", "two_class"])
def test_the_smallest_n_of_either_bound_certifies(bound, alpha):
    g = SmoothedClassifier(lambda x: torch.eye(2)[torch.zeros(len(x), dtype=torch.long)], 1.0, 2)
    with pytest.raises(ValueError, match="use at least n=") as refused:
        g.certify(torch.zeros(1, 2), 10, 1, alpha, bound)
    smallest = int(str(refused.value).rsplit("=", 1)[1])
    assert g.certify(torch.zeros(1, 2), 10, smallest, alpha, bound).radius[0] > 0
    with pytest.raises(ValueError, match="use at least n="):
        g.certify(torch.zeros(1, 2), 10, smallest - 1, alpha, bound)


def test_whole_numbers_may_be_floats():
    g, x = SmoothedClassifier(halfspace, 1.0, 2), torch.ones(2, 2)
    whole, same = (g.predict(x, n, 0.01, generator=seeded()) for n in (100, 1e2))
    assert torch.equal(whole, same)


def convolutions():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3),
            torch.nn.Flatten(), torch.nn.Linear(8 * 16, 4),
        ).eval()  # fmt: skip


def layout(model):
    return [(p.data_ptr(), p.stride()) for p in model.parameters()]


def test_a_plain_call_runs_in_the_fast_layout_and_gives_the_network_back():
    model, seen = convolutions(), []
    model[2].register_forward_hook(lambda module, *_: seen.append(module.weight.stride()))
    before, x = layout(model), torch.rand(2, 3, 8, 8, generator=seeded())
    counts = SmoothedClassifier(model, 0.5, 4).sample_under_noise(x, 100, seeded())
    assert seen
    assert set(seen) == {(72, 1, 24, 8)}  # channels_last
    assert layout(model) == before
    # The same votes as the network gives as it is, but for the last digits of its logits.
    plain = smoothing.prepare(SmoothedClassifier(model, 0.5, 4), smoothing.Execution(64), x)
    assert plain.settled
    assert (plain.sample_under_noise(x, 100, seeded()) - counts).abs().sum() <= 2


def test_the_layout_is_given_back_after_an_error():
    model = convolutions()
    model.append(torch.nn.Linear(5, 4)).eval()
    before = layout(model)
    with pytest.raises(ValueError, match="cannot take images"):
        SmoothedClassifier(model, 0.5, 4).predict(torch.rand(1, 3, 8, 8), 10, 0.1)
    assert layout(model) == before


def test_a_network_that_was_prepared_runs_as_it_was_prepared():
    model, seen = convolutions(), []
    model[2].register_forward_hook(lambda module, *_: seen.append(module.weight.stride()))
    x = torch.rand(1, 3, 8, 8)
    g = smoothing.prepare(SmoothedClassifier(model, 0.5, 4), smoothing.Execution(64), x)
    g.sample_under_noise(x, 10, seeded())
    assert set(seen) == {(72, 9, 3, 1)}


@pytest.mark.parametrize(
    ("shape", "batch"),
    [((1, 28, 28), 512), ((3, 32, 32), 128), ((3, 224, 224), 8), ((2,), 512), ((0,), 512)],
)
def test_the_batch_suits_the_size_of_an_image(shape, batch):
    sizes = []

    def model(x):
        sizes.append(len(x))
        return torch.zeros(len(x), 3)

    SmoothedClassifier(model, 1.0, 3).sample_under_noise(torch.zeros(1, *shape), 2 * batch)
    assert sizes == [batch, batch]


def test_certify_anytime_keeps_the_best_bound_of_all_looks(monkeypatch):
    """All votes right in the small first samples, half of them later."""

    def votes(self, x, n, generator=None, batch_size=None):
        share = n if n <= 100 else n // 2
        return torch.tensor([[share, n - share]]).repeat(len(x), 1)

    monkeypatch.setattr(SmoothedClassifier, "sample_under_noise", votes)
    g = SmoothedClassifier(lambda x: x.flatten(1), 1.0, 2)
    assert g.certify_anytime(torch.zeros(1, 2), 1e-9, 0.001, 2000).radius[0] > 0.9
