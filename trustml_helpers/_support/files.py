"""Files that a kill cannot leave half-written, and that two processes do not write at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


class LogError(RuntimeError, ValueError):
    """A log cannot be used; the message says why and what to do."""


class InUseError(LogError, OSError):
    """Another process is writing the file."""


def replace_file(path: Path, raw: bytes) -> None:
    """Write a whole file or nothing: a kill leaves the old content, never half of the new."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(raw)
    os.replace(temporary, path)


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
