"""Calling a model that is not ours: what comes out is checked, and it is left as it was found."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Evaluate a model and leave it, and the global RNG, exactly as they were found.

    Inside the block every module is in eval mode. Afterwards, also after an exception, each
    module has its own training flag back (a frozen BatchNorm inside a training network stays
    frozen), buffers and ``.grad`` hold their old values, ``requires_grad`` is as before, and the
    global random generators of the CPU and of the model's GPU have not moved. A callable that
    is not an ``nn.Module`` is left to itself.

    >>> model = nn.Linear(2, 2).train()
    >>> with unchanged(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    if not isinstance(model, nn.Module):
        with torch.random.fork_rng(devices=[]):
            yield
        return
    flags = [(module, module.training) for module in model.modules()]
    held = [(module, dict(module._buffers)) for module, _ in flags]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    gradients = [(g, g.clone()) for _, _, g in parameters if g is not None]
    gpus = sorted({p.device.index for p, _, _ in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=gpus):
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training
            for module, tensors in held:  # forward may have put others in their place
                module._buffers.clear()
                module._buffers.update(tensors)
            for now, before in buffers + gradients:
                # Not in the eyes of autograd: a loss computed before may still need the buffer.
                now.data.copy_(before)
            for parameter, requires_grad, gradient in parameters:
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient


def fingerprint(model: Any) -> str:
    """sha256 over a network's weights and buffers; the type's name for any other callable."""
    if not isinstance(model, nn.Module):
        return f"callable:{getattr(model, '__qualname__', type(model).__qualname__)}"
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def digest(*tensors: Tensor) -> str:
    """sha256 over dtype, shape and numbers: tells data sets apart."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        for rows in tensor.split(4096):  # in parts: no copy of the whole
            found.update(raw_bytes(rows))
    return found.hexdigest()


def raw_bytes(tensor: Tensor) -> bytes:
    """The numbers of a tensor as they lie in memory, also of dtypes that NumPy does not know."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def call(model: Any, x: Tensor) -> Any:
    """What the model returns for x; what it cannot take ends in a ValueError that says why."""
    try:
        return model(x)
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # out of a GPU's memory, or the model's own error
            raise
        if out_of_memory(error):
            raise torch.OutOfMemoryError(
                f"x: out of memory with {len(x)} images of shape {tuple(x.shape[1:])} at a time "
                f"({str(error).splitlines()[0]}); pass a smaller batch_size"
            ) from error
        weights = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
        made_of = {f"{w.dtype} on {w.device}" for w in weights if w.is_floating_point()}
        raise ValueError(
            f"x: the model cannot take images of shape {tuple(x.shape)}, {x.dtype} on {x.device} "
            f"({str(error).splitlines()[0]}). Expected are images shaped like those that it was "
            f"trained on, {' and '.join(sorted(made_of)) or 'as its weights are'}; or convert it, "
            "model.to(x.device, x.dtype)"
        ) from error


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the memory of a GPU, or of the machine, did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def logits_of(model: Any, x: Tensor, classes: int | None = None) -> Tensor:
    """The model's logits for x, if they are ``(len(x), classes)``, else ValueError.

    Any number of classes from 2 on will do where none is given.
    """
    logits = call(model, x)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"model: expected logits as a torch.Tensor, got {type(logits).__name__}; wrap it, for "
            "example lambda x: model(x)[0]"
        )
    if (
        logits.ndim != 2
        or len(logits) != len(x)
        or not (classes or 2) <= logits.shape[1] <= (classes or logits.shape[1])
    ):
        raise ValueError(
            f"model: expected logits of shape ({len(x)}, {classes or 'K >= 2'}), got "
            f"{tuple(logits.shape)}"
        )
    return logits


# Values of a batch of noisy images that suit the caches of today's processors: 512 digits, 128
# images of 32 x 32 in colour, 8 of 224 x 224.
VALUES = 300_000


def suited_batch(x: Tensor) -> int:
    """How many noisy copies to classify at once: the same on every machine, from 8 to 512.

    >>> suited_batch(torch.zeros(1, 1, 28, 28)), suited_batch(torch.zeros(1, 3, 224, 224))
    (512, 8)
    """
    copies = VALUES / max(x[:1].numel(), 1)
    return int(min(max(2 ** round(math.log2(max(copies, 1))), 8), 512))


@contextmanager
def fast_layout(model: Any, x: Tensor) -> Iterator[Any]:
    """Convolutions in channels_last, faster on a CPU; strides are given back afterwards."""
    if not isinstance(model, nn.Module) or x.ndim != 4 or x.device.type != "cpu":
        yield model
        return
    plain = [(p, p.data) for p in model.parameters() if p.ndim == 4 and p.is_contiguous()]
    try:
        for parameter, data in plain:
            # Not `contiguous`, which leaves the strides of a single channel as they are.
            parameter.data = data.to(memory_format=torch.channels_last)
        yield model
    finally:
        for parameter, data in plain:
            parameter.data = data
