"""The state of a training run after an epoch, in one file, so that a killed run goes on exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trustml_helpers.files import replace_file
from trustml_helpers.models import CheckpointError


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    best: dict[str, Tensor],
    generators: list[list[Tensor]],
    about: dict[str, Any],
) -> None:
    """Write weights, best weights, optimizer, schedule and generators (by rank), or nothing.

    Args:
        path: file to replace; safetensors, so that reading it runs no code.
        generators: the state of each generator, for every rank.
        about: anything else, as JSON: settings, epoch, history.

    Raises:
        ValueError: if optimizer or scheduler hold something that is neither tensor nor JSON.
    """
    from safetensors.torch import save

    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for rank, drawn in enumerate(generators):
        tensors |= {f"generator.{rank}.{i}": state for i, state in enumerate(drawn)}
    moments = optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    for number, entries in moments["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{number}.{name}"] = value
            else:
                plain.setdefault(str(number), {})[name] = value
    rest = {
        "about": about, "groups": moments["param_groups"], "plain": plain,
        "scheduler": scheduler.state_dict() if scheduler else None,
    }  # fmt: skip
    try:
        text = json.dumps(rest)
    except TypeError as error:
        raise ValueError(
            f"checkpoint={str(path)!r}: optimizer or scheduler hold a state that is neither "
            f"tensor nor JSON ({error}); train without checkpoint, or use another one"
        ) from error
    cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    replace_file(path, save(cpu, metadata={"state": text}))


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    settings: dict[str, Any],
    rank: int = 0,
) -> tuple[dict[str, Any], dict[str, Tensor], list[Tensor]] | None:
    """Put a state back; ``None`` if there is no file.

    Args:
        settings: what the run is about; a file of other settings is refused.
        rank: whose generators to return.

    Returns:
        What was saved as ``about``, the best weights, and the states of the generators.

    Raises:
        CheckpointError: if the file is damaged or belongs to another run; names the difference.
    """
    if not path.exists():
        return None
    from safetensors import SafetensorError, safe_open

    again = f"Delete {path} to start anew."
    try:
        with safe_open(str(path), framework="pt") as file:
            rest = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = rest["about"]
        found = about["settings"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not the state of a training run ({error}). {again}"
        ) from error
    for name, value in json.loads(json.dumps(settings)).items():
        if found.get(name) != value:
            raise CheckpointError(
                f"{path} belongs to another run: {name} was {found.get(name)!r}, now {value!r}. "
                f"{again}"
            )

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }

    model.load_state_dict(part("model."))
    moments: dict[int, dict[str, Any]] = {int(n): dict(v) for n, v in rest["plain"].items()}
    for name, value in part("optimizer.").items():
        number, entry = name.split(".", 1)
        moments.setdefault(int(number), {})[entry] = value
    optimizer.load_state_dict({"state": moments, "param_groups": rest["groups"]})
    if scheduler is not None:
        scheduler.load_state_dict(rest["scheduler"])
    drawn = part(f"generator.{rank}.")
    return about, part("best."), [drawn[str(i)] for i in range(len(drawn))]


def shapes(model: nn.Module) -> list[list[int]]:
    """The shape of each parameter and buffer: enough to tell two designs apart."""
    return [list(value.shape) for value in model.state_dict().values()]


def states(generators: tuple[torch.Generator, ...]) -> list[Tensor]:
    """The state of each generator."""
    return [generator.get_state() for generator in generators]
