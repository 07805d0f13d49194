"""The checklist: honest models pass, models masked on purpose are flagged by name."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from trustml_helpers import attacks, data, models, robustness
from trustml_helpers.robustness import diagnosis

QUICK = {"steps": 10, "queries": 150}


@pytest.fixture(scope="module")
def digits():
    return tuple(part[:150] for part in data.load_mnist("test"))


class Wrapped(nn.Module):
    """The standard network with something before or after it."""

    def __init__(self, before=lambda z: z, after=lambda z: z):
        super().__init__()
        self.network = models.load("mnist_smallcnn_standard")
        self.before, self.after = before, after

    def forward(self, z):
        return self.after(self.network(self.before(z)))


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "eps"), [("mnist_smallcnn_standard", 0.15), ("mnist_smallcnn_adversarial", 0.3)]
)
def test_honest_models_pass(digits, name, eps):
    model = models.load(name)
    report = robustness.diagnose(model, *digits, eps, steps=20, queries=150, generator=seeded())
    assert report.passed, str(report)
    assert report.flagged == []
    assert {finding.name for finding in report.findings} == {
        "number of images", "nan logits", "randomness", "probabilities", "differentiable",
        "zero gradient",
        "single step", "more steps", "other loss", "growing eps", "random noise",
        "gradient-free attack",
    }  # fmt: skip
    right = robustness.accuracy(model, *digits)
    assert report.accuracy["clean"] == pytest.approx(right)
    assert max(report.accuracy.values()) <= right


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("l2", 1.0), ("l1", 6.0)])
def test_other_norms(digits, norm, eps):
    model = models.load("mnist_smallcnn_standard")
    report = robustness.diagnose(model, *digits, eps, norm=norm, steps=20, queries=100,
                                 generator=seeded())  # fmt: skip
    assert report.passed, str(report)


MASKED = {
    "saturated logits": (
        Wrapped(after=lambda z: 1000 * z),
        {"zero gradient", "other loss", "growing eps", "gradient-free attack"},
    ),
    "quantised input": (
        Wrapped(before=lambda z: (4 * z).round() / 4), {"zero gradient", "gradient-free attack"}
    ),
    "thresholded input": (
        Wrapped(before=lambda z: (z > 0.5).float()), {"differentiable", "gradient-free attack"}
    ),
    "random noise layer": (Wrapped(before=lambda z: z + 0.5 * torch.randn_like(z)), {"randomness"}),
    "softmax output": (Wrapped(after=lambda z: z.softmax(1)), {"probabilities"}),
    "broken logits": (
        Wrapped(after=lambda z: z.masked_fill(z > 15, float("nan"))), {"nan logits"}
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKED)
def test_masked_models_are_flagged_by_name(digits, name):
    model, expected = MASKED[name]
    before = torch.get_rng_state()
    report = robustness.diagnose(model, *digits, 0.3, generator=seeded(), **QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    assert not report.passed
    assert expected <= set(report.flagged), str(report)
    assert "FLAG" in str(report)
    assert all(flag in str(report).splitlines()[-1] for flag in report.flagged)


@pytest.mark.slow
def test_a_blind_attack_of_the_user_is_flagged(digits):
    """An honest model, but the result in question came from an attack that does nothing."""
    model = models.load("mnist_smallcnn_standard")
    report = robustness.diagnose(
        model, *digits, 0.2, attack=lambda model, x, y: x, generator=seeded(), **QUICK
    )
    expected = {"single step", "more steps", "other loss", "gradient-free attack"}
    assert expected <= set(report.flagged)
    # Its own figure: nothing but the clean accuracy.
    assert report.accuracy["attack"] == report.accuracy["clean"]


@pytest.mark.slow
def test_a_weak_attack_of_one_step_is_flagged(digits):
    report = robustness.diagnose(
        models.load("mnist_smallcnn_standard"), *digits, 0.1,
        attack=partial(attacks.fgsm, eps=0.1), generator=seeded(), **QUICK,
    )  # fmt: skip
    assert "more steps" in report.flagged


def test_tolerance_grows_for_few_examples():
    x = torch.rand(25, 4, generator=seeded())
    evidence = diagnosis._Evidence(lambda z: z, x, x.argmax(1), 10)
    assert evidence.tolerance() == pytest.approx(3 * 0.5 / 5)
    many = torch.rand(10_000, 4, generator=seeded())
    evidence = diagnosis._Evidence(lambda z: z, many, many.argmax(1), 5000)
    assert evidence.tolerance() == 0.05


def test_what_so_few_images_cannot_tell():
    """With 9 even a difference of all of them is no 3 standard errors, sqrt(9)."""

    def said(n):
        x = torch.rand(n, 4, generator=seeded())
        found = diagnosis._enough(diagnosis._Evidence(lambda z: z, x, x.argmax(1), 100))
        return found.passed, found.detail

    cure = "; use at least 225 images, with which differences of 10 points count"
    none = "fewer than 10 images cannot tell any difference of accuracies from chance"
    assert said(5) == (False, f"5: {none}{cure}")
    assert said(9) == (False, f"9: {none}{cure}")
    assert said(10) == (True, f"10: differences below 47 points do not count{cure}")
    assert said(225) == (True, "225: differences below 10 points do not count")


def test_without_bounds_and_with_misread_examples():
    x = torch.randn(60, 4, generator=seeded())
    y = x.argmax(1)
    y[:6] = (y[:6] + 1) % 4  # misread: accuracies are over all 60
    report = robustness.diagnose(lambda z: z, x, y, 0.1, bounds=None, generator=seeded(), **QUICK)
    assert report.passed
    assert report.accuracy["clean"] == pytest.approx(0.9)
    assert "growing eps" not in {finding.name for finding in report.findings}


def test_labels_that_are_no_classes(digits):
    x, y = digits
    with pytest.raises(ValueError, match="labels 0 to 9"):
        robustness.diagnose(lambda z: z.flatten(1)[:, :5], x, y, 0.1)


def test_noise_that_beats_the_gradient_is_flagged():
    """Wrong everywhere but in a small cube, whose inside has no slope towards its border."""

    def model(z):
        far = (z.flatten(1) - 0.5).abs().amax(1) > 1e-3
        score = torch.where(far, -1.0, 1.0)
        return torch.stack([score + 0 * z.flatten(1).sum(1), 0 * score], 1)

    x, y = torch.full((40, 1, 4, 4), 0.5), torch.zeros(40, dtype=torch.long)
    blind = partial(attacks.pgd, eps=0.3, steps=3, random_start=False, keep="first")
    report = robustness.diagnose(model, x, y, 0.3, attack=blind, queries=20, generator=seeded())
    assert not {each.name: each for each in report.findings}["random noise"].passed


@pytest.mark.parametrize("model", [
    lambda z: torch.cat([1 + z[:, :1], -z[:, :1]], 1),  # add up to 1, one is below 0
    lambda z: torch.cat([5 + z[:, :1], z[:, 1:2]], 1),  # above 0, and do not add up to 1
])  # fmt: skip
def test_logits_that_are_nearly_probabilities_are_none(model):
    x, y = torch.rand(40, 3, generator=seeded()), torch.zeros(40, dtype=torch.long)
    report = robustness.diagnose(model, x, y, 0.1, queries=5, steps=2, generator=seeded())
    assert {each.name: each for each in report.findings}["probabilities"].passed
