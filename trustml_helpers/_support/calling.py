"""Calling a model that is not ours: what comes out is checked, and it is left as it was found."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
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


def code_of(model: Any) -> str:
    """sha256 over what decides a model's answers and is no weight: the classes, plain attributes
    and forwards of its modules; source, defaults and captured values of a function.

    The source of torch's own classes and of ours is left out: logs name the versions.
    """
    found = hashlib.sha256()
    for part in _parts(model, {}):
        found.update(part.encode() + b"\0")
    return found.hexdigest()


_SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def _parts(thing: Any, seen: dict[int, Any]) -> Iterator[str]:
    if isinstance(thing, _SCALARS):
        yield repr(thing)
        return
    if id(thing) in seen:  # a network that holds itself, a function that calls itself
        return
    seen[id(thing)] = thing  # held, so that its id is not given to another
    if isinstance(thing, Tensor):
        yield digest(thing)
    elif isinstance(thing, np.ndarray):
        yield f"{thing.dtype} {thing.shape} {hashlib.sha256(thing.tobytes()).hexdigest()}"
    elif isinstance(thing, dict):
        for name in sorted(thing, key=str):
            yield str(name)
            yield from _parts(thing[name], seen)
    elif isinstance(thing, list | tuple | set | frozenset):
        for each in thing if isinstance(thing, list | tuple) else sorted(thing, key=repr):
            yield from _parts(each, seen)
    elif isinstance(thing, functools.partial):
        yield from _parts([thing.func, thing.args, thing.keywords], seen)
    elif inspect.ismethod(thing):
        yield from _parts([thing.__self__, thing.__func__], seen)
    elif inspect.isfunction(thing):
        captured = inspect.getclosurevars(thing)
        yield _source(thing)
        yield from _parts([thing.__defaults__, thing.__kwdefaults__], seen)
        yield from _parts([captured.nonlocals, captured.globals], seen)
    elif inspect.isclass(thing) or inspect.isbuiltin(thing) or inspect.ismodule(thing):
        yield _named(thing)
    else:
        kind = type(thing)
        yield _named(kind)
        if not _known(kind):
            yield _source(kind)
        if isinstance(thing, nn.Module):
            own = {k: v for k, v in vars(thing).items()
                   if not k.startswith("_") and k not in ("training", "card")}  # fmt: skip
            lost = {k: thing._buffers[k] for k in thing._non_persistent_buffers_set}
            yield from _parts([own, lost, dict(thing.named_children())], seen)
        elif not _known(kind):
            yield from _parts(getattr(thing, "__dict__", {}), seen)


def _named(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', thing.__name__)}"


_KNOWN = {"builtins", "torch", "torchvision", "trustml_helpers"}  # logs name their versions


def _known(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _KNOWN


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):  # typed at a prompt
        code = getattr(thing, "__code__", None)
        return f"{_named(thing)} {code.co_code.hex() if code else ''}"


def digest(*tensors: Tensor) -> str:
    """sha256 over dtype, shape and numbers: tells data sets apart."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        for rows in torch.atleast_1d(tensor).split(4096):  # in parts: no copy of the whole
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
