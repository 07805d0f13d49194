"""Files that a kill cannot leave half-written, and that two processes do not write at once."""

from __future__ import annotations

import contextlib
import json
import operator
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


class InUseError(OSError):
    """Another process is writing the file."""


def replace_file(path: Path, raw: bytes) -> None:
    """Write a whole file or nothing: a kill leaves the old content, never half of the new."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(raw)
    os.replace(temporary, path)


def settings_file(path: Path) -> Path:
    """The JSON beside a log, where its settings are.

    Raises:
        ValueError: for a name whose JSON would be the log itself, or that of other logs too.
    """
    word = path.suffix[1:].lower()
    if not word.isalpha() or word == "json":  # run_0.25 and run_0.5 would share run_0.json
        raise ValueError(
            f"path={str(path)!r}: expected the name of a log with a suffix such as .tsv or .csv, "
            f"since its settings go beside it as JSON; call it {path.name}.tsv, say"
        )
    return path.with_suffix(".json")


def read_settings(path: Path) -> dict[str, Any]:
    """What a JSON file of settings holds.

    Raises:
        ValueError: if it is not JSON, or no object of it.
        OSError: if it cannot be read.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"expected names and values, got {type(found).__name__}")
    return found


def whole(**number: Any) -> int:
    """The one number given by its name, as JSON can hold it; ValueError if it is not whole.

    >>> import numpy as np
    >>> whole(seed=np.int64(3))
    3
    """
    ((name, value),) = number.items()
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(
            f"{name}={value!r}: expected a whole number, such as {name}=100"
        ) from error


@contextlib.contextmanager
def only_writer(path: str | Path) -> Iterator[None]:
    """Keep a file to oneself while it grows; other readers are not hindered.

    A lock lies beside the file, as ``<name>.lock``. It ends with the process, however that ends.

    Raises:
        InUseError: if another process holds the lock.
        OSError: if the folder cannot be written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InUseError(
            f"{path} is being written by another process: wait for its end, or use another path"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove what is open
            os.unlink(lock.lock_file)
        lock.release()
