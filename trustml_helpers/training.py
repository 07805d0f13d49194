"""One training loop for every objective, on tensors held in memory.

It sees only what it is given: a training set, and a validation set held out of it. The test set
has no way in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from trustml_helpers import objectives, robustness
from trustml_helpers.attacks import Attack

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
    batch_size: int = 128,
    optimizer: MakeOptimizer = adam,
    scheduler: MakeScheduler | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Minimise an objective over minibatches, in place.

    Args:
        model: trained in place, left in eval mode.
        train: images ``(n, C, H, W)`` and labels int64 ``(n,)``, on the model's device.
        objective: ``(model, x, y) -> loss``, or :class:`objectives.ByEpoch`.
        epochs: passes over the training set.
        validation: held-out images and labels, evaluated after every epoch.
        attacks: by name; the validation error under each is recorded as well.
        batch_size: examples per step; the last, smaller minibatch of an epoch is used too.
        optimizer: makes the optimizer from the parameters, for example
            ``partial(torch.optim.SGD, lr=0.01, momentum=0.9)``; Adam at 1e-3 if not given.
        scheduler: makes a torch scheduler from the optimizer and the number of steps, which is
            stepped after every minibatch; :func:`triangular` is one.
        seed: order of the examples; same seed, same order. The global RNG is not used by the loop.
        progress: show a progress bar.

    Returns:
        One row per epoch: ``epoch, loss`` (mean over the epoch's minibatches), ``lr`` (last
        used), ``seconds`` (training alone), and with validation ``error`` and one column
        ``error <name>`` per attack, all in [0, 1].

    Raises:
        ValueError: for arguments out of range, before any step.
        FloatingPointError: if the loss is no longer finite.

    >>> x = torch.eye(4).repeat(16, 1)
    >>> history = fit(nn.Linear(4, 4), (x, x.argmax(1)), epochs=3, progress=False)
    >>> len(history), bool(history["loss"].iloc[-1] < history["loss"].iloc[0])
    (3, True)
    """
    import pandas as pd

    _check(train, validation, attacks, epochs, batch_size)
    images, labels = train
    order = torch.Generator().manual_seed(seed)
    per_epoch = -(-len(images) // batch_size)
    descent = optimizer(model.parameters())
    schedule = scheduler(descent, epochs * per_epoch) if scheduler else None
    bar = robustness.progress_bar(progress)(total=epochs * per_epoch, desc="train")
    history = []
    for epoch in range(epochs):
        started, total = time.perf_counter(), 0.0
        model.train()
        shuffled = torch.randperm(len(images), generator=order).to(images.device)
        for step, batch in enumerate(shuffled.split(batch_size)):
            now = epoch + step / per_epoch
            current = objective.at(now) if isinstance(objective, objectives.ByEpoch) else objective
            loss = current(model, images[batch], labels[batch])
            descent.zero_grad(set_to_none=True)
            loss.backward()
            total += _finite(loss.item(), epoch, step) * len(batch)
            lr = descent.param_groups[0]["lr"]
            descent.step()
            if schedule:
                schedule.step()
            bar.update()
        row = {"epoch": epoch + 1, "loss": total / len(images)}
        row |= {"lr": lr, "seconds": time.perf_counter() - started}
        history.append(row | _validate(model, validation, attacks or {}))
        bar.set_postfix({k: f"{v:.3f}" for k, v in history[-1].items() if "error" in k})
    bar.close()
    model.eval()
    return pd.DataFrame(history)


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


def _check(
    train: Data,
    validation: Data | None,
    attacks: Mapping[str, Attack] | None,
    epochs: int,
    batch_size: int,
) -> None:
    for name, part in (("train", train), ("validation", validation)):
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
