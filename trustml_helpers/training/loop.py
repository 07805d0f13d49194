"""One training loop for every objective, on tensors held in memory.

It sees only what it is given: a training set, and a validation set held out of it. The test set
has no way in.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trustml_helpers import objectives, robustness
from trustml_helpers._support.arguments import (
    SEED,
    Rule,
    declared,
    kind,
    maybe,
    number,
    one_of,
    whole,
)
from trustml_helpers._support.calling import call, digest, unchanged
from trustml_helpers._support.processes import Team, progress_bar, team
from trustml_helpers._support.randomness import keyed_generator
from trustml_helpers._support.tensors import (
    LABELS,
    TENSOR,
    classes,
    label_range,
    look,
    one_label_each,
    seen,
)
from trustml_helpers.attacks import Attack
from trustml_helpers.training.state import State, optimizer_settings, planned_rates, shapes

if TYPE_CHECKING:
    import pandas as pd

Data = tuple[Tensor, Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer, int], LRScheduler]


adam: MakeOptimizer = partial(torch.optim.Adam, lr=1e-3)


@declared(peak=number("(0, inf)", "a learning rate"), top=number("(0, 1)", "a share"))
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

    def make(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
        # A rise of exactly one step would be a division by zero in torch.
        share = top if top * total_steps != 1 else math.nextafter(top, 0)
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            peak,
            total_steps=total_steps,
            pct_start=share,
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=100,
            final_div_factor=1,
        )

    return make


def _part(value: Any) -> Data:
    images, labels = value
    images, labels = TENSOR("x", images), LABELS("y", labels)
    one_label_each(images, labels)
    if len(images) == 0:
        raise ValueError
    return images, labels.long()


def _check_part(name: str, model: nn.Module, part: Data | None) -> None:
    """Refuse labels that are no classes of the model, as far as its logits are ``(n, K)``."""
    if part is None:
        return
    with unchanged(model), torch.inference_mode():
        try:
            logits = call(model, part[0][:1])
        except TypeError:  # wants more than images, as a denoiser does: its objective knows
            return
    if getattr(logits, "ndim", 0) == 2:
        classes(label_range(part[1]), logits.shape[1], f"{name}: y")


def _can_be_told(
    model: nn.Module, train: Data, validation: Data | None, attacks: Mapping[str, Attack] | None,
    best: str | None,
) -> None:  # fmt: skip
    if attacks and validation is None:
        raise ValueError("attacks are evaluated on validation images: pass validation=(x, y)")
    names = [f"error {name}" for name in attacks or ()]
    columns = ["loss", *(["error", *names] if validation is not None else [])]
    if best is not None and best not in columns:
        raise ValueError(f"best={best!r}: expected one of {', '.join(map(repr, columns))}")
    _check_part("train", model, train)
    _check_part("validation", model, validation)


_DATA = Rule(
    "images and as many whole labels, at least one: (x, y), two torch.Tensor on one device",
    _part,
    (
        None,
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(2, 2), [0, 1]),
        (torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64)),
    ),
)


@declared(
    _can_be_told, model=kind("a torch.nn.Module", nn.Module), train=_DATA, validation=maybe(_DATA),
    epochs=whole(1), batch_size=whole(1), precision=one_of("float32", "bfloat16"), seed=SEED,
    average=maybe(number("[0, 1)", "a share that is kept")),
)  # fmt: skip
def fit(
    model: nn.Module, train: Data,
    objective: objectives.Objective | objectives.ByEpoch = objectives.standard, *, epochs: int,
    validation: Data | None = None, attacks: Mapping[str, Attack] | None = None,
    best: str | None = None, average: float | None = None, batch_size: int = 128,
    optimizer: MakeOptimizer = adam, scheduler: MakeScheduler | None = None,
    precision: str = "float32",
    checkpoint: str | Path | None = None, generators: Iterable[torch.Generator] = (),
    about: str = "", seed: int = 0, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
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
        average: after every step, this share of a running average of the weights is kept, the rest
            comes from the new ones: 0.998 looks back some 500 steps. What is validated, and what
            the model gets in the end, is the average.
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
        CheckpointError: if the checkpoint is damaged or belongs to another run.
        InUseError: if another process is writing the checkpoint.
        FloatingPointError: if the loss is no longer finite.

    >>> x = torch.eye(4).repeat(16, 1)
    >>> history = fit(nn.Linear(4, 4), (x, x.argmax(1)), epochs=3, progress=False)
    >>> len(history), bool(history["loss"].iloc[-1] < history["loss"].iloc[0])
    (3, True)
    """
    with _begun(
        model, train, validation, optimizer, scheduler, tuple(generators), checkpoint, average,
        about=about, epochs=epochs, batch_size=batch_size, seed=seed, best=str(best),
        precision=precision, attacks=list(attacks or ()),
    ) as run, _bar(run, epochs, progress) as bar:  # fmt: skip
        for epoch, batches in _epochs_left(run, train[0], epochs, batch_size, seed):
            with _global_generator(seed, epoch * run.team.size + run.team.rank, train[0].device):
                row = _one_epoch(run, train, objective, precision, bar, epoch, batches)
            run.team.same(model.buffers())
            row |= run.team.first(lambda: _validate(run.judged, validation, attacks or {}))
            run.history.append({"epoch": epoch + 1, **row})
            _warn_of_overfitting(run.history)
            if best is not None and row[best] <= min(past[best] for past in run.history):
                run.best = {k: value.clone() for k, value in run.judged.state_dict().items()}
            bar.set_postfix({k: f"{v:.3f}" for k, v in row.items() if k.startswith("error")})
            run.save()
    if average is not None:
        model.load_state_dict(run.judged.state_dict())
    model.eval()
    import pandas as pd

    log = pd.DataFrame(run.history)
    if best is not None:
        model.load_state_dict(run.best)
        log["kept"] = log.index == log[best][::-1].idxmin()  # the later one of equals
    return log


@contextmanager
def _begun(
    model: nn.Module, train: Data, validation: Data | None, optimizer: MakeOptimizer,
    scheduler: MakeScheduler | None, generators: tuple[torch.Generator, ...],
    checkpoint: str | Path | None, average: float | None, **settings: Any,
) -> Iterator[State]:  # fmt: skip
    """A run at its start, or where a kill left it; the same weights on every rank."""
    steps = -(-len(train[0]) // settings["batch_size"])
    total, path = settings["epochs"] * steps, Path(checkpoint) if checkpoint is not None else None
    descent = optimizer(model.parameters())
    settings |= {
        "examples": len(train[0]), "steps_per_epoch": steps, "generators": len(generators),
        "model": shapes(model.state_dict()), "optimizer": optimizer_settings(descent),
    }  # fmt: skip
    if path is not None:  # what takes a while to look at
        settings["schedule"] = planned_rates(optimizer(model.parameters()), scheduler, total)
        settings["train"] = digest(*train)[:16]
        settings["validation"] = digest(*validation)[:16] if validation else "none"
    schedule = scheduler(descent, total) if scheduler else None
    us = team()
    settings["processes"] = us.size
    averaged = None
    if average is not None:
        settings["average"] = average
        running = get_ema_multi_avg_fn(average)
        averaged = AveragedModel(model, multi_avg_fn=running, use_buffers=True)
    state = State(path, model, descent, schedule, generators, settings, us, average=averaged)
    with state.held():
        us.same([*model.parameters(), *model.buffers()])
        for generator in generators if us.rank else ():
            generator.manual_seed(generator.initial_seed() + 1_000_003 * us.rank)
        state.load()
        yield state


@contextmanager
def _bar(run: State, epochs: int, progress: bool) -> Iterator[Any]:
    """A progress bar of minibatches, from where the run begins."""
    steps = run.settings["steps_per_epoch"]
    bar = progress_bar(progress and run.team.rank == 0)(
        total=epochs * steps, initial=len(run.history) * steps, desc="train"
    )
    yield bar
    bar.close()


def _epochs_left(
    run: State, images: Tensor, epochs: int, batch_size: int, seed: int
) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Each epoch that has no row yet, and its minibatches: those of an undisturbed run."""
    order = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        shuffled = torch.randperm(len(images), generator=order).to(images.device)
        if epoch >= len(run.history):
            yield epoch, shuffled.split(batch_size)


@contextmanager
def _global_generator(seed: int, number: int, device: torch.device) -> Iterator[None]:
    """What layers such as dropout draw from: seeded inside, and left as found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(keyed_generator(seed, number).initial_seed())
        yield


def _one_epoch(
    state: State, train: Data, objective: objectives.Objective | objectives.ByEpoch,
    precision: str, bar: Any, epoch: int, batches: tuple[Tensor, ...],
) -> dict[str, Any]:  # fmt: skip
    """All minibatches once; the mean loss, the last learning rate and the time."""
    (images, labels), model, team = train, state.model, state.team
    started, losses, known = time.perf_counter(), [], look(*train)
    model.train()
    for step, batch in enumerate(batches):
        now = epoch + step / len(batches)
        current = objective.at(now) if isinstance(objective, objectives.ByEpoch) else objective
        mine = batch[team.rank :: team.size]
        state.optimizer.zero_grad(set_to_none=team.size == 1)
        loss = torch.zeros((), device=images.device)
        # The first minibatch is looked at closely, the others as all of them were at the start.
        with seen(known if step else None):
            if len(mine):
                with torch.autocast(images.device.type, torch.bfloat16, precision == "bfloat16"):
                    loss = current(model, images[mine], labels[mine]) * (len(mine) / len(batch))
                loss.backward()
        loss = loss.detach()
        team.total([loss, *_gradients(model, team)])
        losses.append(loss)
        lr = state.optimizer.param_groups[0]["lr"]
        state.optimizer.step()
        if state.average:
            state.average.update_parameters(model)
        if state.scheduler:
            state.scheduler.step()
        bar.update()
    mean = _mean(torch.stack(losses).tolist(), [len(batch) for batch in batches], epoch)
    return {"loss": mean, "lr": lr, "seconds": time.perf_counter() - started}


def _mean(losses: list[float], sizes: list[int], epoch: int) -> float:
    """The mean over examples. Read once an epoch: every reading makes a GPU wait."""
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at epoch {epoch + 1}, step {step + 1}: use a smaller learning "
                "rate, or check the images for NaN"
            )
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)


def _gradients(model: nn.Module, team: Team) -> list[Tensor]:
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
            stacklevel=4,
        )


def _validate(model: nn.Module, held: Data | None, attacks: Mapping[str, Attack]) -> dict[str, Any]:
    if held is None:
        return {}
    clean = robustness.accuracy(model, *held)
    robust = {k: robustness.robust_accuracy(model, *held, attack) for k, attack in attacks.items()}
    return {"error": 1 - clean} | {f"error {name}": 1 - share for name, share in robust.items()}
