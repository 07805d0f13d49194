"""Arguments are declared once: every sentence of every declaration, and the decorator itself.

The table is made from the declarations: each value that a rule calls wrong is given to each
function that has the rule, and must end in its sentence before anything is done.
"""

from __future__ import annotations

import doctest
import inspect
import math
import sys
import types

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from strategies import CALLS, FUNCTIONS, MODULES, PACKAGE, X, Y, public, same, traces
from torch import nn

from trustml_helpers._support.arguments import (
    DECLARED,
    Rule,
    declared,
    each,
    function,
    kind,
    maybe,
    number,
    numbers,
    one_of,
    shown,
    trusted,
    whole,
    wholes,
)
from trustml_helpers.smoothing import Ablation, Execution, SmoothedClassifier

pytestmark = pytest.mark.filterwarnings("ignore:.*training mode")


@pytest.fixture(autouse=True)
def no_pictures():
    yield
    plt.close("all")


# --- every declared function ----------------------------------------------------------------------


def test_every_declared_function_has_a_call():
    assert len(MODULES) > 45  # else nothing below says anything
    assert len(FUNCTIONS) > 80
    assert set(CALLS) == set(FUNCTIONS)


SLOW = {"data.torchvision_dataset"}  # it imports torchvision: in test_data.py
SLOW |= {name for name in CALLS if name.startswith("widgets.")}  # drawn at once: in test_fuzz.py


KNOWN = sorted(CALLS.keys() & FUNCTIONS.keys())


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in SLOW])
def test_the_valid_call_works_and_leaves_what_it_is_given(name, tmp_path):
    valid = CALLS[name](tmp_path)
    tensors = [each for each in valid.values() if isinstance(each, torch.Tensor)]
    copies, state = [each.clone() for each in tensors], torch.get_rng_state()
    training = getattr(valid.get("model"), "training", None)
    FUNCTIONS[name](**valid)
    assert all(map(torch.equal, tensors, copies))
    assert torch.equal(torch.get_rng_state(), state)
    if "model" in valid and name != "training.loop.fit":
        assert {module.training for module in valid["model"].modules()} == {training}
        assert valid["model"].weight.grad is None


@pytest.fixture
def fresh(tmp_path):
    """An empty folder at each call."""

    def make():
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return folder

    return make


@pytest.mark.parametrize("name", KNOWN)
def test_a_wrong_value_ends_in_its_sentence_before_any_work(name, fresh):
    call = FUNCTIONS[name]
    for argument, rule in call.rules.items():
        assert rule.wrong, f"{argument} has no wrong value to try"
        for value in rule.wrong:
            valid = CALLS[name](folder := fresh())
            before = traces(valid, folder)
            with pytest.raises(rule.error) as caught:
                call(**valid | {argument: value})
            assert type(caught.value) is rule.error
            assert str(caught.value) == f"{argument}={shown(value)}: expected {rule.expected}"
            assert caught.value.__context__ is None  # one sentence, not two errors
            assert traces(valid, folder) == before


# What the arguments of a name refuse and take in every function, written by hand: a declaration
# that lets in too much would not know it. By values refused, values taken, names.
NAN, INF = math.nan, math.inf
DATA = torch.zeros(2, 3)
BY_HAND = [
    ([0, 1, -0.1, 1.1, NAN], [1e-9, 0.999], "alpha top"),
    ([[0.5, 1], [0.0], [], 0.5], [[1e-4, 0.5]], "alphas"),
    ([-0.1, 1.1, NAN], [0.6],
     "clean_share momentum p p_a p_a_lower p_b p_b_upper share warm window"),
    ([0, 1, [0.6, 0.5], [0.5, 0.5], [], NAN], [0.5, [0.5, 0.6]], "p_null"),
    ([0, -1, NAN, INF], [1e-6, 1, 1e6], "extent gain longest peak width"),
    ([-0.1, NAN, INF, "1"], [0.5, 1], "eps eta gamma lam sigma"),
    ([-0.1, NAN, INF], [0, 0.5], "beta distance radius step_size"),
    ([1, 0.5, NAN, INF], [1.25], "growth"),
    ([NAN, INF, "here", None], [0, -1, 2.5], "a at b edges envelope mean t theta"),
    ([[1, 0], [0, 0], [NAN], []], [[0], [-1, 2.5]], "edges"),
    ([[0.5, 0.6], [1.5, -0.5], [NAN], []], [[0.5, 0.5]], "grid_mass_at_x grid_mass_at_x_delta"),
    ([NAN, "one"], [0, [0.5, INF]], "radii"),
    ([[1, 0.5], [0], [-1, 0], []], [[5, 9]], "sizes"),
    ([-1, 0.5, NAN, INF, "3"], [0, 3, 1e3], "k label number row seed success targets"),
    ([-1, 0.5, NAN], [3], "steps"),
    ([0, -1, 1.5, NAN, INF, "3"], [1, 7.0, np.int64(9)],
     "batch_size count dimension draws epochs every first largest limit more n n0 n_max queries "
     "restarts samples shown size votes"),
    ([0, 1, 2.5, NAN], [2, 1e2], "num_classes points"),
    ([19, 20.5, NAN], [20], "most"),
    ([[-1], [0.5], [], 3], [[2, 0]], "indices numbers"),
    (["l3", "L2", 2], ["linf", "l2", "l1"], "norm"),
    (["hinge", None, 3], ["cross_entropy", "margin", "dlr", len], "loss"),
    (["worst", None], ["best", "first"], "keep"),
    (["both", 1], ["one_class", "two_class"], "bound"),
    (["rows", 3], ["contiguous", "channels_last"], "layout"),
    (["int8", torch.half], ["float32", "bfloat16"], "dtype"),
    (["float16", None], ["float32", "bfloat16"], "precision"),
    (["holdout", "Test"], ["train", "test"], "split"),
    (["svhn", "MNIST"], ["mnist", "cifar10", "imagenet"], "name"),
    (["lenet", "VGG"], ["LeNet", "SmallCNN"], "architecture"),
    ([["nonsense"], "macer", []], [["macer", "gaussian"]], "methods"),
    ([[0], [-1], 0.5, []], [[0.25, 1]], "sigmas"),
    (["nonsense"], ["macer"], "recipe"),
    ([(1, 0), (0, 0), (NAN, 1), ("0", "1"), 1], [(0, 1), (-2.5, 2.5), None], "bounds span"),
    ([None, 3, [[0.5]], DATA.numpy()], [DATA], "images logits x"),
    ([None, 3, [0, 1], DATA.numpy()], [Y], "labels target y"),
    ([3, [[0.5]], DATA.numpy(), DATA.long()], [DATA, None], "start"),
    ([3, [[0.5]], DATA.numpy()], [DATA, None], "noise"),
    ([None, 3], [DATA > 0], "correct"),
    ([0, 42, "seed", np.random.default_rng(0)], [torch.Generator()], "generator"),
    ([[[5, 5]], DATA, -Y[None], Y, Y[None, :1]], [Y[None]], "counts"),
    ([3, None, {"": len}, {"clean": len}, ["clean"]], [], "attacks"),
    ([3, "pgd", [len, 3]], [len], "attack"),
    ([None, 3, "net"], [len], "base_classifier denoiser model objective teacher weights"),
    ([1, -0.1, NAN], [0, 0.9, None], "average"),
    ([3, "net"], [len, None], "classifier"),
    ([None, (X, Y[:2]), (X[:0], Y[:0]), (X, Y.tolist()), (X.numpy(), Y)], [(X, Y)], "train"),
    ([0, -1, (X, Y[:2]), (X[:0], Y[:0]), (X, Y.tolist())], [], "validation"),
    ([None, nn.Identity()], [], "smoothed"),
    ([{"x": X}, {"x": {1}}, 17, None], [{}, {"eps": 0.1}], "about"),
    ([{"x": X}, {"x": {1}}, 17], [{}, {"data": "mnist"}, None], "origin"),
    ([Execution(0), Execution(layout="rows"), Execution(dtype="int8"), None],
     [Execution(), Execution(9, "channels_last", "bfloat16")], "execution"),
    ([[], {}, None], [[[0]], {"a": [1]}], "accuracies columns panels rows shares"),
    ([None, "plot", 3], [], "figure"),
    (["", "plot", None], ["A line that rises to one."], "alt"),
    ([None, [0.0, 1.0], torch.arange(3), DATA], [torch.arange(3.0)], "deltas thetas"),
]  # fmt: skip
# Where one name means two things, or none of its values fits all.
APART = {
    "figures.lessons.norm_balls.steps": ([{}, []], [{"l2": (1, 0)}]),
    "figures.lessons.tie.slopes": ([{}, []], [{"a": 1.0}]),
    "figures.lessons.tie.steps": ([{}, []], [{"s": (1, 0)}]),
    "figures.general.bars.values": ([{}, []], [{"a": [3, 1]}]),
    "figures.lessons.rungs.printed": ([[NAN], [INF], ["a"], None], [[0.5, 0.25]]),
    "figures.lessons.rungs.ladders": ([{}, None], [{"a": [0.5]}]),
    "figures.lessons.rungs.unit": ([0, -1, NAN, INF], [0.001]),
    "figures.smoothing.certified.norm": (["linf", "L2", 2], ["l2", "l1", "l0"]),
    "figures.general.pictures.images": ([[], None], [[[X[0]]]]),
    "smoothing.classifier.SmoothedClassifier.certify_at_radius.radius": (
        [0, -1, NAN, INF, [], [1, 1], [2, 1], [[1]]], [0.5, [0.5, 1]]),
    "objectives.noisy.noise": ([None, 3, "net"], [len]),
    "smoothing.votes.abstention_probability.p_a": ([0.4, 1.1, NAN], [0.5, 1]),
    "smoothing.votes.samples_needed.p_a": ([0.5, 1.1, NAN], [0.6, 1]),
    "theory.halfspace_probability.distance": ([NAN, INF], [-0.1, 0, 2]),
    "models.Denoised.__init__.classifier": ([None, 3], [len]),
    "models.Grouped.__init__.model": ([None, 3], [nn.Identity(), len]),
    "models.Grouped.__init__.groups": ([[0.5], [-1], 3, []], [[0, 1], [0]]),
    "training.loop.fit.model": ([None, nn.Linear, len], [nn.Identity()]),
    "widgets.attack_explorer.largest": ([0, -1, NAN, INF], [0.01, 0.3]),
}  # fmt: skip
# Noise of no size is none, where a network is to be smoothed by it.
WITHOUT_NOISE = {
    "bounds.certified_radius", "bounds.two_class_radius", "objectives.consistency",
    "objectives.gaussian", "objectives.macer", "objectives.stability", "cli.train._plan",
}  # fmt: skip


def verdicts(rule, values):
    """Which of the values a rule takes."""
    taken = []
    for value in values:
        try:
            rule("it", value)
            taken.append(value)
        except rule.error:
            pass
    return taken


def by_hand(name, argument):
    if found := APART.get(f"{name}.{argument}"):
        return found
    refused, taken, _ = next(each for each in BY_HAND if argument in each[2].split())
    if argument == "sigma":
        return ([*refused, 0], taken) if name not in WITHOUT_NOISE else (refused, [*taken, 0])
    return refused, taken


@pytest.mark.parametrize("name", KNOWN)
def test_declarations_let_in_what_they_should(name):
    for argument, rule in FUNCTIONS[name].rules.items():
        refused, taken = by_hand(name, argument)
        for value in refused:
            assert verdicts(rule, [value]) == [], f"{argument}={shown(value)} is let in"
        for value in taken:
            assert len(verdicts(rule, [value])) == 1, f"{argument}={shown(value)} is refused"


# What is taken as it is: whatever it is, it is either called, read as true or false, or shown; or
# it goes on to a function that says what it may be.
AS_IT_IS = {
    "model", "models", "self", "path", "checkpoint", "root", "log", "progress", "resume",
    "compiled", "download", "targeted", "random_start", "clip_start", "smoothed", "image",
}  # fmt: skip
ALONE = {
    "_support.randomness.keyed_generator": {"device"},
    "attacks.gradient.fgsm_rs": {"x", "y", "step_size", "bounds", "loss", "generator"},  # to pgd
    "attacks.gradient.pgd_smoothed": {"rest"},  # to pgd
    "certification.log.read_log": {"path"},
    "robustness.diagnosis.diagnose": {"attack"},  # to robust_correct
    "sequential.replay": {"plan", "rng"},
    "smoothing.votes.radii": {"top"},  # a relation says what it may be
    "training.loop.fit": {
        "objective", "attacks", "best", "optimizer", "scheduler", "generators", "about"},
    "widgets.attack_explorer": {"names"},
    "widgets.danskin_explorer": {"loss"},
    "cli.certify.plot": {"logs", "output"},
    "cli.inputs.indices": {"length"},
    "cli.plan.steps": {"folder", "prefix", "execution"},
    "cli.train._plan": {"epochs"},  # to fit
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_every_argument_is_declared(name):
    """Or stands above; of a figure, what is drawn may be anything that can be drawn."""
    if name.startswith("figures."):
        return
    open_ = set(inspect.signature(FUNCTIONS[name]).parameters) - set(FUNCTIONS[name].rules)
    assert open_ - AS_IT_IS == ALONE.get(name, set()) - AS_IT_IS


# What none of the arguments shows alone. By relation: what to change in a valid call, what is said.
FAR, HOLES, TWO = 255 * X, X / 0 * 0, Y[:2]
META = Y.to("meta")
MISFITS = {
    "_support.tensors.labels_are_classes": [
        ({"y": TWO}, r"y=.*one label per row"), ({"y": Y + 100}, "labels 100 to 102"),
        ({"y": Y - 100}, "labels -100 to -98.*expected 0 to")],
    "_support.tensors.one_label_each": [
        ({"y": TWO}, r"y=.*\(2,\).*one label per image"), ({"y": META}, "y is on meta and x on")],
    "models._one_group_each": [({"groups": [0, 2]}, r"groups: expected numbers 0, 1, \.\.\.")],
    "attacks.gradient._fits_in_l2": [
        ({"y": TWO}, "one label per image"), ({"y": META}, "y is on meta"),
        ({"x": FAR}, r"x lies in .*outside bounds=\(0, 1\)"), ({"x": HOLES}, "x lies in")],
    "attacks.gradient._noise_fits": [
        ({"noise": X[:, :1]}, r"noise: expected .*\(3, 2, 4, 4\)"),
        ({"noise": X[:2, None]}, "noise: expected a set for each of 3 images, got 2"),
        ({"noise": X[:, None]}, "noise: a set per image needs keep='last'"),
        ({"noise": X[:, None], "batch_size": 1}, "batch_size: a set of noise per image")],
    "attacks.gradient._starts_fit": [
        ({"restarts": 2, "keep": "last"}, "restarts=2: with keep='last'"),
        ({"restarts": 2, "start": X}, "restarts=2: with a given start"),
        ({"start": X[:2]}, r"start: expected shape \(3, 2, 4, 4\)"),
        ({"clip_start": False}, "clip_start=False: needs keep='last'"),
        ({"clip_start": False, "keep": "last", "steps": 0}, "clip_start=False: .*one step")],
    "attacks.strong._one_kind_of_target": [
        ({"targets": 2, "targeted": True}, "targets=2: with targeted=True the class is y")],
    "attacks.search.fits": [
        ({"eps": 2.0}, r"eps=2.0 is larger .*bounds=\(0, 1\).*8 / 255"),
        ({"y": TWO}, "one label per image"), ({"y": META}, r"y is on meta.*y\.to\(x\.device\)"),
        ({"x": FAR}, r"x lies in .*outside bounds=\(0, 1\).*bounds=None"),
        ({"x": HOLES}, "x lies in"), ({"x": HOLES, "bounds": None}, "x: expected finite values")],
    "bounds.at_most_n": [({"k": 10}, "k=10: expected at most n=9"),
                         ({"k": [1, 10]}, r"k=\[ 1 10\]: expected at most n=9")],
    "certification.audit._stated_together": [({"alpha": 0.01}, "alpha=0.01, n=None: .*both"),
                                             ({"n": 100}, "alpha=None, n=100: .*both")],
    "certification.run._labelled": [({"labels": TWO}, "one label per image")],
    "certification.run._numbers_fit": [
        ({"indices": [1, 1]}, "indices: expected each at most once"),
        ({"numbers": [1, 1, 2]}, "numbers: expected each at most once"),
        ({"numbers": [1]}, "numbers: expected one for each of 3 images, got 1"),
        ({"images": X[:0], "labels": Y[:0]}, "images is empty"),
        ({"indices": [0, 3]}, "indices=3: expected 0 to 2")],
    "data._parts_not_empty": [({"labels": TWO}, "differ in length: 3 and 2"),
                              ({"validation": 3}, "validation=3: expected 1 to 2")],
    "figures.general._bars_fit": [({"values": {"a": [1]}}, "values: 'a' has 1 for 2 groups")],
    "figures.general._class_of_all": [({"label": 3}, "label=3: expected a class from 0 to 2")],
    "figures.general._lines_fit": [
        ({"panels": [("x", [0, 1, 2], {"a": [0, 1]})]}, "panels: 'a' has 2 for 3 values of x"),
        ({"titles": ["a", "b"]}, "titles has 2 for 1 panels")],
    "figures.general._not_empty": [({"table": pd.DataFrame()}, "table is empty")],
    "figures.general._texts_fit": [
        ({"images": [[X[0]], []]}, r"images\[1\]=\[\]: expected at least one image"),
        ({"titles": [["a"], ["b"]]}, "titles has 2 for 1 rows"),
        ({"titles": [["a", "b"]]}, r"titles\[0\] has 2 for 1 images"),
        ({"row_names": ["a", "b"]}, "row_names has 2 for 1 rows")],
    "figures.lessons._known_norms": [({"steps": {"l3": (1, 0)}}, "steps: 'l3' is no norm")],
    "figures.smoothing._all_told_apart": [
        ({"panels": {"t": [[-1, 0], [1, 0]]}}, "panels: 't' holds classes -1 to 1")],
    "figures.smoothing._as_long_as_radii": [
        ({"panels": {"t": {0.5: ([0, 1], [1])}}},
         "panels: 't', sigma 0.5, has 1 for 2 radii"),
        ({"points": {"t": {0.5: ([0], [1, 0])}}},
         "points: 't', sigma 0.5, has 2 for 1 radii")],
    "figures.smoothing._bounds_have_bars": [
        ({"bounds": {7: ("b", 0.5)}}, "bounds: class 7 has no share, expected 0 to 1")],
    "figures.smoothing._one_per_radius": [
        ({"certified": [1]}, "certified has 1 for 2 radii"),
        ({"attacked": [1]}, "attacked has 1 for 2 radii")],
    "figures.smoothing._told_apart": [
        ({"classes": [[9, 0], [1, 0]]}, "classes holds classes 0 to 9, expected 0 to 4")],
    "robustness.evaluation.not_empty": [({"x": X[:0], "y": Y[:0]}, "x is empty")],
    "robustness.log._one_number_each": [
        ({"labels": TWO}, "one label per image"),
        ({"numbers": [1]}, "numbers: expected one for each of 3 images, at least one, got 1"),
        ({"images": X[:0], "labels": Y[:0]}, "one for each of 0 images, at least one")],
    "sequential._one_boundary_each": [({"success": [2]}, r"success=.*one for each of 2 sizes")],
    "sequential._room_to_go_on": [({"n_max": 8}, "n_max=8: expected at least n=9")],
    "sequential._votes_fit": [({"n": 99}, "n=99: expected at least the plan's 100"),
                              ({"k": [101]}, r"k=\[101\]: expected at most n=100"),
                              ({"row": 2}, "row=2: expected 0 to 1")],
    "smoothing.classifier._can_be_told_apart": [
        ({"radius": 5.0}, "radius=.*expected at most 4"),
        ({"radius": [0.1, 0.1 + 1e-17 + 2e-17]}, "radius="),
        ({"radius": 0.5, "n_max": 1}, "n_max=1: .*; n_max=14 is enough")],
    "smoothing.classifier._fit_the_noise": [
        ({"self": SmoothedClassifier(same(), Ablation(2, 9), 3)},
         r"x=.*expected images \(n, C, \.\.\.\) of 9 pixels; .*Ablation\(2, pixels=...\)")],
    "smoothing.votes._classes_and_n": [
        ({"top": torch.tensor([3])}, "top=.*one of 3 classes for each image"),
        ({"top": torch.tensor([1.0])}, "top=.* as a whole number"),
        ({"top": torch.tensor([0, 1])}, "top="), ({"n": 94}, "n=94: expected at least the votes")],
    "smoothing.votes.enough": [({"n": 2}, "n=2: even 2 equal votes .*use at least n=4"),
                               ({"n": 4, "alpha": 0.01}, "use at least n=7")],
    "theory._not_too_large": [({"radius": 1e6}, "radius=1000000.0: expected at most 50000")],
    "theory._same_grid": [({"grid_mass_at_x": [1.0]}, "grid_mass_at_x and .*differ in shape")],
    "training.loop._can_be_told": [
        ({"attacks": {"a": same()}, "validation": None}, r"pass validation=\(x, y\)"),
        ({"best": "errors"}, "best='errors': expected one of 'loss', 'error'"),
        ({"best": "error", "validation": None}, "best='error': expected one of 'loss'"),
        ({"train": (X, Y + 1)}, "train: y holds labels 1 to 3, but the model has 3 classes"),
        ({"validation": (X, Y - 1)}, "validation: y holds labels -1 to 1")],
    "widgets._of_mnist_size": [
        ({"images": X}, r"images: expected \(n, 1, 28, 28\), got \(3, 2, 4, 4\)")],
    "widgets._one_label_each": [({"labels": TWO}, "images, labels: .*got 3 and 2"),
                                ({"images": X[:0], "labels": Y[:0]}, "at least one, got 0")],
}  # fmt: skip


def key(relation):
    return f"{relation.__module__}.{relation.__qualname__}".removeprefix(f"{PACKAGE}.")


RELATIONS = [
    pytest.param(name, relation, id=f"{name}-{relation.__name__}")
    for name in KNOWN for relation in FUNCTIONS[name].relations
]  # fmt: skip


def test_every_relation_has_a_misfit():
    assert {key(each.values[1]) for each in RELATIONS} == set(MISFITS)


@pytest.mark.parametrize(("name", "relation"), RELATIONS)
def test_what_does_not_fit_together_is_refused_before_any_work(name, relation, fresh):
    for changes, words in MISFITS[key(relation)]:
        valid = CALLS[name](folder := fresh())
        before = traces(valid, folder)
        with pytest.raises(ValueError, match=words) as caught:
            FUNCTIONS[name](**valid | changes)
        assert relation.__code__ in [entry.frame.code.raw for entry in caught.traceback]
        if key(relation) != "training.loop._can_be_told":  # which asks the network for its classes
            assert traces(valid, folder) == before


# --- nothing is left out --------------------------------------------------------------------------

# Public functions without a declaration, and why.
UNDECLARED = {
    "relations and rules of declarations": {
        "attacks.fits", "attacks.threat", "bounds.at_most_n", "smoothing.enough"},
    "checks what it is given in its own words, tested where it lives": {
        "attacks.check_attacked", "certification.average_certified_radius",
        "certification.summary", "certification.vote_counts", "data.to_tensors",
        "models.EfficientNetLite0.forward", "models.Denoised.forward",
        "models.Denoiser.forward", "models.Grouped.forward", "models.card",
        "models.load", "models.save", "robustness.read_attack_log",
        "smoothing.Ablation.check", "smoothing.Noise.check", "smoothing.noise_from",
        "widgets.Explorer.set"},
    "reads a folder, whose name is all that it is given": {
        "certification.draw_study", "certification.mismatch", "certification.study_curves",
        "certification.summarise"},
    "no arguments, or a network, a tensor or numbers that are looked at as they are": {
        "attacks.columns", "attacks.is_fooled",
        "attacks.log_mean_softmax", "certification.fingerprint",
        "data.course_folder", "data.data_folder",
        "data.load_groups", "data.load_photos",
        "models.AblationCNN.forward",
        "models.available", "models.checkpoint_folder",
        "smoothing.answered", "smoothing.as_given", "training.catastrophic_overfitting",
        "widgets.Explorer.figure"},
    "in the inner loop of votes, behind their declarations": {"smoothing.Noise.copies"},
    "in the inner loop of attacks, behind their declarations": {
        "attacks.Goal.ascend", "attacks.Goal.evaluate", "attacks.Goal.fooled",
        "attacks.Goal.logits"},
    "a recipe is checked as what it makes": {
        "training.Recipe.objective", "training.Recipe.scheduler"},
}  # fmt: skip


def test_every_public_function_is_declared_or_says_why_not():
    found = dict(public())
    assert len(found) > 100
    known = {id(each) for each in FUNCTIONS.values()}
    open_ = {name for name, each in found.items() if id(each) not in known}
    assert open_ == set().union(*UNDECLARED.values())


# --- the decorator --------------------------------------------------------------------------------


def recorded(*relations, **rules):
    """A function of three arguments that returns what it was given."""

    @declared(*relations, **rules)
    def called(a, b=2, *, c=None):
        """Its words."""
        return a, b, c

    return called


@pytest.fixture(autouse=True)
def registry():
    """What a test declares is forgotten after it."""
    known = dict(DECLARED)
    yield
    DECLARED.clear()
    DECLARED.update(known)


def test_the_function_gets_what_the_rules_make_of_it():
    called = recorded(a=number("[0, inf)"), b=whole(), c=maybe(numbers("[0, 1]")))
    a, b, c = called(1, 1e3, c=[0, 1])
    assert (type(a), type(b), c.dtype) == (float, int, np.float64)
    assert (a, b, c.tolist()) == (1.0, 1000, [0.0, 1.0])
    assert called(np.float32(0.5)) == (0.5, 2, None)
    assert called(b=1, a=0) == (0.0, 1, None)


def test_what_has_no_rule_is_passed_on_as_it_is():
    thing = object()
    assert recorded(b=whole())(thing, c=thing) == (thing, 2, thing)


def test_relations_see_what_was_converted_and_the_defaults():
    seen = []
    called = recorded(lambda c, a: seen.append((a, c)), lambda b: seen.append(b), a=whole())
    called(1e1)
    assert seen == [(10, None), 2]
    assert type(seen[0][0]) is int


def test_rules_come_before_relations_and_both_before_the_function():
    done = []

    def relation(a, b):
        done.append("relation")
        if a > b:
            raise ValueError(f"a={a}: expected at most b={b}")

    @declared(relation, a=whole(), b=whole())
    def called(a, b=2):
        done.append("called")

    with pytest.raises(ValueError, match=r"^b=-1: expected a whole number, at least 0$"):
        called(3, -1)
    assert done == []
    with pytest.raises(ValueError, match=r"^a=3: expected at most b=2$"):
        called(3)
    assert done == ["relation"]
    called(2)
    assert done == ["relation", "relation", "called"]


def test_a_wrong_call_ends_in_pythons_own_words():
    called = recorded(a=whole())
    with pytest.raises(TypeError, match=r"called\(\) got an unexpected keyword argument 'd'"):
        called(1, d=3)
    with pytest.raises(TypeError, match=r"called\(\) missing 1 required positional argument: 'a'"):
        called()


def test_a_rule_or_relation_of_no_argument_is_an_error_of_the_author():
    with pytest.raises(TypeError, match="has no argument z"):
        recorded(z=whole())
    called = recorded(lambda z: None)
    with pytest.raises(TypeError, match="'z'"):
        called(1)


def test_a_declared_function_looks_like_itself():
    called = recorded(a=whole())
    assert called.__name__ == "called"
    assert called.__doc__ == "Its words."
    assert str(inspect.signature(called)) == "(a, b=2, *, c=None)"
    assert DECLARED[f"{__name__}.{called.__qualname__}"] is called
    assert called.rules.keys() == {"a"}
    assert called.relations == ()


def test_doctests_of_declared_functions_are_found():
    module = types.ModuleType("elsewhere")
    sys.modules["elsewhere"] = module
    code = (
        "from trustml_helpers._support.arguments import declared, whole\n"
        "@declared(a=whole())\ndef half(a):\n    '''\n    >>> half(4)\n    2.0\n    '''\n"
        "    return a / 2\n"
    )
    try:
        exec(compile(code, "elsewhere", "exec"), module.__dict__)
        tests = [test for test in doctest.DocTestFinder().find(module) if test.examples]
        assert [test.name for test in tests] == ["elsewhere.half"]
        assert doctest.DocTestRunner(verbose=False).run(tests[0]).failed == 0
    finally:
        del sys.modules["elsewhere"]


def test_trusted_passes_over_the_declaration():
    called = recorded(a=whole())
    assert trusted(called)("anything") == ("anything", 2, None)
    assert trusted(len) is len


def test_methods_are_declared_as_functions_are():
    class Thing:
        @declared(lambda self, a: seen.append((self, a)), a=whole(1))
        def method(self, a):
            return a

    seen, thing = [], Thing()
    assert thing.method(3.0) == 3
    assert seen == [(thing, 3)]
    with pytest.raises(ValueError, match=r"^a=0: expected"):
        thing.method(0)


# --- rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "inside", "words"), [
    ("[0, 1]", [0, 0.5, 1], "a number from 0 to 1"),
    ("(0, 1)", [0.5], "a number strictly between 0 and 1"),
    ("[0, 1)", [0, 0.5], "a number at least 0 and below 1"),
    ("(0, 1]", [0.5, 1], "a number above 0 and at most 1"),
    ("[0, inf)", [0, 0.5, 1, 2], "a finite number of at least 0"),
    ("(0, inf)", [0.5, 1, 2], "a finite number above 0"),
    ("[0, inf]", [0, 0.5, 1, 2, INF], "a number of at least 0"),
    ("(-inf, inf)", [-1, 0, 0.5, 1, 2], "a finite number"),
    ("[-inf, inf]", [-INF, -1, 0, 0.5, 1, 2, INF], "a number"),
])  # fmt: skip
def test_the_edges_of_intervals(interval, inside, words):
    tried = [-INF, -1, 0, 0.5, 1, 2, INF, NAN, "1", "one", b"1", None, [0.5, 1], object()]
    for value in number(interval).wrong:
        assert verdicts(number(interval), [value]) == []
    assert verdicts(number(interval), tried) == inside
    assert number(interval).expected == words
    assert number(interval, "in pixel units").expected == f"{words}, in pixel units"
    arrays = numbers(interval)
    assert verdicts(arrays, tried[:10]) == inside
    assert verdicts(arrays, [inside]) == [inside]
    assert verdicts(arrays, [[*inside, NAN], [*inside, "one"]]) == []
    assert arrays.expected == words.removeprefix("a ").replace("number", "numbers")


def test_a_number_becomes_a_float_and_numbers_an_array():
    for value in (1, np.int64(1), np.float32(1), torch.tensor(1), True, np.array(1)):
        found = number("[0, 1]").read(value)
        assert (type(found), found) == (float, 1.0)
    found = numbers("[0, 1]").read(torch.tensor([[0, 1]]))
    assert (found.dtype, found.tolist()) == (np.float64, [[0.0, 1.0]])
    assert numbers("[0, 1]").read([]).shape == (0,)
    assert numbers("[0, 1]").read(0.5).shape == ()


def test_whole_numbers():
    for value in (3, 3.0, np.int64(3), np.float64(3), torch.tensor(3), np.uint8(3)):
        found = whole(0).read(value)
        assert (type(found), found) == (int, 3)
    assert whole(0).read(1e3) == 1000
    assert whole(0).read(2**63 - 1) == 2**63 - 1  # exactly, not by way of a float
    assert verdicts(whole(0), [2**63, 1e300, 0.5, NAN, INF, -1, "3", b"3", None, 1j, [3, 4]]) == []
    assert verdicts(whole(1, 5), [0, 1, 5, 6]) == [1, 5]
    assert whole(1).expected == "a whole number, at least 1"
    assert whole(1, 5).expected == "a whole number from 1 to 5"


def test_arrays_of_whole_numbers():
    found = wholes(0).read([1e3, 2])
    assert (found.dtype, found.tolist()) == (np.int64, [1000, 2])
    assert wholes(1).read(np.uint8(7)).tolist() == 7
    wrong = [0.5, NAN, INF, [0, -1], "3", ["3"], None, [[1], [0.5]], 1e300, np.uint64(2**63)]
    assert verdicts(wholes(0), wrong) == []
    assert wholes(1, "votes").expected == "whole numbers of at least 1, votes"


def test_names():
    assert verdicts(one_of("a", "b"), ["a", "b", "c", None, len, 0]) == ["a", "b"]
    assert one_of("a", "b").expected == "'a' or 'b'"
    assert one_of("a", "b", "c").expected == "one of 'a', 'b', 'c'"
    either = one_of("a", "b", function=True)
    assert verdicts(either, ["a", "c", len]) == ["a", len]
    assert either.expected == "'a' or 'b', or a function"
    assert verdicts(one_of("a"), [np.array(["a", "a"]), torch.zeros(2)]) == []


def test_kinds_and_functions():
    rule = kind("a tensor", torch.Tensor, nn.Module)
    assert rule.error is TypeError
    assert len(verdicts(rule, [X, nn.Identity(), 3, None])) == 2
    assert kind("a tensor", torch.Tensor, error=ValueError).error is ValueError
    assert verdicts(function("x -> y"), [len, None, "len", nn.Identity]) == [len, nn.Identity]
    assert function("x -> y").expected == "a function x -> y"


def test_none_may_be_let_in():
    rule = maybe(whole(1))
    assert rule.read(None) is None
    assert rule.read(2.0) == 2
    assert verdicts(rule, [0, None, 1]) == [None, 1]
    assert rule.expected == "a whole number, at least 1, or None"
    assert None not in rule.wrong
    assert verdicts(rule, rule.wrong) == []


def test_several_of_them():
    rule = each(whole(1), least=2)
    assert rule.read((1.0, 2)) == [1, 2]
    assert rule.read(range(1, 3)) == [1, 2]
    assert rule.read(np.array([1, 2])) == [1, 2]
    assert verdicts(rule, [[1], [0, 1], "12", 12, None, []]) == []
    assert verdicts(each(whole(1), least=0), [[]]) == [[]]
    assert rule.expected == "a list of at least 2, each a whole number, at least 1"


@pytest.mark.parametrize("rule", [
    number("(0, 1)"), numbers("(0, 1)"), whole(1), whole(0, 3), wholes(1), one_of("a", "b"),
    kind("a tensor", torch.Tensor), function("x"), maybe(whole()), each(whole()),
], ids=lambda rule: rule.expected)  # fmt: skip
def test_a_rule_refuses_what_it_calls_wrong(rule):
    assert rule.wrong
    for value in rule.wrong:
        with pytest.raises(rule.error) as caught:
            rule("it", value)
        assert str(caught.value) == f"it={shown(value)}: expected {rule.expected}"
        assert caught.value.__context__ is None


def test_an_error_of_another_kind_is_not_swallowed():
    def broken(value):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Rule("anything", broken)("it", 1)


@pytest.mark.parametrize(("value", "words"), [
    (0.1, "0.1"), (np.float64(0.1), "0.1"), (np.int64(3), "3"), ("a", "'a'"), (None, "None"),
    (np.array([1, 2]), "[1 2]"), (np.arange(99), "[ 0  1  2 ... 96 97 98]"),
    (X, "(torch.float32 of shape (3, 2, 4, 4))"), ([1, 2], "[1, 2]"),
    (np.array(["a"]), "(<U1 of shape (1,))"), ("a" * 99, "(builtins.str)"),
])  # fmt: skip
def test_how_a_value_is_shown(value, words):
    assert shown(value) == words
