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
from trustml_helpers._support.arguments import whole
from trustml_helpers._support.calling import digest, fingerprint
from trustml_helpers._support.files import only_writer, read_settings, replace_file, settings_file
from trustml_helpers._support.processes import progress_bar
from trustml_helpers._support.randomness import keyed_generator
from trustml_helpers.attacks import Attack
from trustml_helpers.robustness.evaluation import broken_by, check_names

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
        path: CSV, named so (``log.csv``), with the columns ``idx, label, broken_by`` (``clean`` if
            misclassified without attack, the name of the first attack that succeeds, or empty);
            the settings are written beside it as JSON (``log.json``).
        about: what the attacks are (eps, norm, steps ...), as JSON; a file made with other
            settings, images or labels, or with another network, is refused.
        numbers: the number of each image in its data set; 0 to m - 1 if not given.
        batch_size: images per batch; part of the settings.
        seed: of the attacks.
        progress: show a progress bar over batches.

    Returns:
        The table that was written.

    Raises:
        ValueError: if the file, or a JSON beside it, belongs to another run (names the difference)
            or to something else, or arguments do not fit, before any work.
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
    batch_size, seed = whole(batch_size=batch_size), whole(seed=seed)
    numbers = [whole(numbers=number) for number in numbers]
    bounds.check_counts(batch_size=batch_size)
    bounds.check_counts(least=0, seed=seed, numbers=min(numbers))
    path = Path(path)
    settings_file(path)  # refuses a name that cannot have one
    names = list(attacks(torch.Generator(images.device)))
    check_names(names)
    settings = {
        **about, "attacks": names, "batch_size": batch_size, "seed": seed, "images": len(images),
        "images_sha256": digest(images, labels.long()), "model_sha256": fingerprint(model),
    }  # fmt: skip
    try:
        settings = json.loads(json.dumps(settings))
    except TypeError as error:
        raise ValueError(f"about={about}: expected what JSON can hold ({error})") from error
    with only_writer(path):
        rows = _begun(path, settings, numbers)
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
        kinds = {"idx": np.int64, "label": np.int64, "broken_by": str}
        table = pd.read_csv(path, keep_default_na=False, dtype=kinds)
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
    check_names(attacks)
    if "broken_by" not in log:
        raise ValueError("log lacks the column broken_by: expected a log of attack_dataset")
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
    sidecar, exists = settings_file(path), path.exists()
    if not exists and not sidecar.exists():
        text = json.dumps(settings | {"torch": torch.__version__}, indent=2) + "\n"
        replace_file(sidecar, text.encode())
        return []
    which, cure = path, "or another path"
    if not exists:
        which, cure = sidecar, f"or another path than {path}, or remove it"
    try:
        known = read_settings(sidecar)
        rows = list(read_attack_log(path).itertuples(index=False, name=None)) if exists else []
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{which} exists, but cannot be used ({error}): rename it, or use another path"
        ) from error
    for name, value in settings.items():
        if exists and name == "images_sha256" and name not in known:
            continue  # the first logs of this package do not say
        if known.get(name) != value:
            other = f"{name}={known.get(name)!r}, not {value!r}: use the same settings"
            if name == "images_sha256":
                other = "other images or labels: use the same"
            raise ValueError(f"{which} was made with {other}, {cure}")
    if [row[0] for row in rows] != numbers[: len(rows)]:
        raise ValueError(f"{path} holds other images: use the same, or another path")
    return rows
