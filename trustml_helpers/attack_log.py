"""A whole data set under a list of attacks: kept batch by batch, so that a kill loses little."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trustml_helpers import bounds
from trustml_helpers.evaluation import broken_by, progress_bar
from trustml_helpers.files import only_writer, replace_file
from trustml_helpers.losses import Attack
from trustml_helpers.models import fingerprint
from trustml_helpers.norms import keyed_generator

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["idx", "label", "broken_by"]


def attack_dataset(
    model: Any,
    images: Tensor,
    labels: Tensor,
    attacks: Callable[[torch.Generator], Mapping[str, Attack]],
    path: str | Path,
    *,
    about: Mapping[str, Any],
    numbers: list[int] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Attack many images and keep per image what it falls to; a killed run goes on.

    The random numbers of a batch depend on ``seed`` and its first image alone, so a resumed run
    ends with the rows of an undisturbed one.

    Args:
        model: images to logits; left as found.
        images, labels: float ``(m, ...)`` and int64 ``(m,)``.
        attacks: makes the attacks by name, in the order to run them, from a generator.
        path: CSV with the columns ``idx, label, broken_by`` (``clean`` if misclassified without
            attack, the name of the first attack that succeeds, or empty); the settings are written
            beside it as JSON.
        about: what the attacks are (eps, norm, steps ...), as JSON; a file made with other
            settings, or with another network, is refused.
        numbers: the number of each image in its data set; 0 to m - 1 if not given.
        batch_size: images per batch; part of the settings.
        seed: of the attacks.
        progress: show a progress bar over batches.

    Returns:
        The table that was written.

    Raises:
        ValueError: if the file belongs to another run (names the difference), or arguments do not
            fit, before any work.
        InUseError: if another process is writing the file.

    >>> import tempfile, pathlib
    >>> flip = lambda generator: {"flip": lambda model, x, y: x.flip(1)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = attack_dataset(lambda x: x, torch.eye(3), torch.arange(3), flip,
    ...                          pathlib.Path(folder) / "log.csv", about={}, progress=False)
    >>> log["broken_by"].tolist()
    ['flip', '', 'flip']
    """
    import pandas as pd

    numbers = list(range(len(images))) if numbers is None else numbers
    if not len(images) == len(labels) == len(numbers) > 0:
        raise ValueError(
            f"images, labels and numbers differ in length, or are empty: {len(images)}, "
            f"{len(labels)} and {len(numbers)}"
        )
    bounds.check_counts(batch_size=batch_size)
    bounds.check_counts(least=0, seed=seed)
    for number in numbers:
        bounds.check_counts(least=0, numbers=number)
    path = Path(path)
    settings = {
        **about, "attacks": list(attacks(torch.Generator(images.device))),
        "batch_size": batch_size, "seed": seed, "images": len(images),
        "model_sha256": fingerprint(model),
    }  # fmt: skip
    with only_writer(path):
        rows = _begun(path, json.loads(json.dumps(settings)), numbers)
        left = range(len(rows), len(images), batch_size)
        for start in progress_bar(progress)(left, desc="attack"):
            batch = slice(start, start + batch_size)
            generator = keyed_generator(seed, numbers[start], images.device)
            found = broken_by(
                model, images[batch], labels[batch], attacks(generator), batch_size=batch_size
            )
            rows += list(zip(numbers[batch], labels[batch].tolist(), found, strict=True))
            table = pd.DataFrame(rows, columns=COLUMNS)
            replace_file(path, table.to_csv(index=False).encode())
    return pd.DataFrame(rows, columns=COLUMNS)


def read_attack_log(path: str | Path) -> pd.DataFrame:
    """The table that :func:`attack_dataset` wrote.

    Raises:
        ValueError: if the file is not such a table.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, keep_default_na=False, dtype={"idx": np.int64, "label": np.int64})
    except ValueError as error:  # pandas' own errors for damaged tables are of this kind
        raise ValueError(f"{path} is not a log of attacks ({error})") from error
    if table.columns.tolist() != COLUMNS:
        raise ValueError(f"{path}: expected the columns {COLUMNS}, got {table.columns.tolist()}")
    return table


def summary(log: pd.DataFrame, attacks: Sequence[str]) -> dict[str, float]:
    """Accuracy after each attack of a log, cumulative, in [0, 1]; the last is the worst case.

    Args:
        log: as :func:`attack_dataset` returns it.
        attacks: their names, in the order in which they were run.

    >>> import pandas as pd
    >>> summary(pd.DataFrame({"broken_by": ["clean", "", "PGD", ""]}), ["PGD"])
    {'clean': 0.75, 'PGD': 0.5}
    """
    if len(log) == 0:
        raise ValueError("log has no rows: expected at least 1")
    found: dict[str, float] = {}
    standing = len(log)
    for name in ["clean", *attacks]:
        standing -= int((log["broken_by"] == name).sum())
        found[name] = standing / len(log)
    return found


def _begun(path: Path, settings: dict[str, Any], numbers: list[int]) -> list[tuple[int, int, str]]:
    """The rows of an earlier run with the same settings; writes the settings of a new one."""
    sidecar = path.with_suffix(".json")
    if not path.exists():
        text = json.dumps(settings | {"torch": torch.__version__}, indent=2) + "\n"
        replace_file(sidecar, text.encode())
        return []
    try:
        known = json.loads(sidecar.read_text(encoding="utf-8"))
        rows = list(read_attack_log(path).itertuples(index=False, name=None))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} exists, but cannot be used ({error}); rename it") from error
    for name, value in settings.items():
        if known.get(name) != value:
            raise ValueError(
                f"{path} was made with {name}={known.get(name)!r}, not {value!r}: use the same "
                "settings, or another path"
            )
    if [row[0] for row in rows] != numbers[: len(rows)]:
        raise ValueError(f"{path} holds other images: use the same, or another path")
    return rows
