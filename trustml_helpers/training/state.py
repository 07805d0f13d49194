"""The state of a training run after an epoch, in one file, so that a killed run goes on exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trustml_helpers._support.files import replace_file
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
        "scheduler": scheduler.state_dict() if scheduler else None, "tensors": shapes(tensors),
    }  # fmt: skip
    text = as_json(path, rest)
    cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    replace_file(path, save(cpu, metadata={"state": text}))


def as_json(path: Path, state: dict[str, Any]) -> str:
    """The state as text; ValueError if it holds what JSON does not know."""
    try:
        return json.dumps(state)
    except TypeError as error:
        raise ValueError(
            f"checkpoint={str(path)!r}: optimizer or scheduler hold a state that is neither "
            f"tensor nor JSON ({error}); train without checkpoint, or use another one"
        ) from error


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
        about, groups, kept = rest["about"], rest["groups"], rest["scheduler"]
        found, _ = dict(about["settings"]), about["history"]
        moments: dict[int, dict[str, Any]] = {int(n): dict(v) for n, v in rest["plain"].items()}
        lost = _apart(rest["tensors"], shapes(tensors))
        if any(lost):
            raise ValueError(f"its tensors should be {lost[0]}, and are {lost[1]}")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not the state of a training run ({error}). {again}"
        ) from error
    for name, value in json.loads(json.dumps(settings)).items():
        if found.get(name) != value:
            was, now = _apart(found.get(name), value)
            raise CheckpointError(
                f"{path} belongs to another run: {name} was {was!r}, now {now!r}. {again}"
            )

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }

    for name, value in part("optimizer.").items():
        number, entry = name.split(".", 1)
        moments.setdefault(int(number), {})[entry] = value
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    if scheduler is not None:
        scheduler.load_state_dict(_as_before_json(kept, scheduler.state_dict()))
    model.load_state_dict(part("model."))
    drawn = part(f"generator.{rank}.")
    return about, part("best."), [drawn[str(i)] for i in range(len(drawn))]


def _apart(was: Any, now: Any) -> tuple[Any, Any]:
    """Both, without what two dictionaries have in common."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return was, now
    pairs = {
        name: _apart(was.get(name), now.get(name))
        for name in was | now
        if was.get(name) != now.get(name)
    }
    return {name: a for name, (a, _) in pairs.items()}, {name: b for name, (_, b) in pairs.items()}


def _as_before_json(saved: Any, fresh: Any) -> Any:
    """What was saved; of what has not changed since the start, the fresh value: JSON turns whole
    numbers that are keys, as the milestones of MultiStepLR, into strings."""
    if json.loads(json.dumps(fresh)) == saved:
        return fresh
    if isinstance(fresh, dict) and isinstance(saved, dict):
        keys = {str(key): key for key in fresh}
        return {
            keys.get(name, name): _as_before_json(value, fresh.get(keys.get(name)))
            for name, value in saved.items()
        }
    if isinstance(fresh, list) and isinstance(saved, list) and len(fresh) == len(saved):
        return [_as_before_json(old, new) for old, new in zip(saved, fresh, strict=True)]
    return saved


def shapes(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Dtype and shape of each parameter and buffer: enough to tell two designs apart."""
    return {name: f"{value.dtype} {list(value.shape)}" for name, value in tensors.items()}


def optimizer_settings(optimizer: Optimizer) -> dict[str, dict[str, str]]:
    """Settings and number of parameters of each group, by its number."""
    return {
        str(number): {name: str(value) for name, value in group.items() if name != "params"}
        | {"parameters": str(len(group["params"]))}
        for number, group in enumerate(optimizer.param_groups)
    }


def scheduler_settings(scheduler: LRScheduler | None, steps: int) -> dict[str, Any]:
    """What tells a fresh scheduler from another one of its class."""
    if scheduler is None:
        return {}
    return {
        "state": scheduler.state_dict(),
        "rates": optimizer_settings(scheduler.optimizer),
        "factors": _factors(scheduler, range(0, steps, max(1, steps // 10))),
    }


def _factors(scheduler: Any, steps: range) -> list[Any]:
    """What the functions of LambdaLR, which are in no state, give at these steps."""
    inner = [_factors(each, steps) for each in getattr(scheduler, "_schedulers", ())]
    functions = getattr(scheduler, "lr_lambdas", ())
    return inner + [[float(function(step)) for step in steps] for function in functions]


def states(generators: tuple[torch.Generator, ...]) -> list[Tensor]:
    """The state of each generator."""
    return [generator.get_state() for generator in generators]
