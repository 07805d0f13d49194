"""How a run is executed: batch size, memory layout, dtype; a short search.

None of this changes what is computed, but all of it moves logits in their last digits, so a
certification log records it and a resumed run repeats it.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trustml_helpers._support.arguments import Rule, declared, maybe, one_of, whole
from trustml_helpers._support.calling import out_of_memory, suited_batch
from trustml_helpers._support.processes import progress_bar
from trustml_helpers.smoothing.classifier import SmoothedClassifier

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {
    "float64": torch.float64, "float32": torch.float32,
    "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip


class Execution(NamedTuple):
    """How the base classifier is run."""

    batch_size: int = 256  # noisy images per forward pass
    layout: str = "contiguous"  # of the weights, or "channels_last"
    dtype: str = "float32"  # of the network; noise is drawn and added in the dtype of the images
    compiled: bool = False  # by torch.compile, which needs a C++ compiler or a GPU


class _Cast(nn.Module):
    """A network behind a cast of its input: the noise was added before, in full precision."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.to(self.dtype))


def as_given(model: Any, images: Tensor) -> Execution:
    """The execution that leaves a network as it is: its layout, and the dtype of its weights.

    >>> as_given(nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last), torch.zeros(1, 3, 5, 5))
    Execution(batch_size=256, layout='channels_last', dtype='float32', compiled=False)
    """
    weights = list(model.parameters()) if isinstance(model, nn.Module) else []
    layout = "contiguous" if all(p.is_contiguous() for p in weights) else "channels_last"
    dtype = weights[0].dtype if weights else images.dtype
    return Execution(layout=layout, dtype=str(dtype).removeprefix("torch."))


_EXECUTION = {
    "batch_size": whole(1), "layout": one_of(*LAYOUTS), "dtype": one_of(*DTYPES)
}  # fmt: skip


def _known(execution: Any) -> Execution:
    if not isinstance(execution, Execution):
        raise TypeError
    for name, rule in _EXECUTION.items():
        rule(name, getattr(execution, name))
    return Execution(*execution)


@declared(
    execution=Rule(
        f"an Execution: batch_size at least 1, layout {' or '.join(LAYOUTS)}, dtype one of "
        f"{', '.join(DTYPES)}", _known,
        (Execution(0), Execution(layout="nonsense"), Execution(dtype="int8")),
    )
)  # fmt: skip
def prepare(
    smoothed: SmoothedClassifier, execution: Execution, image: Tensor
) -> SmoothedClassifier:
    """The same smoothed classifier, its network converted; the given one is left as it was.

    Args:
        smoothed: its base classifier must be an ``nn.Module`` if anything is to be converted.
        execution: what to convert to. With a smaller dtype than the images' the noise is still
            drawn and added in theirs, and only the sum is cast.
        image: an image, or an empty batch of them, for its dtype.

    Returns:
        A copy of the smoothed classifier, with ``settled``; its network is a converted copy, or the
        given one if there is nothing to convert.
    """
    model = smoothed.base_classifier
    prepared = copy.copy(smoothed)
    prepared.settled = True
    if execution == as_given(model, image)._replace(batch_size=execution.batch_size):
        return prepared
    if not isinstance(model, nn.Module):
        raise ValueError(f"{execution}: a base classifier that is no nn.Module runs as it is")
    dtype = DTYPES[execution.dtype]
    network = copy.deepcopy(model).to(dtype).to(memory_format=LAYOUTS[execution.layout])
    network = _Cast(network, dtype)
    network.training = model.training  # the flags inside were copied
    if execution.compiled:
        # One graph per batch shape: there are three (selection, estimation, the last batch).
        network.compile(dynamic=False)
    prepared.base_classifier = network
    return prepared


SECONDS, SHARE_OF_RUN, SHARE_OF_MEMORY = 20.0, 0.1, 0.25  # what a trial may cost


@declared(largest=whole(1), votes=maybe(whole(1)),
          **{name: maybe(rule) for name, rule in _EXECUTION.items()})  # fmt: skip
def search(
    smoothed: SmoothedClassifier, image: Tensor, *, batch_size: int | None = None,
    layout: str | None = None, dtype: str | None = None, largest: int = 4096,
    votes: int | None = None, progress: bool = False,
) -> Execution:  # fmt: skip
    """The batch size and memory layout with the most votes per second here, by a short trial.

    Layouts are compared at a small batch, of 8 to 64 copies by the size of the image; then the
    batch is doubled for as long as that helps. The trial ends, with the best that it has seen,
    before it takes 20 seconds, a tenth of the run, or a quarter of the memory.

    Args:
        smoothed: the smoothed classifier.
        image: one image ``(1, ...)`` on the device of the network.
        batch_size, layout, dtype: kept if given; the dtype is the network's own if not.
        largest: of the batches tried.
        votes: of the whole run, if known.
        progress: say what is tried.

    Returns:
        An :class:`Execution`. Where two are equally fast, another trial may find the other.

    >>> f = lambda x: torch.stack([x.sum(1), -x.sum(1)], 1)
    >>> search(SmoothedClassifier(f, 1.0, 2), torch.zeros(1, 2), batch_size=32)
    Execution(batch_size=32, layout='contiguous', dtype='float32', compiled=False)
    """
    model = smoothed.base_classifier
    start = as_given(model, image)
    start = Execution(
        min(64, suited_batch(image)) if batch_size is None else batch_size,
        start.layout if layout is None else layout,
        start.dtype if dtype is None else dtype,
    )
    free = layout is None and isinstance(model, nn.Module)
    candidates = [start._replace(layout=name) for name in LAYOUTS] if free else [start]
    if batch_size is not None and len(candidates) == 1:
        return start
    began, found, speed = time.perf_counter(), start, 0.0
    bar = progress_bar(progress)(desc="trial")
    while candidates:
        each = candidates.pop(0)
        bar.set_postfix(batch=each.batch_size, layout=each.layout)
        before = _memory(image.device)
        try:
            now = _votes_per_second(smoothed, image, each)
        except RuntimeError as error:
            if not out_of_memory(error) or speed == 0:
                raise
            break
        bar.set_postfix(batch=each.batch_size, layout=each.layout, votes_per_second=round(now))
        bar.update()
        larger = each.batch_size > start.batch_size
        if larger and now < 0.9 * speed:
            break  # once beyond the caches it only gets worse
        if now > (1.03 if larger else 1.0) * speed:
            found, speed = each, now
        double = found._replace(batch_size=2 * each.batch_size)
        left = min(SECONDS, SHARE_OF_RUN * (votes or math.inf) / speed)
        left -= time.perf_counter() - began
        if 2 * _TRIES * double.batch_size / speed > left:
            break
        if 2 * (_memory(image.device) - before) > SHARE_OF_MEMORY * _all_memory(image.device):
            break
        if not candidates and batch_size is None and double.batch_size <= largest:
            candidates = [double]
    bar.close()
    return found


_TRIES = 4


def _votes_per_second(smoothed: SmoothedClassifier, image: Tensor, execution: Execution) -> float:
    """The best of three short runs after one to warm up; that one alone if it is long."""
    prepared, batch = prepare(smoothed, execution, image), execution.batch_size
    generator, times = torch.Generator(image.device).manual_seed(0), [0.0]
    while len(times) <= _TRIES and times[-1] < 1:
        started = time.perf_counter()
        prepared.sample_under_noise(image, 2 * batch, generator, batch)
        times.append(time.perf_counter() - started)
    return 2 * batch / min(times[2:] or times[1:])


def _memory(device: torch.device) -> int:
    """The most bytes that were ever in use."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _all_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
