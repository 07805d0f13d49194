"""Networks, and checkpoints that refuse what was altered."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import Awkward

from trustml_helpers import models
from trustml_helpers._support.calling import unchanged


@pytest.fixture
def saved(tmp_path):
    model = models.build("SmallCNN", seed=3)
    models.save(model, tmp_path / "tiny_0.25", objective="none", command="trustml train tiny")
    return model, tmp_path / "tiny_0.25.safetensors"


@pytest.mark.parametrize(("name", "parameters"), [("LeNet", 431_080), ("SmallCNN", 166_406)])
def test_architectures(name, parameters):
    model = models.build(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert isinstance(model, getattr(models, name))


def test_build_depends_on_the_seed_alone():
    state = torch.get_rng_state()
    one, same, other = (models.build("LeNet", seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one[0].weight, same[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)


def test_round_trip(saved):
    model, path = saved
    again = models.load(path)
    assert not again.training
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    card = models.card(path)
    assert card["architecture"] == "SmallCNN"
    assert card["parameters"] == 166_406
    assert card["objective"] == "none"
    assert sorted(p.name for p in path.parent.iterdir()) == ["tiny_0.25.json", path.name]


def test_altered_weights_are_refused(saved):
    _, path = saved
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(
        models.CheckpointError, match=r"not the file its card describes.*trustml train tiny"
    ):
        models.load(path)


def test_missing_weights(saved):
    _, path = saved
    path.unlink()
    with pytest.raises(models.CheckpointError, match="missing, though its card exists"):
        models.load(path)


@pytest.mark.parametrize("text", ["not json", "{}", "[]", '{"architecture": "os.system"}'])
def test_damaged_card(saved, text):
    _, path = saved
    path.with_suffix(".json").write_text(text)
    with pytest.raises(models.CheckpointError, match="cannot be used"):
        models.load(path)


def test_unknown_checkpoint_lists_the_known_ones():
    with pytest.raises(models.CheckpointError, match=r"Known: .*mnist_smallcnn_standard"):
        models.load("nothing")


def test_only_known_architectures_are_saved(tmp_path):
    with pytest.raises(ValueError, match="model=Linear"):
        models.save(torch.nn.Linear(2, 2), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mnist_smallcnn_standard", "mnist_smallcnn_adversarial"])
def test_shipped_checkpoints(name):
    assert name in models.available()
    card = models.card(name)
    for key in ("objective", "data", "seed", "command", "test_accuracy", "sha256"):
        assert card[key] not in (None, ""), key
    assert card["command"].startswith(f"trustml train {name}")
    assert card["test_images"] == 10_000
    assert isinstance(models.load(name), models.SmallCNN)


def test_no_pickle_is_loaded_for_a_checkpoint(saved, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load used"))
    monkeypatch.setattr("pickle.load", lambda *a, **k: pytest.fail("pickle.load used"))
    models.load(saved[1])


def test_predict_in_batches(awkward: Awkward):
    x = torch.rand(7, 1, 8, 8, generator=torch.Generator())
    whole, parts = models.predict(awkward, x), models.predict(awkward, x, batch_size=2)
    assert torch.equal(whole, parts)
    with torch.no_grad(), unchanged(awkward):
        assert torch.equal(whole, awkward(x).argmax(1))
    assert models.predict(awkward, x[:0]).shape == (0,)
    assert not whole.is_inference()


def test_card_is_plain_json(saved):
    content = json.loads(saved[1].with_suffix(".json").read_text())
    assert content["sha256"]


def test_what_is_no_tensor_is_no_logits():
    x = torch.zeros(2, 3)
    for returned, name in (((x, x), "tuple"), (x.numpy(), "ndarray"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"expected logits as a torch.Tensor, got {name}"):
            models.predict(lambda _, found=returned: found, x)
