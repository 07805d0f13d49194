"""The training loop: it learns, repeats itself, reports, and sees only what it is given."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from trustml_helpers import attacks, data, models, objectives, training


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


@pytest.mark.parametrize(("peak", "top"), [(0.1, 0.0), (0.1, 1.0), (0.0, 0.4)])
def test_triangular_rejects(peak, top):
    with pytest.raises(ValueError, match="expected"):
        training.triangular(peak, top=top)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"train": (torch.zeros(3, 2), torch.zeros(2).long())}, "3 and 2"),
        ({"train": (torch.zeros(0, 2), torch.zeros(0).long())}, "at least one"),
        ({"validation": (torch.zeros(3, 2), torch.zeros(2).long())}, "validation"),
        ({"attacks": {"a": attacks.fgsm}}, "pass validation"),
    ],
)
def test_bad_arguments(blobs, change, message):
    model = linear()
    arguments = {"model": model, "train": blobs, "epochs": 1} | change
    with pytest.raises(ValueError, match=message):
        quiet(**arguments)
    assert not model.weight.any()
