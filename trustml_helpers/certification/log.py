"""The table of a certification log: read from a file, and checked before it is believed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trustml_helpers.smoothing import ABSTAIN

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")


class LogError(RuntimeError):
    """A certification log cannot be used; the message says why and what to do."""


def read_table(path: Path) -> pd.DataFrame:
    """The rows as they are written; arguments, errors and columns as for
    :func:`trustml_helpers.certification.read_log`."""
    import pandas as pd

    if not path.is_file():
        raise LogError(f"{path} is missing")
    text = path.read_text(encoding="utf-8", errors="replace")
    end, columns = text.rfind("\n") + 1, text.partition("\n")[0].count("\t") + 1
    # Without counts a last row may be whole and only lack its line end.
    if text[end:] and (columns > len(COLUMNS) or text[end:].count("\t") + 1 < columns):
        warnings.warn(f"{path}: the last row is cut off and left out", UserWarning, stacklevel=3)
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
    log: pd.DataFrame, where: object = "log", needed: Sequence[str] = ()
) -> pd.DataFrame:
    """The log with numbers for what should be numbers, whole ones but for the radius.

    Args:
        log: with any of the columns ``idx label predict correct radius count_...``.
        where: what the message calls it.
        needed: columns that it must have.

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
    counts = [name for name in log.columns if str(name).startswith("count_")]
    most = {"correct": 1.0, "predict": len(counts) - 1 if counts else np.inf}
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
            raise LogError(
                f"{where}: {name} is {log[name].iloc[row]!r} in row {row + 1} below the header; "
                "restore the file, or remove the row and certify the image again"
            )
        found[name] = numbers if name == "radius" else numbers.astype(np.int64)
    return log.assign(**found)


def vote_counts(log: pd.DataFrame) -> NDArray[np.int64]:
    """The votes of each class ``(rows, K)``, a copy; K is 0 if the log does not hold them."""
    names = [name for name in log.columns if str(name).startswith("count_")]
    return log[names].to_numpy(dtype=np.int64, copy=True)
