"""Odd input that is valid: the result is right, whatever its shape, dtype, place or size.

What is refused, and in which words, is in support/test_arguments.py.
"""

from __future__ import annotations

import inspect
import io
import math
import re
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import strategies as odd
import torch
from helpers import outcome
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import CALLS, FUNCTIONS, Flat, X, Y, arguments, public, seeded

from trustml_helpers import (
    attacks,
    bounds,
    figures,
    models,
    objectives,
    robustness,
    sequential,
    smoothing,
    theory,
    training,
    widgets,
)
from trustml_helpers.smoothing import Ablation, Laplace, SmoothedClassifier, Uniform

pytestmark = [
    pytest.mark.slow,  # hundreds of examples of each kind
    pytest.mark.filterwarnings("ignore:.*training mode"),
    pytest.mark.filterwarnings("ignore:.*returned NaN"),
]

# --- attacks and evaluation -----------------------------------------------------------------------


def fits(x_adv, x, eps, norm, box):
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    if box is not None and x.numel():
        assert x_adv.min() >= box[0]
        assert x_adv.max() <= box[1]
    size = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    moved = torch.linalg.vector_norm((x_adv.double() - x.double()).flatten(1), size, dim=1)
    assert (moved <= eps * (1 + 1e-5)).all()


ATTACKS = {
    "fgsm": attacks.fgsm,
    "pgd": partial(attacks.pgd, steps=2),
    "first": partial(attacks.pgd, steps=2, keep="first", restarts=2),
    "last": partial(attacks.pgd, steps=2, keep="last", momentum=0.9),
    "auto_pgd": partial(attacks.auto_pgd, steps=3),
    "square": partial(attacks.square, queries=3),
}
IN_ONE_NORM = {
    "fgsm_rs": (attacks.fgsm_rs, "linf"),
    "sign_noise": (attacks.sign_noise, "linf"),
    "pgd_smoothed": (partial(attacks.pgd_smoothed, sigma=0.5, steps=2, samples=2), "l2"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@settings(max_examples=50)
@given(**odd.THREAT, loss=st.sampled_from(["cross_entropy", "margin", "dlr"]))  # fmt: skip
def test_attacks(attack, x, y, model, eps, norm, box, loss):
    was, more = model.training, {} if attack == "square" else {"loss": loss}
    x_adv = ATTACKS[attack](model, x, y[: len(x)], eps, norm=norm, bounds=box, **more)
    assert model.training == was
    fits(x_adv, x, eps, norm, box)


@pytest.mark.parametrize("attack", IN_ONE_NORM)
@settings(max_examples=40)
@given(**odd.CASE, eps=odd.SIZE, box=odd.BOX)
def test_attacks_in_one_norm(attack, x, y, model, eps, box):
    call, norm = IN_ONE_NORM[attack]
    fits(call(model, x, y[: len(x)], eps, bounds=box), x, eps, norm, box)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", ATTACKS)
@settings(max_examples=20)
@given(seed=st.integers(0, 1000), eps=st.sampled_from([0.1, 0.3, 0.5, 1.0]),
       dtype=st.sampled_from(odd.PRECISIONS[:3]), box=st.sampled_from([(0, 1), None]))  # fmt: skip
def test_attacks_stay_in_the_ball_in_every_precision(attack, norm, seed, eps, dtype, box):
    """Where rounding a pixel is coarse and there are many of them."""
    x = torch.rand(3, 2, 12, 12, generator=seeded(seed)).to(dtype)
    fits(ATTACKS[attack](Flat(), x, Y, eps, norm=norm, bounds=box), x, eps, norm, box)


@settings(max_examples=30)
@given(**odd.THREAT, classes=st.sampled_from([2, 3, 10]))
def test_suite(x, y, model, eps, norm, box, classes):
    """The number of classes says how many targets there are at most; the network has three."""
    for attack in attacks.suite(eps, norm=norm, bounds=box, num_classes=classes, steps=2,
                                queries=2).values():  # fmt: skip
        x_adv = outcome(lambda attack=attack: attack(model, x, y[: len(x)]), "classes", "targets")
        if x_adv is not None:
            fits(x_adv, x, eps, norm, box)


@settings(max_examples=80)
@given(**odd.CASE, batch_size=st.sampled_from([1, 2, 3, 1e2]),
       attack=st.sampled_from(sorted(odd.ATTACKS)))  # fmt: skip
def test_evaluation(x, y, model, batch_size, attack):
    assume(len(x))
    call = {"x": x, "y": y[: len(x)], "batch_size": batch_size}
    one, names = odd.ATTACKS[attack], ["attack", "attacks", attack]
    share = robustness.accuracy(model, **call)
    right = robustness.correct(model, **call)
    assert (right.dtype, right.shape) == (torch.bool, (len(x),))
    assert share == right.double().mean()
    assert models.predict(model, x, batch_size=batch_size).shape == (len(x),)
    hit = outcome(lambda: robustness.targeted_success(model, attack=one, **call), *names)
    assert hit is None or 0 <= hit <= 1
    robust = outcome(lambda: robustness.robust_accuracy(model, attack=one, **call), *names)
    assert robust is None or 0 <= robust <= share
    kept = outcome(lambda: robustness.robust_correct(model, attack=[one, one], **call), *names)
    assert kept is None or not (kept & ~right).any()
    fell = outcome(lambda: robustness.broken_by(model, attacks={attack: one}, **call), *names)
    assert fell is None or [name == "" for name in fell] == kept.tolist()
    table = outcome(lambda: robustness.attack_matrix({"net": model}, {attack: one}, **call), *names)
    assert table is None or table.loc["net", "worst case"] == robust


@settings(max_examples=15)
@given(**odd.THREAT)
def test_diagnosis(x, y, model, eps, norm, box):
    assume(len(x))
    found = robustness.diagnose(model, x, y[: len(x)], eps, norm=norm, bounds=box, steps=1,
                                queries=1, batch_size=2)  # fmt: skip
    assert str(found)
    assert all(0 <= share <= 1 for share in found.accuracy.values())


@settings(max_examples=40)
@given(y=st.tuples(st.integers(0, 4), st.integers(0, 4)).map(torch.tensor),
       dtype=st.sampled_from(odd.PRECISIONS), scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30])
       )  # fmt: skip
def test_losses(y, scale, dtype):
    logits = (scale * torch.tensor([[0.1, -0.7, 0.4, 0.0, 2.0]])).repeat(2, 1).to(dtype)
    assume(logits.isfinite().all())
    found = [loss(logits, y) for loss in attacks.LOSSES.values()]
    for loss in (*found, attacks.dlr_targeted(logits, y, y.flip(0))):
        assert loss.shape == (2,)
        assert loss.isfinite().all()
    assert torch.equal(found[1] > 0, logits.argmax(1) != y) or scale in (0.0, 1e-30)


def test_losses_of_too_few_classes():
    for loss, needed in ((attacks.dlr, 3), (partial(attacks.dlr_targeted, target=Y[:2]), 4)):
        with pytest.raises(ValueError, match=f"{needed} classes"):
            loss(torch.zeros(2, needed - 1), y=Y[:2])
    assert attacks.margin(torch.zeros(2, 2), Y[:2]).isfinite().all()


# --- what a network cannot take, and what it must not return --------------------------------------

PAIR = torch.tensor([1, 2])
OWN = {"generator": torch.Generator()}  # of the CPU: "meta" has none
TAKERS = {
    name: lambda f, x, name=name: FUNCTIONS[name](
        **CALLS[name](None) | {"model": f, "x": x, "y": PAIR})
    for name in ("attacks.gradient.fgsm", "attacks.gradient.fgsm_rs", "attacks.gradient.pgd",
                 "attacks.gradient.pgd_smoothed", "attacks.strong.auto_pgd",
                 "attacks.strong.square", "robustness.evaluation.accuracy",
                 "robustness.evaluation.robust_accuracy", "robustness.diagnosis.diagnose",
                 "objectives.standard")
} | {
    name: lambda f, x, name=name: FUNCTIONS[name](
        **CALLS[name](None) | OWN | {"self": SmoothedClassifier(f, 0.5, 10), "x": x})
    for name in FUNCTIONS if name.startswith("smoothing.classifier") and "__init__" not in name
} | {
    "predict": lambda f, x: models.predict(f, x),
    "fit": lambda f, x: training.fit(f, (x, PAIR), epochs=1, progress=False),
    "adversarial": lambda f, x: objectives.adversarial(partial(attacks.fgsm, eps=0.1))(f, x, PAIR),
    "trades": lambda f, x: objectives.trades(0.1, steps=1)(f, x, PAIR),
    "stability": lambda f, x: objectives.stability(0.5, **OWN)(f, x, PAIR),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKERS)
@settings(max_examples=25)
@given(x=odd.digits(), model=odd.digit_networks())
def test_what_a_network_cannot_take(name, x, model):
    weight, flags = next(model.parameters()), [module.training for module in model.modules()]
    assume(not weight.is_meta or not x.is_meta)
    found = outcome(lambda: TAKERS[name](model, x), "x", "y", "model", "images")
    taken = x.shape[1:] == (1, 28, 28) and x.dtype == weight.dtype and weight.device == x.device
    assert (found is not None) == taken
    if name != "fit":
        assert [module.training for module in model.modules()] == flags


def network(valid):
    """The one in the arguments of a call."""
    inside = [getattr(value, "base_classifier", value) for value in valid.values()]
    inside += valid.get("models", {}).values()
    return next(each for each in inside if isinstance(each, Flat))


NETWORK = {"model", "models", "self", "smoothed"}
ASKED = [
    name for name, each in FUNCTIONS.items()
    if NETWORK & inspect.signature(each).parameters.keys() and ".noise." not in name
]  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_what_is_no_logits_is_refused(name, tmp_path):
    assert len(ASKED) > 20
    words = "model: expected logits", "but the model has 1 classes"
    for number, spoil in enumerate(odd.NO_LOGITS):
        folder = tmp_path / str(number)
        folder.mkdir()
        net = network(valid := CALLS[name](folder))
        net.spoil = spoil
        refused = outcome(lambda valid=valid: (FUNCTIONS[name](**valid),), *words) is None
        assert refused or not net.called


# --- smoothing and certification ------------------------------------------------------------------


LOSING = odd.LOGITS[1:3]  # logits that are no votes


@settings(max_examples=50)
@given(x=odd.pictures(), model=odd.networks(), n0=st.sampled_from([1, 3]),
       sigma=st.sampled_from([1e-6, 0.5, 1e6, Uniform(0.5), Laplace(0.5)]),
       n=st.sampled_from([9, 40]), bound=st.sampled_from(["one_class", "two_class"]),
       batch_size=st.sampled_from([None, 1, 7]))  # fmt: skip
def test_certify(x, model, sigma, n0, n, bound, batch_size):
    was, g = model.training, SmoothedClassifier(model, sigma, 3)
    found = g.certify(x, n0, n, 0.1, bound, batch_size=batch_size)
    assert model.training == was
    assert found.radius.shape == found.prediction.shape == (len(x),)
    assert (found.radius >= 0).all()
    assert (found.radius > 0).equal(found.prediction >= 0)
    if x.dtype != torch.half:  # in which noise and logits overflow
        assert (found.counts.sum(1) == (0 if model.spoil in LOSING else n)).all()


@settings(max_examples=40)
@given(x=odd.pictures(), model=odd.networks(), all_kept=st.booleans(), n=st.sampled_from([9, 40]),
       bound=st.sampled_from(["one_class", "two_class"]),
       batch_size=st.sampled_from([None, 1, 7]))  # fmt: skip
def test_certify_by_ablation(x, model, all_kept, n, bound, batch_size):
    """A radius of no pixels is a certificate, too."""
    assume(x.ndim > 2)
    pixels = math.prod(x.shape[2:])
    g = SmoothedClassifier(model, Ablation(pixels if all_kept else 1, pixels), 3)
    found = g.certify(x, 2, n, 0.1, bound, batch_size=batch_size)
    assert ((found.radius >= 0) & (found.radius <= (pixels - 1) / 2)).all()
    assert (found.radius == found.radius.round()).all()
    assert (found.prediction[(found.radius > 0) | (found.p_a > 0.5)] >= 0).all()
    assert (found.counts.sum(1) == (0 if model.spoil in LOSING else n)).all() or (
        x.dtype == torch.half)  # fmt: skip
    some = g.certify_anytime(x, 0.5, 0.1, 60, n0=1, batch_size=batch_size)
    assert (some.prediction[some.radius > 0] >= 0).all()
    assert (g.predict(x, n, 0.1) >= -1).all()


@settings(max_examples=30)
@given(x=odd.pictures(), model=odd.networks(), size=st.sampled_from([1e-3, 0.1, 0.4]),
       n0=st.sampled_from([1, 5]), n_max=st.sampled_from([60, 100]))  # fmt: skip
def test_sequential_certificates(x, model, size, n0, n_max):
    g = SmoothedClassifier(model, 0.5, 3)
    for found in (g.certify_at_radius(x, size, 0.1, n_max, n0=n0),
                  g.certify_anytime(x, size, 0.1, n_max, n0=n0)):  # fmt: skip
        assert (found.radius >= 0).all()
        assert (found.radius > 0).equal(found.prediction >= 0)
        assert ((found.samples > n0) & (found.samples <= n_max + n0)).all()
    assert (g.predict(x, n_max, 0.1) >= -1).all()


@settings(max_examples=60)
@given(arguments(smoothing.radii, counts=st.lists(st.integers(0, 9), min_size=2, max_size=4),
                 top=st.integers(0, 1), n=st.sampled_from([36, 1000])))  # fmt: skip
def test_votes(call):
    call |= {"counts": torch.tensor([call["counts"]]), "top": torch.tensor([call["top"]])}
    radius, p_a = smoothing.radii(**call)
    assert radius >= 0
    assert 0 <= p_a <= 1
    assert -1 <= smoothing.decide(call["counts"], call["alpha"]) < call["counts"].shape[1]


@settings(max_examples=10)
@given(layout=st.sampled_from([None, "contiguous", "channels_last"]),
       dtype=st.sampled_from([None, "float32", "bfloat16"]),
       batch_size=st.sampled_from([None, 1, 5]), model=odd.digit_networks())  # fmt: skip
def test_execution(layout, dtype, batch_size, model):
    assume(not next(model.parameters()).is_meta)
    x = torch.rand(1, 1, 28, 28, dtype=next(model.parameters()).dtype)
    how = {"batch_size": batch_size, "layout": layout, "dtype": dtype, "largest": 64}
    found = smoothing.search(SmoothedClassifier(model.eval(), 0.5, 10), x, **how)
    assert [found.batch_size, found.layout, found.dtype] == [
        given if given is not None else each
        for given, each in zip((batch_size, layout, dtype), found, strict=False)]  # fmt: skip
    prepared = smoothing.prepare(SmoothedClassifier(model, 0.5, 10), found, x)
    assert prepared.sample_under_noise(x, 3).sum() == 3


# --- numbers --------------------------------------------------------------------------------------


@given(st.data(), arguments(bounds.lower_conf_bound), st.sampled_from([1, 5, 100]))
def test_bounds(more, call, n):
    call |= {"n": n, "k": more.draw(st.integers(0, n))}
    low, high = bounds.lower_conf_bound(**call), bounds.upper_conf_bound(**call)
    assert np.all((low >= 0) & (high <= 1))
    assert np.all(low <= high) or np.any(np.asarray(call["alpha"]) > 0.5)
    assume(np.ndim(call["alpha"]) == 0)
    always = sequential.anytime_lower_bound(**call)
    assert 0 <= always <= low + 1e-12
    assert always <= sequential.best_case_bound(n_max=100, **call) <= 1


@given(arguments(bounds.two_class_radius))
def test_radii(call):
    assume(len({np.shape(value) for value in call.values()} - {()}) <= 1)
    radius = bounds.two_class_radius(**call)
    assert np.all(radius >= 0)
    one = bounds.certified_radius(call["p_a_lower"], call["sigma"])
    assert np.all(one >= 0)
    assert np.all((one > 0) <= (np.asarray(call["p_a_lower"]) > 0.5))


@given(arguments(smoothing.abstention_probability), st.sampled_from([0.1, 0.5]))
def test_how_many_votes(call, share):
    assert 0 <= smoothing.abstention_probability(**call) <= 1
    if call["p_a"] > 0.5 and call["alpha"] > 1e-30:
        n = smoothing.samples_needed(call["p_a"], call["alpha"], share)
        assert smoothing.abstention_probability(call["p_a"], n, call["alpha"]) <= share


@settings(max_examples=60)
@given(arguments(sequential.plan, sizes=st.sampled_from([[1], [5, 9], np.arange(1, 30)])),
       arguments(sequential.looks), st.integers(0, 29))  # fmt: skip
def test_plans(call, size, k):
    sizes = sequential.looks(**size)
    assert sizes[-1] == size["n_max"]
    assert (np.diff(sizes) > 0).all()
    assert len(sequential.spending(len(sizes), 0.1)) == len(sizes)
    found = sequential.plan(**call)
    assert (found.error <= call["alpha"]).all()
    crossed = sequential.crossing_probability(found.p_null[0], found.looks, found.success[0])
    assert crossed == pytest.approx(found.error[0], abs=1e-12)
    n = int(found.looks[-1])
    replay = sequential.replay([min(k, n)], n, found, np.random.default_rng(0))
    assert 1 <= replay.samples[0] <= n


@given(arguments(theory.ball_probability), arguments(theory.halfspace_probability),
       arguments(theory.cell_masses, edges=st.sampled_from([[0.0], [-1e3, 1e3], [0, 1e-300]])),
       st.sampled_from([0, 1e-300, 0.5, 1]))  # fmt: skip
def test_theory(ball, half, cells, p_a):
    assume(ball["radius"] <= 1e5 * ball["sigma"])
    found = theory.ball_probability(**ball)
    assert np.all((found >= 0) & (found <= 1))
    del ball["distance"]
    assert theory.ball_true_radius(**ball) >= 0
    assert math.isclose(theory.cell_masses(**cells).sum(), 1)
    for function in (theory.worst_case_classifier, theory.neyman_pearson):
        assert 0 <= function([0.5, 0.5], [0.1, 0.9], p_a)[1] <= 1
    assume(len({np.shape(value) for value in half.values()} - {()}) <= 1)
    found = theory.halfspace_probability(**half)
    assert np.all((found >= 0) & (found <= 1))


# --- training -------------------------------------------------------------------------------------

WEIGHT = st.sampled_from([0.0, 1e-300, 0.5, 1, 100])
OBJECTIVES = {
    "gaussian": lambda weight, count, **own: objectives.gaussian(weight, **own),
    "stability": lambda weight, count, **own: objectives.stability(0.5, weight, **own),
    "consistency": lambda weight, count, **own: objectives.consistency(
        0.5, weight, samples=count, **own),
    "smoothadv": lambda weight, count, **own: objectives.smoothadv(
        0.5, weight, samples=count, steps=count, **own),
    "macer": lambda weight, count, **own: objectives.macer(0.5, weight, samples=count, **own),
    "smoothmix": lambda weight, count, **own: objectives.smoothmix(
        0.5, weight, samples=count, steps=count, **own),
    "cat_rs": lambda weight, count, **own: objectives.cat_rs(
        0.5, lambda x: torch.full((len(x), 3), 1 / 3), weight, samples=count, steps=count, **own),
    "reweighted": lambda weight, count, **own: objectives.reweighted(
        objectives.standard, lambda x, y: weight * (y >= 0), **own),
    "trades": lambda weight, count, **own: objectives.trades(0.1, weight, steps=count, **own),
    "mixed": lambda weight, count, **own: objectives.mixed(odd.ATTACKS["nothing"], count / 4),
    "standard": lambda weight, count, **own: objectives.standard,
    # The network stands behind a denoiser that scales by its weight.
    "denoising": lambda weight, count, **own: (
        lambda net, x, y: objectives.denoising(weight or 1, Flat(), **own)(
            lambda noisy, sigma: noisy * net.weight[0], x, y)),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=30)
@given(x=odd.pictures(), y=odd.labels(), weight=WEIGHT, count=st.integers(1, 3))
def test_objectives(name, x, y, weight, count):
    assume(len(x) and x.dtype.itemsize > 2)
    objective, net = OBJECTIVES[name](weight, count, generator=seeded()), Flat().train()
    loss = objective(net, x, y[: len(x)])
    assert loss.ndim == 0
    assert loss.isfinite()
    assert torch.autograd.grad(loss, net.weight)[0].isfinite().all()


@pytest.mark.parametrize("attack", [name for name in odd.ATTACKS if name != "nothing"])
@pytest.mark.parametrize("make", [objectives.adversarial, objectives.mixed])
def test_objectives_of_attacks_that_return_no_images(make, attack):
    loss = outcome(lambda: make(odd.ATTACKS[attack])(Flat(), X, Y), "attack")
    assert loss is None or loss.isnan() or (attack == "fewer" and make is objectives.mixed)


@settings(max_examples=30)
@given(x=odd.pictures(), y=odd.labels(), epochs=st.sampled_from([1, 2.0]),
       peak=st.sampled_from([1e-3, 0.1]), batch_size=st.sampled_from([1, 2, 100]),
       best=st.sampled_from([None, "loss"]))  # fmt: skip
def test_fit(x, y, epochs, peak, batch_size, best):
    assume(len(x) and x.dtype.itemsize > 2)
    net = Flat().to(x.dtype)
    history = training.fit(net, (x, y[: len(x)]), epochs=epochs, batch_size=batch_size, best=best,
                           scheduler=training.triangular(peak), progress=False)  # fmt: skip
    assert len(history) == epochs
    assert np.isfinite(history["loss"]).all()
    assert net.weight.isfinite().all()


# --- figures and widgets --------------------------------------------------------------------------


@settings(max_examples=6)
@given(rows=st.lists(st.tuples(*3 * [st.floats(width=32)]), max_size=4), logx=st.booleans(),
       logy=st.booleans(), n=st.integers(1, 2))  # fmt: skip
def test_figures(rows, logx, logy, n):
    """What they are given may hold NaN and infinity."""
    x, y, z = zip(*rows, strict=True) if rows else ([], [], [])
    panels = [("x", x, {"y": y, "z": z})] * n
    drawn = [figures.curves(panels, "y", logx=logx, logy=logy, ylim=None),
             figures.certified(x, panels[0][2]), figures.pictures([[torch.rand(1, 2, 2)]] * n),
             figures.matrix(pd.DataFrame([[0.5, *y]] * n))]  # fmt: skip
    for figure in drawn:
        figure.savefig(io.BytesIO())
    plt.close("all")


def test_explorers_at_their_limits():
    made = [
        widgets.attack_explorer(Flat().eval(), X[:1, :1, :1, :1], Y[:1], steps=1),
        widgets.draw_explorer(Flat().eval(), torch.zeros(1, 1, 28, 28), Y[:1]),
        widgets.radius_explorer(longest=1e-6),
        widgets.smoothing_explorer(Flat().eval(), num_classes=3, extent=1e6),
        widgets.certification_explorer(alpha=1e-9, sigma=1e6, most=20),
        widgets.danskin_explorer(torch.mul, torch.arange(2.0), torch.arange(1.0), shown=9),
    ]
    for explorer in made:
        assert explorer.says
        assert outcome(lambda e=explorer: e.set(nothing=1), "nothing") is None


# --- nothing is left out --------------------------------------------------------------------------

# No input, input of one kind, or tested through the functions that call them.
NOT_HERE = {
    "attacks": {"Goal.ascend", "Goal.evaluate", "Goal.fooled", "Goal.logits", "check_attacked",
                "columns", "cross_entropy", "fits", "is_fooled",
                "log_mean_softmax", "threat"},
    "bounds": {"at_most_n"},
    "certification": {"noise_generator"},
    "data": {"course_folder", "data_folder",
             "load_groups", "load_mnist", "load_photo", "load_photos",
             "torchvision_dataset", "train_validation_split"},  # test_data.py
    "figures": {"answers", "bars", "by_sigma", "certified_ball", "danskin", "loss_surface",
                "norm_balls", "perturbations", "plane", "regions", "rungs", "sandwich",
                # of one form: test_figures.py
                "shifted_densities", "show", "smallest_eps", "tie", "vote"},
    "models": {"AblationCNN.forward", "Denoised.forward", "Denoiser.forward",
               "EfficientNetLite0.forward", "Grouped.forward", "available",
               "checkpoint_folder"},  # test_models.py
    "smoothing": {"Ablation.check", "Noise.check", "Noise.copies", "answered", "as_given", "enough",
                  "noise_from"},  # test_noise.py
    "training": {"Recipe.objective", "Recipe.scheduler", "catastrophic_overfitting"},
    "widgets": {"Explorer.figure", "Explorer.set"},
}  # fmt: skip


def test_every_public_function_is_here():
    files, found = Path(__file__).parent.glob("test_fuzz*.py"), dict(public())
    text = "".join(path.read_text().partition("NOT_HERE = {")[0] for path in files)
    assert len(found) > 100
    left_out = {f"{room}.{name}" for room, names in NOT_HERE.items() for name in names}
    missing = {name for name in found
               if not re.search(rf"\b{name.rpartition('.')[2]}\b", text)}  # fmt: skip
    assert missing - left_out == set()
    assert left_out <= found.keys()
