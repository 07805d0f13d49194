"""Reading certification logs: the table, checked before it is believed, and what it says."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from trustml_helpers._support.arguments import ALPHA, declared, maybe, numbers, shown, whole
from trustml_helpers._support.files import LogError
from trustml_helpers._support.ledger import read_settings, settings_file
from trustml_helpers.smoothing import ABSTAIN, BOUND, NOISE, Noise, answered, noise_from, radii

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
DENSE = 100  # classes with a column of counts each; with more, one column holds those above 0
_SPARSE = "counts_of_"  # and the number of classes: "281:1994 285:6"


def count_columns(classes: int) -> list[str]:
    """The names of the columns of counts.

    >>> count_columns(2), count_columns(1000)
    (['count_0', 'count_1'], ['counts_of_1000'])
    """
    if classes > DENSE:
        return [f"{_SPARSE}{classes}"]
    return [f"count_{k}" for k in range(classes)]


def count_cells(counts: Sequence[int]) -> list[str]:
    """What a row says under :func:`count_columns`."""
    if len(counts) > DENSE:
        return [" ".join(f"{k}:{votes}" for k, votes in enumerate(counts) if votes) or "0:0"]
    return [str(votes) for votes in counts]


@declared(bound=maybe(BOUND))
def read_log(path: str | Path, bound: str | None = None) -> pd.DataFrame:
    """A certification log as a table: this project's, or one of Cohen et al.'s format.

    A last row that was cut off in the middle is left out, with a warning.

    Args:
        path: of the log.
        bound: ``"one_class"`` or ``"two_class"`` for the radii that the counts give under this
            bound, by :func:`rebound` with the settings in the JSON file beside the log; the
            written radii if not given.

    Returns:
        Columns ``idx label predict radius correct time`` (time in seconds, whatever its format),
        then the counts if the log has them.

    Raises:
        LogError: if the file is missing or is not such a log, or, with ``bound``, has no settings
            or no counts.
    """
    path, table = Path(path), _read_table(Path(path))
    if bound is None:
        return table
    try:
        about = read_settings(settings_file(path))
        return rebound(table, noise_from(about), about["n"], about["alpha"], bound)
    except LogError:  # the rows themselves
        raise
    except (OSError, ValueError, KeyError) as error:
        raise LogError(
            f"bound={bound!r}: the JSON beside {path} does not say sigma, n and alpha as they were "
            f"({error}); read the log without bound and use rebound"
        ) from error


@declared(radii=numbers("[-inf, inf]", "in pixel units"))
def certified_accuracy(log: pd.DataFrame, radii: ArrayLike) -> NDArray[np.float64]:
    """Share of all rows that are correct with a radius of at least r, for each r.

    Source: Cohen et al. (2019), section 4: the certified test accuracy at radius r.
    """
    log = check_rows(log, needed=("correct", "radius"), least=1)
    correct, radius = log["correct"].to_numpy() == 1, log["radius"].to_numpy()
    return (correct[:, None] & (radius[:, None] >= np.atleast_1d(radii))).mean(axis=0)


def average_certified_radius(log: pd.DataFrame) -> tuple[float, float]:
    """ACR and its standard error over images: the mean of the radius, 0 where not correct.

    Source: Zhai et al. (2020), section 5.
    """
    radius = _scores(log, least=2)
    return float(radius.mean()), float(radius.std(ddof=1) / math.sqrt(len(radius)))


@declared(sigma=NOISE, n=whole(1), alpha=ALPHA, bound=BOUND)
def rebound(
    log: pd.DataFrame, sigma: float | Noise, n: int, alpha: float, bound: str = "one_class"
) -> pd.DataFrame:
    """The log as another bound or another alpha would have it, from its counts.

    The class of a row stays what the selection samples chose. Rows that abstained do not say
    which class that was and go on abstaining: so certify with ``"two_class"``, which hardly ever
    abstains where ``"one_class"`` does not, and derive the latter.

    Args:
        log: with counts, as :func:`read_log` returns it.
        sigma, n: as the log was made; for noise that is not Gaussian the noise, as
            :func:`smoothing.noise_from` makes it from the JSON beside the log.
        alpha, bound: as they should have been.

    Returns:
        A copy with new ``radius`` (rounded down to 6 decimals), ``predict`` and ``correct``.

    Raises:
        LogError: for a log without counts or with a cell that no certification writes.
    """
    log = check_rows(log, needed=("label", "predict"))
    counts = vote_counts(log)
    if counts.shape[1] == 0:
        raise LogError("the log has no counts: another bound cannot be computed from it")
    chosen = log["predict"].to_numpy()
    top = torch.as_tensor(chosen.clip(min=0))
    radius, p_a = radii(torch.as_tensor(counts), top, n, alpha, sigma, bound)
    predict = np.where(chosen == ABSTAIN, ABSTAIN, answered(top, radius, p_a).numpy())
    radius = np.where(predict == ABSTAIN, 0.0, [floor(each) for each in radius])
    correct = (predict == log["label"].to_numpy()).astype(int)
    return log.assign(radius=radius, predict=predict, correct=correct)


def summary(logs: Mapping[str, pd.DataFrame], radii: Sequence[float]) -> pd.DataFrame:
    """One row per log: images, certified accuracy at each radius, ACR, its error, abstentions.

    Args:
        logs: by name, as :func:`read_log` returns them.
        radii: in pixel units.

    Returns:
        A table by name; columns ``images``, ``r=...``, ``ACR``, ``s.e.``, ``abstained``, shares
        in [0, 1].

    Raises:
        LogError: for a log without rows.
        ValueError: for a log without the columns ``predict``, ``radius`` and ``correct``.
    """
    import pandas as pd

    rows = {}
    for name, given in logs.items():
        log = check_rows(given, f"the log {name}", ("predict", "radius", "correct"), least=1)
        # One row has no standard error, but a run of one image must not end in an error.
        acr, error = average_certified_radius(log) if len(log) > 1 else (_scores(log)[0], math.nan)
        shares = zip(radii, certified_accuracy(log, radii), strict=True)
        row = {"images": len(log)} | {f"r={radius:g}": float(share) for radius, share in shares}
        abstained = float((log["predict"] == ABSTAIN).mean())
        rows[name] = row | {"ACR": acr, "s.e.": error, "abstained": abstained}
    return pd.DataFrame.from_dict(rows, orient="index")


def _scores(log: pd.DataFrame, least: int = 0) -> NDArray[np.float64]:
    """What each row adds to the ACR: its radius, 0 where wrong or abstained."""
    log = check_rows(log, needed=("correct", "radius"), least=least)
    return np.where(log["correct"] == 1, log["radius"], 0.0)


def floor(radius: float) -> float:
    """A radius rounded down to 6 decimals: the log must never claim more than was certified."""
    down = math.floor(radius * 1e6) / 1e6
    return down if down <= radius else down - 1e-6


def _read_table(path: Path) -> pd.DataFrame:
    """The rows as they are written."""
    import pandas as pd

    if not path.is_file():
        raise LogError(f"{path} is missing")
    text = path.read_text(encoding="utf-8", errors="replace")
    end, columns = text.rfind("\n") + 1, text.partition("\n")[0].count("\t") + 1
    # Without counts a last row may be whole and only lack its line end.
    if text[end:] and (columns > len(COLUMNS) or text[end:].count("\t") + 1 < columns):
        warnings.warn(f"{path}: the last row is cut off and left out", UserWarning, stacklevel=4)
        text = text[:end]
    try:
        table = pd.read_csv(io.StringIO(text), sep="\t")
    except (ValueError, pd.errors.ParserError) as error:
        raise LogError(f"{path} is not a certification log ({error})") from error
    if tuple(table.columns[:6]) != COLUMNS:
        raise LogError(f"{path}: expected the columns {' '.join(COLUMNS)} first")
    table = check_rows(table, path)
    try:
        if not pd.api.types.is_numeric_dtype(table["time"]):
            # Cohen et al. write 0:00:17.123456, and some logs plain seconds.
            table["time"] = pd.to_timedelta(table["time"]).dt.total_seconds()
    except ValueError as error:
        raise LogError(f"{path}: a time is neither seconds nor h:mm:ss ({error})") from error
    return table


def check_rows(
    log: pd.DataFrame, where: object = "log", needed: Sequence[str] = (), least: int = 0
) -> pd.DataFrame:
    """The log with numbers for what should be numbers, whole ones but for the radius.

    Args:
        log: with any of the columns ``idx label predict correct radius count_...``.
        where: what the message calls it.
        needed: columns that it must have.
        least: how many rows.

    Raises:
        LogError: for a cell that no certification writes.
        ValueError: for a column that is missing.
    """
    import pandas as pd

    if missing := [name for name in needed if name not in log]:
        raise ValueError(
            f"{where} lacks the column {', '.join(missing)}: expected a log as read_log gives it, "
            f"got the columns {', '.join(map(str, log.columns))}"
        )
    if len(log) < least:
        raise LogError(f"{where} has {len(log)} rows: expected at least {least}")
    counts = [name for name in log.columns if str(name).startswith("count_")]
    classes = _sparse_classes(log, where) or len(counts)
    most = {"correct": 1.0, "predict": classes - 1 if classes else np.inf}
    found = {}
    for name in ("idx", "label", "predict", "correct", "radius", *counts):
        if name not in log:
            continue
        numbers = pd.to_numeric(log[name], errors="coerce").to_numpy(dtype=float)
        least = ABSTAIN if name == "predict" else 0
        # Whole numbers above 2**53 are not exact in a float, and none is needed.
        right = (numbers >= least) & (numbers <= most.get(name, np.inf)) & (numbers < 2**53)
        if name != "radius":
            right &= numbers == np.floor(numbers)
        if not right.all():
            row = int(np.argmin(right))
            raise _wrong_cell(where, name, log[name].iloc[row], row)
        found[name] = numbers if name == "radius" else numbers.astype(np.int64)
    return log.assign(**found)


def _wrong_cell(where: object, column: str, cell: object, row: int) -> LogError:
    return LogError(
        f"{where}: {column} is {shown(cell)} in row {row + 1} below the header; restore the file, "
        "or remove the row and certify the image again"
    )


def vote_counts(log: pd.DataFrame) -> NDArray[np.int64]:
    """The votes of each class ``(rows, K)``, a copy; K is 0 if the log does not hold them."""
    classes = _sparse_classes(log)
    if not classes:
        names = [name for name in log.columns if str(name).startswith("count_")]
        return log[names].to_numpy(dtype=np.int64, copy=True)
    counts = np.zeros((len(log), classes), dtype=np.int64)
    for row, cell in zip(counts, log[f"{_SPARSE}{classes}"], strict=True):
        for part in cell.split():
            k, votes = part.split(":")
            row[int(k)] = int(votes)
    return counts


def _sparse_classes(log: pd.DataFrame, where: object = "log") -> int:
    """The number of classes of a log with one column for all counts, each cell looked at; or 0."""
    for name in log.columns:
        if not re.fullmatch(_SPARSE + r"[1-9]\d{0,8}", str(name)):
            continue
        classes = int(name.removeprefix(_SPARSE))
        for row, cell in enumerate(log[name]):
            right = re.fullmatch(r"\d+:\d{1,15}( \d+:\d{1,15})*", str(cell))
            if not right or max(int(part.split(":")[0]) for part in cell.split()) >= classes:
                raise _wrong_cell(where, name, cell, row)
        return classes
    return 0
