"""A whole data set under a list of attacks: kept batch by batch, so that a kill loses little."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trustml_helpers._support.arguments import Rule, declared, each, function, maybe, record, whole
from trustml_helpers._support.calling import code_of, digest, fingerprint
from trustml_helpers._support.ledger import Ledger, LogError
from trustml_helpers._support.processes import progress_bar
from trustml_helpers._support.randomness import keyed_generator
from trustml_helpers._support.tensors import IMAGES, LABELS, one_label_each
from trustml_helpers.attacks import Attack
from trustml_helpers.robustness.evaluation import NAMED, RESERVED, broken_by

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["idx", "label", "broken_by"]


def _reported(names: Sequence[str]) -> list[str]:
    if RESERVED & set(names):
        raise ValueError
    return list(names)


REPORTED = Rule("names of attacks, not those of other columns", _reported, (["clean"], [""], 17))


def _one_number_each(images: Tensor, labels: Tensor, numbers: list[int] | None) -> None:
    one_label_each(images, labels)
    count = len(images) if numbers is None else len(numbers)
    if not count == len(images) > 0:
        raise ValueError(f"numbers: expected one for each of {len(images)} images, at least one, "
                         f"got {count}")  # fmt: skip


@declared(
    _one_number_each, images=IMAGES, labels=LABELS, attacks=function("generator -> {name: attack}"),
    about=record(), origin=maybe(record()), numbers=maybe(each(whole())), batch_size=whole(1),
    seed=whole(),
)  # fmt: skip
def attack_dataset(
    model: Any, images: Tensor, labels: Tensor,
    attacks: Callable[[torch.Generator], Mapping[str, Attack]], path: str | Path, *,
    about: Mapping[str, Any], origin: Mapping[str, Any] | None = None,
    numbers: list[int] | None = None, batch_size: int = 256, seed: int = 0, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Attack many images and keep per image what it falls to; a killed run goes on.

    The random numbers of a batch depend on ``seed`` and its first image alone, so a resumed run
    ends with the rows of an undisturbed one.

    Args:
        model: images to logits; left as found.
        images, labels: float ``(m, ...)`` and int64 ``(m,)``.
        attacks: makes the attacks by name, in the order to run them, from a generator.
        path: CSV, named so (``log.csv``), with the columns ``idx, label, broken_by`` (``clean`` if
            misclassified without attack, the name of the first attack that succeeds, or empty);
            the settings are written beside it as JSON (``log.json``).
        about: what the attacks are (eps, norm, steps ...), as JSON; a file made with other
            settings, images or labels, or with another network, is refused.
        origin: where the images are from (name of the data set, files), as JSON; written beside
            the settings, and not compared: the images themselves are.
        numbers: the number of each image in its data set; 0 to m - 1 if not given.
        batch_size: images per batch; part of the settings.
        seed: of the attacks.
        progress: show a progress bar over batches.

    Returns:
        The table that was written.

    Raises:
        LogError: if the file, or a JSON beside it, belongs to another run (names the difference) or
            to something else, or if another process is writing it.

    >>> import tempfile, pathlib
    >>> flip = lambda generator: {"flip": lambda model, x, y: x.flip(1)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = attack_dataset(lambda x: x, torch.eye(3), torch.arange(3), flip,
    ...                          pathlib.Path(folder) / "log.csv", about={}, progress=False)
    >>> log["broken_by"].tolist()
    ['flip', '', 'flip']
    """
    numbers = list(range(len(images))) if numbers is None else numbers
    names = list(NAMED("attacks", attacks(torch.Generator(images.device))))
    settings = {
        **about, "attacks": names, "batch_size": batch_size, "seed": seed, "images": len(images),
        "images_sha256": digest(images, labels.long()), "model_sha256": fingerprint(model),
        "model_code_sha256": code_of(model),
    }  # fmt: skip
    ledger = Ledger(path, ",".join(COLUMNS))
    optional = {"images_sha256", "model_code_sha256"}  # old settings do not have them
    new, known = not ledger.path.exists(), ledger.known(settings, optional=optional)
    with ledger.held(new=new):
        more = {"torch": torch.__version__} | ({"origin": origin} if origin else {})
        ledger.begin(settings | more if known is None else None)
        done = _whole_batches(ledger, numbers, batch_size)
        left = range(done, len(images), batch_size)
        with ledger.writing() as write:
            for start in progress_bar(progress)(left, desc="attack"):
                batch = slice(start, start + batch_size)
                generator = keyed_generator(seed, numbers[start], images.device)
                found = broken_by(
                    model, images[batch], labels[batch], attacks(generator), batch_size=batch_size
                )
                write(_lines(numbers[batch], labels[batch].tolist(), found))
    return read_attack_log(path)


def _lines(*columns: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
    return text.getvalue()


def _whole_batches(ledger: Ledger, numbers: list[int], batch_size: int) -> int:
    """How many rows stand; a batch of which a kill left a part is attacked again."""
    rows = ledger.rows()
    if [row.split(",", 1)[0] for row in rows] != [str(number) for number in numbers[: len(rows)]]:
        raise LogError(f"{ledger.path} holds other images: use the same, or another path")
    done = len(rows) if len(rows) == len(numbers) else len(rows) // batch_size * batch_size
    ledger.keep(rows[:done])
    return done


def read_attack_log(path: str | Path) -> pd.DataFrame:
    """The table that :func:`attack_dataset` wrote.

    Raises:
        LogError: if the file is not such a table.
    """
    import pandas as pd

    try:
        kinds = {"idx": np.int64, "label": np.int64, "broken_by": str}
        table = pd.read_csv(path, keep_default_na=False, dtype=kinds)
    except ValueError as error:  # pandas' own errors for damaged tables are of this kind
        raise LogError(f"{path} is not a log of attacks ({error})") from error
    if table.columns.tolist() != COLUMNS:
        raise LogError(f"{path}: expected the columns {COLUMNS}, got {table.columns.tolist()}")
    return table


@declared(attacks=REPORTED)
def summary(log: pd.DataFrame, attacks: Sequence[str]) -> dict[str, float]:
    """Accuracy after each attack of a log, cumulative, in [0, 1]; the last is the worst case.

    Args:
        log: as :func:`attack_dataset` returns it.
        attacks: their names, in the order in which they were run.

    >>> import pandas as pd
    >>> summary(pd.DataFrame({"broken_by": ["clean", "", "PGD", ""]}), ["PGD"])
    {'clean': 0.75, 'PGD': 0.5}
    """
    if "broken_by" not in log or len(log) == 0:
        raise ValueError("log: expected rows with the column broken_by, as attack_dataset gives")
    found: dict[str, float] = {}
    standing = len(log)
    for name in ["clean", *attacks]:
        standing -= int((log["broken_by"] == name).sum())
        found[name] = standing / len(log)
    return found
