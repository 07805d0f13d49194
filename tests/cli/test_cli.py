"""The command line, run in this process: it trains, attacks, and explains what is wrong."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from safetensors import safe_open

from trustml_helpers import (
    attacks,
    certification,
    cli,
    data,
    models,
    robustness,
    smoothing,
    training,
)
from trustml_helpers._support.randomness import keyed_generator
from trustml_helpers.cli import certify, inputs, train
from trustml_helpers.robustness import log as attack_log
from trustml_helpers.training import RECIPES, loop

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trustml(monkeypatch, capsys):
    """Call the command line; returns (exit code, stdout, stderr)."""

    def call(line):
        monkeypatch.setattr(sys, "argv", ["trustml", *shlex.split(line)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


SMALL = "--limit 300 --validation 50 --epochs 1"
TINY = f"--recipe standard {SMALL}"


@pytest.mark.slow
def test_train_writes_a_checkpoint_that_loads(trustml, tmp_path):
    code, out, err = trustml(f"train tiny {TINY} --out {tmp_path} --seed 4")
    assert code == 0, err
    assert "wrote" in out
    card = models.card(tmp_path / "tiny.safetensors")
    assert card["command"] == (
        "trustml train tiny --recipe standard --epochs 1 --validation 50 --limit 300 --seed 4"
    )
    assert card["test_images"] == 300
    model = models.load(tmp_path / "tiny.safetensors")
    test = [part[:300] for part in data.load_mnist("test")]
    assert card["test_accuracy"]["clean"] == pytest.approx(
        robustness.accuracy(model, *test), abs=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "dtype"), [(8, torch.int8), (16, torch.float16),
                                             (32, torch.float32)])  # fmt: skip
def test_what_is_measured_is_what_is_stored(trustml, tmp_path, monkeypatch, bits, dtype):
    """Also where weights are stored in few bits; and the command in the card says so."""
    tested = []
    monkeypatch.setattr(train, "_tested", lambda model, *rest: tested.append(model) or {})
    code, _, err = trustml(f"train tiny {TINY} --bits {bits} --out {tmp_path}")
    assert code == 0, err
    path = tmp_path / "tiny.safetensors"
    assert (f"--bits {bits}" in models.card(path)["command"]) == (bits != 16)
    with safe_open(str(path), framework="pt") as file:
        assert file.get_tensor("5.weight").dtype == dtype
    stored = models.load(path).state_dict()
    assert all(torch.equal(stored[k], v) for k, v in tested[0].state_dict().items())
    assert "bits=12: expected one of 32, 16, 8" in trustml(f"train b {TINY} --bits 12")[2]


@pytest.mark.slow
def test_train_a_denoiser(trustml, tmp_path):
    code, _, err = trustml(f"train front --recipe denoiser {SMALL} --out {tmp_path}")
    assert code == 0, err
    denoiser = models.load(tmp_path / "front.safetensors")
    assert isinstance(denoiser, models.Denoiser)
    x, y = (part[:300] for part in data.load_mnist("test"))
    noisy = x + 0.25 * torch.randn(x.shape, generator=keyed_generator(0, 0))
    front = models.Denoised(denoiser, models.load("mnist_smallcnn_standard"), 0.25)
    shares = denoiser.card["test_accuracy"]
    assert list(shares) == ["noise 0.25", "noise 0.5", "noise 1"]
    assert shares["noise 0.25"] == pytest.approx(robustness.accuracy(front, noisy, y), abs=1e-4)
    assert "validation_accuracy" not in denoiser.card


@pytest.mark.slow
def test_the_command_in_the_card_rebuilds_the_weights(trustml, tmp_path):
    trustml(f"train tiny {SMALL} --recipe adversarial --eps 0.1 --out {tmp_path / 'a'}")
    first = json.loads((tmp_path / "a/tiny.json").read_text())
    assert first["objective"] == "adversarial training against PGD-10, linf, eps 0.1"
    command = first["command"].removeprefix("trustml ")
    assert trustml(f"{command} --out {tmp_path / 'b'}")[0] == 0
    assert json.loads((tmp_path / "b/tiny.json").read_text())["sha256"] == first["sha256"]


@pytest.mark.slow
def test_the_test_set_is_read_after_training_only(trustml, tmp_path, monkeypatch):
    order = []
    load, fit = data.load_mnist, train.training.fit
    monkeypatch.setattr(data, "load_mnist", lambda split: order.append(split) or load(split))
    monkeypatch.setattr(
        train.training, "fit", lambda *a, **k: (fit(*a, **k), order.append("trained"))[0]
    )
    trustml(f"train tiny {TINY} --out {tmp_path}")
    assert order == ["train", "trained", "test"]


@pytest.mark.slow
def test_a_checkpoint_is_not_overwritten_unasked(trustml, tmp_path):
    (tmp_path / "tiny.safetensors").write_bytes(b"precious")
    code, _, err = trustml(f"train tiny {TINY} --out {tmp_path}")
    assert code == 2
    assert "--overwrite" in err
    assert (tmp_path / "tiny.safetensors").read_bytes() == b"precious"
    assert trustml(f"train tiny {TINY} --out {tmp_path} --overwrite")[0] == 0


def test_attack_counts_as_the_package_does(trustml, tmp_path):
    table = tmp_path / "rows.csv"
    code, out, err = trustml(
        f"attack mnist_smallcnn_standard --attack fgsm --eps 0.1 --limit 50 --output {table}"
    )
    assert code == 0, err
    x, y = (part[:50] for part in data.load_mnist("test"))
    model = models.load("mnist_smallcnn_standard")
    expected = robustness.robust_correct(model, x, y, lambda m, a, b: attacks.fgsm(m, a, b, 0.1))
    rows = pd.read_csv(table)
    assert rows["broken_by"].isna().tolist() == expected.tolist()
    assert rows["label"].tolist() == y.tolist()
    assert f"{100 * expected.double().mean():6.2f} %" in out


@pytest.mark.slow
def test_attack_of_every_name_goes_on_after_a_kill(trustml, tmp_path, monkeypatch):
    """The worst case of the suite; a second call does no work; other settings are refused."""
    table = tmp_path / "suite.csv"
    line = (
        "attack mnist_smallcnn_standard --attack suite --eps 0.1 --steps 5 --queries 20 "
        f"--every 500 --batch-size 8 --output {table}"
    )
    code, out, err = trustml(line)
    assert code == 0, err
    rows = pd.read_csv(table, keep_default_na=False)
    assert rows["idx"].tolist() == list(range(0, 10_000, 500))
    stands = (rows["broken_by"] == "").mean()
    assert f"Square linf 0.1  {100 * stands:6.2f} %" in out
    whole = table.read_text()
    table.write_text(
        "\n".join(whole.splitlines()[:9]) + "\n"
    )  # as a kill after one batch leaves it
    assert trustml(line)[0] == 0
    assert table.read_text() == whole
    monkeypatch.setattr(attack_log, "broken_by", lambda *_, **__: pytest.fail("worked again"))
    assert trustml(line)[0] == 0
    code, _, err = trustml(line.replace("--eps 0.1", "--eps 0.2"))
    assert code == 2
    assert "eps=0.1, not 0.2" in err


@pytest.mark.parametrize(
    "options", ["--attack square --queries 5", "--attack auto_pgd --loss dlr --steps 3",
                "--attack pgd --norm l1 --eps 5 --steps 3"],
)  # fmt: skip
def test_other_attacks(trustml, options):
    code, out, err = trustml(f"attack mnist_smallcnn_standard --eps 0.1 --limit 10 {options}")
    assert code == 0, err
    assert out.count("of 10 images") == 2


@pytest.mark.slow
def test_train_keeps_the_best_epoch(trustml, tmp_path):
    line = (
        "train {} --recipe fgsm_rs --eps 0.05 --epochs 3 --limit 400 --validation 100 --out {} "
        "--history {}"
    )
    history = tmp_path / "h.csv"
    code, _, err = trustml(line.format("whole", tmp_path, history))
    assert code == 0, err
    epochs = pd.read_csv(history)
    assert {"error", "error fgsm", "error pgd", "overfitted", "kept"} <= set(epochs.columns)
    card = models.card(tmp_path / "whole.json")
    assert card["epoch_kept"] == int(epochs["kept"].argmax()) + 1
    assert card["objective"] == (
        "adversarial training against FGSM-RS (unclipped start), linf, eps 0.05"
    )
    assert "--eps 0.05" in card["command"]
    assert "--history" not in card["command"]
    assert not list(tmp_path.glob("*.training"))


@pytest.mark.slow
def test_a_killed_train_goes_on_by_the_same_command_and_refuses_another(
    trustml, tmp_path, monkeypatch
):
    line = (
        "train {} --recipe fgsm_rs --eps {} --epochs 2 --limit 300 "
        "--validation 100 --no-test --out " + str(tmp_path)
    )
    with monkeypatch.context() as context:
        context.setattr(models, "save", lambda *_, **__: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            trustml(line.format("net", 0.1))
    assert (tmp_path / "net.training").exists()
    code, _, err = trustml(line.format("net", 0.2))
    assert code == 2
    assert "net.training was made with about=" in err
    assert "--eps 0.2" in err
    with monkeypatch.context() as context:
        context.setattr(loop, "_one_epoch", lambda *_: pytest.fail("trained again"))
        code, _, err = trustml(line.format("net", 0.1))
    assert code == 0, err
    assert not (tmp_path / "net.training").exists()


@pytest.mark.slow
def test_diagnose_prints_the_checklist_and_its_verdict(trustml, monkeypatch):
    line = "diagnose mnist_smallcnn_standard --eps 0.1 --limit 60 --steps 5 --queries 50"
    code, out, err = trustml(line)
    assert code == 0, err
    assert out.splitlines()[-1] == "nothing flagged"
    real = models.load
    monkeypatch.setattr(models, "load", lambda name: lambda z: 1000 * real(name)(z))
    code, out, _ = trustml(line)
    assert code == 1
    assert "FLAG  zero gradient" in out


def test_attack_is_repeatable(trustml):
    line = "attack mnist_smallcnn_standard --eps 0.1 --steps 3 --restarts 2 --limit 40 --seed 1"
    state = torch.get_rng_state()
    assert trustml(line)[1] == trustml(line)[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("attack nothing", "no checkpoint 'nothing'"),
        ("attack mnist_smallcnn_standard --eps 8", "8 / 255"),
        ("attack mnist_smallcnn_standard --limit 0", "limit=0"),
        ("attack mnist_smallcnn_standard --attack fgsm_rs", "expected one of 'fgsm', 'pgd', 'auto"),
        ("attack mnist_smallcnn_standard --norm l7", "norm='l7': expected one of 'linf'"),
        ("attack mnist_smallcnn_standard --split dev", "split='dev'"),
        ("train tiny --recipe standard --history /no/such/folder/h.csv", "create it first"),
        ("attack mnist_smallcnn_standard --loss hinge", "loss='hinge'"),
        ("attack mnist_smallcnn_standard --output /no/such/folder/x.csv", "create it first"),
        ("train a/b --recipe standard", "plain name"),
        ("train tiny --recipe standard --validation 0", "validation=0"),
        ("train tiny --recipe standard --limit 10", "validation=5000"),
        ("train tiny --recipe standard --epochs 0", "epochs=0"),
        ("train tiny --recipe nonsense", "recipe='nonsense': expected one of 'standard'"),
        ("train tiny --recipe standard --sigma 0.5", "recipe 'standard' has no sigma to choose"),
        ("train tiny --recipe macer --eps 0.1", "recipe 'macer' has no eps to choose"),
        ("train tiny --recipe macer --sigma nan", "sigma=nan: expected a finite number"),
        ("train tiny --recipe trades --eps 8", "eps=8.0: expected a number from 0 to 1"),
        ("train tiny", "recipe: a recipe decides how a network is trained, for example"),
        ("train tiny --objective adversarial --attack fgsm_rs --lr 0.1", "--recipe fgsm_rs; "),
        ("train tiny --lr 0.002 --rate triangular", "--rate triangular: a recipe decides"),
        ("train tiny --recipe macer --lr 0.1", "--lr 0.1: a recipe decides"),
        ("certify mnist_smallcnn_standard x.tsv", "pass --sigma"),
        ("certify mnist_smallcnn_standard x.tsv --sigma 0", "sigma=0"),
        ("certify mnist_smallcnn_standard x.tsv --sigma 1 --n 5", "n=5"),
        ("certify mnist_smallcnn_standard x.tsv --sigma 1 --every 0", "every=0"),
        ("certify nothing x.tsv", "no checkpoint 'nothing'"),
        ("predict mnist_smallcnn_standard --sigma 1 --limit 0", "limit=0"),
        ("predict mnist_smallcnn_standard --sigma 1 --n 0", "n=0"),
        ("predict mnist_smallcnn_standard --sigma 1 --output /no/folder/x.csv", "create it first"),
    ],
)
def test_errors_are_one_sentence(trustml, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    if line.startswith("train"):
        line += f" --out {tmp_path}"
    code, _, err = trustml(line)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def smoothed(trustml, tmp_path):
    """The path of a network trained for a moment with noise of 0.5."""
    trustml(f"train net {SMALL} --recipe quick_gaussian --out {tmp_path}")
    return tmp_path / "net.safetensors"


@pytest.mark.slow
def test_a_noise_trained_card_states_sigma_and_accuracy_under_noise(smoothed):
    card, model = models.card(smoothed), models.load(smoothed)
    assert card["sigma"] == 0.5
    x, y = (part[:300] for part in data.load_mnist("test"))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    expected = robustness.accuracy(model, x + 0.5 * noise, y)
    assert card["test_accuracy"]["noise 0.5"] == pytest.approx(expected, abs=1e-4)


def test_the_noise_of_a_card_has_standard_deviation_sigma():
    def noisy(x):  # class 1 if the spread is above 0.375: true for 0.5, false for its square
        above = x.flatten(1).std(1) - 0.375
        return torch.stack([-above, above], 1)

    black = torch.zeros(5, 1, 28, 28), torch.ones(5, dtype=torch.long)
    for sigma, right in ((0.5, 1), (0.25, 0)):
        plan = replace(RECIPES["gaussian"], sigma=sigma)
        assert train._tested(noisy, black, 0, plan) == {"clean": 0, f"noise {sigma}": right}


@pytest.mark.slow
def test_train_under_ablation(trustml, tmp_path):
    """The card names the noise; validation and test see one ablated copy of each image."""
    code, _, err = trustml(f"train few --recipe ablation {SMALL} --out {tmp_path}")
    assert code == 0, err
    network = models.load(tmp_path / "few.safetensors")
    card, x = network.card, data.load_mnist("test")[0][:300]
    assert smoothing.noise_from(card) == smoothing.Ablation(45)
    copies = smoothing.Ablation(45)(x, keyed_generator(0, 0))
    expected = robustness.accuracy(network, copies, data.load_mnist("test")[1][:300])
    assert list(card["test_accuracy"]) == ["clean", "Ablation(keep=45, pixels=784)"]
    assert card["test_accuracy"]["Ablation(keep=45, pixels=784)"] == pytest.approx(
        expected, abs=1e-4
    )
    assert 0 <= card["validation_accuracy"] <= 1
    asked, few = dict.fromkeys(("noise", "sigma", "keep")), tmp_path / "few.safetensors"
    g, _ = certify._smoothed(str(few), asked, inputs.images("mnist", "test", None, 1, 5), None,
                             None, torch.device("cpu"))  # fmt: skip
    assert g.noise == smoothing.Ablation(45)


@pytest.mark.parametrize(("recipe", "lr"), [("course_gaussian", 0.1), ("trades", 0.003)])
def test_network_optimizer_and_layout_are_those_of_the_recipe(trustml, tmp_path, monkeypatch,
                                                              recipe, lr):  # fmt: skip
    seen = {}

    def fit(model, *args, optimizer, attacks, **rest):
        seen.update(rest, network=type(model).__name__, attacks=sorted(attacks or ()))
        seen["layout"] = all(
            weight.is_contiguous(memory_format=torch.channels_last)
            for weight in model.parameters()
            if weight.ndim == 4
        )
        seen["defaults"] = optimizer(model.parameters()).defaults
        raise ValueError("enough")

    monkeypatch.setattr(train.training, "fit", fit)
    trustml(f"train tiny {SMALL} --recipe {recipe} --out {tmp_path}")
    assert seen["layout"]
    assert seen["defaults"]["lr"] == lr
    noisy = recipe == "course_gaussian"
    assert seen["network"] == ("LeNet" if noisy else "WideCNN")
    assert (seen["attacks"], seen["best"]) == (
        ([], None) if noisy else (["fgsm", "pgd"], "error pgd")
    )


@pytest.mark.slow
def test_certify_writes_the_log_of_the_package_and_resumes(trustml, smoothed, tmp_path):
    log = tmp_path / "logs" / "half.tsv"
    line = f"certify {smoothed} {log} --n0 10 --n 50 --alpha 0.01 --every 2000 --seed 3"
    code, out, err = trustml(f"{line} --limit 2")
    assert code == 0, err
    assert trustml(line)[0] == 0
    found = certification.read_log(log)
    assert found["idx"].tolist() == [0, 2000, 4000, 6000, 8000]
    model = models.load(smoothed).to(memory_format=torch.channels_last)
    expected = certification.certify_dataset(
        smoothing.SmoothedClassifier(model, 0.5, 10), *data.load_mnist("test"),
        tmp_path / "mine.tsv", n0=10, n=50, alpha=0.01, seed=3, indices=found["idx"],
        progress=False,
    )  # fmt: skip
    assert found.drop(columns="time").equals(expected.drop(columns="time"))
    assert "ACR" in out
    code, _, err = trustml(f"{line} --n 51")
    assert code == 2
    assert "n=50, not 51" in err


OWN = """
import numpy as np, torch
from torch import nn

class Halves(nn.Module):
    def forward(self, x):
        z = x.flatten(1).mean(1) - 0.5
        return torch.stack([-z, z, z - 9], 1)

def build():
    return Halves()

ready = Halves()

def picky():
    return nn.Conv2d(3, 10, 3)

def pictures():
    x = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 1, 8, 8).contiguous()
    return x, (torch.arange(6) > 2).long()

def whole():
    return torch.ones(6, 1, 8, 8, dtype=torch.int64), torch.zeros(6, dtype=torch.long)

def below():
    return torch.zeros(2, 1, 8, 8), torch.tensor([0, -1])

def wrong():
    return torch.zeros(6, 1, 8, 8), torch.zeros(5, dtype=torch.long)

def beyond():
    return torch.zeros(2, 1, 8, 8), torch.tensor([0, 7])

number = 7

def bright():  # a denoiser that whitens what has noise of 0.25
    return lambda noisy, sigma: torch.where(sigma == 0.25, 1.0, noisy)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A researcher's folder: a module with networks and data, and an .npz file."""
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_nets", None)
    x = np.broadcast_to(np.linspace(0, 1, 6)[:, None, None, None], (6, 1, 8, 8))
    labels = np.arange(6) > 2
    np.savez("own.npz", images=x.astype(np.float32), labels=labels)
    np.savez("bytes.npz", images=np.round(255 * x).astype(np.uint8), labels=labels)
    np.savez("grey.npz", images=255 * x, labels=labels)
    np.savez("half.npz", images=x)
    np.savez("cut.npz", images=x, labels=labels + 0.7)
    np.savez("complex.npz", images=x + 1j, labels=labels)
    np.savez("text.npz", images=x, labels=labels.astype(str))
    np.savez("empty.npz", images=x[:0], labels=labels[:0])
    np.savez("floats.npz", images=x, labels=labels.astype(float))
    np.save("bare.npy", x)
    Path("bare.npy").rename("bare.npz")
    np.savez_compressed("damaged.npz", images=x, labels=labels)
    raw = bytearray(Path("damaged.npz").read_bytes())
    start = 30 + len("images.npy") + raw[28]  # of the compressed stream, behind its header
    raw[start] = 0xFF  # no kind of block
    Path("damaged.npz").write_bytes(raw)
    with zipfile.ZipFile("members.npz", "w") as archive:
        archive.writestr("images", "no array")
        archive.writestr("labels", "no array")
    yield
    sys.modules.pop("own_nets", None)


@pytest.mark.parametrize("network", ["own_nets:build", "own_nets:Halves", "own_nets:ready"])
@pytest.mark.parametrize("images", ["own_nets:pictures", "own.npz", "bytes.npz", "floats.npz"])
def test_certify_ones_own_network_on_ones_own_images(trustml, own, network, images):
    line = f"certify {network} log.tsv --data {images} --sigma 0.25 --n0 10 --n 100 --every 2"
    code, _, err = trustml(line)
    assert code == 0, err
    found = certification.read_log("log.tsv")
    assert found["idx"].tolist() == [0, 2, 4]
    assert found["label"].tolist() == [0, 0, 1]
    assert found["correct"].tolist() == [1, 1, 1]
    assert found.columns[-1] == "count_2"
    assert trustml(f"predict {network} --data {images} --sigma 0.25 --n 100")[0] == 0


def test_images_of_torchvision_keep_their_numbers(trustml, own, monkeypatch, tmp_path):
    class Ten(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, i):
            return torch.full((1, 8, 8), i / 10), int(i > 4)

    asked = []
    monkeypatch.setattr(data, "torchvision_dataset", lambda *a, **k: asked.append((a, k)) or Ten())
    code, _, err = trustml("certify own_nets:build log.tsv --data cifar10 --root files --every 4 "
                           "--split train --sigma 0.25 --n0 10 --n 100")  # fmt: skip
    assert code == 0, err
    assert asked == [(("cifar10", "train"), {"root": Path("files")})]
    found = certification.read_log("log.tsv")
    assert found["idx"].tolist() == [0, 4, 8]
    assert found["correct"].tolist() == [1, 1, 1]


def test_precision_and_layout_reach_the_log(trustml, own):
    line = "certify own_nets:build log.tsv --data own.npz --sigma 0.25 --n0 10 --n 100"
    code, _, err = trustml(f"{line} --dtype bfloat16 --layout contiguous --batch-size 50 --limit 1")
    assert code == 0, err
    about = json.loads(Path("log.json").read_text())
    assert [about[k] for k in ("dtype", "layout", "batch_size")] == ["bfloat16", "contiguous", 50]
    assert trustml(line)[0] == 0  # goes on as recorded
    code, _, err = trustml(f"{line} --dtype float32")
    assert code == 2
    assert "dtype='bfloat16', not 'float32'" in err


@pytest.mark.slow
def test_another_sigma_is_a_note(trustml, own, smoothed, tmp_path):
    code, _, err = trustml(f"certify {smoothed} log.tsv --sigma 0.3 --limit 1 --n 50")
    assert code == 0
    assert "note: sigma=0.3: this checkpoint was trained with sigma 0.5" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "own_nets:build",
            "data=None: expected the images for own_nets:build, a network of your own",
        ),
        ("own_nets:nothing --data own.npz", "model='own_nets:nothing'"),
        ("no_such_module:build --data own.npz", "expected module:attribute (nets:f"),
        (
            "own_nets:pictures --data own.npz",
            "expected a network or a function that returns one, got tuple",
        ),
        ("own_nets:build --data own_nets:wrong", "expected one label per image"),
        ("own_nets:build --data own_nets:build", "error"),
        ("own_nets:build --data own_nets:whole", "images of own_nets:whole=(torch.int64 of shape"),
        ("own_nets:build --data half.npz", "the arrays images, real"),
        ("own_nets:build --data none.npz", "data='none.npz'"),
        ("own_nets:build --data coco", "no such folder; expected one"),
        ("own_nets:build --data cut.npz", "labels=[0.7 0.7 0.7 1.7 1.7 1.7]: expected whole"),
        ("own_nets:build --data complex.npz", "(images of complex128)"),
        ("own_nets:build --data text.npz", "expected whole numbers of at least 0"),
        ("own_nets:build --data empty.npz", "data='empty.npz': expected images with values"),
        ("own_nets:build --data bare.npz", "data='bare.npz': expected a file of numpy.savez"),
        ("own_nets:build --data damaged.npz", "data='damaged.npz': expected a file of numpy.sav"),
        ("own_nets:build --data members.npz", "data='members.npz': expected a file of numpy.sav"),
        ("own_nets:build --data own.npz --device meta", "device='meta': torch cannot compute"),
        ("own_nets:build --data own.npz --device vulkan", "cannot compute there"),
        ("own_nets:build --data own.npz --device quantum", "device='quantum'"),
        ("own_nets:build --data own.npz --every 0", "every=0"),
        ("torch.nn:Flatten --data bytes.npz --sigma 0", "sigma=0"),
        ("torch.nn:Identity --data own.npz", "model: expected logits of shape (1, K"),
        ("own_nets:build --data grey.npz", "values in [0, 1], got 6 from 0 to 255; divide by"),
        ("own_nets:picky --data own.npz", "model='own_nets:picky': x: the model cannot take im"),
        ("own_nets.py:build --data own.npz", "nets:f for f in nets.py"),
        ("own_nets:build --data own.npz --layout sideways", "layout='sideways': expected"),
        ("own_nets:build --data own.npz --dtype int8", "dtype='int8': expected one of 'float64'"),
    ],
)
def test_what_is_no_network_or_no_images(trustml, own, words, message):
    network, _, rest = words.partition(" ")
    sigma = "" if "--sigma" in words else "--sigma 0.25"
    code, _, err = trustml(f"certify {network} log.tsv {rest} --n0 10 --n 100 {sigma}")
    assert code == 2
    assert message in err
    assert not Path("log.tsv").exists()


def test_ctrl_c_ends_with_a_word(trustml, own, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(certification, "certify_dataset", interrupted)
    code, _, err = trustml("certify own_nets:build log.tsv --data own.npz --sigma 0.25")
    assert code == 130
    assert "what was finished is kept" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(trustml, own):
    code, _, err = trustml("certify own_nets:build log.tsv --data own.npz --sigma 1 --device cuda")
    assert code == 2
    assert "use --device cpu" in err


@pytest.mark.slow
def test_predict_counts_right_wrong_and_abstained(trustml, tmp_path):
    table = tmp_path / "rows.csv"
    code, out, err = trustml(
        "predict mnist_smallcnn_standard --sigma 1 --n 40 --every 100 --limit 50 --seed 1 "
        f"--output {table}"
    )
    assert code == 0, err
    rows = pd.read_csv(table)
    assert rows["index"].tolist() == list(range(0, 5000, 100))
    x, y = data.load_mnist("test")
    model = models.load("mnist_smallcnn_standard").to(memory_format=torch.channels_last)
    g = smoothing.SmoothedClassifier(model, 1.0, 10)
    generator = torch.Generator().manual_seed(1)
    expected = [g.predict(x[rows["index"][k : k + 20].tolist()], 40, 0.001, generator=generator)
                for k in (0, 20, 40)]  # fmt: skip
    assert rows["predict"].tolist() == torch.cat(expected).tolist()
    assert rows["label"].tolist() == y[rows["index"].tolist()].tolist()
    right, abstained = rows["predict"] == rows["label"], rows["predict"] == smoothing.ABSTAIN
    for name, flags in (("right", right), ("abstained", abstained), ("wrong", ~right & ~abstained)):
        assert f"{name}  {100 * flags.mean():6.2f} %" in out


def test_plot_draws_logs_of_both_formats(trustml, tmp_path):
    head = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    rows = "0\t7\t7\t{}\t1\t0:00:17.5\n20\t4\t-1\t0.0\t0\t0:00:17.5\n"
    for name, radius in (("a", 0.5), ("b", 2.6)):
        (tmp_path / f"{name}.tsv").write_text(head + rows.format(radius))
    picture = tmp_path / "curves.png"
    code, out, err = trustml(f"plot {tmp_path}/a.tsv {tmp_path}/b.tsv --output {picture}")
    assert code == 0, err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "1.3000" in out  # ACR of b: 2.6 / 2
    (tmp_path / "c.tsv").write_text(head)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.tsv").write_text(head)
    for line, message in (
        (f"{tmp_path}/c.tsv --output {tmp_path}/d.png", "the log c has 0 rows"),
        (f"{tmp_path}/a.tsv --output {tmp_path}/none/d.png", "create it first"),
        (f"{tmp_path}/a.tsv --output {tmp_path}/d.png --points 1", "points=1"),
        (f"{tmp_path}/a.tsv --output {tmp_path}", "is a folder; name a file in it"),
        (f"{tmp_path}/a.tsv --output {tmp_path}/d", "expected a picture, such as d.png"),
        (f"{tmp_path}/a.tsv --output {tmp_path}/d.txt", "expected a picture, such as d.png"),
        (f"{tmp_path}/nothing.tsv --output {tmp_path}/d.png", "is missing"),
        (f"{tmp_path}/a.tsv {tmp_path}/a.tsv --output {tmp_path}/d.png", "two of them are called"),
    ):
        code, _, err = trustml(f"plot {line}")
        assert code == 2
        assert message in err
    assert not (tmp_path / "d.png").exists()


def test_logs_of_one_name_are_told_apart_by_their_folders(trustml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logs = ["one.tsv", "a/one.tsv", "x/b/one.tsv", "y/b/one.tsv", "x/two.tsv"]
    for k, log in enumerate(logs):
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        Path(log).write_text(
            f"idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t7\t7\t{1 + k}\t1\t1\n"
        )
    code, out, err = trustml(f"plot {' '.join(logs)} --output curves.png")
    assert code == 0, err
    rows = [line.split() for line in out.splitlines()[2:-1]]
    assert [row[0] for row in rows] == ["one", "a/one", "x/b/one", "y/b/one", "two"]
    assert [row[-3] for row in rows] == ["1.0000", "2.0000", "3.0000", "4.0000", "5.0000"]  # ACR


def test_the_table_of_a_huge_radius_has_few_columns(trustml, tmp_path):
    (tmp_path / "a.tsv").write_text(
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t7\t7\t5e11\t1\t1\n1\t7\t7\t2\t1\t1\n"
    )
    code, out, err = trustml(f"plot {tmp_path}/a.tsv --output {tmp_path}/a.png")
    assert code == 0, err
    assert 10 < out.count("r=") <= 41
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize("line", [
    "predict mnist_smallcnn_standard --sigma 1 --n 50 --limit 2 --output {0}",
    f"train tiny {TINY} --no-test --out {{0}} --history {{0}}",
])  # fmt: skip
def test_a_folder_is_no_output(trustml, tmp_path, line):
    code, _, err = trustml(line.format(tmp_path))
    assert code == 2
    assert "is a folder; name a file in it" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("settings", "message"), [
    ("null", "(expected names and values"), ("{", "(Expecting property name"),
    ('{"architecture": "LeNet", "sigma": 0.5}', "('n')"),
    ('{"n": 100, "alpha": 0.01}', "(sigma: gaussian noise needs it"),
    ('{"sigma": [1], "n": 100, "alpha": 0.01}', "(sigma=[1]: expected a finite number"),
    ('{"noise": "salt", "sigma": 1, "n": 100, "alpha": 0.01}', "(noise='salt': expected one of"),
    ('{"noise": "ablation", "sigma": 1, "n": 100, "alpha": 0.01}', "(keep: ablation noise needs"),
])  # fmt: skip
def test_audit_refuses_the_json_of_something_else(trustml, tmp_path, settings, message):
    rows = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t7\t7\t0.5\t1\t1\n"
    for name in ("mine.tsv", "run_0.25"):
        (tmp_path / name).write_text(rows)
    (tmp_path / "mine.json").write_text(settings)
    (tmp_path / "run_0.json").write_text('{"sigma": 0.5, "n": 100, "alpha": 0.01}')
    code, _, err = trustml(f"audit {tmp_path}/mine.tsv")
    assert code == 2
    assert f"mine.json does not say sigma, n and alpha of {tmp_path}/mine.tsv {message}" in err
    code, _, err = trustml(f"audit {tmp_path}/run_0.25")
    assert code == 2
    assert "pass --sigma" in err


@pytest.mark.slow
def test_certify_leaves_the_card_of_a_checkpoint_alone(trustml, smoothed, tmp_path):
    card = (tmp_path / "net.json").read_bytes()
    code, _, err = trustml(f"certify {smoothed} {tmp_path}/net.tsv --n0 5 --n 50 --limit 1")
    assert code == 2
    assert "use another path than" in err
    assert (tmp_path / "net.json").read_bytes() == card
    assert not (tmp_path / "net.tsv").exists()


@pytest.mark.slow
def test_audit_reads_the_settings_beside_the_log(trustml, smoothed, tmp_path):
    log = tmp_path / "log.tsv"
    trustml(f"certify {smoothed} {log} --n0 10 --n 1000 --every 2000")
    code, out, err = trustml(f"audit {log}")
    assert code == 0, err
    assert "impossible under alpha 0.001, n 1,000: none" in out
    log.write_text(log.read_text() + log.read_text().splitlines()[-1] + "\n")  # a row twice
    code, out, _ = trustml(f"audit {log}")
    assert code == 1
    assert "repeated: 1 (idx 8000)" in out
    log.with_suffix(".json").unlink()
    code, _, err = trustml(f"audit {log}")
    assert code == 2
    assert "pass --sigma" in err
    assert trustml(f"audit {log} --sigma 0.5")[0] == 1


def test_help_of_every_command(trustml):
    for line, word in (
        ("--help", "certify"),
        ("train --help", "--recipe"),
        ("attack --help", "--restarts"),
        ("certify --help", "--every"),
        ("predict --help", "--alpha"),
        ("plot --help", "--output"),
    ):
        code, out, _ = trustml(line)
        assert code == 0
        assert word in out


@pytest.mark.slow
def test_module_is_the_command():
    run = subprocess.run(
        [sys.executable, "-m", "trustml_helpers", "attack", "nothing"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "no checkpoint" in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["quick_macer", "smoothadv_consistency"])
def test_a_recipe_trains_by_its_own_settings(trustml, tmp_path, monkeypatch, recipe):
    seen, fit = {}, training.fit
    monkeypatch.setattr(
        train.training, "fit", lambda *a, **named: (seen.update(named), fit(*a, **named))[1]
    )
    small = "--limit 150 --validation 22 --epochs 1"
    code, _, err = trustml(f"train net --recipe {recipe} --sigma 0.25 {small} --out {tmp_path}")
    assert code == 0, err
    plan = RECIPES[recipe]
    assert seen["epochs"] == 1  # as the call says, not the recipe
    for name in ("batch_size", "optimizer", "scheduler", "precision"):
        assert seen[name] is getattr(plan, name)
    card = models.card(tmp_path / "net.safetensors")
    assert card["architecture"] == "LeNet"
    assert card["sigma"] == 0.25
    assert card["objective"] == f"{plan.words}, sigma 0.25"
    assert f"--recipe {recipe}" in card["command"]
    assert "noise 0.25" in card["test_accuracy"]


def test_a_card_states_sigma_also_without_a_test(trustml, tmp_path):
    """`certify` reads it there, to choose between methods before the test set is touched."""
    small = "--limit 60 --validation 20 --epochs 1 --no-test"
    trustml(f"train net --recipe quick_stability --sigma 0.25 {small} --out {tmp_path}")
    card = models.card(tmp_path / "net.safetensors")
    assert card["sigma"] == 0.25
    assert "test_accuracy" not in card


def test_a_recipe_brings_its_epochs(trustml, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(train.training, "fit", lambda *a, **named: seen.update(named))
    with pytest.raises(AttributeError):  # there is no history
        trustml(f"train net --recipe consistency --limit 150 --validation 22 --out {tmp_path}")
    assert seen["epochs"] == 90


def test_help_lists_every_recipe_with_its_words(trustml):
    _, out, _ = trustml("train --help")
    listed = " ".join(out.split())
    for name, recipe in RECIPES.items():
        assert f" {name}: {recipe.title}; {recipe.architecture}, {recipe.epochs} epochs" in listed


def quoted():
    """Every command of a card or a page, with where it stands."""
    for path in sorted([*ROOT.glob("data/checkpoints/*.json"), *ROOT.glob("data/**/cards/*.json")]):
        command = json.loads(path.read_text())["command"]
        if "python data/checkpoints/" not in command:  # made by a script
            yield path.name, command
    pages = [*ROOT.glob("*.md"), *ROOT.glob("data/**/*.md"), *ROOT.glob("docs/**/*.md")]
    for path in sorted([*pages, *ROOT.glob("notebooks/**/*.ipynb")]):
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(r"(?m)(?:^ {4,}|[`'$;] *)(trustml \w[^`'\n]*)", text):
            yield path.name, line.strip()


@pytest.mark.slow
def test_every_quoted_command_is_one():
    """Each word is known to the command that it goes to; nothing is run."""
    found = [(where, line) for where, line in quoted() if len(line.split()) > 2]
    assert len(found) > 40
    assert {"compare.md", "CONTRIBUTING.md"} <= {where for where, _ in found}
    for where, line in found:
        command, words = typer.main.get_command(cli.app), shlex.split(line, comments=True)[1:]
        while hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        if "--help" in words:
            continue
        context = command.make_context("it", ["standard" if w == "RECIPE" else w for w in words])
        assert context.args == [], f"{where}: {line}"
        if command.name == "train":
            assert context.params["recipe"] in RECIPES, f"{where}: {line}"


def test_notes_of_an_error_are_printed(trustml, monkeypatch):
    def full(*_):
        error = OSError("no space left")
        error.add_note("make room, then start again")
        raise error

    monkeypatch.setattr(models, "load", full)
    code, _, err = trustml("diagnose mnist_smallcnn_standard")
    assert (code, err.splitlines()) == (2, ["error: no space left", "make room, then start again"])


@pytest.mark.slow
def test_validation_images_are_those_that_train_holds_out(trustml, tmp_path):
    held = data.train_validation_split(*data.load_mnist("train"), 5000, seed=0)[1]
    found = data.load_mnist("validation")
    assert all(torch.equal(a, b) for a, b in zip(found, held, strict=True))
    words = "certify mnist_lenet_gaussian_0.5 {} --split validation --limit 3 --n 50"
    code, _, err = trustml(words.format(tmp_path / "log.tsv"))
    assert code == 0, err
    log = certification.read_log(tmp_path / "log.tsv")
    assert log["label"].tolist() == held[1][:3].tolist()


def _pictures(folder, sizes):
    """Pictures of one grey each, darker to brighter."""
    for k, (where, size) in enumerate(sizes):
        path = folder / where
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (40 * k,) * 3).save(path)


def test_a_folder_of_pictures(trustml, own, monkeypatch):
    asked = []
    monkeypatch.setattr(certification, "certify_dataset", lambda *a, **k: asked.append((a, k)))
    monkeypatch.setattr(certify, "_print", lambda *given: None)
    line = "certify own_nets:build log.tsv --sigma 0.25 --data"

    _pictures(Path("numbered"), [("0/b.png", (8, 6)), ("2/a.jpg", (8, 6)), ("2/deep.PNG", (8, 6))])
    (Path("numbered") / "notes.txt").write_text("not a picture")
    code, _, err = trustml(f"{line} numbered")
    assert code == 0, err
    _, x, y, _ = asked[-1][0]
    assert (x.shape, y.tolist()) == ((3, 3, 6, 8), [0, 2, 2])
    assert x.amax((1, 2, 3)).tolist() == pytest.approx([0, 40 / 255, 80 / 255], abs=2 / 255)

    _pictures(Path("plain"), [("cats/a.png", (300, 400)), ("b.png", (500, 260))])
    code, _, err = trustml(f"{line} plain")
    assert code == 0, err
    assert "no labels: a picture counts as what the network says of it" in err
    _, x, y, _ = asked[-1][0]
    assert x.shape == (2, 3, 224, 224)
    assert y.tolist() == [0, 0]  # own_nets.build calls everything dark

    for folder, pictures, message in (
        ("none", [], "no pictures in this folder"),
        ("mixed", [("0/a.png", (8, 8)), ("cat/a.png", (8, 8))], "either all or none"),
        (
            "far",
            [("7/a.png", (8, 8))],
            "data='far' holds labels 7 to 7, but the model has 3 classes: expected",
        ),
    ):
        Path(folder).mkdir()
        _pictures(Path(folder), pictures)
        code, _, err = trustml(f"{line} {folder}")
        assert code == 2
        assert message in err
    (Path("far") / "7/a.png").write_bytes(b"no picture")
    code, _, err = trustml(f"{line} far")
    assert code == 2
    assert "data='far'" in err


@pytest.mark.parametrize(("line", "message"), [
    ("own_nets:build log.tsv --data picture", "data='picture': no such folder; expected one, an "),
    ("own_nets.py log.tsv", "model='own_nets.py': expected module:attribute, such as own_nets:f"),
    ("own_nets:number log.tsv --data own.npz", "model='own_nets:number': expected a network or a "),
])  # fmt: skip
def test_slips_of_a_new_user(trustml, own, line, message):
    code, _, err = trustml(f"certify {line} --sigma 0.25")
    assert code == 2
    assert message in err


def test_imagenet_needs_its_thousand_classes(trustml, own):
    _pictures(Path("root/val"), [("n01/a.png", (300, 300)), ("n02/a.png", (300, 300))])
    code, _, err = trustml("certify own_nets:build log.tsv --sigma 1 --data imagenet --root root")
    assert code == 2
    assert "data='imagenet': 2 folders of classes, so labels would be 0 to 1" in err


def test_arrays_with_the_channels_last(trustml, own):
    x = np.random.default_rng(0).random((4, 6, 8, 3))
    np.savez("last.npz", images=x, labels=np.zeros(4, int))
    found = inputs.images("last.npz", "test", None, 1, None)
    assert found.x.shape == (4, 3, 6, 8)
    assert np.allclose(found.x.numpy(), x.transpose(0, 3, 1, 2))
    np.savez("first.npz", images=x.transpose(0, 3, 1, 2), labels=np.zeros(4, int))
    assert torch.equal(inputs.images("first.npz", "test", None, 1, None).x, found.x)


def test_predict_runs_the_network_as_it_is_told(trustml, own, monkeypatch):
    asked, search = [], smoothing.search
    monkeypatch.setattr(smoothing, "search", lambda *a, **k: (asked.append(k), search(*a, **k))[1])
    line = "predict own_nets:build --data own.npz --sigma 0.25 --n 50 --batch-size 8"
    code, _, err = trustml(f"{line} --dtype bfloat16 --layout contiguous")
    assert code == 0, err
    assert (asked[0]["dtype"], asked[0]["layout"]) == ("bfloat16", "contiguous")


def test_a_denoiser_in_front(trustml, own, monkeypatch):
    line = "certify own_nets:build {} --data own.npz --sigma 0.25 --n0 10 --n 100"
    assert trustml(line.format("alone.tsv"))[0] == 0
    code, _, err = trustml(line.format("front.tsv") + " --denoiser own_nets:bright")
    assert code == 0, err
    alone, front = (certification.read_log(f"{name}.tsv") for name in ("alone", "front"))
    assert (front["count_1"] == 100).all()
    assert not (alone["count_1"] == 100).all()
    code, _, err = trustml(line.format("none.tsv") + " --denoiser own_nets:number")
    assert (code, "denoiser='own_nets:number': expected a network" in err) == (2, True)


@pytest.mark.parametrize(("largest", "places"), [
    (0.2, ["0", "0.05", "0.1", "0.15", "0.2"]),
    (0.6, ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]),
    (1.3, ["0", "0.25", "0.5", "0.75", "1", "1.25"]), (2.0, ["0", "0.5", "1", "1.5", "2"]),
])  # fmt: skip
def test_summaries_have_radii_where_there_is_something_to_see(capsys, largest, places):
    log = pd.DataFrame({"label": [0], "predict": [0], "radius": [largest], "correct": [1]})
    certify._print({"log": log})
    head, row = capsys.readouterr().out.splitlines()[:2]
    assert re.findall(r"r=([\d.]+)", head) == places
    assert row.split()[2 : 2 + len(places)] == ["1.0000"] * len(places)


def test_audit_of_two_class_radii(trustml, own):
    line = "certify own_nets:build two.tsv --data own.npz --sigma 0.25 --n0 10 --n 1000"
    assert trustml(f"{line} --bound two_class")[0] == 0
    for stated in ("", " --alpha 0.001", " --n 1000"):  # the other one as in the JSON
        code, out, err = trustml(f"audit two.tsv{stated}")
        assert code == 0, err
        assert "impossible under alpha 0.001, n 1,000: none" in out


@pytest.mark.parametrize(
    ("noise", "norm"), [("gaussian", "l2"), ("uniform", "l1"), ("laplace", "l1")]
)
def test_added_noise_of_any_kind(trustml, own, noise, norm):
    """The log is the package's; log, audit and plot name noise and norm."""
    about = f"own_nets:build --data own.npz --noise {noise} --sigma 1/4"
    code, out, err = trustml(f"certify {about} log.tsv --n0 10 --n 100 --batch-size 64")
    assert code == 0, err
    kind = smoothing.NOISES[noise](0.25)
    assert f"{kind}, radii in {norm}" in out
    settings = json.loads(Path("log.json").read_text())
    assert (settings["noise"], settings["norm"], settings["sigma"]) == (noise, norm, 0.25)
    g = smoothing.SmoothedClassifier(certify.inputs.network("own_nets:build"), kind, 3)
    x, y = certify.inputs.images("own.npz", "test", None, 1, None)[:2]
    mine = certification.certify_dataset(g, x, y, "mine.tsv", n0=10, n=100, alpha=0.001,
                                         batch_size=64, progress=False)  # fmt: skip
    found = certification.read_log("log.tsv")
    assert found.drop(columns="time").equals(mine.drop(columns="time"))
    code, out, _ = trustml("audit log.tsv")
    assert code == 0
    assert f"{kind}, radii in {norm}" in out
    code, out, _ = trustml("plot log.tsv --output log.png")
    assert code == 0
    assert f"radii in {norm}" in out
    assert trustml(f"predict {about} --n 100")[0] == 0
    table = Path("log.tsv").read_text()
    Path("log.tsv").write_text(table.replace(f"{found['radius'].max():.6f}", "9.000000"))
    assert trustml("audit log.tsv")[0] == 1


def test_ablation_of_ones_own_network(trustml, own):
    """A network that takes ablated images only; five of six pictures are bright somewhere."""
    Path("seen.py").write_text(
        "import torch\n"
        "def build():\n"
        "    def f(x):\n"
        "        assert x.shape[1:] == (2, 8, 8)\n"
        "        bright = x[:, 0].flatten(1).sum(1)\n"
        "        return torch.stack([0.01 - bright, bright], 1)\n"
        "    return f\n"
    )
    about = "seen:build --data own.npz --noise ablation --keep 5"
    code, out, err = trustml(f"certify {about} log.tsv --n0 10 --n 1000")
    assert code == 0, err
    assert "Ablation(keep=5, pixels=64), radii in l0" in out
    assert re.search(r"images +r=0 +r=1 +r=2 ", out)
    found = certification.read_log("log.tsv")
    most = smoothing.Ablation(5, 64).radius(0.001 ** (1 / 1000))
    assert found["radius"].tolist() == [most] * 6
    assert found["predict"].tolist() == [0, 1, 1, 1, 1, 1]
    code, out, err = trustml("audit log.tsv")
    assert code == 0, err
    code, _, err = trustml("audit log.tsv --sigma 0.5")
    assert (code, "sigma=0.5: the noise of log.tsv has none, it is Ablation" in err) == (2, True)
    more = Path("log.tsv").read_text().replace(f"{most:.6f}", f"{most + 1:.6f}", 1)
    Path("log.tsv").write_text(more)
    code, out, _ = trustml("audit log.tsv")
    assert code == 1
    assert "impossible under alpha 0.001, n 1,000: 1 (idx 0)" in out
    assert "inconsistent: 1 (idx 0)" in out
    assert trustml(f"predict {about} --n 100")[0] == 0
    assert trustml("plot log.tsv --output log.png")[0] == 0


@pytest.mark.parametrize(("words", "message"), [
    ("--noise salt", "noise='salt': expected one of gaussian, uniform, laplace, ablation"),
    ("--noise ablation", "keep: own_nets:build was not trained with a known noise; pass --keep"),
    ("--noise uniform", "sigma: own_nets:build was not trained with a known noise; pass --sigma"),
    ("--noise laplace --sigma 1 --keep 3", "keep=3: laplace noise has none; pass another --noise"),
    ("--noise ablation --keep 3 --sigma 1", "sigma=1: ablation noise has none"),
    ("--keep 3", "keep=3: gaussian noise has none"),
    ("--noise ablation --keep 65", "keep=65: expected at most pixels=64"),
    ("--noise ablation --keep 3 --denoiser own_nets:bright", "takes a sigma, which Ablation(keep"),
])  # fmt: skip
def test_noise_that_cannot_be(trustml, own, words, message):
    for command in ("predict", "certify"):
        log = "log.tsv" if command == "certify" else ""
        code, _, err = trustml(f"{command} own_nets:build {log} --data own.npz {words}")
        assert code == 2
        assert message in err
    assert not Path("log.tsv").exists()


def test_logs_of_different_norms_are_not_drawn_together(trustml, own):
    for noise in ("gaussian", "uniform"):
        line = f"certify own_nets:build {noise}.tsv --data own.npz --noise {noise} --sigma 0.25"
        assert trustml(f"{line} --n0 10 --n 100")[0] == 0
    code, _, err = trustml("plot gaussian.tsv uniform.tsv --output both.png")
    assert code == 2
    assert "no common axis (gaussian in l2, uniform in l1); draw each norm by itself" in err
    assert not Path("both.png").exists()


def test_groups_of_classes(trustml, own):
    Path("groups.csv").write_text("class,group\n0,dark\n1,dark\n")
    line = "certify own_nets:build log.tsv --data own.npz --sigma 0.25 --n0 10 --n 100"
    code, _, err = trustml(f"{line} --groups groups.csv")
    assert code == 0, err
    found = certification.read_log("log.tsv")
    assert list(found.columns[6:]) == ["count_0", "count_1"]
    assert set(found["label"]) == {0}
    assert (found["count_0"] == 100).all()
    assert trustml("predict own_nets:build --data own.npz --sigma 0.25 --groups groups.csv")[0] == 0
    code, _, err = trustml(f"{line} --groups imagenet")
    assert code == 2
    assert "groups='imagenet': for 1000 classes; own_nets:build has 3" in err
    for text in ("class\n0\n", "class,group\n0.5,a\n", ""):
        Path("groups.csv").write_text(text)
        code, _, err = trustml(f"{line} --groups groups.csv")
        assert code == 2
        assert "groups='groups.csv': expected a CSV with the columns class" in err


def test_the_photographs_by_name(trustml, monkeypatch):
    asked = []

    def certify(*given, **named):
        asked.append((*given, named))
        return certification.read_log(ROOT / "data/results/photos/lite0_0.25.tsv")

    monkeypatch.setattr(certification, "certify_dataset", certify)
    line = (
        "certify imagenet_efficientnet_lite0 log.tsv --data photos --groups imagenet --sigma 0.25"
    )
    code, _, err = trustml(f"{line} --every 3")
    assert code == 0, err
    ((g, images, labels, _, named),) = asked
    assert (g.num_classes, images.shape, named["numbers"]) == (978, (4, 3, 224, 224), [0, 3, 6, 9])
    assert labels.tolist() == [data.load_groups()[0][k] for k in data.load_photos()[1][::3]]


def test_attack_and_diagnose_ones_own_network_on_ones_own_images(trustml, own):
    line = "attack own_nets:build --data own.npz --eps 0.3 --steps 5 --output worst.csv"
    code, out, err = trustml(line)
    assert code == 0, err
    assert "of 6 images" in out
    log = robustness.read_attack_log("worst.csv")
    assert log["idx"].tolist() == list(range(6))
    about = json.loads(Path("worst.json").read_text())
    assert (about["model"], about["data"]) == ("own_nets:build", "own.npz")
    assert trustml(line)[0] == 0  # nothing is left to do
    code, _, err = trustml(line.replace("own.npz", "bytes.npz"))
    assert code == 2
    assert "worst" in err
    code, out, err = trustml(
        "diagnose own_nets:build --data own.npz --eps 0.05 --steps 5 --queries 9"
    )
    assert code == 1, err
    assert "FLAG  number of images: 6: fewer than 10 images cannot tell any difference" in out


@pytest.mark.parametrize("command", ["attack {}", "diagnose {}", "predict {} --sigma 1",
                                     "certify {} log.tsv --sigma 1"])  # fmt: skip
def test_ones_own_network_is_not_taken_for_one_of_mnist(trustml, own, monkeypatch, command):
    monkeypatch.setattr(data, "load_mnist", lambda split: pytest.fail("MNIST was read"))
    code, out, err = trustml(command.format("own_nets:build"))
    assert (code, out) == (2, "")
    assert "own_nets:build, a network of your own; pass --data mnist, a folder of pictures" in err
    assert not Path("log.tsv").exists()


def test_a_checkpoint_of_ones_own_says_that_it_gets_mnist(trustml, own):
    models.save(models.build("SmallCNN"), Path("net.safetensors"))
    line = "attack {} --attack fgsm --eps 0.1 --limit 5"
    code, _, err = trustml(line.format("net.safetensors"))
    assert (code, "--data is not given: net.safetensors gets the images of MNIST" in err) == (
        0,
        True,
    )
    for quiet in ("net.safetensors --data mnist", "mnist_smallcnn_standard"):
        assert "is not given" not in trustml(line.format(quiet))[2]


def test_a_length_may_be_a_fraction(trustml, own):
    line = "attack own_nets:build --data own.npz --steps 2 --output worst.csv"
    code, out, err = trustml(f"{line} --eps 8/255 --step-size 1/255")
    assert code == 0, err
    assert "PGD-2 linf 0.0313725" in out
    about = json.loads(Path("worst.json").read_text())
    assert (about["eps"], about["step_size"]) == (8 / 255, 1 / 255)
    assert trustml(f"{line} --eps {8 / 255} --step-size {1 / 255}")[0] == 0  # the same run
    line = "certify own_nets:build log.tsv --data own.npz --n0 10 --n 50 --limit 1 --sigma"
    assert trustml(f"{line} 64/255")[0] == 0
    assert json.loads(Path("log.json").read_text())["sigma"] == 64 / 255
    for wrong in ("8/0", "8/", "eight", "1/2/3"):
        code, _, err = trustml(f"attack own_nets:build --data own.npz --eps {wrong}")
        assert code == 2
        assert f"'{wrong}': expected a number or a fraction" in " ".join(err.split())
    assert "eps=31.875" in trustml("attack mnist_smallcnn_standard --eps 255/8")[2]
    for command in ("attack", "diagnose", "certify", "train"):
        assert "8/255" in trustml(f"{command} --help")[1]


def test_a_log_names_its_data_set_and_its_pictures(trustml, own):
    grey = [(f"{k % 2}/{'abcd'[k]}.png", (8, 8)) for k in range(4)]
    _pictures(Path("pictures"), grey)
    names = ["0/a.png", "0/c.png", "1/b.png", "1/d.png"]  # in the order of their idx
    folder = {"data": "pictures", "labels_from": "the names of the folders"}
    line = "certify own_nets:build log.tsv --sigma 0.25 --n0 10 --n 50 --data pictures"

    def origin(path):
        return json.loads(Path(path).read_text())["origin"]

    assert trustml(f"{line} --every 2")[0] == 0
    assert origin("log.json") == folder | {"files": {"0": names[0], "2": names[2]}}
    assert trustml(line)[0] == 0  # all of them, into the same log
    files = {str(k): name for k, name in enumerate(names)}
    assert origin("log.json") == folder | {"files": files}
    line = "attack own_nets:build --attack fgsm --eps 0.1 --output worst.csv --data pictures"
    assert trustml(line)[0] == 0
    assert origin("worst.json") == folder | {"files": files}
    line = "attack mnist_smallcnn_standard --attack fgsm --eps 0.1 --output digits.csv --limit 5"
    assert trustml(line)[0] == 0
    assert origin("digits.json") == {"data": "mnist", "labels_from": "mnist", "split": "test"}


def test_predict_says_what_it_compares_with(trustml, own):
    _pictures(Path("numbered"), [("0/a.png", (8, 8)), ("1/b.png", (8, 8))])
    _pictures(Path("plain"), [("cats/a.png", (8, 8)), ("b.png", (8, 8))])
    for name, words in (
        ("numbered", "the names of the folders"),
        ("plain", "the network itself, without noise"),
        ("own.npz", "own.npz"),
    ):
        line = f"predict own_nets:build --sigma 0.25 --n 50 --data {name}"
        code, out, err = trustml(line)
        assert code == 0, err
        assert out.startswith(f"compared with labels from {words}:\n")


def test_diagnose_asks_about_the_attack_that_it_is_told(trustml, own, monkeypatch):
    asked = []

    def diagnose(*_, attack, **more):
        asked.append((attack.func, attack.keywords))
        return robustness.Diagnosis([])

    monkeypatch.setattr(robustness, "diagnose", diagnose)
    line = "diagnose own_nets:build --data own.npz --eps 4/255"
    assert trustml(f"{line} --steps 7 --step-size 1/255 --restarts 2 --loss margin")[0] == 0
    assert trustml(f"{line} --attack fgsm")[0] == 0
    (pgd, how), (fgsm, _) = asked
    assert (pgd, fgsm) == (attacks.pgd, attacks.fgsm)
    assert {name: how[name] for name in ("eps", "steps", "step_size", "restarts", "loss")} == {
        "eps": 4 / 255, "steps": 7, "step_size": 1 / 255, "restarts": 2, "loss": "margin",
    }  # fmt: skip
    for wrong, message in (
        ("--attack suite", "attack='suite': expected one of 'fgsm'"),
        ("--loss hinge", "loss='hinge'"),
        ("--restarts 0", "restarts=0"),
    ):
        code, _, err = trustml(f"{line} {wrong}")
        assert (code, message in err) == (2, True)
    assert len(asked) == 2


@pytest.mark.parametrize(("images", "labels"), [("beyond", "0 to 7"), ("below", "-1 to 0")])
def test_labels_that_the_network_does_not_know(trustml, own, images, labels):
    code, _, err = trustml(f"attack own_nets:build --data own_nets:{images} --eps 0.1")
    said = f"data='own_nets:{images}' holds labels {labels}, but the model has 3 classes"
    assert (code, said in err) == (2, True)


def test_the_suite_on_a_network_of_three_classes(trustml, own):
    line = "attack own_nets:build --data own.npz --attack suite --eps 0.1 --steps 2 --queries 5"
    code, out, err = trustml(line)
    assert code == 0, err
    assert "APGD-margin" in out


def test_the_options_reach_the_attacks():
    given = {"norm": "l2", "eps": 0.5, "steps": 4, "step_size": None, "restarts": 1, "queries": 7}
    generator = torch.Generator()
    (fgsm,) = cli.attack._attacks(generator, 10, attack="fgsm", loss="margin", **given).values()
    assert (fgsm.keywords["norm"], fgsm.keywords["loss"]) == ("l2", "margin")
    suite = cli.attack._attacks(generator, 10, attack="suite", loss="margin", **given)
    assert suite["Square"].keywords["queries"] == 7


def test_what_is_watched_during_training_is_weak_and_strong():
    """FGSM in one pass; PGD in several, as far as the ball allows."""
    x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    moved, passes = {}, {}
    for name, attack in train._watched(0.1, 0).items():
        calls = []

        def network(z, calls=calls):
            calls.append(1)
            return z @ torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) + torch.tensor([9.0, 0.0])

        moved[name] = float((attack(network, x, y) - x).abs().max())
        passes[name] = len(calls)
    assert moved["pgd"] > 0.099
    assert passes["pgd"] > 5
    assert passes["fgsm"] <= 2
