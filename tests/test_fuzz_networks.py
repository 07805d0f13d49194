"""Images that a network cannot take, and what the other tests of odd arguments leave out."""

from __future__ import annotations

import importlib
import inspect
import io
import pkgutil
import re
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from helpers import named, outcome
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_fuzz import BOX, COUNTS, NUMBERS, WHOLE, Flat, labels, pictures

import trustml_helpers
from trustml_helpers import (
    attacks,
    data,
    execution,
    figures,
    losses,
    models,
    noise_objectives,
    norms,
    objectives,
    robustness,
    sequential,
    smoothing_figures,
    study,
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


@given(seed=NUMBERS, number=NUMBERS, count=WHOLE, alpha=NUMBERS)
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


VALUES = st.lists(st.floats(width=32), max_size=4)


@settings(max_examples=60)
@given(x=VALUES, y=VALUES, z=VALUES, logx=st.booleans(), logy=st.booleans(), n=st.integers(0, 2))
def test_figures(x, y, z, logx, logy, n):
    """What they are given may hold NaN and infinity, but it must be there, and fit."""
    panels = [("x", x, {"y": y, "z": z})] * n
    drawn = [
        outcome(lambda: figures.curves(panels, "y", logx=logx, logy=logy, ylim=None), "panels")
    ]
    drawn.append(outcome(lambda: figures.matrix(pd.DataFrame([y] * n)), "table"))
    drawn.append(outcome(lambda: figures.pictures([[torch.rand(1, 2, 2)]] * n), "images"))
    drawn.append(outcome(lambda: smoothing_figures.certified(x, {"y": y}), "panels"))
    for figure in filter(None, drawn):
        figure.savefig(io.BytesIO())
    plt.close("all")


@settings(max_examples=40)
@given(layout=st.sampled_from(["contiguous", "channels_last", "rows", None]), model=networks(),
       dtype=st.sampled_from(["float32", "bfloat16", "int8", None]), batch_size=COUNTS)  # fmt: skip
def test_execution(layout, dtype, batch_size, model):
    assume(not next(model.parameters()).is_meta)
    x = torch.rand(1, 1, 28, 28, dtype=next(model.parameters()).dtype)
    names = ["layout", "dtype", "batch_size"]
    how = {"batch_size": batch_size, "layout": layout, "dtype": dtype, "largest": 64}
    found = outcome(lambda: execution.search(smooth(model.eval()), x, **how), *names)
    if found is not None:
        assert found.batch_size >= 1
        prepared = execution.prepare(smooth(model.eval()), found, x)
        assert prepared.sample_under_noise(x, 3).sum() == 3


@settings(max_examples=60)
@given(name=st.text(max_size=12), about=st.dictionaries(st.text(max_size=3), st.floats()))
def test_checkpoints(tmp_path_factory, name, about):
    """A name that is no checkpoint; a card that holds anything JSON can say."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with pytest.raises((models.CheckpointError, ValueError)):
        models.load(folder / name.replace("\0", "").replace("/", "_"))
    about.pop("path", None)
    card = outcome(lambda: models.save(models.build("SmallCNN"), folder / "net", **about), "about")
    if card is not None:
        assert models.fingerprint(models.load(folder / "net.safetensors"))
        assert models.card(folder / "net.json").keys() == card.keys()


@pytest.mark.parametrize("look", [
    lambda folder: study.summarise(folder), lambda folder: study.mismatch(folder, 0.5),
    lambda folder: study.curves(folder, [0.5], n=10), lambda folder: study.draw(folder),
])  # fmt: skip
@pytest.mark.parametrize("name", ["nothing.txt", "x_0.5_n10.tsv", "gaussian_n10.tsv",
                                  "gaussian_0.5_nx.tsv", "gaussian_0.5_n10.tsv"])  # fmt: skip
def test_studies_of_odd_folders(tmp_path, look, name):
    (tmp_path / name).write_text("this is no log\n")
    found = outcome(lambda: look(tmp_path), "folder", "gaussian", name.partition(".tsv")[0])
    assert found is None or len(found) == 0


@given(fgsm=NUMBERS, pgd=NUMBERS)
def test_flags(fgsm, pgd):
    found = training.catastrophic_overfitting(fgsm, pgd)
    assert found == (fgsm >= 0.5 and pgd < fgsm / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("rows", [0, 1, 4096, 4097])
def test_digests_tell_data_apart(dtype, rows):
    """By numbers, dtype, shape and order, and not by how they lie in memory."""
    x = torch.arange(2 * rows).view(2, rows).T.to(dtype)
    known = models.digest(x)
    assert models.digest(x.contiguous()) == known
    others = [x.view(torch.int32) if dtype == torch.float32 else x.double(), x.reshape(-1)]
    if rows:
        others.append(x.clone())
        others[-1][-1, -1] = 1 - others[-1][-1, -1].long()
    found = {known, *map(models.digest, others), models.digest(x, x)}
    assert len(found) == len(others) + 2


# --- and nothing is left out ---------------------------------------------------------------------

# Fixed arguments, or none; what only checks or passes on; what the tests of another file fuzz.
NOT_FUZZED = {
    "attack_checks", "checking", "checks", "curve_checks", "smoothing_checks", "masked",  # homework
    "homework", "cli", "cli_homework", "cli_inputs", "cli_smoothing", "cli_study",  # test_cli.py,
    "cli_training", "processes", "files", "resume", "logs", "recipes",  # and their own
}  # fmt: skip
HELPERS = {
    "unchanged", "available", "checkpoint_folder", "data_folder", "raw_bytes", "given_or_fresh",
    "draw", "columns", "named", "is_fooled", "usable", "log_mean_softmax", "mean_cross_entropy",
    "logits_of", "progress_bar",
    "styled", "filled", "show", "as_given", "load_photo", "standing", "votes_for",
    # figures of one fixed shape, drawn by the notebooks and test_figures.py
    "perturbations", "norm_balls", "loss_surface", "danskin", "shifted_densities", "plane",
    "regions", "vote", "sandwich",
}  # fmt: skip


def test_every_public_function_is_fuzzed():
    files = sorted(Path(__file__).parent.glob("test_fuzz*.py"))
    text = "\n".join(path.read_text() for path in files).partition("NOT_FUZZED = {")[0]
    missing = []
    for module in pkgutil.iter_modules(trustml_helpers.__path__):
        if module.name in NOT_FUZZED:
            continue
        inside = importlib.import_module(f"trustml_helpers.{module.name}")
        for name, value in vars(inside).items():
            ours = inspect.isfunction(value) and value.__module__ == inside.__name__
            public = ours and not name.startswith(("_", "check")) and name not in HELPERS
            if public and not re.search(rf"\b{name}\b", text):
                missing.append(f"{module.name}.{name}")
    assert missing == []
