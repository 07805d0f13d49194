"""Same seed, same bits, for every function that draws random numbers; no global state is moved."""

from __future__ import annotations

import inspect
import random

import numpy as np
import pytest
import torch
from helpers import Awkward
from strategies import public, seeded
from torch import Tensor

from trustml_helpers import (
    attacks,
    certification,
    checks,
    data,
    models,
    objectives,
    robustness,
    sequential,
    training,
)
from trustml_helpers.smoothing import Ablation, Laplace, SmoothedClassifier

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
BATCH = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def network():
    """Dropout, BatchNorm: it draws from the global generator wherever it is left in training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Awkward()
        model(X)
    return model.eval()


def attacked(attack, **settings):
    return lambda seed: attack(network(), X, Y, 0.05, generator=seeded(seed), **settings)


def voted(method, *arguments):
    def call(seed):
        smoothed = SmoothedClassifier(network(), 0.5, 3)
        return getattr(smoothed, method)(X, *arguments, generator=seeded(seed))

    return call


def learned(make, *arguments, **settings):
    def call(seed):
        model = network()
        loss = make(*arguments, generator=seeded(seed), **settings)(model, X, Y)
        return [loss.detach(), *torch.autograd.grad(loss, [model.body[3].weight])]

    return call


def fitted(seed):
    model = network()
    objective = objectives.gaussian(0.5, generator=seeded(seed))
    history = training.fit(model, (X, Y), objective, epochs=2, batch_size=2, seed=seed,
                           progress=False)  # fmt: skip
    return [history["loss"].to_numpy(), *model.state_dict().values()]


def logged(seed, path):
    g = SmoothedClassifier(network(), 0.5, 3)
    log = certification.certify_dataset(
        g, X, Y, path / "log.tsv", n0=5, n=50, alpha=0.01, seed=seed, batch_size=16,
        layout="contiguous", progress=False,
    )  # fmt: skip
    return log.drop(columns="time").to_numpy()


def attack_logged(seed, path):
    def made(generator):
        return {"noise": lambda model, x, y: attacks.sign_noise(model, x, y, 0.5,
                                                                generator=generator)}  # fmt: skip

    log = robustness.attack_dataset(network(), X.repeat(20, 1, 1, 1), Y.repeat(20),
                                    made, path / "log.csv", about={}, seed=seed,
                                    progress=False)  # fmt: skip
    return log["broken_by"].to_numpy()


def replayed(seed):
    plan = sequential.plan([0.6], 0.001, sequential.looks(1000))
    return sequential.replay([620, 650, 700], 1000, plan, np.random.default_rng(seed)).samples


def predicted(seed):
    log = certification.read_log(
        data.data_folder() / "results/mnist_study/gaussian_0.5_n10000.tsv", "one_class"
    )
    return certification.predict_acr(log[:40], 0.5, 10_000, 0.001, 20_000, draws=3, seed=seed)


def suite(seed):
    found = attacks.suite(0.1, num_classes=3, steps=2, queries=5, generator=seeded(seed))
    return [attack(network(), X, Y) for attack in found.values()]


CASES = {
    "attacks.pgd": attacked(attacks.pgd, steps=3, restarts=2),
    "attacks.fgsm_rs": attacked(attacks.fgsm_rs),
    "attacks.pgd_smoothed": attacked(attacks.pgd_smoothed, sigma=0.3, steps=2, samples=3),
    "attacks.sign_noise": attacked(attacks.sign_noise),
    "attacks.auto_pgd": attacked(attacks.auto_pgd, steps=4),
    "attacks.square": attacked(attacks.square, queries=20),
    "attacks.suite": suite,
    "robustness.diagnose": lambda seed: str(
        robustness.diagnose(network(), BATCH, network()(BATCH).argmax(1), 0.05, steps=2, queries=5,
                            generator=seeded(seed))),
    "smoothing.Noise.copies": lambda seed: [
        each.clone() for noise in (Laplace(0.5), Ablation(5, 64))
        for _, each in noise.copies(X, 9, 4, seeded(seed))],
    "smoothing.SmoothedClassifier.sample_under_noise": voted("sample_under_noise", 200),
    "smoothing.SmoothedClassifier.predict": voted("predict", 12, 0.1),
    "smoothing.SmoothedClassifier.certify": voted("certify", 20, 200, 0.01),
    "smoothing.SmoothedClassifier.certify_at_radius": voted("certify_at_radius", 0.1, 0.01, 400),
    "smoothing.SmoothedClassifier.certify_anytime": voted("certify_anytime", 0.3, 0.01, 400),
    # A denoiser that hands the noisy image on: the noise is all that its error consists of.
    "objectives.denoising": lambda seed: [objectives.denoising(0.5, generator=seeded(seed))(
        lambda noisy, sigma: noisy, X, Y)],
    "objectives.gaussian": learned(objectives.gaussian, 0.5),
    "objectives.noisy": learned(objectives.noisy, Laplace(0.5)),
    "objectives.stability": learned(objectives.stability, 0.5),
    "objectives.consistency": learned(objectives.consistency, 0.5, 2.0),
    "objectives.smoothadv": learned(objectives.smoothadv, 0.5, 0.5, samples=2, steps=2),
    "objectives.macer": learned(objectives.macer, 0.5, 2.0, samples=3),
    "objectives.smoothmix": learned(objectives.smoothmix, 0.5, samples=2, steps=2),
    "objectives.cat_rs": learned(
        objectives.cat_rs, 0.5, lambda x: x.new_full((len(x), 3), 1 / 3), samples=2, steps=2
    ),
    "objectives.reweighted": learned(
        objectives.reweighted, objectives.standard, lambda x, y: torch.ones(len(x))
    ),
    "objectives.trades": learned(objectives.trades, 0.1, steps=2),
    "training.fit": fitted,
    "models.build": lambda seed: list(models.build("SmallCNN", seed=seed).state_dict().values()),
    "data.train_validation_split": lambda seed: data.train_validation_split(
        X.repeat(9, 1, 1, 1), torch.arange(54), 20, seed=seed)[1][1],
    "certification.noise_generator": lambda seed: certification.noise_generator(
        seed, 3).get_state(),
    "sequential.replay": replayed,
    "certification.predict_acr": predicted,
    "certification.certify_dataset": logged,
    "robustness.attack_dataset": attack_logged,
    "checks.masked_defenses": lambda seed: checks.masked_defenses(seed)["restless"](
        torch.ones(1, 1, 28, 28).cumsum(3) / 28).detach(),
    "checks.accuracy_left": lambda seed: checks.accuracy_left(
        lambda model, x, y, eps: attacks.fgsm(model, x, y, eps), seed),
}  # fmt: skip

# They give the generator back or hand it on; a check of the homework is a task, tested there.
ELSEWHERE = {"training.Recipe.objective"}
FEEDS = {"generator", "generators", "seed", "rng"}


def takes_a_seed(function):
    known = inspect.signature(function).parameters if inspect.isfunction(function) else {}
    return "seed" in known and known["seed"].kind is not inspect.Parameter.KEYWORD_ONLY


def test_every_random_function_is_here():
    functions = dict(public())
    random = {name for name, function in functions.items()
              if FEEDS & inspect.signature(function).parameters.keys()}  # fmt: skip
    # A task of the homework takes its seed by name alone.
    random |= {f"checks.{name}" for name in checks.__all__ if takes_a_seed(getattr(checks, name))}
    assert len(random) > 25
    assert set(CASES) == random - ELSEWHERE


def bits(found):
    """A result as plain values that are equal only if every bit is."""
    if isinstance(found, Tensor):
        return found.detach().cpu().double().numpy().tobytes()
    if isinstance(found, np.ndarray):
        return str(found.tolist())
    if isinstance(found, list | tuple):
        return [bits(each) for each in found]
    return found


def global_states():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002


@pytest.mark.filterwarnings("ignore:.*training mode")
@pytest.mark.parametrize("name", CASES)
def test_the_seed_decides_every_bit(name, tmp_path):
    call = CASES[name]

    def run(turn, seed):
        if "path" not in inspect.signature(call).parameters:
            return bits(call(seed))
        folder = tmp_path / str(turn)
        folder.mkdir()
        return bits(call(seed, folder))

    torch.manual_seed(5)
    before = global_states()
    first = run(0, 3)
    assert global_states() == before  # nobody else's numbers are drawn
    torch.manual_seed(6)  # and nobody else's numbers matter
    assert run(1, 3) == first
    assert any(run(turn, turn + 2) != first for turn in range(2, 6))
