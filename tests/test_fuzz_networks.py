"""Images that a network cannot take, and what the other tests of odd arguments leave out."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from helpers import named, outcome
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_fuzz import BOX, COUNTS, NUMBERS, Flat, labels, pictures

from trustml_helpers import (
    attacks,
    data,
    losses,
    models,
    noise_objectives,
    norms,
    objectives,
    robustness,
    sequential,
    training,
    widgets,
)
from trustml_helpers.diagnosis import diagnose
from trustml_helpers.smoothing import SmoothedClassifier

Y = torch.tensor([1, 2])


def images():
    """As the networks of the course want them, and otherwise: shape, dtype, device, memory."""
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return st.sampled_from(
        [x, x.expand(2, 3, 28, 28), x[..., :27], x.flatten(1), x[:, 0], x.double(), x.half(),
         x.bfloat16(), x.mT, x.repeat(1, 1, 1, 2)[..., ::2], x.to("meta"),
         x.contiguous(memory_format=torch.channels_last)]
    )  # fmt: skip


def networks():
    """The device "meta" holds no numbers, so that it is elsewhere on every machine."""
    kinds = [models.build("LeNet"), models.build("SmallCNN").train(), models.build("WideCNN")]
    odd = [models.build("SmallCNN").double(), models.build("SmallCNN").to("meta")]
    return st.sampled_from([*kinds, *odd])


GENERATOR = torch.Generator()  # of the CPU: "meta" has none


def smooth(model):
    return SmoothedClassifier(model, 0.5, 10)


CALLS = {
    "fgsm": lambda f, x: attacks.fgsm(f, x, Y, 0.1),
    "fgsm_rs": lambda f, x: attacks.fgsm_rs(f, x, Y, 0.1),
    "pgd": lambda f, x: attacks.pgd(f, x, Y, 0.1, steps=1),
    "auto_pgd": lambda f, x: attacks.auto_pgd(f, x, Y, 0.1, steps=2),
    "square": lambda f, x: attacks.square(f, x, Y, 0.1, queries=2),
    "pgd_smoothed": lambda f, x: attacks.pgd_smoothed(f, x, Y, 0.1, 0.5, steps=1, samples=2),
    "predict": lambda f, x: models.predict(f, x),
    "accuracy": lambda f, x: robustness.accuracy(f, x, Y),
    "robust_accuracy": lambda f, x: robustness.robust_accuracy(f, x, Y, lambda f, x, y: x),
    "diagnose": lambda f, x: diagnose(f, x, Y, 0.1, steps=1, queries=2),
    "certify": lambda f, x: smooth(f).certify(x, 2, 20, 0.1, generator=GENERATOR),
    "vote": lambda f, x: smooth(f).predict(x, 20, 0.1, generator=GENERATOR),
    "at_radius": lambda f, x: smooth(f).certify_at_radius(x, 0.5, 0.1, 60, generator=GENERATOR),
    "anytime": lambda f, x: smooth(f).certify_anytime(x, 0.5, 0.1, 60, generator=GENERATOR),
    "fit": lambda f, x: training.fit(f, (x, Y), epochs=1, progress=False),
    "standard": lambda f, x: objectives.standard(f, x, Y),
    "adversarial": lambda f, x: objectives.adversarial(partial(attacks.fgsm, eps=0.1))(f, x, Y),
    "trades": lambda f, x: objectives.trades(0.1, steps=1)(f, x, Y),
    "stability": lambda f, x: noise_objectives.stability(0.5, generator=GENERATOR)(f, x, Y),
    "consistency": lambda f, x: noise_objectives.consistency(0.5, 1, generator=GENERATOR)(f, x, Y),
    "macer": lambda f, x: noise_objectives.macer(0.5, 1, samples=2, generator=GENERATOR)(f, x, Y),
}


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=40)
@given(x=images(), model=networks())
def test_what_a_network_cannot_take(name, x, model):
    weight, flags = next(model.parameters()), [module.training for module in model.modules()]
    assume(not weight.is_meta or not x.is_meta)
    found = outcome(lambda: CALLS[name](model, x), "x", "y", "model", "images")
    fits = x.shape[1:] == (1, 28, 28) and x.dtype == weight.dtype and weight.device == x.device
    assert (found is not None) == fits
    if name != "fit":
        assert [module.training for module in model.modules()] == flags


@pytest.mark.parametrize(("change", "cure"), [
    (lambda x: x.to("meta"), r"on meta .*The model is on cpu: move one of them, model\.to\(x\.dev"),
    (lambda x: x.double(), r"float64 on cpu .*The model is torch\.float32: convert one of them"),
    (lambda x: x[..., 1:], r"\(2, 1, 28, 27\).*shaped like those that it was trained on"),
])  # fmt: skip
def test_the_message_names_the_cure(change, cure):
    with pytest.raises(ValueError, match=cure):
        models.call(models.build("SmallCNN"), change(torch.zeros(2, 1, 28, 28)))


def test_errors_of_the_models_own_stay_what_they_are():
    class Own(RuntimeError):
        pass

    def broken(x):
        raise Own("mine")

    with pytest.raises(Own, match="mine"):
        models.call(broken, torch.zeros(1, 2))


@pytest.mark.parametrize("call", [
    lambda x, y: attacks.pgd(Flat(), x, y, 0.1), lambda x, y: robustness.accuracy(Flat(), x, y),
    lambda x, y: training.fit(Flat(), (x, y), epochs=1, progress=False),
    lambda x, y: diagnose(Flat(), x, y, 0.1),
])  # fmt: skip
def test_labels_on_another_device(call):
    with pytest.raises(ValueError, match=r"y is on meta and x on cpu: move one of them"):
        call(torch.full((2, 4), 0.5), Y.to("meta"))


# --- what the other tests of odd arguments leave out ---------------------------------------------


@settings(max_examples=100)
@given(x=pictures(), y=labels(), eps=NUMBERS, box=BOX)
def test_sign_noise(x, y, eps, box):
    x_adv = named(attacks.sign_noise, model=None, x=x, y=y, eps=eps, bounds=box)
    if x_adv is not None:
        slack = {torch.half: 1e-2, torch.bfloat16: 5e-2}.get(x.dtype, 1e-5)
        assert ((x_adv - x).abs() <= eps * (1 + slack) + slack).all()


LABELS = st.lists(st.integers(-2, 6), min_size=1, max_size=3).map(torch.tensor)


@settings(max_examples=200)
@given(y=LABELS, target=LABELS, classes=st.sampled_from([2, 3, 5]), scale=NUMBERS)
def test_losses(y, target, classes, scale):
    logits = scale * torch.tensor([[0.1, -0.7, 0.4, 0.0, 2.0]])[:, :classes].repeat(2, 1)
    calls = {name: lambda loss=loss: loss(logits, y) for name, loss in losses.LOSSES.items()}
    calls["dlr_targeted"] = lambda: losses.dlr_targeted(logits, y, target)
    for call in calls.values():
        found = outcome(call, "y", "loss", "classes")
        assert found is None or found.shape == (2,)


@given(seed=NUMBERS, number=NUMBERS, count=NUMBERS, alpha=NUMBERS)
def test_streams_and_spending(seed, number, count, alpha):
    found = named(norms.keyed_generator, seed=seed, number=number)
    assert found is None or isinstance(found, torch.Generator)
    found = outcome(lambda: sequential.spending(count, alpha), "count", "alpha")
    assert found is None or (found[-1] == alpha and (found > 0).all())


SPLITS = st.sampled_from(["train", "Test", "", None, 3, "validation"])


@settings(max_examples=30)
@given(split=SPLITS, name=st.sampled_from(["cifar10", "MNIST", "", None, "imagenet"]))
def test_data_sets(tmp_path_factory, split, name):
    found = named(data.load_mnist, split=split)
    assert found is None or len(found[0]) == len(found[1])
    root = tmp_path_factory.mktemp("nothing")
    call = partial(data.torchvision_dataset, name, split, root=root)
    assert outcome(call, "name", "split", "root", re.escape(str(root))) is None
    assert list(root.iterdir()) == []


@settings(max_examples=15)
@given(count=COUNTS, steps=COUNTS, number=NUMBERS, more=NUMBERS)
def test_explorers(count, steps, number, more):
    x, y = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    made = [
        outcome(lambda: widgets.attack_explorer(Flat(), x[: max(count, 0)], y, steps=steps),
                "images", "labels", "steps"),
        named(widgets.radius_explorer, longest=number),
        outcome(lambda: widgets.smoothing_explorer(Flat(), num_classes=count, extent=number),
                "num_classes", "extent", "base_classifier"),
        named(widgets.certification_explorer, alpha=more, sigma=number, most=count),
        outcome(lambda: widgets.danskin_explorer(
            lambda theta, delta: theta * delta, number * torch.arange(4.0), torch.arange(3.0),
            shown=count), "thetas", "deltas", "shown"),
    ]  # fmt: skip
    for explorer in made:
        if explorer is not None:
            assert explorer.says
            assert outcome(lambda e=explorer: e.set(nothing=1), "nothing") is None
