"""Logs: written row by row, resumed exactly, read back, summarised by hand-computed values."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import torchrun

from trustml_helpers import bounds, certification, data, models, smoothing
from trustml_helpers._support import ledger
from trustml_helpers.certification import LogError
from trustml_helpers.cli import plan
from trustml_helpers.smoothing import SmoothedClassifier

SETTINGS = {"n0": 20, "n": 60, "alpha": 0.01, "progress": False}


def halfspace(x):
    z = x.flatten(1)[:, 0] - 0.5
    return torch.stack([z, -z], 1)


@pytest.fixture
def case():
    g = torch.Generator().manual_seed(0)
    images = torch.rand(8, 1, 2, 2, generator=g)
    return SmoothedClassifier(halfspace, 0.25, 2), images, (images[:, 0, 0, 0] < 0.5).long()


def rows(path):
    """Everything but the column ``time``."""
    return ["\t".join(p for k, p in enumerate(line.split("\t")) if k != 5)
            for line in path.read_text().splitlines()]  # fmt: skip


def test_log_has_the_published_columns_then_counts(case, tmp_path):
    path = tmp_path / "log.tsv"
    table = certification.certify_dataset(*case, path, **SETTINGS)
    head = path.read_text().splitlines()[0].split("\t")
    assert head == ["idx", "label", "predict", "radius", "correct", "time", "count_0", "count_1"]
    assert table["idx"].tolist() == list(range(8))
    assert (table[["count_0", "count_1"]].sum(axis=1) == 60).all()
    assert ((table["predict"] == table["label"]).astype(int) == table["correct"]).all()


def test_what_is_in_the_log_is_not_certified_again(case, tmp_path, monkeypatch):
    path = tmp_path / "log.tsv"
    certification.certify_dataset(*case, path, indices=[0, 2], **SETTINGS)
    asked, draw = [], certification.run.keyed_generator
    monkeypatch.setattr(
        certification.run, "keyed_generator", lambda *key: asked.append(key[1]) or draw(*key)
    )
    certification.certify_dataset(*case, path, indices=[0, 1, 2, 3], **SETTINGS)
    assert asked == [1, 3]


@pytest.mark.parametrize("cut", [0, 1, 5])
def test_a_killed_run_resumes_to_the_same_log(case, tmp_path, cut):
    whole, broken = tmp_path / "whole.tsv", tmp_path / "broken.tsv"
    certification.certify_dataset(*case, whole, **SETTINGS)
    certification.certify_dataset(*case, broken, indices=range(cut + 1), **SETTINGS)
    text = broken.read_text()
    broken.write_text(text[:-7])  # killed in the middle of a row
    certification.certify_dataset(*case, broken, **SETTINGS)
    assert rows(broken) == rows(whole)


def test_noise_depends_on_seed_and_index_alone(case, tmp_path):
    certification.certify_dataset(*case, tmp_path / "a.tsv", **SETTINGS)
    certification.certify_dataset(*case, tmp_path / "b.tsv", indices=[5, 2], **SETTINGS)
    certification.certify_dataset(*case, tmp_path / "c.tsv", seed=1, **SETTINGS)
    a, b, c = (rows(tmp_path / f"{name}.tsv") for name in "abc")
    assert b[1:] == [a[6], a[3]]
    assert a != c


@pytest.mark.parametrize(
    ("change", "name"), [({"n": 61}, "n="), ({"alpha": 0.02}, "alpha"), ({"seed": 3}, "seed"),
                         ({"bound": "two_class"}, "bound"), ({"batch_size": 7}, "batch_size")]
)  # fmt: skip
def test_other_settings_are_refused_by_name(case, tmp_path, change, name):
    path = tmp_path / "log.tsv"
    certification.certify_dataset(*case, path, indices=[0], **SETTINGS)
    before = path.read_text()
    with pytest.raises(LogError, match=name):
        certification.certify_dataset(*case, path, **(SETTINGS | change))
    assert path.read_text() == before


def test_a_resumed_run_is_executed_as_recorded(tmp_path):
    """The layout is taken from the log, whatever the network has now; asked for, it is refused."""
    model = models.build("SmallCNN", seed=0).eval()
    images, labels = torch.rand(2, 1, 28, 28), torch.zeros(2, dtype=torch.long)
    path, whole = tmp_path / "log.tsv", tmp_path / "whole.tsv"
    g = SmoothedClassifier(model, 0.25, 10)
    settings = SETTINGS | {"layout": "contiguous"}
    certification.certify_dataset(g, images, labels, whole, **settings, batch_size=16)
    certification.certify_dataset(g, images, labels, path, **settings, batch_size=16, indices=[0])
    model.to(memory_format=torch.channels_last)
    certification.certify_dataset(g, images, labels, path, **SETTINGS)
    assert rows(path) == rows(whole)
    assert not model[0].weight.is_contiguous() or model[0].weight.shape[1] == 1
    for change in ({"layout": "channels_last"}, {"dtype": "bfloat16"}, {"compiled": True}):
        (name,) = change
        with pytest.raises(LogError, match=f"made with {name}="):
            certification.certify_dataset(g, images, labels, path, **SETTINGS, **change)
    with pytest.raises(LogError, match=r"model_sha256|dtype"):
        certification.certify_dataset(
            SmoothedClassifier(model.double(), 0.25, 10), images.double(), labels, path, **SETTINGS
        )


def test_another_model_is_refused(tmp_path):
    images, labels = torch.rand(2, 1, 28, 28), torch.zeros(2, dtype=torch.long)
    path = tmp_path / "log.tsv"
    for seed, error in ((0, None), (0, None), (1, "model_sha256")):
        g = SmoothedClassifier(models.build("SmallCNN", seed=seed).eval(), 0.25, 10)
        if error is None:
            certification.certify_dataset(g, images, labels, path, **SETTINGS)
        else:
            with pytest.raises(LogError, match=error):
                certification.certify_dataset(g, images, labels, path, **SETTINGS)


def test_existing_log_without_resume_or_settings(case, tmp_path):
    path = tmp_path / "log.tsv"
    certification.certify_dataset(*case, path, indices=[0], **SETTINGS)
    with pytest.raises(LogError, match="resume=True"):
        certification.certify_dataset(*case, path, resume=False, **SETTINGS)
    path.with_suffix(".json").unlink()
    with pytest.raises(LogError, match="settings"):
        certification.certify_dataset(*case, path, **SETTINGS)


def test_radii_are_rounded_down():
    assert certification.log.floor(0.1234569999) == 0.123456
    assert certification.log.floor(0.0) == 0
    for value in np.random.default_rng(0).random(1000):
        floored = float(f"{certification.log.floor(value):.6f}")
        assert floored <= value < floored + 1.1e-6


HAND = pd.DataFrame(
    {"idx": range(5), "correct": [1, 1, 0, 1, 0], "radius": [0.5, 0.25, 2.0, 0.1, 0.0]}
)


def test_certified_accuracy_and_acr_by_hand():
    found = certification.certified_accuracy(HAND, [0, 0.1, 0.25, 0.3, 0.5, 0.6])
    assert found.tolist() == pytest.approx([0.6, 0.6, 0.4, 0.2, 0.2, 0.0])
    acr, error = certification.average_certified_radius(HAND)
    values = np.array([0.5, 0.25, 0, 0.1, 0])
    assert acr == pytest.approx(0.17)
    assert error == pytest.approx(np.sqrt(((values - 0.17) ** 2).sum() / 4 / 5))
    with pytest.raises(ValueError, match="at least 2"):
        certification.average_certified_radius(HAND[:1])


def test_summary_by_hand():
    log = HAND.assign(predict=[1, 2, 3, 4, -1])
    table = certification.summary({"a": log, "one": log[:1], "wrong": log[2:3]}, [0, 0.25])
    assert list(table.columns) == ["images", "r=0", "r=0.25", "ACR", "s.e.", "abstained"]
    acr, error = certification.average_certified_radius(HAND)
    assert table.loc["a"].tolist() == pytest.approx([5, 0.6, 0.4, acr, error, 0.2])
    assert table.loc["one"].tolist() == pytest.approx([1, 1, 1, 0.5, np.nan, 0], nan_ok=True)
    assert table.loc["wrong", "ACR"] == 0
    with pytest.raises(LogError, match="b has 0 rows: expected at least 1"):
        certification.summary({"b": log[:0]}, [0])


def test_read_log_of_both_time_formats(tmp_path):
    head = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    for text in ("0:00:17.500000", "17.5"):
        path = tmp_path / "log.tsv"
        path.write_text(head + f"20\t7\t7\t0.715\t1\t{text}\n40\t4\t-1\t0.0\t0\t{text}\n")
        table = certification.read_log(path)
        assert table["time"].tolist() == [17.5, 17.5]
        assert table["radius"].tolist() == [0.715, 0.0]
    path.write_text(head)
    assert len(certification.read_log(path)) == 0


def test_read_log_explains_what_is_wrong(tmp_path):
    with pytest.raises(LogError, match="missing"):
        certification.read_log(tmp_path / "none.tsv")
    for text in ("", "a\tb\n1\t2\n"):
        (tmp_path / "x.tsv").write_text(text)
        with pytest.raises(LogError):
            certification.read_log(tmp_path / "x.tsv")


def test_every_image_gets_noise_of_its_own(tmp_path):
    """Eight copies of one image: equal counts by chance with probability below 1e-6."""
    g = SmoothedClassifier(halfspace, 0.25, 2)
    images = torch.full((8, 1, 2, 2), 0.55)
    labels = torch.zeros(8, dtype=torch.long)
    table = certification.certify_dataset(g, images, labels, tmp_path / "log.tsv", **SETTINGS)
    assert table["count_0"].nunique() > 1


RESULTS = data.data_folder() / "results"
PHOTOS = sorted((RESULTS / "photos").glob("*.tsv"))
ABLATED = sorted((RESULTS / "ablation").glob("*.tsv"))
STORED = sorted(set(RESULTS.rglob("*.tsv")) - {*PHOTOS, *ABLATED})


@pytest.fixture(scope="module")
def labels_of():
    """The labels of the images that a stored log certified."""
    held_out = data.train_validation_split(*data.load_mnist("train"), 5000)[1][1]
    test = data.load_mnist("test")[1]
    return lambda path: held_out if path.parent.name == "validation" else test


def unretrained(method, sigma):
    """The standard network, alone or behind the denoiser."""
    standard = models.load("mnist_smallcnn_standard")
    front = models.load("mnist_denoiser")
    return models.Denoised(front, standard, sigma) if method == "denoised" else standard


@pytest.mark.parametrize("path", STORED, ids=[f"{path.parent.name}-{path.stem}" for path in STORED])
def test_stored_logs_follow_from_their_counts_and_their_network(path, labels_of):
    log, about = certification.read_log(path), json.loads(path.with_suffix(".json").read_text())
    named = re.fullmatch(r"(?:(.+?)_)?([\d.]+)(?:_seed(\d+))?(?:_at_([\d.]+)|_n(\d+))?", path.stem)
    method, trained, seed, used, n = named.groups()
    assert about["seed"] == int(seed or 0)
    assert about["sigma"] == float(used or trained)
    assert about["n"] == int(n or {"mismatch": 1000, "validation": 10_000}[path.parent.name])
    network = f"mnist_lenet_{method or 'gaussian'}_{trained}"
    if path.parent.name == "mnist_denoised":
        assert (
            certification.fingerprint(unretrained(method, about["sigma"])) == about["model_sha256"]
        )
    elif network in models.available() and path.parent.name != "fast" and not seed:
        assert certification.fingerprint(models.load(network)) == about["model_sha256"]
    counts = log[[f"count_{k}" for k in range(10)]].to_numpy()
    assert (counts.sum(axis=1) == about["n"]).all()
    again = certification.rebound(log, *(about[k] for k in ("sigma", "n", "alpha", "bound")))
    assert again.equals(log)
    one = certification.read_log(path, "one_class")
    k = counts[range(len(log)), one["predict"].clip(lower=0)]
    lower = bounds.lower_conf_bound(k, about["n"], about["alpha"])
    radius = np.where(one["predict"] >= 0, bounds.certified_radius(lower, about["sigma"]), 0)
    assert np.all(one["radius"] <= radius)
    assert np.allclose(one["radius"], radius, atol=1.1e-6)
    labels = labels_of(path)[log["idx"].tolist()].numpy()
    assert (log["label"] == labels).all()
    assert (log["correct"] == (log["predict"] == labels)).all()


@pytest.mark.parametrize("path", ABLATED, ids=[path.stem for path in ABLATED])
def test_the_ablated_log_follows_from_its_counts_and_its_network(path):
    log, about = certification.read_log(path), json.loads(path.with_suffix(".json").read_text())
    noise = smoothing.noise_from(about)
    assert (noise, about["norm"]) == (smoothing.Ablation(45), "l0")
    network = models.load(path.stem)
    assert certification.fingerprint(network) == about["model_sha256"]
    assert smoothing.noise_from(network.card) == noise
    assert len(log) == 500
    counts = certification.vote_counts(log)
    assert (counts.sum(axis=1) == about["n"]).all()
    assert certification.rebound(log, noise, about["n"], about["alpha"]).equals(log)
    sure = log["predict"] >= 0
    k = counts[np.arange(500), log["predict"].clip(lower=0)]
    lower = bounds.lower_conf_bound(k, about["n"], about["alpha"])
    assert ((lower > 0.5) == sure)[sure].all()
    assert (log["radius"][sure] == noise.radius(lower[sure])).all()
    assert ((log["radius"] == 0) & sure).any()  # no pixel may change: no abstention
    assert certification.audit_log(log, noise, alpha=about["alpha"], n=about["n"]).passed


@pytest.mark.parametrize("path", PHOTOS, ids=[path.stem for path in PHOTOS])
def test_logs_of_the_photographs_follow_from_their_counts_and_their_network(path):
    log, about = certification.read_log(path), json.loads(path.with_suffix(".json").read_text())
    group = data.load_groups()[0]
    network = models.Grouped(models.load("imagenet_efficientnet_lite0"), group)
    if "denoised" in path.stem:
        network = models.Denoised(models.load("photo_denoiser"), network, about["sigma"])
    assert certification.fingerprint(network) == about["model_sha256"]
    counts = certification.vote_counts(log)
    assert (counts.sum(axis=1) == about["n"]).all()
    again = certification.rebound(log, *(about[k] for k in ("sigma", "n", "alpha", "bound")))
    assert again.equals(log)
    assert log["label"].tolist() == [group[k] for k in data.load_photos()[1]]
    assert certification.audit_log(log, about["sigma"], alpha=0.001, n=about["n"]).passed


def test_an_attack_within_the_radius_turned_no_vote():
    attacked = pd.read_csv(RESULTS / "photos/attacked.csv")
    for sigma in ("0.12", "0.25"):
        log = certification.read_log(RESULTS / f"photos/lite0_{sigma}.tsv")
        left = attacked[f"votes left, {sigma}"]
        assert (left.notna() == (log["radius"] > 0)).all()
        # 300 votes and a bound with alpha = 0.001: a share below one half by chance has a
        # probability below 1e-3 for the smallest radius, and far below for the others.
        assert (left.dropna() > 0.5).all()


def test_stored_logs_are_found():
    assert len(PHOTOS) == 4
    assert len(STORED) >= 46


@pytest.mark.slow
def test_the_shipped_study_is_complete_and_its_table_is_its_logs():
    folder = data.data_folder() / "results" / "mnist_study"
    steps = plan.steps(folder) + plan.steps(folder, methods=["gaussian"], n=100_000)
    steps += plan.steps(folder, methods=["easy"], sigmas=[1.0])
    steps += plan.steps(folder, methods=["night"], n=100_000)
    steps += plan.steps(folder, methods=["night_cat_rs"], sigmas=[0.5], n=100_000)
    for method, sigma in (("smoothadv", 0.25), ("night", 0.5), ("smoothadv_consistency", 1.0)):
        steps += plan.steps(folder / "seeds", methods=[method], sigmas=[sigma], seed=1)
    assert [step.output for step in steps if not step.done] == []
    stored = pd.read_csv(folder / "summary.csv")
    assert stored.round(4).equals(certification.summarise(folder).round(4))


def test_each_row_is_on_disk_before_the_next_image(case, tmp_path):
    _, images, labels = case
    path, lines = tmp_path / "log.tsv", []

    def watching(x):
        lines.append(len(path.read_text().splitlines()) if path.exists() else 0)
        return halfspace(x)

    g = SmoothedClassifier(watching, 0.25, 2)
    certification.certify_dataset(g, images[:4], labels[:4], path, **SETTINGS, batch_size=32)
    assert sorted(set(lines)) == [1, 2, 3, 4]


KILLED = """
import os, signal, sys, time, torch
from trustml_helpers import certification, data, models
from trustml_helpers.smoothing import SmoothedClassifier
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
f, images = models.load("mnist_lenet_gaussian_0.5"), 0

def dying(x):  # rank 1 kills itself in its fourth image (each has one batch of 10 and two more)
    global images
    images += len(x) == 10
    if len(sys.argv) > 2 and os.environ["RANK"] == "1" and images == 4:
        os.kill(os.getpid(), signal.SIGKILL)

f.register_forward_pre_hook(lambda module, inputs: dying(inputs[0]))
g = SmoothedClassifier(f, 0.5, 10)
print("ready", flush=True)
certification.certify_dataset(g, *data.load_mnist("test"), sys.argv[1], n0=10, n=400, alpha=0.01,
                              indices=range(0, 10_000, 400), progress=False,
                              batch_size=256, layout="contiguous")
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The rows of this run, if nothing happens to it."""
    path = tmp_path_factory.mktemp("whole") / "log.tsv"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=True, capture_output=True)
    return rows(path)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path, undisturbed):
    """Three signals, at moments that differ; nothing is lost, doubled or half-written."""
    path = tmp_path / "log.tsv"
    for wait, ending in ((0.4, signal.SIGKILL), (0.9, signal.SIGTERM), (0.6, signal.SIGINT)):
        run = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        assert run.stdout.readline() == b"ready\n"
        time.sleep(wait)
        run.send_signal(ending)
        run.wait()
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=True, capture_output=True)
    assert rows(path) == undisturbed
    assert len(undisturbed) == 26


@pytest.mark.slow
def test_two_processes_write_the_log_of_one_also_after_the_kill_of_a_rank(tmp_path, undisturbed):
    script, path = tmp_path / "run.py", tmp_path / "log.tsv"
    script.write_text(KILLED)
    assert torchrun(script, path, "die").returncode != 0
    parts = sorted(tmp_path.glob("log.tsv.part*"))
    dealt = [line.split("\t")[0] for line in parts[1].read_text().splitlines()]
    assert dealt == ["400", "1200", "2000"]
    assert len(path.read_text().splitlines()) == 1
    again = torchrun(script, path)
    assert again.returncode == 0, again.stderr
    assert rows(path) == undisturbed
    assert not list(tmp_path.glob("log.tsv.part*"))


@pytest.mark.slow
def test_an_error_of_the_first_process_reaches_all(tmp_path):
    script, path = tmp_path / "run.py", tmp_path / "log.tsv"
    script.write_text(KILLED)
    path.write_text("not a log")
    found = torchrun(script, path)
    assert found.returncode != 0
    assert "settings of" in found.stderr


def test_parts_are_joined_in_order_whole_rows_and_each_once(case, tmp_path):
    path, whole = tmp_path / "log.tsv", tmp_path / "whole.tsv"
    settings = SETTINGS | {"batch_size": 64}
    certification.certify_dataset(*case, whole, **settings)
    certification.certify_dataset(*case, path, indices=[0], **settings)
    lines = whole.read_text().splitlines(keepends=True)
    # What two killed processes left: rows 1, 3 and half of 5; rows 4, 2 and row 0 once more.
    path.with_name("log.tsv.part1").write_text(lines[2] + lines[4] + lines[6][:9])
    path.with_name("log.tsv.part0").write_text(lines[5] + lines[3] + lines[1])
    first = path.read_text().splitlines()[1]
    path.with_name("log.tsv.partner").write_text("somebody else's")
    certification.certify_dataset(*case, path, **settings)
    assert rows(path) == rows(whole)
    assert path.read_text().splitlines()[1] == first  # with its own time
    assert sorted(p.name for p in tmp_path.glob("log.tsv.part*")) == ["log.tsv.partner"]


def test_rows_follow_the_order_asked_for(case, tmp_path):
    path = tmp_path / "log.tsv"
    certification.certify_dataset(*case, path, indices=[6, 2], **SETTINGS)
    table = certification.certify_dataset(*case, path, indices=[1, 2, 3], **SETTINGS)
    assert table["idx"].tolist() == [6, 1, 2, 3]


def test_numbers_name_images_and_key_their_noise(case, tmp_path):
    smoothed, images, labels = case
    whole, part = tmp_path / "whole.tsv", tmp_path / "part.tsv"
    certification.certify_dataset(*case, whole, **SETTINGS)
    certification.certify_dataset(smoothed, images[::3], labels[::3], part, numbers=[0, 3, 6],
                                  **SETTINGS)  # fmt: skip
    assert rows(part)[1:] == [rows(whole)[k] for k in (1, 4, 7)]


def test_settings_record_the_execution_and_the_shares_of_alpha(case, tmp_path):
    for bound, shares in (("one_class", [1.0]), ("two_class", [0.9, 0.1])):
        path = tmp_path / f"{bound}.tsv"
        certification.certify_dataset(*case, path, bound=bound, **SETTINGS, batch_size=48)
        about = json.loads(path.with_suffix(".json").read_text())
        assert about["shares_of_alpha"] == shares
        assert {k: about[k] for k in ("batch_size", "layout", "dtype", "compiled", "device")} == {
            "batch_size": 48, "layout": "contiguous", "dtype": "float32", "compiled": False,
            "device": "cpu",
        }  # fmt: skip


def test_a_folder_that_cannot_be_written_to_is_reported_before_work(case, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        certification.certify_dataset(*case, tmp_path / "file" / "log.tsv", **SETTINGS)

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(ledger, "replace_file", refuse)
    with pytest.raises(PermissionError, match="read-only"):
        certification.certify_dataset(*case, tmp_path / "log.tsv", **SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_too_little_space_is_reported_before_work(case, tmp_path, monkeypatch):
    usage = ledger.shutil.disk_usage(tmp_path)._replace(free=600)
    monkeypatch.setattr(ledger.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(LogError, match="the rows need 656 bytes, 600 are free; make room"):
        certification.certify_dataset(*case, tmp_path / "log.tsv", **SETTINGS)
    monkeypatch.undo()
    assert len(certification.certify_dataset(*case, tmp_path / "log.tsv", **SETTINGS)) == 8


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
""" + KILLED.replace("len(sys.argv) > 2", "False")


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_no_finished_row(tmp_path, undisturbed):
    """No file may grow beyond so many bytes: the error comes in the middle of a row."""
    path = tmp_path / "log.tsv"
    found = subprocess.run([sys.executable, "-c", FULL, str(path), "990"], capture_output=True,
                           text=True)  # fmt: skip
    assert "OSError" in found.stderr
    assert "log.tsv: what is in it is kept; make room" in found.stderr
    text = path.read_text()
    assert 0 < len(text) <= 990
    assert not text.endswith("\n")
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=True, capture_output=True)
    assert rows(path) == undisturbed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.with_suffix(".json").write_text("{"), "cannot be read"),
        (lambda p: p.with_suffix(".json").write_text("7"), "cannot be read"),
        (lambda p: p.with_suffix(".json").write_text('{"n": 60}'), r"made with \w+=None, not"),
        (lambda p: p.write_text("a\tb\n"), "does not begin with .*idx"),
        (lambda p: p.write_text(""), "does not begin with .*idx"),
        (lambda p: p.write_text(p.read_text() + "x\t1\n"), "damaged row 'x"),
    ],
)
def test_a_damaged_log_is_refused_and_left_alone(case, tmp_path, change, message):
    path = tmp_path / "log.tsv"
    certification.certify_dataset(*case, path, indices=[0], **SETTINGS)
    change(path)
    before = {p.name: p.read_text() for p in tmp_path.iterdir()}
    with pytest.raises(LogError, match=message):
        certification.certify_dataset(*case, path, **SETTINGS)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before


def test_read_log_of_variants(tmp_path):
    """Four digits, cut off in the middle of a row, header only, with and without counts."""
    path = tmp_path / "log.tsv"
    head = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
    path.write_text(head + "\n0\t3\t3\t0.7153\t1\t0:01:02.5\n20\t4\t4\t1.2\t1\t0:00:01\n")
    assert certification.read_log(path)["radius"].tolist() == [0.7153, 1.2]
    assert certification.read_log(path)["time"].tolist() == [62.5, 1]
    path.write_text(head + "\n0\t3\t3\t0.715\t1\t1.5\n20\t4\t4\t0.3")
    with pytest.warns(UserWarning, match="last row"):
        assert certification.read_log(path)["idx"].tolist() == [0]
    path.write_text(head + "\tcount_0\tcount_1\n")
    table = certification.read_log(path)
    assert len(table) == 0
    assert list(table.columns[6:]) == ["count_0", "count_1"]


def test_rebound_gives_what_the_other_run_would_have(case, tmp_path):
    """Same noise, same classes: a two-class log re-bounded is the one-class log of the same run."""
    settings = SETTINGS | {"alpha": 0.05, "batch_size": 64}
    one = certification.certify_dataset(*case, tmp_path / "one.tsv", **settings)
    two = certification.certify_dataset(*case, tmp_path / "two.tsv", bound="two_class", **settings)
    found = certification.rebound(two, 0.25, 60, 0.05)
    assert found.drop(columns="time").equals(one.drop(columns="time"))
    again = certification.rebound(found, 0.25, 60, 0.05, "two_class")
    kept = (found["predict"] >= 0).to_numpy()
    assert again[kept].drop(columns="time").equals(two[kept].drop(columns="time"))
    stricter = certification.rebound(two, 0.25, 60, 1e-6)
    assert (stricter["radius"] <= found["radius"]).all()
    assert (stricter["radius"] < found["radius"]).any()
    with pytest.raises(LogError, match="no counts"):
        certification.rebound(one.iloc[:, :6], 0.25, 60, 0.05)


def test_a_log_is_read_under_another_bound(case, tmp_path):
    path = tmp_path / "two.tsv"
    two = certification.certify_dataset(*case, path, bound="two_class",
                                        **SETTINGS | {"alpha": 0.05})  # fmt: skip
    about = json.loads(path.with_suffix(".json").read_text())
    expected = certification.rebound(two, about["sigma"], about["n"], 0.05)
    found = certification.read_log(path, "one_class")
    assert np.array_equal(found["radius"], expected["radius"])
    assert (found["radius"] != two["radius"]).any()
    path.with_suffix(".json").write_text('{"sigma": 1}')
    with pytest.raises(LogError, match=r"bound='one_class': .*two.tsv does not say .*\('n'\)"):
        certification.read_log(path, "one_class")
    path.with_suffix(".json").unlink()
    with pytest.raises(LogError, match="does not say sigma, n and alpha"):
        certification.read_log(path, "one_class")


def test_rows_that_abstained_stay_so():
    log = pd.DataFrame({"idx": [0], "label": [1], "predict": [-1], "radius": [0.0], "correct": [0],
                        "time": [1.0], "count_0": [100], "count_1": [0]})  # fmt: skip
    found = certification.rebound(log, 0.5, 100, 0.001)
    assert found["predict"].tolist() == [-1]
    assert found["radius"].tolist() == [0.0]


def test_the_noise_of_a_row_can_be_drawn_again(case, tmp_path):
    smoothed, images, _ = case
    table = certification.certify_dataset(*case, tmp_path / "log.tsv", seed=4, **SETTINGS)
    generator = certification.noise_generator(4, 5)
    smoothed.sample_under_noise(images[5:6], SETTINGS["n0"], generator)
    counts = smoothed.sample_under_noise(images[5:6], SETTINGS["n"], generator)[0]
    assert table.loc[5, ["count_0", "count_1"]].tolist() == counts.tolist()


def test_a_plain_table_reader_finds_the_published_columns(case, tmp_path):
    """Scripts for the published logs read six columns and look at two of them."""
    path = tmp_path / "log.tsv"
    log = certification.certify_dataset(*case, path, **SETTINGS)
    table = pd.read_csv(path, delimiter="\t")
    for radius in (0, 0.1, 0.2):
        share = (table["correct"] & (table["radius"] >= radius)).mean()
        assert share == certification.certified_accuracy(log, radius)[0]


def test_other_images_or_labels_are_refused(case, tmp_path):
    smoothed, images, labels = case
    path = tmp_path / "log.tsv"
    settings = SETTINGS | {"batch_size": 64}
    certification.certify_dataset(*case, path, indices=[2, 3], **settings)
    before = path.read_text()
    changed = images.clone()
    changed[2, 0, 0, 0] += 1e-3
    other = labels.clone()
    other[3] = 1 - other[3]
    for x, y in ((changed, labels), (images, other)):
        with pytest.raises(LogError, match="other images or labels"):
            certification.certify_dataset(smoothed, x, y, path, **settings)
    assert path.read_text() == before
    # A part of the data set without the first image is as good as it can be checked.
    some = certification.certify_dataset(
        smoothed, images[3:5], labels[3:5], path, numbers=[3, 4], **settings
    )
    assert some["idx"].tolist() == [2, 3, 4]


def test_parts_without_their_log_are_refused(case, tmp_path):
    """What a killed run left, whose log was deleted: other settings must not take its rows."""
    path = tmp_path / "log.tsv"
    certification.certify_dataset(*case, path, **SETTINGS)
    part = path.with_name("log.tsv.part0")
    path.rename(part)
    for sidecar in (True, False):
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        with pytest.raises(
            LogError, match=r"log\.tsv\.part0: rows of an earlier run .*remove them"
        ):
            certification.certify_dataset(*case, path, **(SETTINGS | {"n": 61 - sidecar}))
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
        path.with_suffix(".json").unlink(missing_ok=True)
    part.unlink()
    certification.certify_dataset(*case, path, **(SETTINGS | {"n": 61}))


@pytest.mark.parametrize("name", ["log.json", "log", "run_0.25", "log.JSON", "log."])
def test_a_name_whose_settings_would_overwrite_others_is_refused(case, tmp_path, name):
    with pytest.raises(ValueError, match=r"path=.*: expected the name of a log with a suffix"):
        certification.certify_dataset(*case, tmp_path / name, **SETTINGS)
    assert not list(tmp_path.iterdir())
    path = tmp_path / name
    path.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.7\t1\t0.1\n")
    if not name.lower().endswith("json"):
        (tmp_path / "run_0.json").write_text('{"sigma": 9, "n": 100, "alpha": 0.01}')
        with pytest.raises(LogError, match="expected the name of a log with a suffix"):
            certification.read_log(path, "one_class")
    assert len(certification.read_log(path)) == 1


def test_the_json_of_something_else_is_not_overwritten(case, tmp_path):
    path, sidecar = tmp_path / "mine.tsv", tmp_path / "mine.json"
    certification.certify_dataset(*case, tmp_path / "other.tsv", **(SETTINGS | {"n": 61}))
    foreign = (tmp_path / "other.json").read_text()
    for text in ('{"architecture": "LeNet", "sigma": 0.25}', "null", "[]", "{", foreign):
        sidecar.write_text(text)
        with pytest.raises(LogError, match=r"use another path than .*mine\.tsv, or remove it"):
            certification.certify_dataset(*case, path, **SETTINGS)
        assert sidecar.read_text() == text
        assert not path.exists()


def test_a_run_killed_between_its_settings_and_its_log_goes_on(case, tmp_path):
    """As recorded, though the log is not there yet; and not with other images."""
    smoothed, images, labels = case
    path, whole = tmp_path / "log.tsv", tmp_path / "whole.tsv"
    certification.certify_dataset(*case, whole, **SETTINGS, batch_size=48)
    certification.certify_dataset(*case, path, **SETTINGS, batch_size=48)
    path.unlink()
    about = path.with_suffix(".json").read_text()
    certification.certify_dataset(*case, path, **SETTINGS)
    assert rows(path) == rows(whole)
    assert path.with_suffix(".json").read_text() == about
    path.unlink()
    with pytest.raises(LogError, match="other images"):
        certification.certify_dataset(smoothed, images.flip(0), labels.flip(0), path, **SETTINGS)


@pytest.mark.parametrize("change", [{"image": [1]}, {"image_sha256": None}, {"batch_size": "a"},
                                    {"batch_size": None}, {"layout": 3}])  # fmt: skip
def test_settings_that_a_hand_has_changed(case, tmp_path, change):
    path = tmp_path / "log.tsv"
    certification.certify_dataset(*case, path, indices=[0], **SETTINGS)
    sidecar = path.with_suffix(".json")
    about = json.loads(sidecar.read_text())
    (name,) = change
    sidecar.write_text(json.dumps(about | change))
    with pytest.raises(ValueError, match=rf"{'images' if 'image' in name else name}"):
        certification.certify_dataset(*case, path, **SETTINGS)
    del about["image_sha256"]
    sidecar.write_text(json.dumps(about))
    with pytest.raises(LogError, match=r"log\.json lacks image_sha256: use another path"):
        certification.certify_dataset(*case, path, **SETTINGS)
    del about["image"]  # as the first logs of this package were
    sidecar.write_text(json.dumps(about))
    assert len(certification.certify_dataset(*case, path, **SETTINGS)) == 8


def test_settings_that_are_no_object(case, tmp_path):
    path = tmp_path / "log.tsv"
    certification.certify_dataset(*case, path, indices=[0], **SETTINGS)
    for text in ("[]", "null", "7"):
        path.with_suffix(".json").write_text(text)
        with pytest.raises(LogError, match=r"log\.json cannot be read \(expected names"):
            certification.certify_dataset(*case, path, **SETTINGS)


@pytest.mark.parametrize(
    ("call", "column"),
    [
        (lambda log: certification.certified_accuracy(log, [0]), "correct"),
        (lambda log: certification.certified_accuracy(log, [0]), "radius"),
        (certification.average_certified_radius, "radius"),
        (lambda log: certification.summary({"a": log}, [0]), "predict"),
        (lambda log: certification.rebound(log, 0.25, 60, 0.01), "predict"),
        (lambda log: certification.rebound(log, 0.25, 60, 0.01), "label"),
        (lambda log: certification.audit_log(log, 0.25), "idx"),
        (lambda log: certification.audit_log(log, 0.25), "correct"),
        (lambda log: certification.predict_acr(log, 0.25, 60, 0.01, 100), "label"),
    ],
)
def test_a_table_without_a_column_is_refused_by_its_name(case, tmp_path, call, column):
    log = certification.certify_dataset(*case, tmp_path / "log.tsv", **SETTINGS)
    with pytest.raises(ValueError, match=f"log( a)? lacks the column {column}: expected a log"):
        call(log.drop(columns=column))


def test_numbers_of_numpy_are_recorded_as_numbers(case, tmp_path):
    path, whole = tmp_path / "log.tsv", tmp_path / "whole.tsv"
    odd = {"n0": np.int64(20), "n": np.int32(60), "alpha": np.float32(0.01), "seed": np.int64(1)}
    odd |= {"batch_size": np.int64(32), "compiled": np.bool_(False), "progress": False}
    certification.certify_dataset(*case, path, indices=[0], **odd)
    certification.certify_dataset(*case, path, **odd)
    same = SETTINGS | {"alpha": float(np.float32(0.01)), "seed": 1, "batch_size": 32}
    certification.certify_dataset(*case, whole, **same)
    assert rows(path) == rows(whole)
    assert path.with_suffix(".json").read_text() == whole.with_suffix(".json").read_text()


def test_a_log_that_came_meanwhile_is_not_overwritten(case, tmp_path, monkeypatch):
    path, search = tmp_path / "log.tsv", smoothing.search

    def slow(*args, **named):
        monkeypatch.undo()
        certification.certify_dataset(*case, path, **SETTINGS)
        return search(*args, **named)

    monkeypatch.setattr(smoothing, "search", slow)
    with pytest.raises(LogError, match="written meanwhile: start again"):
        certification.certify_dataset(*case, path, **SETTINGS)
    assert len(certification.read_log(path)) == 8


# --- many classes ---------------------------------------------------------------------------------


def by_brightness(x):
    """150 classes, by the mean of the pixels."""
    place = torch.linspace(0, 1, 150)
    return -((x.flatten(1).mean(1, keepdim=True) - place) ** 2)


@pytest.fixture
def crowd():
    images = torch.linspace(0.1, 0.9, 6).view(6, 1, 1, 1).expand(6, 1, 8, 8).contiguous()
    labels = by_brightness(images).argmax(1)
    return SmoothedClassifier(by_brightness, 0.01, 150), images, labels


def test_a_log_of_many_classes_holds_the_votes_above_0(crowd, tmp_path):
    path = tmp_path / "log.tsv"
    table = certification.certify_dataset(*crowd, path, **SETTINGS)
    head, *lines = path.read_text().splitlines()
    assert head == "idx\tlabel\tpredict\tradius\tcorrect\ttime\tcounts_of_150"
    assert max(len(line) for line in lines) < 100
    counts = certification.vote_counts(table)
    assert counts.shape == (6, 150)
    assert (counts.sum(1) == 60).all()
    for k in range(6):
        generator = certification.run.keyed_generator(0, k, "cpu")
        found = crowd[0].certify(crowd[1][[k]], 20, 60, 0.01, generator=generator, batch_size=64)
        assert found.counts[0].tolist() == counts[k].tolist()
    assert certification.audit_log(table, 0.01, alpha=0.01, n=60).passed
    again = certification.rebound(table, 0.01, 60, 0.01)
    assert np.allclose(again["radius"], table["radius"], atol=1e-6)


def test_a_log_of_many_classes_goes_on_after_a_kill(crowd, tmp_path):
    whole, path = tmp_path / "whole.tsv", tmp_path / "log.tsv"
    certification.certify_dataset(*crowd, whole, **SETTINGS, batch_size=64)
    certification.certify_dataset(*crowd, path, **SETTINGS, batch_size=64, indices=[0, 1, 2])
    path.write_text(path.read_text()[:-4])  # in the middle of the votes
    certification.certify_dataset(*crowd, path, **SETTINGS, batch_size=64)
    assert rows(path) == rows(whole)


@pytest.mark.filterwarnings("ignore:f returned NaN")
def test_an_image_without_a_single_vote_is_a_row_like_others(crowd, tmp_path):
    """Of 150 classes: what the network answers for it is no number."""
    _, images, labels = crowd
    path = tmp_path / "log.tsv"

    def broken(x):
        z = by_brightness(x)
        return torch.where(x.flatten(1).mean(1, keepdim=True) > 0.85, torch.nan, z)

    for _ in range(2):  # written, and read again
        table = certification.certify_dataset(
            SmoothedClassifier(broken, 0.01, 150), images, labels, path, **SETTINGS, batch_size=64
        )
        assert certification.vote_counts(table).sum(1).tolist() == [60] * 5 + [0]
        assert table["predict"].tolist()[-1] == smoothing.ABSTAIN


@pytest.mark.parametrize("cell", ["7:59 150:1", "7:", "x", "7:3,8:2", ":4", "-1:3", ""])
def test_a_damaged_cell_of_votes_is_refused(crowd, tmp_path, cell):
    path = tmp_path / "log.tsv"
    certification.certify_dataset(*crowd, path, **SETTINGS)
    first, second, *rest = path.read_text().splitlines()
    second = "\t".join([*second.split("\t")[:-1], cell])
    path.write_text("\n".join([first, second, *rest]) + "\n")
    with pytest.raises(LogError, match=r"counts_of_150 is .* in row 1 below the header; restore"):
        certification.read_log(path)


def test_labels_beyond_the_classes_are_refused(case, tmp_path):
    g, images, labels = case
    with pytest.raises(
        ValueError, match="labels holds labels 0 to 5, but the model has 2 classes: expected 0"
    ):
        certification.certify_dataset(g, images, labels * 5, tmp_path / "log.tsv", **SETTINGS)
    assert not list(tmp_path.iterdir())


# --- a network is more than its tensors -----------------------------------------------------------


class _Scaled(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x.flatten(1) * self.scale


def _seen_through(scale):
    return lambda x: x.flatten(1) * scale


def _plus(x, more=0.0):
    return x.flatten(1) + more


def _minus(x, more=0.0):
    return x.flatten(1) - more


@pytest.mark.parametrize(("one", "other"), [
    (_Scaled(1.0), _Scaled(2.0)),
    (torch.nn.Sequential(_Scaled(1.0)), torch.nn.Sequential(_Scaled(2.0))),
    (_seen_through(1.0), _seen_through(2.0)),
    (_seen_through(torch.ones(2)), _seen_through(2 * torch.ones(2))),
    (_seen_through(torch.tensor(1.0)), _seen_through(torch.tensor(2.0))),
    (_plus, _minus),
    (partial(_plus, more=1.0), partial(_plus, more=2.0)),
    (partial(_plus, more=np.zeros(2)), partial(_plus, more=np.ones(2))),
    (_Scaled(1.0).forward, _Scaled(2.0).forward),
])  # fmt: skip
def test_a_network_of_other_attributes_or_source_is_refused(tmp_path, one, other):
    x, y = torch.rand(2, 1, 1, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])

    def certify(network, images):
        g = smoothing.SmoothedClassifier(network, 0.5, 2)
        return certification.certify_dataset(
            g, images, y[: len(images)], tmp_path / "log.tsv", n0=2, n=20, alpha=0.1, batch_size=4,
            layout="contiguous", progress=False,
        )  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(certify(one, x[:1])) == 1
        assert len(certify(one, x)) == 2  # the same: goes on
        with pytest.raises(LogError, match=r"another network|of other attributes or source"):
            certify(other, x)


def test_a_log_from_before_the_source_was_recorded_goes_on(tmp_path):
    path, x, y = tmp_path / "log.tsv", torch.rand(2, 1, 1, 2), torch.tensor([0, 1])
    g = smoothing.SmoothedClassifier(_plus, 0.5, 2)
    how = {"n0": 2, "n": 20, "alpha": 0.1, "batch_size": 4, "layout": "contiguous"}
    certification.certify_dataset(g, x[:1], y[:1], path, **how, progress=False)
    about = json.loads(path.with_suffix(".json").read_text())
    del about["model_code_sha256"]
    path.with_suffix(".json").write_text(json.dumps(about))
    assert len(certification.certify_dataset(g, x, y, path, **how, progress=False)) == 2


def test_the_settings_name_the_origin_of_all_rows(case, tmp_path):
    """Also where images are added, or fewer given; a log from before that goes on."""
    g, images, labels = case
    path = tmp_path / "log.tsv"

    def certify(count, **more):
        chosen = images[:count], labels[:count]
        certification.certify_dataset(g, *chosen, path, **SETTINGS, **more)
        return json.loads(path.with_suffix(".json").read_text())

    def origin(count):
        return {"data": "mine", "files": {str(k): f"{k}.png" for k in range(count)}}

    assert "origin" not in certify(1)
    assert certify(2, origin=origin(2))["origin"] == origin(2)
    assert certify(4, origin=origin(4))["origin"] == origin(4)
    assert certify(2, origin=origin(2))["origin"] == origin(4)
    moved = certify(4, origin={"data": "moved"})["origin"]
    assert moved == origin(4) | {"data": "moved"}
    assert certify(4)["origin"] == moved


NOISES = [smoothing.Gaussian(0.25), smoothing.Uniform(0.25), smoothing.Laplace(0.25)]


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_a_log_belongs_to_its_noise(case, tmp_path, noise):
    """Others of the same sigma are refused, by name; where none is named, it was Gaussian."""
    path, (_, images, labels) = tmp_path / "log.tsv", case
    beside = path.with_suffix(".json")
    smoothed = SmoothedClassifier(halfspace, noise, 2)
    certification.certify_dataset(smoothed, images, labels, path, indices=[0, 1], **SETTINGS)
    about = json.loads(beside.read_text())
    assert {key: about[key] for key in noise.settings} == noise.settings
    for other in NOISES:
        if other != noise:
            with pytest.raises(LogError, match="noise"):
                certification.certify_dataset(SmoothedClassifier(halfspace, other, 2), images,
                                              labels, path, **SETTINGS)  # fmt: skip
    beside.write_text(json.dumps({k: v for k, v in about.items() if k not in ("noise", "norm")}))
    if noise == NOISES[0]:
        table = certification.certify_dataset(smoothed, images, labels, path, **SETTINGS)
        assert len(table) == 8
        expected = certification.read_log(path, "one_class")["radius"]
        assert np.array_equal(expected, table["radius"])
    else:
        with pytest.raises(LogError, match="noise"):
            certification.certify_dataset(smoothed, images, labels, path, **SETTINGS)


def test_a_radius_of_no_pixels_in_a_log(tmp_path):
    """p_A just above 1/2 is a class that no pixel may change; the log, its reading and its audit
    tell it from an abstention."""

    def f(x):  # class 1 where the first of five pixels is seen, or the second is bright
        one = (x[:, :2, 0, 0].sum(1) > 0) | (x[:, 0, 0, 1] > 0)
        return torch.stack([~one, one], 1).float()

    noise = smoothing.Ablation(2, 5)
    images, path = torch.zeros(3, 1, 1, 5), tmp_path / "log.tsv"
    images[1, 0, 0, 1] = 1.0  # 7 of 10 masks show one of two pixels, else 4 of 10
    smoothed = SmoothedClassifier(f, noise, 2)
    settings = SETTINGS | {"n": 2000, "n0": 200}
    log = certification.certify_dataset(smoothed, images, torch.tensor([0, 1, 1]), path, **settings)
    assert log["predict"].tolist() == [0, 1, 0]
    assert log["radius"].tolist() == [0, 0, 0]
    assert log["correct"].tolist() == [1, 1, 0]
    assert certification.certified_accuracy(log, [0, 1]).tolist() == [2 / 3, 0]
    assert certification.average_certified_radius(log)[0] == 0
    assert certification.read_log(path, "one_class").equals(log)
    assert certification.rebound(log, noise, 2000, 1e-300)["predict"].tolist() == [-1] * 3
    assert certification.audit_log(log, noise, alpha=0.01, n=2000).passed
    false = log.assign(predict=[1, 1, 0], correct=[0, 1, 0])  # 40 % of the votes make no class
    assert certification.audit_log(false, noise, alpha=0.01, n=2000).inconsistent == (0,)


def test_a_picture_that_changed_is_noticed(case, tmp_path):
    g, images, labels = case
    path = tmp_path / "log.tsv"
    certification.certify_dataset(g, images[:4], labels[:4], path, **SETTINGS)
    changed = images.clone()
    changed[2] += 0.001
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    with pytest.raises(LogError, match="made with other images or labels"):
        certification.certify_dataset(g, changed[:4], labels[:4], path, **SETTINGS)
    assert before == (path.read_bytes(), path.with_suffix(".json").read_bytes())
    # More images go into the same log, and are known from then on.
    assert len(certification.certify_dataset(g, images, labels, path, **SETTINGS)) == 8
    changed = images.clone()
    changed[7] += 0.001
    with pytest.raises(LogError, match="made with other images or labels"):
        certification.certify_dataset(g, changed, labels, path, **SETTINGS)
    assert len(certification.certify_dataset(g, images, labels, path, **SETTINGS)) == 8
