"""The command line, run in this process: it trains, attacks, and explains what is wrong."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pandas as pd
import pytest
import torch

from trustml_helpers import attacks, cli, data, models, robustness


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


TINY = "--limit 300 --validation 50 --epochs 1"


def test_train_writes_a_checkpoint_that_loads(trustml, tmp_path):
    code, out, err = trustml(f"train tiny {TINY} --out {tmp_path} --seed 4")
    assert code == 0, err
    assert "wrote" in out
    card = models.card(tmp_path / "tiny.safetensors")
    assert card["command"] == "trustml train tiny --epochs 1 --validation 50 --limit 300 --seed 4"
    assert card["test_images"] == 300
    model = models.load(tmp_path / "tiny.safetensors")
    test = [part[:300] for part in data.load_mnist("test")]
    assert card["test_accuracy"]["clean"] == pytest.approx(
        robustness.accuracy(model, *test), abs=1e-4
    )


def test_the_command_in_the_card_rebuilds_the_weights(trustml, tmp_path):
    options = "--objective adversarial --eps 0.1 --steps 2 --eps-ramp 0.5 --rate triangular"
    trustml(f"train tiny {TINY} {options} --out {tmp_path / 'a'}")
    first = json.loads((tmp_path / "a/tiny.json").read_text())
    assert "adversarial training against PGD-2, linf, eps 0.1" in first["objective"]
    command = first["command"].removeprefix("trustml ")
    assert trustml(f"{command} --out {tmp_path / 'b'}")[0] == 0
    assert json.loads((tmp_path / "b/tiny.json").read_text())["sha256"] == first["sha256"]


@pytest.mark.parametrize("objective", ["standard", "mixed --attack fgsm", "gaussian --sigma 0.25"])
def test_every_objective_trains(trustml, tmp_path, objective):
    code, _, err = trustml(f"train tiny {TINY} --objective {objective} --out {tmp_path}")
    assert code == 0, err


def test_the_test_set_is_read_after_training_only(trustml, tmp_path, monkeypatch):
    order = []
    load, fit = data.load_mnist, cli.training.fit
    monkeypatch.setattr(data, "load_mnist", lambda split: order.append(split) or load(split))
    monkeypatch.setattr(
        cli.training, "fit", lambda *a, **k: (fit(*a, **k), order.append("trained"))[0]
    )
    trustml(f"train tiny {TINY} --out {tmp_path}")
    assert order == ["train", "trained", "test"]


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
    assert rows["robust"].tolist() == expected.int().tolist()
    assert rows["label"].tolist() == y.tolist()
    assert f"{100 * expected.double().mean():6.2f} %" in out


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
        ("attack mnist_smallcnn_standard --loss hinge", "loss='hinge'"),
        ("attack mnist_smallcnn_standard --output /no/such/folder/x.csv", "create it first"),
        ("train tiny --architecture VGG", "architecture='VGG'"),
        ("train a/b", "plain name"),
        ("train tiny --objective mixed --clean-share 2", "clean_share=2.0"),
        ("train tiny --validation 0", "validation=0"),
        ("train tiny --limit 10", "validation=5000"),
    ],
)
def test_errors_are_one_sentence(trustml, tmp_path, line, message):
    if line.startswith("train"):
        line += f" --out {tmp_path}"
    code, _, err = trustml(line)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_help_of_every_command(trustml):
    for line, word in (
        ("--help", "attack"),
        ("train --help", "--eps-ramp"),
        ("attack --help", "--restarts"),
    ):
        code, out, _ = trustml(line)
        assert code == 0
        assert word in out


def test_module_is_the_command():
    run = subprocess.run(
        [sys.executable, "-m", "trustml_helpers", "attack", "nothing"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "no checkpoint" in run.stderr
