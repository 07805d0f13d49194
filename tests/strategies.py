"""What tests of many functions share: hypothesis strategies of odd but valid values, a cheap call
of every function whose arguments are declared, and the list of public functions."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import random
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import trustml_helpers
from trustml_helpers import bounds, data, models, objectives, sequential, theory, widgets
from trustml_helpers._support.arguments import DECLARED
from trustml_helpers.smoothing import Execution, Laplace, SmoothedClassifier

PACKAGE = "trustml_helpers"
MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(trustml_helpers.__path__, f"{PACKAGE}.")
    if not found.name.endswith("__main__")
]
FUNCTIONS = {
    name.removeprefix(f"{PACKAGE}."): function
    for name, function in DECLARED.items()
    if name.startswith(PACKAGE) and "<locals>" not in name  # what an objective makes has no name
}
ROOMS = [
    importlib.import_module(f"{PACKAGE}.{room}")
    for room in ("attacks", "robustness", "training", "smoothing", "certification", "figures")
]
NOUNS = [bounds, data, models, objectives, sequential, theory, widgets]


def public():
    """Every public function and method, by the name under which it is imported.

    The checks of the homework take a student's function, the command line its words: not here.
    """
    for module in (*ROOMS, *NOUNS):
        names = getattr(module, "__all__", None)
        for name, value in list(vars(module).items()):
            own = name in names if names else getattr(value, "__module__", "") == module.__name__
            if not own or name.startswith("_"):
                continue
            full = f"{module.__name__}.{name}".removeprefix(f"{PACKAGE}.")
            if inspect.isfunction(value):
                yield full, value
            elif inspect.isclass(value) and value.__module__.startswith(PACKAGE):
                for key, method in vars(value).items():
                    if inspect.isfunction(method) and not key.startswith("_"):
                        yield f"{full}.{key}", method


# --- images, labels, networks ---------------------------------------------------------------------

X = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2])
SHEETS = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
PRECISIONS = [torch.half, torch.bfloat16, torch.float32, torch.float64]


def pictures():
    """Images in [0, 1] of any shape, dtype and place in memory; also none."""
    return st.sampled_from(
        [X, X[:1], X[:0], X.flatten(1), X[:, :, :1, :1], *(X.to(dtype) for dtype in PRECISIONS),
         X.mT, X[:, :1].expand_as(X), X.repeat(1, 1, 1, 2)[..., ::2], X.flip(0), X.round(),
         X.contiguous(memory_format=torch.channels_last), X.clone().requires_grad_()]
    )  # fmt: skip


def labels():
    """Of three images, in any whole type."""
    return st.sampled_from([Y, Y.flip(0), Y.int(), Y.to(torch.uint8), Y.clamp(max=1).bool()])


def digits():
    """As the networks of the course want them, and otherwise: shape, dtype, device, memory."""
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return st.sampled_from(
        [x, x.expand(2, 3, 28, 28), x[..., :27], x.flatten(1), x[:, 0], x.double(), x.half(),
         x.bfloat16(), x.mT, x.repeat(1, 1, 1, 2)[..., ::2], x.to("meta"),
         x.contiguous(memory_format=torch.channels_last)]
    )  # fmt: skip


def digit_networks():
    """The device "meta" holds no numbers, so that it is elsewhere on every machine."""
    kinds = [models.build("LeNet"), models.build("SmallCNN").train(), models.build("WideCNN")]
    odd = [models.build("SmallCNN").double(), models.build("SmallCNN").to("meta")]
    return st.sampled_from([*kinds, *odd])


class Flat(nn.Module):
    """A network for pictures of any size, with dropout; counts calls; its logits may be spoiled."""

    def __init__(self, spoil=None):
        super().__init__()
        self.spoil, self.dropout, self.called = spoil, nn.Dropout(0.5), 0
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0, 0.5]))

    def forward(self, x):
        self.called += 1
        logits = self.dropout(x.flatten(1)).mean(1)[:, None] * self.weight.to(x.dtype)
        return self.spoil(logits) if self.spoil else logits


# Logits that no attack and no vote may break on, and those that are none.
LOGITS = [None, lambda z: z * math.nan, lambda z: z / 0, lambda z: 1e30 * z, lambda z: 0 * z]
NO_LOGITS = [lambda z: z[:, :1], lambda z: z[:, 0], lambda z: z[:0], lambda z: [z], lambda z: None]


def networks(spoilers=LOGITS):
    return st.builds(lambda spoil, on: Flat(spoil).train(on), st.sampled_from(spoilers),
                     st.booleans())  # fmt: skip


ATTACKS = {
    "nothing": lambda model, x, y: x,
    "nan": lambda model, x, y: x * math.nan,
    "shape": lambda model, x, y: x[..., :1],
    "fewer": lambda model, x, y: x[:1],
    "none": lambda model, x, y: None,
}

NORM = st.sampled_from(["linf", "l2", "l1"])
BOX = st.sampled_from([(0, 1), None, (-1.0, 2.0)])
SIZE = st.sampled_from(
    [0.0, 1e-300, 1e-9, 1e-3, 0.1, 0.3, 1.0]
)  # of a ball in the box of all images
CASE = {"x": pictures(), "y": labels(), "model": networks()}
THREAT = CASE | {"eps": SIZE, "norm": NORM, "box": BOX}

# --- numbers --------------------------------------------------------------------------------------

NUMBERS = [0.3, 0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, 2.0, 0.999999, math.inf, -math.inf]
WHOLE = [0, 1, 2, 5, 9, 40, 100, 1e2, np.int64(7), True]
POOL = [*NUMBERS, *WHOLE, None, [0.1, 0.9], [1, 5], np.zeros((2, 0)), "two_class"]


def accepted(rule):
    """Values that a declaration lets in, however odd."""

    def fits(value):
        try:
            rule("it", value)
        except (ValueError, TypeError):
            return False
        return True

    return st.sampled_from([value for value in POOL if fits(value)])


def arguments(function, **given):
    """A call of a function: odd values that its declaration lets in, but for those given."""
    chosen = {name: rule for name, rule in function.rules.items() if name not in given}
    parts = {name: value if isinstance(value, st.SearchStrategy) else st.just(value)
             for name, value in given.items()}  # fmt: skip
    return st.fixed_dictionaries({name: accepted(rule) for name, rule in chosen.items()} | parts)


# --- logs -----------------------------------------------------------------------------------------

LOG_TEXT = (
    "idx\tlabel\tpredict\tradius\tcorrect\ttime\tcount_0\tcount_1\tcount_2\n"
    "0\t1\t1\t0.616000\t1\t0.1\t0\t100\t0\n"
    "20\t2\t2\t0.300000\t1\t0.1\t2\t3\t95\n"
    "40\t0\t-1\t0.000000\t0\t0.1\t40\t30\t30\n"
    "60\t0\t1\t0.200000\t0\t0.1\t10\t90\t0\n"
)
LOG_SETTINGS = {"sigma": 0.5, "n": 100, "alpha": 0.001}


def log():
    return pd.read_csv(pd.io.common.StringIO(LOG_TEXT), sep="\t")


LOG = log()
LOGS = [LOG, LOG[:1], LOG[:0], LOG.iloc[:, :6], LOG[::-1], LOG.assign(label=7), LOG.assign(idx=0)]
SPOILED_LOGS = [
    LOG.assign(label=-1), LOG.assign(radius=math.nan), LOG.assign(radius=-1.0),
    LOG.assign(radius=1e300), LOG.assign(count_1=-5), LOG.assign(count_1=0.5),
    LOG.assign(predict=9), LOG.assign(predict=-7),
]  # fmt: skip


def logs(tables=LOGS):
    return st.sampled_from(tables).map(pd.DataFrame.copy)


def damaged(seed: int) -> str:
    """The text of a log with a few bytes, cells or lines changed, lost or doubled."""
    chance, text = random.Random(seed), LOG_TEXT
    for _ in range(chance.randint(1, 3)):
        i, j = sorted(chance.choices(range(len(text) + 1), k=2))
        kind = chance.randrange(6)
        if kind == 0:
            text = text[:i]
        elif kind == 1:
            text = text[:i] + chance.choice(["x", "\t", "\n", "9", "-", "é", "\0", '"']) + text[i:]
        elif kind == 2:
            text = text[:i] + text[j:]
        elif kind == 3:
            lines = text.split("\n")
            chance.shuffle(lines)
            text = "\n".join(lines)
        elif kind == 4:
            cells = text.split("\t")
            cells[chance.randrange(len(cells))] = chance.choice(["", "nan", "-1", "1e999", "one"])
            text = "\t".join(cells)
        else:
            text = text[:j] + text[i:]
    return text


# --- a cheap call of every declared function ------------------------------------------------------


class Counted:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.called = function, 0

    def __call__(self, *arguments):
        self.called += 1
        return self.function(*arguments)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def same():
    return Counted(lambda model, x, y: x)


def smoothed():
    return SmoothedClassifier(Flat().eval(), 0.5, 3)


def attacked(**more):
    def call(folder):
        return {"model": Flat(), "x": X.clone(), "y": Y, "eps": 0.1} | more

    return call


def plain(**made):
    """The same arguments for each call; a function among them makes a fresh one."""
    return lambda folder: {
        name: value() if inspect.isfunction(value) or inspect.isclass(value) else value
        for name, value in made.items()
    }


def learned(**more):
    return plain(generator=seeded, **more)


def voted(**more):
    return plain(self=smoothed, x=X, generator=seeded, **more)


def images_on_disk(folder):
    (folder / "val" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "val" / "cat" / "1.png")
    return {"name": "imagenet", "root": folder}


def log_on_disk(folder):
    (folder / "log.tsv").write_text(LOG_TEXT)
    (folder / "log.json").write_text(json.dumps(LOG_SETTINGS))
    return {"path": folder / "log.tsv", "bound": "one_class"}


def certified(folder):
    return {"smoothed": smoothed(), "images": X, "labels": Y, "path": folder / "log.tsv", "n0": 2,
            "n": 20, "alpha": 0.1, "batch_size": 8, "layout": "contiguous",
            "progress": False}  # fmt: skip


def attack_logged(folder):
    return {"model": Flat(), "images": X, "labels": Y, "path": folder / "log.csv",
            "attacks": Counted(lambda generator: {"same": same()}), "about": {},
            "progress": False}  # fmt: skip


def fitted(folder):
    return {"model": Flat(), "train": (X, Y), "epochs": 1, "batch_size": 2, "progress": False,
            "validation": (X, Y), "checkpoint": folder / "state.pt"}  # fmt: skip


SQUARE, PICTURE = [[0, 1], [1, 0]], torch.full((1, 2, 2), 0.5)
THIRDS = torch.tensor([0.2, 0.3, 0.5])
votes = {"counts": torch.tensor([[3, 90, 2]]), "alpha": 0.01}
evaluated = {"x": X, "y": Y}
counted = {"k": 5, "n": 9, "alpha": 0.1}
on_grid = {"grid_mass_at_x": [0.5, 0.5], "grid_mass_at_x_delta": [0.1, 0.9], "p_a": 0.7}


def plan():
    return sequential.plan([0.6, 0.7], 0.01, [50, 100])


CALLS = {
    "_support.randomness.keyed_generator": plain(seed=0, number=1),
    "attacks.gradient.fgsm": attacked(),
    "attacks.gradient.fgsm_rs": attacked(generator=seeded()),
    "attacks.gradient.pgd": attacked(steps=1, generator=seeded()),
    "attacks.gradient.pgd_smoothed": attacked(sigma=0.5, steps=1, samples=2, generator=seeded()),
    "attacks.gradient.sign_noise": attacked(generator=seeded()),
    "attacks.losses.cross_entropy": plain(logits=X.flatten(1), y=Y),
    "attacks.losses.margin": plain(logits=X.flatten(1), y=Y),
    "attacks.losses.dlr": plain(logits=X.flatten(1), y=Y),
    "attacks.losses.dlr_targeted": plain(logits=X.flatten(1), y=Y, target=Y.flip(0)),
    "attacks.strong.auto_pgd": attacked(steps=2, generator=seeded()),
    "attacks.strong.square": attacked(queries=2, generator=seeded()),
    "attacks.strong.suite": plain(eps=0.1, generator=seeded),
    "bounds.certified_radius": plain(p_a_lower=0.9, sigma=0.5),
    "bounds.lower_conf_bound": plain(**counted),
    "bounds.two_class_radius": plain(p_a_lower=0.9, p_b_upper=0.1, sigma=0.5),
    "bounds.upper_conf_bound": plain(**counted),
    "certification.audit.audit_log": plain(log=log, sigma=0.5, sizes=[100]),
    "certification.audit.predict_acr": plain(log=log, sigma=0.5, n=100, alpha=0.01, more=200,
                                             draws=2),
    "certification.log.certified_accuracy": plain(log=log, radii=[0.25]),
    "certification.log.read_log": log_on_disk,
    "certification.log.rebound": plain(log=log, sigma=0.5, n=100, alpha=0.01),
    "certification.run.certify_dataset": certified,
    "cli.certify.plot": lambda folder: {
        "logs": [log_on_disk(folder)["path"]], "output": folder / "plot.png", "points": 2},
    "cli.inputs.indices": plain(length=9, every=2, limit=3),
    "cli.plan.steps": lambda folder: {"folder": folder, "methods": ["macer"], "sigmas": [0.5]},
    "cli.train._plan": plain(recipe="quick_gaussian", sigma=0.5, eps=None, epochs=None),
    "data.load_mnist": plain(split="test"),
    "data.load_photo": plain(size=8),
    "data.torchvision_dataset": images_on_disk,
    "data.train_validation_split": plain(images=X, labels=Y, validation=1),
    "figures.general.answers": plain(columns=[("drawn", X[0, :1], torch.tensor([0.1, 0.9]))]),
    "figures.general.bars": plain(groups=["none", "some"], values={"a": [3, 1]}, ylabel="digits"),
    "figures.general.curves": plain(panels=[("x", [0, 1], {"a": [0, 1]})], ylabel="y"),
    "figures.general.matrix": plain(table=pd.DataFrame({"clean": [0.9]})),
    "figures.general.perturbations": plain(rows=[("a", PICTURE, PICTURE, THIRDS)], label=1),
    "figures.general.pictures": plain(images=[[PICTURE]]),
    "figures.general.show": plain(figure=Figure, alt="A line that rises from zero to one."),
    "figures.lessons.danskin": plain(theta=[0.0, 1.0], members={"a": [0, 1]}, envelope=[0, 1],
                                     at=0.5, tangent=(0.5, 1.0), maximiser="a"),
    "figures.lessons.loss_surface": plain(a=[0.0, 1.0], b=[0.0, 1.0],
                                          panels={"net": (torch.eye(2), torch.eye(2) > 0)},
                                          labels=("p", "q"), marks={"x": (0, 0)}),
    "figures.lessons.norm_balls": plain(gradient=(1, 0), steps={"l2": (1.0, 0.0)}),
    "figures.lessons.plane": plain(edges=([0, 1, 2], [0, 1, 2]), panels={"a": np.eye(2)},
                                   centres={"x": (0, 0)}, sigma=0.5),
    "figures.lessons.rungs": plain(printed=[0.5], ladders={"a": [0.5, 0.4]}, unit=0.001,
                                   xlabel="r"),
    "figures.lessons.shifted_densities": plain(t=[0, 1], densities={"a": [0, 1]}, share=[1, 0],
                                               xlabel="t"),
    "figures.lessons.tie": plain(theta=[-1.0, 1.0], envelope=[1, 1], slopes={"a": -1.0, "b": 1.0},
                                 plane=([0, 1], [0, 1], torch.eye(2)), steps={"s": (-1, 0)}),
    "figures.smoothing.by_sigma": plain(panels={"t": {0.5: ([0, 1], [1, 0])}}),
    "figures.lessons.smallest_eps": plain(panels={"net": [0.1, 0.3]}, edges=[0.0, 0.2, 0.4]),
    "figures.smoothing.certified": plain(radii=[0, 1], accuracies={"a": [1, 0]}),
    "figures.smoothing.regions": plain(axis=[0, 1], panels={"t": SQUARE}),
    "figures.smoothing.certified_ball": plain(axis=[0, 1], panels={"t": SQUARE}, point=(0, 0),
                                              radius=0.5, nearest={}),
    "figures.smoothing.sandwich": plain(radii=[0, 1], certified=[1, 0], attacked=[1, 0.5],
                                        names=("c", "a")),
    "figures.smoothing.vote": plain(axis=[0, 1], classes=SQUARE, point=(0, 0), sigma=0.5,
                                    shares=[0.5, 0.5], bounds={1: ("b", 0.5)}),
    "models.Denoised.__init__": lambda folder: {
        "self": models.Denoised(same(), Flat(), 0.5), "denoiser": same(), "classifier": Flat(),
        "sigma": 0.5},
    "models.Grouped.__init__": lambda folder: {
        "self": models.Grouped(Flat(), [0, 1, 0]), "model": Flat(), "groups": [0, 1, 0]},
    "models.build": plain(architecture="SmallCNN"),
    "models.predict": plain(model=Flat, images=X),
    "objectives.adversarial": plain(attack=same),
    "objectives.cat_rs": learned(
        sigma=0.5, teacher=lambda: lambda x: x.new_full((len(x), 3), 1 / 3)),
    "objectives.consistency": learned(sigma=0.5, lam=1),
    "objectives.denoising": learned(sigma=0.5),
    "objectives.gaussian": learned(sigma=0.5),
    "objectives.macer": learned(sigma=0.5, lam=1),
    "objectives.mixed": plain(attack=same),
    "objectives.noisy": learned(noise=lambda: Laplace(0.5)),
    "objectives.reweighted": learned(
        objective=lambda: objectives.standard, weights=lambda: lambda x, y: torch.ones(len(x))),
    "objectives.smoothadv": learned(sigma=0.5, eps=0.5),
    "objectives.smoothmix": learned(sigma=0.5),
    "objectives.stability": learned(sigma=0.5),
    "objectives.standard": plain(model=lambda: Flat().eval(), **evaluated),
    "objectives.trades": plain(eps=0.1, generator=seeded),
    "robustness.diagnosis.diagnose": attacked(steps=1, queries=2, generator=seeded()),
    "robustness.evaluation.accuracy": plain(model=Flat, **evaluated),
    "robustness.evaluation.attack_matrix": lambda folder: {
        "models": {"net": Flat().eval()}, "attacks": {"same": same()}, **evaluated},
    "robustness.evaluation.broken_by": lambda folder: {
        "model": Flat(), "attacks": {"same": same()}, **evaluated},
    "robustness.evaluation.correct": plain(model=Flat, **evaluated),
    "robustness.evaluation.robust_accuracy": plain(model=Flat, attack=same, **evaluated),
    "robustness.evaluation.robust_correct": plain(model=Flat, attack=same, **evaluated),
    "robustness.evaluation.targeted_success": plain(model=Flat, attack=same, **evaluated),
    "robustness.log.attack_dataset": attack_logged,
    "robustness.log.summary": plain(log=pd.DataFrame({"broken_by": ["", "a"]}), attacks=["a"]),
    "sequential.anytime_lower_bound": plain(**counted),
    "sequential.best_case_bound": plain(**counted, n_max=20),
    "sequential.crossing_probability": plain(p=0.5, sizes=[2, 4], success=[2, 4]),
    "sequential.looks": plain(n_max=100),
    "sequential.plan": plain(p_null=0.6, alpha=0.01, sizes=[50, 100]),
    "sequential.replay": plain(k=[60], n=100, plan=plan, rng=lambda: np.random.default_rng(0)),
    "sequential.spending": plain(count=3, alpha=0.1),
    "smoothing.classifier.SmoothedClassifier.__init__": lambda folder: {
        "self": smoothed(), "base_classifier": Flat(), "sigma": 0.5, "num_classes": 3},
    "smoothing.classifier.SmoothedClassifier.certify": voted(n0=2, n=20, alpha=0.1),
    "smoothing.classifier.SmoothedClassifier.certify_anytime": voted(gain=0.5, alpha=0.1, n_max=60),
    "smoothing.classifier.SmoothedClassifier.certify_at_radius": voted(radius=0.2, alpha=0.1,
                                                                       n_max=60),
    "smoothing.classifier.SmoothedClassifier.predict": voted(n=20, alpha=0.1),
    "smoothing.classifier.SmoothedClassifier.sample_under_noise": voted(n=20),
    "smoothing.execution.prepare": plain(smoothed=smoothed, execution=Execution(8), image=X[:1]),
    "smoothing.execution.search": plain(smoothed=smoothed, image=X[:1], batch_size=8,
                                        layout="contiguous"),
    "smoothing.noise.Noise.needed": plain(self=lambda: Laplace(0.5), radius=0.3),
    "smoothing.noise.Noise.radius": plain(self=lambda: Laplace(0.5), p_a=0.9, p_b=0.05),
    "smoothing.votes.abstention_probability": plain(p_a=0.9, n=20, alpha=0.1),
    "smoothing.votes.decide": plain(**votes),
    "smoothing.votes.radii": plain(**votes, top=torch.tensor([1]), n=100, sigma=0.5),
    "smoothing.votes.samples_needed": plain(p_a=0.9, alpha=0.1),
    "theory.ball_probability": plain(distance=0.5, radius=1, sigma=0.5, dimension=3),
    "theory.ball_true_radius": plain(radius=1, sigma=0.5, dimension=3),
    "theory.cell_masses": plain(edges=[0, 1], mean=0, sigma=0.5),
    "theory.halfspace_probability": plain(p_a=0.9, distance=0.5, sigma=0.5),
    "theory.neyman_pearson": plain(**on_grid),
    "theory.worst_case_classifier": plain(**on_grid),
    "training.loop.fit": fitted,
    "training.loop.triangular": plain(peak=0.1),
    "widgets.attack_explorer": plain(model=Flat, images=X[:, :1], labels=Y, steps=1),
    "widgets.certification_explorer": plain(most=20),
    "widgets.danskin_explorer": plain(loss=lambda: torch.mul, thetas=torch.arange(3.0),
                                      deltas=torch.arange(2.0), shown=2),
    "widgets.draw_explorer": plain(model=Flat, images=SHEETS, labels=Y, path="a.png", steps=1),
    "widgets.radius_explorer": plain(longest=1),
    "widgets.smoothing_explorer": plain(model=Flat, num_classes=3),
}  # fmt: skip


def traces(values, folder: Path):
    """What a function leaves behind when it works: calls, drawn numbers, files."""
    inside = [vars(value).get("base_classifier", value) if hasattr(value, "__dict__") else value
              for value in values.values()]  # fmt: skip
    inside += [each for value in inside if isinstance(value, dict) for each in value.values()]
    called = [each.called for each in inside if hasattr(each, "called")]
    drawn = [each.get_state().tolist() for each in inside if isinstance(each, torch.Generator)]
    drawn += [str(each.bit_generator.state) for each in inside
              if isinstance(each, np.random.Generator)]  # fmt: skip
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    return called, drawn, written, torch.get_rng_state().tolist(), plt.get_fignums()
