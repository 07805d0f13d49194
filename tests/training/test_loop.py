"""The training loop: it learns, repeats itself, reports, and sees only what it is given."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from helpers import torchrun

from trustml_helpers import attacks, data, models, objectives, training
from trustml_helpers.training import loop, recipes


@pytest.fixture
def blobs():
    """Two well-separated clouds."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(2, (210,), generator=g)
    return torch.randn(210, 2, generator=g) * 0.3 + 2 * (2 * y[:, None] - 1), y


def linear():
    model = torch.nn.Linear(2, 2)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    return model


quiet = partial(training.fit, progress=False)


def test_it_learns_and_reports(blobs):
    model = linear()
    history = quiet(
        model,
        blobs,
        epochs=4,
        validation=blobs,
        attacks={"shift": lambda m, x, y: -x},
        batch_size=50,
    )
    columns = ["epoch", "loss", "lr", "seconds", "error", "error shift"]
    assert history.columns.tolist() == columns
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert history["loss"].is_monotonic_decreasing
    assert history["error"].iloc[-1] == 0
    assert history["error shift"].iloc[-1] == 1
    assert not model.training


def test_one_step_is_gradient_descent(blobs):
    """One minibatch, plain SGD: theta - lr * gradient, by hand."""
    model = linear()
    loss = torch.nn.functional.cross_entropy(model(blobs[0]), blobs[1])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    history = quiet(
        model, blobs, epochs=1, batch_size=210, optimizer=partial(torch.optim.SGD, lr=0.5)
    )
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(parameter, -0.5 * gradient, atol=1e-6)
    assert history["loss"][0] == pytest.approx(loss.item())


def test_every_example_is_used_once_per_epoch_in_new_order(blobs):
    x = torch.arange(10.0)[:, None]
    seen = []

    def spy(model, images, labels):
        seen.append(images[:, 0].long().tolist())
        return objectives.standard(model, images, labels)

    quiet(torch.nn.Linear(1, 2), (x, torch.zeros(10).long()), spy, epochs=2, batch_size=4)
    assert [len(part) for part in seen] == [4, 4, 2] * 2
    first, second = seen[0] + seen[1] + seen[2], seen[3] + seen[4] + seen[5]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_same_seed_same_weights_and_global_rng_untouched(blobs):
    def run(seed):
        model = linear()
        quiet(model, blobs, epochs=2, batch_size=20, seed=seed)
        return model.weight.detach()

    state = torch.get_rng_state()
    model = linear()
    state = torch.get_rng_state()
    quiet(model, blobs, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_the_test_set_is_never_read(monkeypatch):
    """Training asks for no data at all, and the split it is given holds no test image."""
    loaded = []
    original = data.load_mnist
    monkeypatch.setattr(data, "load_mnist", lambda split: loaded.append(split) or original(split))
    (x, y), held = data.train_validation_split(*data.load_mnist("train"))
    quiet(
        models.build("SmallCNN"),
        (x[:200], y[:200]),
        epochs=1,
        validation=(held[0][:50], held[1][:50]),
    )
    assert loaded == ["train"]
    test = original("test")[0].flatten(1)
    rows = {bytes(row) for row in (torch.cat([x, held[0]]).flatten(1) * 255).byte().numpy()}
    shared = sum(bytes(row) in rows for row in (test * 255).byte().numpy())
    assert shared == 0


def test_by_epoch_changes_the_objective(blobs):
    epochs = []

    def at(epoch):
        epochs.append(epoch)
        return objectives.standard

    quiet(linear(), blobs, objectives.ByEpoch(at), epochs=2, batch_size=105)
    assert epochs == [0.0, 0.5, 1.0, 1.5]


def test_triangular_rate(blobs):
    rates = []

    def make(optimizer, total):
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return training.triangular(0.1, top=0.4)(optimizer, total)

    history = quiet(linear(), blobs, epochs=2, batch_size=21, scheduler=make)
    assert len(rates) == 20
    # OneCycleLR peaks at step 0.4 * 20 - 1 = 7 and is linear on both sides, between 1/100 and 1.
    assert max(rates) == rates[7] == pytest.approx(0.1)
    assert rates[0] == pytest.approx(0.001)
    assert rates[4] == pytest.approx(0.001 + 0.099 * 4 / 7)
    assert rates[13] == pytest.approx(0.1 - 0.099 * 6 / 12)
    assert history["lr"].iloc[-1] == rates[-1] == pytest.approx(0.001)


@pytest.mark.parametrize(("top", "steps"), [(0.5, 2), (0.1, 10)])
def test_a_rise_of_one_step_begins_at_the_peak(top, steps):
    optimizer = torch.optim.SGD(linear().parameters(), lr=1.0)
    scheduler, rates = training.triangular(0.1, top=top)(optimizer, steps), []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step() if len(rates) < steps else None
    assert rates == pytest.approx(np.linspace(0.1, 0.001, steps))


@pytest.mark.slow
def test_adversarial_training_lowers_the_worst_case():
    """One strong feature and twenty weak ones that eps = 0.5 can reverse: only standard training
    relies on the weak ones."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(2, (400,), generator=g)
    sign = (2.0 * y - 1)[:, None]
    x = torch.cat([sign + 0.5 * torch.randn(400, 1, generator=g), 0.2 * sign.expand(-1, 20)], 1)
    attack = partial(attacks.fgsm, eps=0.5, bounds=None)
    losses = []
    for objective in (objectives.adversarial(attack), objectives.standard):
        model = torch.nn.Linear(21, 2)
        for p in model.parameters():
            torch.nn.init.zeros_(p)
        quiet(model, (x, y), objective, epochs=30, optimizer=partial(torch.optim.SGD, lr=0.2))
        losses.append(objectives.adversarial(attack)(model, x, y).item())
    assert losses[0] < 0.65 < 1.0 < losses[1]


def test_a_loss_that_is_not_finite_stops_training(blobs):
    with pytest.raises(FloatingPointError, match="epoch 1, step 1"):
        quiet(
            linear(), blobs, lambda m, x, y: objectives.standard(m, x, y) * float("nan"), epochs=1
        )


def test_best_weights_are_those_of_the_smallest_error(blobs):
    """Validation on mirrored images: the better the network learns, the worse; epoch 1 is best."""
    mirrored = (-blobs[0], blobs[1])
    last, best = linear(), linear()
    sgd = {"optimizer": partial(torch.optim.SGD, lr=0.003), "batch_size": 50}
    log = quiet(best, blobs, epochs=4, validation=mirrored, attacks={"none": lambda m, x, y: x},
                best="loss", **sgd)  # fmt: skip
    assert log["kept"].tolist() == [False, False, False, True]  # the training loss falls
    quiet(last, blobs, epochs=4, **sgd)
    assert torch.equal(best.weight, last.weight)
    first, kept = linear(), linear()
    objective = objectives.ByEpoch(lambda epoch: objectives.standard if epoch < 1 else _climb)
    log = quiet(kept, blobs, objective, epochs=3, validation=blobs, best="error", **sgd)
    quiet(first, blobs, epochs=1, **sgd)
    assert log["kept"].tolist() == [True, False, False]
    assert torch.equal(kept.weight, first.weight)
    assert not kept.training


def test_the_running_average_of_the_weights_by_hand(blobs):
    """After each step 0.7 of the average is kept; the first is the first weights themselves."""
    taken, sgd = [], partial(torch.optim.SGD, lr=0.05)

    def watched(model, x, y):
        taken.append(model.weight.detach().clone())
        return objectives.standard(model, x, y)

    plain, averaged = linear(), linear()
    quiet(plain, blobs, watched, epochs=2, batch_size=100, optimizer=sgd)
    taken = [*taken[1:], plain.weight.detach()]  # after each step
    mean = taken[0]
    for weight in taken[1:]:
        mean = 0.7 * mean + 0.3 * weight
    judged = []
    quiet(averaged, blobs, epochs=2, batch_size=100, optimizer=sgd, average=0.7, validation=blobs,
          attacks={"none": lambda model, x, y: judged.append(model.weight.clone()) or x},
          )  # fmt: skip
    assert torch.allclose(averaged.weight, mean, atol=1e-6)
    assert not torch.allclose(averaged.weight, plain.weight, atol=1e-3)
    assert torch.equal(judged[-1], averaged.weight)


def test_of_equal_epochs_the_later_weights_are_kept(blobs):
    sgd = {"optimizer": partial(torch.optim.SGD, lr=0.003), "batch_size": 50}
    constant = {"attacks": {"none": lambda model, x, y: 0 * x}, "best": "error none"}
    kept, last = linear(), linear()
    log = quiet(kept, blobs, epochs=3, validation=blobs, **constant, **sgd)
    assert log["error none"].nunique() == 1
    assert log["kept"].tolist() == [False, False, True]
    quiet(last, blobs, epochs=3, **sgd)
    assert torch.equal(kept.weight, last.weight)


def _climb(model, x, y):
    return -100 * objectives.standard(model, x, y)


def test_catastrophic_overfitting_is_recorded_and_warned_of_once(blobs):
    """FGSM harmless, PGD fatal: by stand-ins whose effect is known."""
    stand_ins = {"fgsm": lambda m, x, y: x, "pgd": lambda m, x, y: -x}
    with pytest.warns(RuntimeWarning, match="catastrophic overfitting at epoch 1") as caught:
        log = quiet(linear(), blobs, epochs=3, validation=blobs, attacks=stand_ins)
    assert len(caught) == 1
    assert log["overfitted"].tolist() == [True] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = {"fgsm": lambda m, x, y: x, "pgd": lambda m, x, y: x}
        log = quiet(linear(), blobs, epochs=1, validation=blobs, attacks=same)
        assert not log["overfitted"].any()
        both = {"fgsm": lambda m, x, y: -x, "pgd": lambda m, x, y: -x}  # standard training
        assert not quiet(linear(), blobs, epochs=1, validation=blobs, attacks=both)[
            "overfitted"
        ].any()


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(blobs):
    seen = []

    def spy(model, x, y):
        logits = model(x)
        seen.append((logits.dtype, x.dtype))
        return torch.nn.functional.cross_entropy(logits, y)

    model = linear()
    log = quiet(model, blobs, spy, epochs=3, precision="bfloat16", validation=blobs)
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    assert model.weight.dtype == torch.float32
    assert log["error"].iloc[-1] == 0


class Dropping(torch.nn.Linear):
    """It draws from the global generator in every step."""

    def forward(self, x):
        return torch.nn.functional.dropout(super().forward(x), 0.1, self.training)


def dropping():
    model = Dropping(2, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    return model


def noisy_run(path, model, blobs, objective=None, average=None):
    """A run with everything that has a state: momentum, schedule, noise, best weights."""
    generator = torch.Generator().manual_seed(5)
    return quiet(
        model, blobs, objective or objectives.gaussian(0.5, generator=generator), epochs=5,
        batch_size=40, validation=(blobs[0][:60] + 0.5, blobs[1][:60]), best="error", seed=3,
        optimizer=partial(torch.optim.AdamW, lr=0.05), scheduler=training.triangular(0.05),
        generators=[generator], checkpoint=path, average=average,
    ), generator  # fmt: skip


@pytest.mark.parametrize(("dies_at", "average"), [(1, None), (7, 0.8), (16, None), (29, 0.8)])
def test_a_killed_run_goes_on_exactly(blobs, tmp_path, dies_at, average):
    """Killed at any step, resumed: the same weights, the same history, to the last bit."""
    whole = dropping()
    expected, _ = noisy_run(None, whole, blobs, average=average)
    generator = torch.Generator().manual_seed(5)
    inner, steps = objectives.gaussian(0.5, generator=generator), []

    def dies(model, x, y):
        steps.append(1)
        if len(steps) == dies_at:
            raise KeyboardInterrupt
        return inner(model, x, y)

    path = tmp_path / "run.training"
    with pytest.raises(KeyboardInterrupt):
        quiet(
            dropping(), blobs, dies, epochs=5, batch_size=40, best="error", seed=3, checkpoint=path,
            validation=(blobs[0][:60] + 0.5, blobs[1][:60]), generators=[generator],
            optimizer=partial(torch.optim.AdamW, lr=0.05), scheduler=training.triangular(0.05),
            average=average,
        )  # fmt: skip
    assert path.exists() == (dies_at > 6)
    again = dropping()
    torch.nn.init.ones_(again.weight)  # whatever it begins with is replaced
    if not path.exists():
        again = dropping()
    torch.manual_seed(9)  # the resumed run finds another global generator
    log, _ = noisy_run(path, again, blobs, average=average)
    assert torch.equal(again.weight, whole.weight)
    assert torch.equal(again.bias, whole.bias)
    timeless = [column for column in log.columns if column != "seconds"]
    assert log[timeless].equals(expected[timeless])
    finished = dropping()
    log, _ = noisy_run(
        path, finished, blobs, lambda *_: pytest.fail("trained again"), average=average
    )
    assert torch.equal(finished.weight, whole.weight)


def test_a_state_of_another_run_or_a_damaged_one_is_refused(blobs, tmp_path):
    path = tmp_path / "run.training"
    run = partial(quiet, epochs=1, checkpoint=path)
    run(linear(), blobs)
    whole = path.read_bytes()
    for change in ({"about": "eps 0.2"}, {"seed": 1}, {"batch_size": 5},
                   {"epochs": 2}, {"precision": "bfloat16"},
                   {"optimizer": partial(torch.optim.Adam, lr=0.5)}):  # fmt: skip
        with pytest.raises(models.CheckpointError, match=next(iter(change))):
            run(linear(), blobs, **change)
    with pytest.raises(models.CheckpointError, match="made with model="):
        run(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)), blobs)
    for damage in (whole[: len(whole) // 2], b"", b"not a state at all"):
        path.write_bytes(damage)
        with pytest.raises(models.CheckpointError, match="start anew"):
            run(linear(), blobs)
    assert path.read_bytes() == damage


def interrupted(blobs, path, *, model=None, **rest):
    """A run that ends during its second epoch of three."""
    steps = []

    def stops(model, x, y):
        steps.append(1)
        if len(steps) > 5:
            raise KeyboardInterrupt
        return objectives.standard(model, x, y)

    with pytest.raises(KeyboardInterrupt):
        quiet(model or linear(), blobs, stops, epochs=3, batch_size=70, checkpoint=path, **rest)


class Named(torch.nn.Module):
    """The parameters of a linear network under other names."""

    def __init__(self):
        super().__init__()
        self.inner = linear()

    def forward(self, x):
        return self.inner(x)


SAME = {"fgsm": lambda model, x, y: x}
PEAK = training.triangular(0.1)


def decaying(factor):
    return lambda optimizer, total: torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@pytest.mark.parametrize(("first", "then", "message"), [
    ({}, {"scheduler": PEAK}, "schedule=.*'rates': None.*, not .*'0.0391'"),
    ({"scheduler": PEAK}, {}, "schedule=.*, not {'rates': None"),
    ({"scheduler": PEAK}, {"scheduler": recipes.every_third}, "schedule=.*, not .*rates"),
    ({"scheduler": PEAK}, {"scheduler": training.triangular(0.2)}, "schedule=.*, not .*rates"),
    ({"scheduler": PEAK}, {"scheduler": training.triangular(0.1, top=0.5)}, "schedule=.* not "),
    ({"scheduler": decaying(lambda step: 0.9**step)},
     {"scheduler": decaying(lambda step: 0.8**step)}, "schedule=.*0.0009.*, not .*0.0008"),
    ({}, {"model": Named()}, "model=.*'weight'.*, not .*'inner.weight'"),
    ({}, {"model": linear().double(), "train": lambda x, y: (x.double(), y)},
     "model=.*float32.*, not .*float64"),
    ({}, {"train": lambda x, y: (-x, y)}, "train="),
    ({}, {"train": lambda x, y: (x, 1 - y)}, "train="),
    ({"validation": lambda x, y: (x, y)}, {"validation": lambda x, y: (-x, y)}, "validation="),
    ({"validation": lambda x, y: (x, y)}, {"validation": lambda x, y: (x, y), "attacks": SAME},
     r"attacks=\[\], not \['fgsm'\]"),
    ({}, {"optimizer": lambda ps: torch.optim.Adam([{"params": [p]} for p in ps])},
     "optimizer=.*'parameters': '2'"),
])  # fmt: skip
def test_a_run_does_not_go_on_under_other_settings_or_data(blobs, tmp_path, first, then, message):
    """Refused before any step, and the network and the file stay as they were."""

    def given(change):
        return {name: value(*blobs) if name in ("train", "validation") else value
                for name, value in change.items()}  # fmt: skip

    path = tmp_path / "run.training"
    interrupted(blobs, path, **given(first))
    whole, rest = path.read_bytes(), {"model": linear(), "train": blobs} | given(then)
    before = [value.clone() for value in rest["model"].state_dict().values()]
    with pytest.raises(models.CheckpointError, match=message):
        quiet(objective=lambda *_: pytest.fail("a step"), epochs=3, batch_size=70,
              checkpoint=path, **rest)  # fmt: skip
    assert path.read_bytes() == whole
    assert all(map(torch.equal, rest["model"].state_dict().values(), before))


@pytest.mark.parametrize("lost", ["model.weight", "best.bias", "optimizer.0.exp_avg",
                                  "generator.0.0", "plain", "groups", "tensors"])  # fmt: skip
def test_a_state_that_lacks_a_part_is_refused(blobs, tmp_path, lost):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path, rest = tmp_path / "run.training", {"best": "loss", "generators": [torch.Generator()]}
    interrupted(blobs, path, **rest)
    with safe_open(str(path), framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    (tensors if lost in tensors else state).pop(lost)
    save_file(tensors, path, metadata={"state": json.dumps(state)})
    model = linear()
    with pytest.raises(models.CheckpointError, match=f"({lost}|its tensors).*start anew"):
        quiet(model, blobs, epochs=3, batch_size=70, checkpoint=path, **rest)
    assert not model.weight.any()


@pytest.mark.parametrize("scheduler", [
    lambda o, n: torch.optim.lr_scheduler.MultiStepLR(o, milestones=[4, 7]),
    lambda o, n: torch.optim.lr_scheduler.SequentialLR(o, milestones=[2], schedulers=[
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: (step + 1) / 3),
        torch.optim.lr_scheduler.MultiStepLR(o, milestones=[2, 5])]),
])  # fmt: skip
def test_a_schedule_goes_on_exactly(blobs, tmp_path, scheduler):
    """JSON knows no whole numbers as keys, such as the milestones."""
    path = tmp_path / "run.training"
    run = partial(quiet, train=blobs, epochs=3, batch_size=70, scheduler=scheduler)
    whole, again = linear(), linear()
    expected = run(whole)
    interrupted(blobs, path, scheduler=scheduler)
    log = run(again, checkpoint=path)
    assert log["lr"].tolist() == expected["lr"].tolist()
    assert log["lr"].nunique() == 3
    assert torch.equal(again.weight, whole.weight)


def test_numbers_of_numpy_are_whole_numbers_too(blobs, tmp_path):
    one, other, path = linear(), linear(), tmp_path / "run.training"
    numbers = {"epochs": 2, "batch_size": 70, "seed": 1}
    quiet(one, blobs, checkpoint=path, **{name: np.int64(k) for name, k in numbers.items()})
    quiet(other, blobs, lambda *_: pytest.fail("trained again"), checkpoint=path, **numbers)
    assert torch.equal(one.weight, other.weight)


def test_what_cannot_be_stored_without_a_pickle_is_named(blobs, tmp_path):
    make = lambda optimizer, total: torch.optim.lr_scheduler.MultiStepLR(  # noqa: E731
        optimizer, milestones=[1]
    )
    odd = lambda weights: torch.optim.SGD(  # noqa: E731
        [{"params": list(weights), "of": {1, 2}}], lr=0.1
    )
    with pytest.raises(ValueError, match="neither tensor nor JSON"):
        quiet(linear(), blobs, lambda *_: pytest.fail("a step"), epochs=1,
              optimizer=odd, checkpoint=tmp_path / "a")  # fmt: skip
    assert not (tmp_path / "a").exists()
    quiet(linear(), blobs, epochs=2, scheduler=make, checkpoint=tmp_path / "b")


TWO = """
import os, sys, torch
from functools import partial
from safetensors.torch import save_file
from trustml_helpers import attacks, models, objectives, training
g = torch.Generator().manual_seed(0)
y = torch.randint(10, (130,), generator=g)
x = (torch.rand(130, 1, 28, 28, generator=g) / 2 + y.view(-1, 1, 1, 1) / 20).clamp(0, 1)
attack = partial(attacks.fgsm, eps=0.05)
for kind in "adversarial", "gaussian":
    noise, begin = torch.Generator().manual_seed(7), []
    def watched(model, x, y):
        begin.append(noise.get_state())
        return objectives.gaussian(0.1, generator=noise)(model, x, y)

    objective = objectives.adversarial(attack) if kind == "adversarial" else watched
    rank = os.environ.get("RANK", "alone")
    model = models.build("SmallCNN", seed=int(os.environ.get("RANK", 0)))
    log = training.fit(model, (x, y), objective, epochs=2, batch_size=43, validation=(x, y),
                       attacks={"fgsm": attack}, generators=[noise], progress=False,
                       optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    save_file({"w": weights, "loss": torch.tensor(log["loss"].tolist(), dtype=torch.float64),
               "noise": (begin or [noise.get_state()])[0]}, f"{sys.argv[1]}/{kind}{rank}.st")
"""


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    """torchrun: weights as in one process to 1e-5 where no noise is drawn (float32 sums differ in
    order; 43 images on two ranks, the last minibatch is a single one); the ranks agree exactly,
    and draw different noise."""
    from safetensors.torch import load_file

    script = tmp_path / "two.py"
    script.write_text(TWO)
    alone = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    found = torchrun(script, tmp_path)
    assert found.returncode == 0, found.stderr
    for kind in "adversarial", "gaussian":
        one, first, second = (load_file(tmp_path / f"{kind}{name}.st") for name in ("alone", 0, 1))
        assert torch.equal(first["w"], second["w"])
        assert torch.equal(first["loss"], second["loss"])
        if kind == "adversarial":
            assert (one["w"] - first["w"]).abs().max() < 1e-5
            assert torch.allclose(one["loss"], first["loss"], rtol=1e-5)
        else:
            assert not torch.equal(first["noise"], second["noise"])


def test_a_loop_looks_at_its_data_once_and_not_at_every_minibatch(blobs, monkeypatch):
    """Each look makes a GPU wait: at all data once, and at the first minibatch by each check."""
    looks = []
    aminmax = torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda x: looks.append(len(x)) or aminmax(x))
    attack = partial(attacks.pgd, eps=0.1, bounds=None, steps=2, keep="last")
    quiet(linear(), blobs, objectives.adversarial(attack), epochs=1, batch_size=30)
    whole, first = looks.count(210), [each for each in looks if each != 210]
    assert whole >= 2
    assert set(first) == {30}  # the other six minibatches were not looked at
    assert len(first) <= 5


def test_an_image_outside_the_bounds_is_refused_whatever_its_minibatch(blobs):
    x, y = blobs[0].clamp(0, 1), blobs[1]
    attack = partial(attacks.pgd, eps=0.1, steps=1, keep="last")
    order = torch.randperm(210, generator=torch.Generator().manual_seed(0))
    x[order[-1]] = 255.0  # in the last minibatch
    with pytest.raises(ValueError, match=r"x lies in \[0, 255\]"):
        quiet(linear(), (x, y), objectives.adversarial(attack), epochs=1, batch_size=30)


def test_an_attack_that_changes_the_units_is_refused_at_its_first_minibatch(blobs):
    x, y = blobs[0].clamp(0, 1), blobs[1]

    def attack(model, x, y):
        return attacks.pgd(model, 255 * x, y, 0.1, steps=1, keep="last")

    with pytest.raises(ValueError, match=r"x lies in \[0, 255\]"):
        quiet(linear(), (x, y), objectives.adversarial(attack), epochs=1, batch_size=30)


def test_a_network_in_eval_mode_is_trained_all_the_same():
    layers = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)
    model = torch.nn.Sequential(torch.nn.Flatten(), *layers).eval()
    x = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
    training.fit(
        model, (x, torch.arange(30) % 3), objectives.standard, epochs=1, batch_size=10,
        progress=False,
    )  # fmt: skip
    assert layers[0].num_batches_tracked == 3


def test_when_overfitting_is_catastrophic():
    """Errors under PGD and under FGSM, at the edges of the rule."""
    pairs = [(0.4, 0.0), (0.5, 0.0), (0.6, 0.4), (0.6, 0.29)]
    found = [training.catastrophic_overfitting(*pair) for pair in pairs]
    assert found == [False, True, False, True]


def test_the_mean_loss_counts_images_and_refuses_what_is_no_number():
    assert loop._mean([1.0, 4.0], [3, 1], 0) == 1.75
    for bad in (np.inf, -np.inf, np.nan):
        with pytest.raises(FloatingPointError):
            loop._mean([bad], [1], 0)
