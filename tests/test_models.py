"""Networks, and checkpoints that refuse what was altered."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from helpers import Awkward
from safetensors.torch import save
from strategies import seeded

from trustml_helpers import data, models, smoothing
from trustml_helpers._support.calling import fingerprint, unchanged


@pytest.fixture
def saved(tmp_path):
    model = models.build("SmallCNN", seed=3)
    models.save(model, tmp_path / "tiny_0.25", objective="none", command="trustml train tiny")
    return model, tmp_path / "tiny_0.25.safetensors"


def test_weights_of_eight_and_sixteen_bits(tmp_path):
    model = models.build("SmallCNN", seed=3)
    models.save(model, tmp_path / "half", dtype=torch.float16)
    loaded = models.load(tmp_path / "half.safetensors")
    for a, b in zip(model.parameters(), loaded.parameters(), strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a.half().float(), b)
    models.save(model, tmp_path / "full")
    models.save(model, tmp_path / "byte", dtype=torch.int8)
    names = ("byte", "half", "full")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in names]
    assert sizes[1] < 0.51 * sizes[2]
    assert sizes[0] < 0.28 * sizes[2]
    loaded = models.load(tmp_path / "byte.safetensors")
    for a, b in zip(model.parameters(), loaded.parameters(), strict=True):
        # Half a step of the row's scale, its own rounding to 16 bits, and that of a bias.
        row = a.flatten(1).abs().amax(1) if a.ndim > 1 else a.abs()
        slack = row.view(-1, *[1] * (a.ndim - 1)) * (0.5 / 127 + 2**-10)
        assert ((a - b).abs() <= slack).all()


@pytest.mark.parametrize(("name", "parameters"), [
    ("LeNet", 431_080), ("SmallCNN", 166_406), ("AblationCNN", 858_634),
])  # fmt: skip
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
    for dtype in (torch.uint8, torch.int32, torch.bool):  # all weights would be 0, or 1
        with pytest.raises(ValueError, match=f"dtype={dtype}: expected one of torch.float64"):
            models.save(models.build("LeNet"), tmp_path / "x", dtype=dtype)
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


# --- EfficientNet-Lite0 ---------------------------------------------------------------------------


@pytest.mark.parametrize("side", [224, 64])
def test_efficientnet_lite0_is_the_reference_architecture(side):
    reference = EfficientNet.from_name("efficientnet-lite0", image_size=side).eval()
    for name, tensor in reference.state_dict().items():  # statistics that are not 0 and 1
        if name.endswith("running_mean"):
            tensor.normal_(generator=seeded(len(name)))
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=seeded(len(name)))
    ours = models.build("EfficientNetLite0").eval()
    names = [n for n in ours.state_dict() if not n.endswith("num_batches_tracked")]
    tensors = [t for n, t in reference.state_dict().items() if not n.endswith("batches_tracked")]
    ours.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    x = torch.rand(2, 3, side, side, generator=seeded())
    with torch.no_grad():
        expected, found = reference((x - 0.498) / 0.502), ours(x)
    assert expected.std() > 1e-3
    assert torch.allclose(found, expected, atol=1e-4)


def test_efficientnet_lite0_reads_photographs():
    images, labels, names = data.load_photos()
    said = models.predict(models.load("imagenet_efficientnet_lite0"), images)
    card = models.card("imagenet_efficientnet_lite0")
    assert int((said == labels).sum()) == card["photographs"]["right"] == 10
    assert [names[k] for k in said[:4]] == ["Egyptian cat", "beagle", "otter", "loggerhead"]


def test_weights_of_eight_bits_get_the_scale_of_their_row(tmp_path):
    model = models.build("SmallCNN")
    models.save(model, tmp_path / "a")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kernel, matrix = torch.arange(256).sub(128).clamp(-127), torch.tensor([3, -127])
    state["0.weight"] = kernel.view(16, 1, 4, 4).to(torch.int8)
    state["0.weight_scale"] = torch.linspace(0.5, 2, 16).half()
    state["5.weight"] = matrix.repeat(100, 784).to(torch.int8)
    state["5.weight_scale"] = torch.full((100,), 0.25).half()
    raw = save(state)
    (tmp_path / "a.safetensors").write_bytes(raw)
    card = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(card | {"sha256": sha256(raw).hexdigest()}))
    loaded = models.load(tmp_path / "a.safetensors")
    rows = torch.linspace(0.5, 2, 16).half().float().view(16, 1, 1, 1)
    assert torch.equal(loaded[0].weight, kernel.view(16, 1, 4, 4) * rows)
    assert torch.equal(loaded[5].weight, 0.25 * matrix.repeat(100, 784).float())


# --- groups of classes ----------------------------------------------------------------------------


def test_the_answer_of_groups_is_the_group_of_the_answer():
    groups = [2, 0, 1, 0, 2]
    logits = torch.randn(200, 5, generator=seeded())
    found = models.Grouped(lambda x: x, groups)(logits)
    assert found.shape == (200, 3)
    assert found.argmax(1).tolist() == [groups[k] for k in logits.argmax(1).tolist()]
    assert torch.equal(found[:, 0], logits[:, [1, 3]].amax(1))


def test_groups_pass_the_gradient_on():
    x = torch.tensor([[1.0, 3.0, 2.0]], requires_grad=True)
    models.Grouped(lambda x: x, [0, 0, 1])(x)[0, 0].backward()
    assert x.grad.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("groups", [[], [0, 2], [1, 1], [0, -1], [0, 0.5]])
def test_groups_without_a_gap(groups):
    with pytest.raises((ValueError, TypeError), match="groups"):
        models.Grouped(lambda x: x, groups)


def test_groups_for_each_class():
    with pytest.raises(ValueError, match=r"expected logits of shape \(1, 2\)"):
        models.Grouped(lambda x: x, [0, 1])(torch.zeros(1, 3))


def test_a_denoiser_takes_away_what_it_takes_for_noise():
    denoiser = models.build("Denoiser", seed=3)
    assert sum(p.numel() for p in denoiser.parameters()) == 60_340
    noisy = torch.rand(3, 1, 28, 28, generator=torch.Generator())
    with torch.no_grad():
        denoiser.leave[-1].weight.zero_()
        denoiser.leave[-1].bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        clean = denoiser(noisy, 0.5)
    taken = torch.tensor([[0.1, 0.2], [0.3, 0.4]]).repeat(14, 14)  # every second pixel, four times
    assert torch.allclose(noisy - clean, taken.expand_as(noisy))


def test_a_denoiser_is_told_the_noise_of_each_image():
    denoiser = models.build("Denoiser", seed=3)
    noisy = torch.rand(3, 1, 28, 28, generator=torch.Generator())
    sizes = torch.tensor([0.1, 0.5, 1.0])
    with torch.no_grad():
        together = denoiser(noisy, sizes)
        alone = [denoiser(x[None], float(size))[0] for x, size in zip(noisy, sizes, strict=True)]
        assert torch.allclose(together, torch.stack(alone), atol=1e-6)
        assert not torch.allclose(denoiser(noisy, 0.1), denoiser(noisy, 0.2), atol=1e-4)
        assert denoiser(noisy[:, :, :26, :22], 0.1).shape == (3, 1, 26, 22)


@pytest.mark.parametrize("span", [(0, 1), (-1, 1), (-3, 5)])
def test_a_denoiser_of_another_range_sees_its_own(span):
    """The trap of diffusion models: in [-1, 1] the same noise is twice as large."""
    low, high = span
    x = torch.rand(4, 6, generator=torch.Generator())
    asked = []

    def denoiser(noisy, sigma):
        asked.append((noisy, float(sigma)))
        return noisy + (high - low)

    f = models.Denoised(denoiser, lambda clean: clean, 0.3, span)
    assert torch.allclose(f(x), x + 1, atol=1e-6)
    assert torch.allclose(asked[0][0], low + (high - low) * x)
    assert asked[0][1] == pytest.approx(0.3 * (high - low))


def test_a_denoised_network_is_another_at_another_sigma():
    front, behind = models.build("Denoiser"), models.build("SmallCNN")
    one, two = (models.Denoised(front, behind, sigma) for sigma in (0.25, 0.5))
    assert fingerprint(one) != fingerprint(two)
    with pytest.warns(UserWarning, match="trained with sigma 0.25"):
        smoothing.SmoothedClassifier(one, 0.5, 10)


def test_the_denoiser_of_the_course_helps_a_network_that_never_saw_noise():
    """On the same noise, from fixed seeds: in each comparison 60 more of 1,000 turn right."""
    x, y = (part[::10] for part in data.load_mnist("test"))
    behind, front = models.load("mnist_smallcnn_standard"), models.load("mnist_denoiser")
    for sigma in (0.5, 1.0):
        noisy = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        alone = models.predict(behind, noisy) == y
        denoised = models.predict(models.Denoised(front, behind, sigma), noisy) == y
        assert int(denoised.sum()) - int(alone.sum()) >= 60
    # Told a size that is not true, it does worse: it listens.
    misled = models.predict(models.Denoised(front, behind, 0.1), noisy) == y
    assert int(denoised.sum()) - int(misled.sum()) >= 60
