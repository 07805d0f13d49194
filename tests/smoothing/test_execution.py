"""How a run is executed: conversions, the short search, and several processes."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trustml_helpers import models
from trustml_helpers.smoothing import Execution, SmoothedClassifier, execution

DIGIT = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def lenet():
    return SmoothedClassifier(models.load("mnist_lenet_gaussian_0.5"), 0.5, 10)


class Spy(nn.Module):
    """Remembers its inputs; the sign of the first pixel decides."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(1)), []

    def forward(self, x):
        self.seen.append(x)
        z = x.flatten(1)[:, 0] * self.weight
        return torch.stack([z, -z], 1)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_noise_is_drawn_and_added_before_the_cast(dtype):
    spy = Spy().eval()
    x = torch.full((1, 1, 4, 4), 1 / 3)
    prepared = execution.prepare(
        SmoothedClassifier(spy, 0.25, 2), Execution(8, "channels_last", dtype), x
    )
    prepared.sample_under_noise(x, 8, seeded(3), 8)
    noise = torch.empty(1, 8, 1, 4, 4).normal_(0, 0.25, generator=seeded(3))
    (seen,) = prepared.base_classifier.network.seen
    assert torch.equal(seen, (noise + x[:, None])[0].to(execution.DTYPES[dtype]))
    assert seen.dtype == prepared.base_classifier.network.weight.dtype
    assert spy.weight.dtype == torch.float32
    assert spy.seen == []


def test_the_network_is_left_as_it_was(lenet):
    before = {k: v.clone() for k, v in lenet.base_classifier.state_dict().items()}
    given = execution.as_given(lenet.base_classifier, DIGIT)
    assert given == Execution(256, "contiguous", "float32", False)
    wanted = Execution(64, "channels_last", "bfloat16")
    prepared = execution.prepare(lenet, wanted, DIGIT)
    prepared.sample_under_noise(DIGIT, 10, seeded())
    assert execution.as_given(prepared.base_classifier, DIGIT)._replace(batch_size=64) == wanted
    assert execution.as_given(lenet.base_classifier, DIGIT) == given
    after = lenet.base_classifier.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    again = execution.prepare(lenet, given._replace(batch_size=9), DIGIT)
    assert again.base_classifier is lenet.base_classifier


@pytest.mark.slow
def test_layout_and_precision_change_few_labels(lenet):
    """Same noise, 1,000 votes on two digits: none moves with the layout, few with bfloat16."""
    counts = {
        how: execution.prepare(lenet, how, DIGIT).sample_under_noise(DIGIT, 500, seeded(), 100)
        for how in (Execution(), Execution(layout="channels_last"), Execution(dtype="bfloat16"))
    }
    exact, layout, low = counts.values()
    assert int((exact - layout).abs().sum()) <= 2
    assert int((exact - low).abs().sum()) <= 40
    assert (low.sum(1) == 500).all()


@pytest.mark.parametrize("sizes", [(16, 48), (64, 256), (256, 1000)])
def test_noise_does_not_depend_on_the_batch_size(sizes):
    """On the CPU, with batches of a multiple of 16 copies; exact, for a network of exact sums."""
    g = SmoothedClassifier(Spy().eval(), 0.25, 2)
    found = [g.sample_under_noise(DIGIT[:1] - 0.3, 1001, seeded(5), size) for size in sizes]
    assert torch.equal(*found)
    assert 0 < found[0][0, 0] < 1001


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled(lenet):
    how = Execution(batch_size=50, compiled=True)
    found = execution.prepare(lenet, how, DIGIT).sample_under_noise(DIGIT, 100, seeded(), 50)
    plain = lenet.sample_under_noise(DIGIT, 100, seeded(), 50)
    assert int((found - plain).abs().sum()) <= 2


@pytest.mark.parametrize(
    ("how", "message"),
    [(Execution(dtype="bfloat16"), "no nn.Module"), (Execution(compiled=True), "no nn.Module")],
)
def test_what_cannot_be_converted(how, message):
    g = SmoothedClassifier(lambda x: x.flatten(1)[:, :2], 0.5, 2)
    with pytest.raises(ValueError, match=message):
        execution.prepare(g, how, DIGIT)
    assert execution.prepare(g, Execution(7), DIGIT).base_classifier is g.base_classifier


SPEEDS = {
    ("contiguous", 64): 100.0, ("channels_last", 64): 150.0, ("channels_last", 128): 160.0,
    ("channels_last", 256): 158.0, ("channels_last", 512): 170.0, ("channels_last", 1024): 100.0,
    ("channels_last", 2048): 999.0, ("contiguous", 32): 10.0, ("channels_last", 32): 9.0,
    ("contiguous", 128): 89.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Execution(512, "channels_last")),  # 128 and 256 alike, 1024 worse, 2048 not tried
        ({"batch_size": 32}, Execution(32, "contiguous")),
        ({"layout": "contiguous"}, Execution(64, "contiguous")),
        ({"largest": 256}, Execution(128, "channels_last")),
        ({"layout": "channels_last", "batch_size": 7}, Execution(7, "channels_last")),
        ({"dtype": "bfloat16"}, Execution(512, "channels_last", "bfloat16")),
    ],
)
def test_search_takes_the_fastest(lenet, monkeypatch, given, expected):
    def speed(smoothed, image, how):
        return 1000 * SPEEDS[how.layout, how.batch_size]

    monkeypatch.setattr(execution, "_votes_per_second", speed)
    assert execution.search(lenet, DIGIT[:1], **given) == expected


def test_search_ends_where_memory_does(lenet, monkeypatch):
    def speed(smoothed, image, how):
        if how.batch_size > 128:
            raise torch.OutOfMemoryError
        return 1000.0 * how.batch_size

    monkeypatch.setattr(execution, "_votes_per_second", speed)
    assert execution.search(lenet, DIGIT[:1]).batch_size == 128


def test_search_really_measures(lenet):
    found = execution.search(lenet, DIGIT[:1], largest=128)
    assert found.batch_size in (64, 128)
    assert found.layout in execution.LAYOUTS
    assert execution.search(SmoothedClassifier(lambda x: x.flatten(1)[:, :2], 0.5, 2), DIGIT[:1],
                            largest=64) == Execution(64)  # fmt: skip


def test_search_keeps_to_its_budget(lenet, monkeypatch):
    asked = []

    def speed(smoothed, image, how):
        asked.append(how.batch_size)
        return 100.0 * how.batch_size  # doubling would always pay

    monkeypatch.setattr(execution, "_votes_per_second", speed)
    assert execution.search(lenet, DIGIT[:1]).batch_size == 4096
    assert asked == [64, 64, 128, 256, 512, 1024, 2048, 4096]
    for limit in ({"SECONDS": 0.05}, {"SHARE_OF_MEMORY": -1.0}):
        asked.clear()
        with monkeypatch.context() as patch:
            for name, value in limit.items():
                patch.setattr(execution, name, value)
            assert execution.search(lenet, DIGIT[:1]).batch_size == 64
        assert set(asked) == {64}
    # 64 copies are tried in a hundredth of a second of measurements, a tenth of 5,000 votes in
    # less: the larger batches are left alone.
    asked.clear()
    execution.search(lenet, DIGIT[:1], votes=5_000)
    assert set(asked) == {64}


def test_search_begins_small_with_large_images(monkeypatch):
    net = SmoothedClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(150_528, 2)),
                             0.5, 2)  # fmt: skip
    asked = []
    monkeypatch.setattr(execution, "_votes_per_second",
                        lambda g, image, how: asked.append(how.batch_size) or 1e6)  # fmt: skip
    execution.search(net, torch.zeros(1, 3, 224, 224), largest=16)
    assert asked == [8, 8, 16]


def test_out_of_memory_is_called_so():
    def network(x):
        if len(x) > 4:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: "
                               "can't allocate memory: you tried to allocate 9 bytes.")  # fmt: skip
        return x.flatten(1)[:, :2]

    g = SmoothedClassifier(network, 0.5, 2)
    with pytest.raises(torch.OutOfMemoryError, match=r"with 8 images of shape .* batch_size"):
        g.sample_under_noise(DIGIT[:1], 8, batch_size=8)
    assert g.sample_under_noise(DIGIT[:1], 8, batch_size=4).sum() == 8


def test_the_speed_that_is_compared_is_votes_a_second(monkeypatch):
    """Half a second for each batch of eight, by a clock of our own."""
    clock = [0.0]

    def sample(*_):
        clock[0] += 0.5

    prepared = SimpleNamespace(sample_under_noise=sample)
    monkeypatch.setattr(execution, "prepare", lambda *_: prepared)
    monkeypatch.setattr(execution.time, "perf_counter", lambda: clock[0])
    tried = SimpleNamespace(batch_size=8)
    assert execution._votes_per_second(None, torch.zeros(1), tried) == 32
