"""How often a model withstands an attack: on these images an upper bound on robust accuracy.

Use it as ``robustness.robust_accuracy`` and so on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trustml_helpers._support.arguments import Rule, declared, function, trusted, whole
from trustml_helpers._support.calling import logits_of, unchanged
from trustml_helpers._support.processes import progress_bar
from trustml_helpers._support.tensors import LABELS, TENSOR, one_label_each
from trustml_helpers.attacks import Attack, check_attacked, is_fooled

if TYPE_CHECKING:
    import pandas as pd


def _attacks(given: Any) -> list[Attack]:
    found = [given] if callable(given) else list(given)
    if not found or not all(map(callable, found)):
        raise TypeError
    return found


def _names(attacks: Mapping[str, Attack]) -> Mapping[str, Attack]:
    if not isinstance(attacks, Mapping) or not attacks or RESERVED & attacks.keys():
        raise ValueError
    return attacks


RESERVED = {"", "clean", "worst case"}  # what a table says without an attack
ATTACKS = Rule("a function (model, x, y) -> x_adv, or several", _attacks, (17, [17], []), TypeError)
NAMED = Rule(
    f"attacks by name, none of them called {', '.join(map(repr, sorted(RESERVED)))}: they stand "
    "for something else in the results; rename it", _names, (17, {"clean": len}, {}),
)  # fmt: skip


def not_empty(x: Tensor) -> None:
    """Refuse to average over nothing."""
    if len(x) == 0:
        raise ValueError("x is empty: an accuracy over no examples is not defined")


evaluated = {"x": TENSOR, "y": LABELS, "batch_size": whole(1)}


@declared(one_label_each, **evaluated)
def correct(model: Any, x: Tensor, y: Tensor, *, batch_size: int = 256) -> Tensor:
    """Which examples the model classifies as y, bool ``(n,)``; NaN logits count as wrong.

    Args:
        model: images to logits ``(n, K)``; left as found.
        x, y: images ``(n, ...)`` and labels int64 ``(n,)``.
        batch_size: images per forward pass.

    >>> correct(lambda x: x, torch.eye(3), torch.tensor([0, 1, 0])).tolist()
    [True, True, False]
    """
    found, broken = [], 0
    with unchanged(model), torch.inference_mode():
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            logits = logits_of(model, images)
            broken += int(logits.isnan().any(1).sum())
            found.append(~is_fooled(logits, labels))
    if broken:
        warnings.warn(
            f"the model returned NaN for {broken} of {len(x)} inputs; they count as wrong",
            RuntimeWarning,
            stacklevel=3,
        )
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool, device=x.device)


@declared(one_label_each, not_empty, **evaluated)
def accuracy(model: Any, x: Tensor, y: Tensor, *, batch_size: int = 256) -> float:
    """Share of examples classified as y, in [0, 1]. Arguments as for :func:`correct`.

    >>> accuracy(lambda x: x, torch.eye(4), torch.tensor([0, 1, 2, 0]))
    0.75
    """
    return _share(trusted(correct)(model, x, y, batch_size=batch_size))


@declared(one_label_each, not_empty, **evaluated, attack=function("(model, x, target) -> x_adv"))
def targeted_success(
    model: Any, x: Tensor, y: Tensor, attack: Attack, *, batch_size: int = 256
) -> float:
    """Share of examples that a targeted attack turns into the class that it wanted, in [0, 1].

    Args:
        model: images to logits ``(n, K)``; left as found.
        x, y: images ``(n, ...)`` and the class wanted for each, int64 ``(n,)``.
        attack: ``(model, x, y) -> x_adv``, such as ``partial(pgd, eps=2 / 255, targeted=True)``.
        batch_size: images per call of the attack.

    >>> targeted_success(lambda x: x, torch.eye(4), torch.tensor([1, 2, 3, 3]),
    ...                  lambda model, x, y: x.roll(1, dims=1))
    0.75
    """
    parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
    with unchanged(model):
        found = [check_attacked(attack(model, *part), part[0]) for part in parts]
    return _share(trusted(correct)(model, torch.cat(found), y, batch_size=batch_size))


@declared(one_label_each, **evaluated, attack=ATTACKS)
def robust_correct(
    model: Any, x: Tensor, y: Tensor, attack: Attack | Iterable[Attack], *, batch_size: int = 256,
    progress: bool = False,
) -> Tensor:  # fmt: skip
    """Which examples are classified as y before and after every attack, bool ``(n,)``.

    An example that the model gets wrong, or that an earlier attack fooled, is not attacked again.

    Args:
        model: images to logits ``(n, K)``; left as found.
        x, y: images ``(n, ...)`` and true labels int64 ``(n,)``.
        attack: ``(model, x, y) -> x_adv``, or several of them: the worst case counts.
        batch_size: images per call of an attack.
        progress: show a progress bar over batches.

    Returns:
        bool ``(n,)``: True where no attack changed the label.

    Raises:
        ValueError: if an attack returns another shape than it was given.

    >>> shift = lambda model, x, y: x.flip(1)
    >>> robust_correct(lambda x: x, torch.eye(3), torch.arange(3), shift).tolist()
    [False, True, False]
    """
    attacks: Any = attack  # a list by now
    return _rounds(model, x, y, attacks, batch_size, progress) == len(attacks) + 1


@declared(one_label_each, **evaluated, attacks=NAMED)
def broken_by(
    model: Any, x: Tensor, y: Tensor, attacks: Mapping[str, Attack], *, batch_size: int = 256,
    progress: bool = False,
) -> list[str]:  # fmt: skip
    """What each example falls to: ``"clean"``, the name of the first attack that fools it, or "".

    Args:
        model, x, y, batch_size, progress: as for :func:`robust_correct`.
        attacks: by name, in the order to run them: cheap ones first save work.

    >>> shift = {"shift": lambda model, x, y: x.flip(1)}
    >>> broken_by(lambda x: x, torch.eye(3), torch.tensor([0, 1, 0]), shift)
    ['shift', '', 'clean']
    """
    names = ["clean", *attacks, ""]
    found = _rounds(model, x, y, list(attacks.values()), batch_size, progress)
    return [names[number] for number in found.tolist()]


def _rounds(
    model: Any, x: Tensor, y: Tensor, attacks: list[Attack], batch_size: int, progress: bool
) -> Tensor:
    """Per example: 0 if wrong, k if the k-th attack is the first to fool it, else one more."""
    found = correct(model, x, y, batch_size=batch_size) * (len(attacks) + 1)
    rows = found.nonzero()[:, 0].split(batch_size)
    for batch in progress_bar(progress)(rows, desc="attack"):
        for number, one in enumerate(attacks, start=1):
            if len(batch) == 0:
                break
            with unchanged(model):
                x_adv = one(model, x[batch], y[batch])
            check_attacked(x_adv, x[batch])
            stands = correct(model, x_adv, y[batch], batch_size=batch_size)
            found[batch[~stands]] = number
            batch = batch[stands]
    return found


@declared(one_label_each, not_empty, **evaluated, attack=ATTACKS)
def robust_accuracy(
    model: Any, x: Tensor, y: Tensor, attack: Attack | Iterable[Attack], batch_size: int = 256, *,
    progress: bool = False,
) -> float:  # fmt: skip
    """Share of examples that stay correct under the attack(s), in [0, 1].

    For an attack that keeps to its threat model, which is not checked here, an upper bound on the
    true robust accuracy on these images: a stronger attack can only lower it.
    Arguments as for :func:`robust_correct`.

    >>> robust_accuracy(lambda x: x, torch.eye(4), torch.arange(4), lambda m, x, y: x)
    1.0
    """
    return _share(
        trusted(robust_correct)(model, x, y, attack, batch_size=batch_size, progress=progress)
    )


@declared(one_label_each, not_empty, **evaluated, attacks=NAMED)
def attack_matrix(
    models: Mapping[str, Any], attacks: Mapping[str, Attack], x: Tensor, y: Tensor, *,
    batch_size: int = 256, progress: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Accuracy of every model (rows) under every attack (columns), in [0, 1].

    The first column, ``clean``, is without attack; the last, ``worst case``, counts per example:
    a model scores only where it withstood every attack of its row.

    Args:
        models, attacks: by the name to show.
        x, y, batch_size, progress: as for :func:`robust_correct`.

    >>> attack_matrix({"id": lambda x: x}, {"none": lambda m, x, y: x}, torch.eye(2),
    ...               torch.arange(2)).loc["id"].tolist()
    [1.0, 1.0, 1.0]
    """
    import pandas as pd

    table: dict[str, dict[str, float]] = {}
    bar = progress_bar(progress)(total=len(models) * len(attacks), desc="matrix")
    for model_name, model in models.items():
        standing = clean = correct(model, x, y, batch_size=batch_size)
        row = {"clean": _share(clean)}
        for attack_name, attack in attacks.items():
            survived = robust_correct(model, x, y, attack, batch_size=batch_size)
            row[attack_name] = _share(survived)
            standing = standing & survived
            bar.update()
        table[model_name] = row | {"worst case": _share(standing)}
    bar.close()
    return pd.DataFrame.from_dict(table, orient="index")


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()
