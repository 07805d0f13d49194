"""Whole files and one writer: what happens when a write fails, a process dies, or two meet."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trustml_helpers import certification, smoothing, training
from trustml_helpers._support.files import InUseError, only_writer, replace_file
from trustml_helpers.robustness import log as attack_log

HOLDER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
from trustml_helpers._support.files import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def hold(tmp_path):
    """Another process that keeps a path to itself until it is killed."""
    running = []

    def begin(path):
        process = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout.readline().strip() == b"held"
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()


def test_a_file_is_whole_or_not_replaced(tmp_path, monkeypatch):
    path, write = tmp_path / "card.json", Path.write_bytes
    replace_file(path, b"old")

    def half(self, raw):
        write(self, raw[: len(raw) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new, and longer")
    assert path.read_bytes() == b"old"


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_one_writer_at_a_time_and_none_after_its_end(tmp_path, hold, ending):
    path = tmp_path / "log.tsv"
    other = hold(path)
    with pytest.raises(InUseError, match=r"log\.tsv is being written by another process: wait"):
        only_writer(path).__enter__()
    other.send_signal(ending)
    other.wait(60)
    with only_writer(path):
        assert (tmp_path / "log.tsv.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path / "new" / "log"):
        _ = 1 / 0
    with only_writer(tmp_path / "new" / "log"):
        pass


def half_plane(x):
    total = x.flatten(1).sum(1)
    return torch.stack([total, -total], 1)


def certify(path):
    g = smoothing.SmoothedClassifier(half_plane, 1.0, 2)
    certification.certify_dataset(
        g, torch.ones(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), path, n0=5, n=20, alpha=0.01,
        batch_size=20, layout="contiguous", progress=False,
    )  # fmt: skip


def attack(path):
    attack_log.attack_dataset(
        half_plane, torch.ones(2, 3), torch.zeros(2, dtype=torch.int64),
        lambda generator: {"none": lambda model, x, y: x}, path, about={}, progress=False,
    )  # fmt: skip


def train(path):
    data = torch.eye(4), torch.tensor([0, 1, 0, 1])
    training.fit(torch.nn.Linear(4, 2), data, epochs=1, checkpoint=path, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("write", [certify, attack, train])
def test_two_processes_do_not_write_one_file(tmp_path, hold, write):
    path = tmp_path / "output.tsv"
    other = hold(path)
    error = certification.LogError if write is certify else InUseError
    with pytest.raises(error, match="another process: wait for its end, or use another path"):
        write(path)
    assert [each.name for each in tmp_path.iterdir()] == ["output.tsv.lock"]
    other.kill()
    other.wait(60)
    write(path)
    assert path.stat().st_size > 0
    assert not (tmp_path / "output.tsv.lock").exists()


@pytest.mark.slow
def test_a_clock_that_is_set_back_does_no_harm(tmp_path, monkeypatch):
    """Times are differences of a clock that nobody sets."""
    hours = iter(range(1000, 0, -1))
    monkeypatch.setattr("time.time", lambda: 3600.0 * next(hours))
    certify(tmp_path / "log.tsv")
    assert certification.read_log(tmp_path / "log.tsv")["time"].between(0, 600).all()
    data = torch.eye(4), torch.tensor([0, 1, 0, 1])
    history = training.fit(torch.nn.Linear(4, 2), data, epochs=1, progress=False)
    assert history["seconds"].between(0, 600).all()
