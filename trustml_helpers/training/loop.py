"""One training loop for every objective, on tensors held in memory.

It sees only what it is given: a training set, and a validation set held out of it. The test set
has no way in.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from trustml_helpers import objectives, robustness
from trustml_helpers._support import processes
from trustml_helpers.training import state as resume
from trustml_helpers.attacks import Attack
from trustml_helpers._support.arguments import whole
from trustml_helpers._support.files import only_writer

from trustml_helpers._support.calling import call, digest, unchanged
from trustml_helpers._support.randomness import keyed_generator

if TYPE_CHECKING:
    import pandas as pd

Data = tuple[Tensor, Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer, int], LRScheduler]


adam: MakeOptimizer = partial(torch.optim.Adam, lr=1e-3)


def triangular(peak: float, *, top: float = 0.4) -> MakeScheduler:
    """Learning rate that rises linearly to ``peak`` and falls linearly back, for :func:`fit`.

    Args:
        peak: largest learning rate.
        top: where the peak lies, as a share of the training, in (0, 1).

    Returns:
        ``(optimizer, total_steps) -> scheduler``, torch's OneCycleLR from and to ``peak / 100``.

    Source: Smith & Topin (2018); for robust training Wong et al. (2020).

    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> scheduler = triangular(0.1)(optimizer, 10)
    >>> scheduler.get_last_lr()
    [0.001]
    """
    if not 0 < top < 1:
        raise ValueError(f"top={top}: expected a share strictly between 0 and 1")
    if not peak > 0:
        raise ValueError(f"peak={peak}: expected a learning rate above 0")

    def make(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            peak,
            total_steps=total_steps,
            pct_start=top,
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=100,
            final_div_factor=1,
        )

    return make


def fit(
    model: nn.Module,
    train: Data,
    objective: objectives.Objective | objectives.ByEpoch = objectives.standard,
    *,
    epochs: int,
    validation: Data | None = None,
    attacks: Mapping[str, Attack] | None = None,
    best: str | None = None,
    batch_size: int = 128,
    optimizer: MakeOptimizer = adam,
    scheduler: MakeScheduler | None = None,
    precision: str = "float32",
    checkpoint: str | Path | None = None,
    generators: Iterable[torch.Generator] = (),
    about: str = "",
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Minimise an objective over minibatches, in place.

    Under ``torchrun`` each minibatch is dealt to the processes and the gradients are added up:
    up to rounding the same steps as in one process, for objectives that draw no noise, whose
    minibatch loss is a mean over examples (not :func:`objectives.mixed`), and networks without
    batch statistics; noise is drawn per process, batch statistics are those of rank 0.

    Args:
        model: trained in place, left in eval mode.
        train: images ``(n, C, H, W)`` and labels int64 ``(n,)``, on the model's device.
        objective: ``(model, x, y) -> loss``, or :class:`objectives.ByEpoch`.
        epochs: passes over the training set.
        validation: held-out images and labels, evaluated after every epoch.
        attacks: by name; the validation error under each is recorded as well. With attacks named
            ``"fgsm"`` and ``"pgd"``, catastrophic overfitting is recorded and warned of.
        best: a column of the history, such as ``"error pgd"``: at the end the model gets the
            weights of the epoch where it was smallest. If not given it keeps the last ones.
        batch_size: examples per step; the last, smaller minibatch of an epoch is used too.
        optimizer: makes the optimizer from the parameters, for example
            ``partial(torch.optim.SGD, lr=0.01, momentum=0.9)``; Adam at 1e-3 if not given.
        scheduler: makes a torch scheduler from the optimizer and the number of steps, which is
            stepped after every minibatch; :func:`triangular` is one.
        precision: ``"float32"``, or ``"bfloat16"``: the objective, its attack included, runs
            under torch's autocast; weights, loss and validation stay in float32.
        checkpoint: file that holds the whole state after every epoch. If it exists, the run goes
            on from there, exactly; with other settings, other data, attacks of other names or
            another scheduler it is refused.
        generators: those that the objective draws from, to be saved and put back with the state.
        about: the objective and all else that the loop cannot see, in words; a checkpoint of a
            run that was about something else is refused.
        seed: of the order of the examples, and of what layers such as dropout draw: same seed, same
            weights. The global RNG is left as found.
        progress: show a progress bar.

    Returns:
        One row per epoch: ``epoch, loss`` (mean over the epoch's minibatches), ``lr`` (last
        used), ``seconds`` (training alone), with validation ``error`` and one column
        ``error <name>`` per attack, all in [0, 1], ``overfitted`` where it can be told, and with
        ``best`` the column ``kept``.

    Raises:
        ValueError: for arguments out of range, before any step.
        CheckpointError: if the checkpoint is damaged or belongs to another run.
        InUseError: if another process is writing the checkpoint.
        FloatingPointError: if the loss is no longer finite.

    >>> x = torch.eye(4).repeat(16, 1)
    >>> history = fit(nn.Linear(4, 4), (x, x.argmax(1)), epochs=3, progress=False)
    >>> len(history), bool(history["loss"].iloc[-1] < history["loss"].iloc[0])
    (3, True)
    """
    import pandas as pd

    attacks, generators = attacks or {}, tuple(generators)
    epochs, batch_size, seed = whole(epochs=epochs), whole(batch_size=batch_size), whole(seed=seed)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed}: expected a whole number from 0 to 2**63 - 1")
    _check(train, validation, attacks, epochs, batch_size, best, precision)
    for name, part in (("train", train), ("validation", validation or train)):
        _check_labels(name, model, *part)
    train = train[0], train[1].long()
    order, per_epoch = torch.Generator().manual_seed(seed), -(-len(train[0]) // batch_size)
    descent = optimizer(model.parameters())
    begins = resume.optimizer_settings(descent)  # a scheduler changes them
    schedule = scheduler(descent, epochs * per_epoch) if scheduler else None
    history: list[dict[str, Any]] = []
    weights: dict[str, Tensor] = {}
    path = Path(checkpoint) if checkpoint is not None else None
    with processes.team() as team, ExitStack() as held:
        if path:
            team.first(lambda: held.enter_context(only_writer(path)))
        settings = {
            "about": about, "epochs": epochs, "batch_size": batch_size,
            "examples": len(train[0]), "seed": seed, "best": best, "precision": precision,
            "processes": team.size, "attacks": list(attacks), "generators": len(generators),
            "model": resume.shapes(model.state_dict()),
            "optimizer": {"class": type(descent).__name__} | begins,
            "scheduler": type(schedule).__name__ if schedule else None,
        }  # fmt: skip
        if path:
            settings["schedule"] = resume.scheduler_settings(schedule, epochs * per_epoch)
            settings["train"] = digest(*train)[:16]
            settings["validation"] = digest(*validation)[:16] if validation else None
            resume.as_json(path, settings)  # refused now, not after an epoch
        team.same([*model.parameters(), *model.buffers()])
        for generator in generators if team.rank else ():
            generator.manual_seed(generator.initial_seed() + 1_000_003 * team.rank)
        found = (
            resume.load_state(path, model, descent, schedule, settings, team.rank) if path else None
        )
        if found:
            recorded, weights, drawn = found
            history = recorded["history"]
            for generator, state in zip(generators, drawn, strict=True):
                generator.set_state(state)
        bar = robustness.progress_bar(progress and team.rank == 0)(
            total=epochs * per_epoch, initial=len(history) * per_epoch, desc="train"
        )
        for epoch in range(epochs):
            shuffled = torch.randperm(len(train[0]), generator=order).to(train[0].device)
            if epoch < len(history):
                continue
            with _global_generator(seed, epoch * team.size + team.rank, train[0].device):
                row = _one_epoch(model, train, objective, descent, schedule, precision, team, bar,
                                 epoch, shuffled.split(batch_size))  # fmt: skip
            team.same(model.buffers())
            row |= team.first(lambda: _validate(model, validation, attacks))
            history.append({"epoch": epoch + 1, **row})
            _warn_of_overfitting(history)
            if best is not None and row[best] <= min(past[best] for past in history):
                weights = {name: value.clone() for name, value in model.state_dict().items()}
            bar.set_postfix({k: f"{v:.3f}" for k, v in row.items() if k.startswith("error")})
            drawn_by_rank = team.everyones(resume.states(generators))
            if path and team.rank == 0:
                resume.save_state(path, model, descent, schedule, weights, drawn_by_rank,
                                  {"settings": settings, "history": history})  # fmt: skip
        bar.close()
    model.eval()
    log = pd.DataFrame(history)
    if best is not None:
        model.load_state_dict(weights)
        log["kept"] = log.index == log[best][::-1].idxmin()  # the later one of equals
    return log


@contextmanager
def _global_generator(seed: int, number: int, device: torch.device) -> Iterator[None]:
    """What layers such as dropout draw from: seeded inside, and left as found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(keyed_generator(seed, number).initial_seed())
        yield


def _one_epoch(
    model: nn.Module, train: Data, objective: objectives.Objective | objectives.ByEpoch,
    descent: torch.optim.Optimizer, schedule: LRScheduler | None, precision: str,
    team: processes.Team, bar: Any, epoch: int, batches: tuple[Tensor, ...],
) -> dict[str, Any]:  # fmt: skip
    """All minibatches once; the mean loss, the last learning rate and the time."""
    images, labels = train
    started, total = time.perf_counter(), torch.zeros((), dtype=torch.float64)
    model.train()
    for step, batch in enumerate(batches):
        now = epoch + step / len(batches)
        current = objective.at(now) if isinstance(objective, objectives.ByEpoch) else objective
        mine = batch[team.rank :: team.size]
        descent.zero_grad(set_to_none=team.size == 1)
        loss = torch.zeros((), device=images.device)
        if len(mine):
            with torch.autocast(images.device.type, torch.bfloat16, precision == "bfloat16"):
                loss = current(model, images[mine], labels[mine]) * (len(mine) / len(batch))
            loss.backward()
        loss = loss.detach()
        team.total([loss, *_gradients(model, team)])
        total += _finite(loss.item(), epoch, step) * len(batch)
        lr = descent.param_groups[0]["lr"]
        descent.step()
        if schedule:
            schedule.step()
        bar.update()
    return {
        "loss": total.item() / len(images), "lr": lr, "seconds": time.perf_counter() - started
    }  # fmt: skip


def _gradients(model: nn.Module, team: processes.Team) -> list[Tensor]:
    """The gradients to be added up; those that one rank lacks (its share was empty) are zeros."""
    trained = [p for p in model.parameters() if p.requires_grad and team.size > 1]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return [parameter.grad for parameter in trained if parameter.grad is not None]


# Called catastrophic where FGSM training looks fine, and PGD undoes at least half of it.
LOOKS_FINE, UNDONE = 0.5, 0.5


def catastrophic_overfitting(fgsm_accuracy: float, pgd_accuracy: float) -> bool:
    """Whether a network withstands one step but not several.

    True where accuracy under FGSM is at least 0.5 and that under PGD less than half of it.
    Source: the phenomenon of Wong, Rice, Kolter (2020), section 5.4; the thresholds are ours.

    >>> catastrophic_overfitting(0.95, 0.10), catastrophic_overfitting(0.95, 0.92)
    (True, False)
    """
    return fgsm_accuracy >= LOOKS_FINE and pgd_accuracy < UNDONE * fgsm_accuracy


def _warn_of_overfitting(history: list[dict[str, Any]]) -> None:
    """Fill the column ``overfitted``; warn when it begins."""
    row = history[-1]
    if "error fgsm" not in row or "error pgd" not in row:
        return
    fgsm, pgd = 1 - row["error fgsm"], 1 - row["error pgd"]
    row["overfitted"] = catastrophic_overfitting(fgsm, pgd)
    if row["overfitted"] and not (len(history) > 1 and history[-2]["overfitted"]):
        warnings.warn(
            f"catastrophic overfitting at epoch {row['epoch']}: accuracy {fgsm:.1%} under FGSM, "
            f"{pgd:.1%} under PGD. Train against PGD, or lower step or learning rate",
            RuntimeWarning,
            stacklevel=3,
        )


def _validate(model: nn.Module, held: Data | None, attacks: Mapping[str, Attack]) -> dict[str, Any]:
    if held is None:
        return {}
    clean = robustness.accuracy(model, *held)
    robust = {k: robustness.robust_accuracy(model, *held, attack) for k, attack in attacks.items()}
    return {"error": 1 - clean} | {f"error {name}": 1 - share for name, share in robust.items()}


def _finite(loss: float, epoch: int, step: int) -> float:
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise FloatingPointError(
            f"the loss is {loss} at epoch {epoch + 1}, step {step + 1}: use a smaller learning "
            "rate, or check the images for NaN"
        )
    return loss


def _check_labels(name: str, model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Refuse labels that are no classes of the model, as far as its logits are ``(n, K)``."""
    if labels.is_floating_point() or labels.ndim != 1:
        raise TypeError(
            f"{name}: expected whole labels (n,), got {labels.dtype} of {tuple(labels.shape)}"
        )
    check_place(images, labels, f"{name}: y")
    with unchanged(model), torch.inference_mode():
        logits = call(model, images[:1])
    low, high = int(labels.min()), int(labels.max())
    if getattr(logits, "ndim", 0) == 2 and not 0 <= low <= high < logits.shape[1]:
        raise ValueError(
            f"{name}: labels {low} to {high}, but the model has {logits.shape[1]} classes: "
            f"expected 0 to {logits.shape[1] - 1}"
        )


def _check(
    train: Data,
    validation: Data | None,
    attacks: Mapping[str, Attack],
    epochs: int,
    batch_size: int,
    best: str | None,
    precision: str,
) -> None:
    for name, part in (("train", train), ("validation", validation)):
        if part is not None:
            check_tensors(**{f"{name}: x": part[0], f"{name}: y": part[1]})
        if part is not None and (len(part[0]) != len(part[1]) or len(part[0]) == 0):
            raise ValueError(
                f"{name}: expected as many images as labels, at least one; got {len(part[0])} and "
                f"{len(part[1])}"
            )
    if attacks and validation is None:
        raise ValueError("attacks are evaluated on validation images: pass validation=(x, y)")
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: expected at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision={precision!r}: expected 'float32' or 'bfloat16'")
    columns = ["loss"] + (["error", *(f"error {name}" for name in attacks)] if validation else [])
    if best is not None and best not in columns:
        raise ValueError(f"best={best!r}: expected one of {', '.join(map(repr, columns))}")
