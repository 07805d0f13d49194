"""The state of a training run after an epoch, in one file, so that a killed run goes on exactly."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from trustml_helpers._support.files import only_writer, replace_file
from trustml_helpers._support.ledger import same_run
from trustml_helpers._support.processes import Team
from trustml_helpers.models import CheckpointError


@dataclass
class State:
    """All that an epoch changes, and where it is kept.

    Args:
        path: safetensors, so that reading it runs no code; replaced as a whole. None keeps nothing.
        model, optimizer, scheduler, generators: of the run.
        settings: what the run is about, as JSON; a file of other settings is refused.
        team: the processes of the run; rank 0 writes, each has generators of its own.
        history: one row per epoch.
        best: the weights that will be kept.
        average: of the weights of all steps, where one is wanted.
    """

    path: Path | None
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None
    generators: tuple[torch.Generator, ...]
    settings: dict[str, Any]
    team: Team
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    average: AveragedModel | None = None

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and handed over: the average, or the last one."""
        return self.average.module if self.average else self.model

    @contextmanager
    def held(self) -> Iterator[None]:
        """Write the file alone.

        Raises:
            InUseError: if another process does.
            ValueError: if settings, optimizer or scheduler hold what is neither tensor nor JSON.
        """
        with ExitStack() as stack:
            if (path := self.path) is not None:
                self._as_json(self.settings | self.optimizer.state_dict())  # now, not in an epoch
                self.team.first(lambda: stack.enter_context(only_writer(path)))
            yield

    def save(self) -> None:
        """Write weights, best weights, optimizer and generators (by rank), or nothing."""
        drawn = self.team.everyones([each.get_state() for each in self.generators])
        if self.path is None or self.team.rank > 0:
            return
        from safetensors.torch import save

        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        if self.average:
            tensors |= {f"average.{k}": value for k, value in self.average.state_dict().items()}
        for rank, states in enumerate(drawn):
            tensors |= {f"generator.{rank}.{i}": state for i, state in enumerate(states)}
        moments, plain = self.optimizer.state_dict(), {}
        for number, entries in moments["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{number}.{name}"] = value
                else:
                    plain[f"{number}.{name}"] = value
        text = self._as_json({
            "settings": self.settings, "history": self.history, "groups": moments["param_groups"],
            "plain": plain, "tensors": shapes(tensors),
        })  # fmt: skip
        cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        replace_file(self.path, save(cpu, metadata={"state": text}))

    def load(self) -> None:
        """Put everything back, the schedule by going its steps again; nothing if there is no file.

        Raises:
            CheckpointError: if the file is damaged or belongs to another run; names the difference.
        """
        if self.path is None or not self.path.exists():
            return
        from safetensors import SafetensorError, safe_open

        again = f"delete {self.path} to start anew"
        try:
            with safe_open(str(self.path), framework="pt") as file:
                rest = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            known, groups, history = dict(rest["settings"]), rest["groups"], list(rest["history"])
            entries = {name: value for name, value in rest["plain"].items()}
            if rest["tensors"] != shapes(tensors):
                raise ValueError("its tensors are not those that were written")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.path} is not the state of a training run ({error}): {again}"
            ) from error
        wanted = json.loads(json.dumps(self.settings))
        same_run(known, wanted, self.path, again, CheckpointError)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        moments: dict[int, dict[str, Any]] = {}
        for key, value in (entries | part("optimizer.")).items():
            number, name = key.split(".", 1)
            moments.setdefault(int(number), {})[name] = value
        if self.scheduler is not None:
            self._step_again(len(history) * self.settings["steps_per_epoch"])
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.model.load_state_dict(part("model."))
        if self.average:
            self.average.load_state_dict(part("average."))
        drawn = part(f"generator.{self.team.rank}.")
        for i, generator in enumerate(self.generators):
            generator.set_state(drawn[str(i)])
        self.history, self.best = history, part("best.")

    def _step_again(self, steps: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer took no step
            for _ in range(steps):
                self.scheduler.step()  # type: ignore[union-attr]

    def _as_json(self, state: dict[str, Any]) -> str:
        try:
            return json.dumps(state)
        except TypeError as error:
            raise ValueError(
                f"checkpoint={str(self.path)!r}: settings or optimizer hold what is neither tensor "
                f"nor JSON ({error}); train without checkpoint, or use another optimizer"
            ) from error


def shapes(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Dtype and shape of each parameter and buffer: enough to tell two designs apart."""
    return {name: f"{value.dtype} {list(value.shape)}" for name, value in tensors.items()}


def optimizer_settings(optimizer: Optimizer) -> dict[str, Any]:
    """The class, and settings and number of parameters of each group, by its number."""
    groups = {
        str(number): {name: str(value) for name, value in group.items() if name != "params"}
        | {"parameters": str(len(group["params"]))}
        for number, group in enumerate(optimizer.param_groups)
    }
    return {"class": type(optimizer).__name__} | groups


def planned_rates(
    optimizer: Optimizer, make: Callable[[Optimizer, int], LRScheduler] | None, steps: int
) -> dict[str, Any]:
    """The learning rates of a whole training: some of them, and a digest of all.

    Args:
        optimizer: one of its own, which takes no step.
        make: the scheduler from optimizer and number of steps.
        steps: of the training.
    """
    if make is None:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer took no step
        scheduler, rates = make(optimizer, steps), []
        for _ in range(steps):
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
            scheduler.step()
    some = [f"{rate[0]:.3g}" for rate in rates[:: max(1, steps // 10)]]
    return {"rates": some, "digest": sha256(json.dumps(rates).encode()).hexdigest()[:16]}
