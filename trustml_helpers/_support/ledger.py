"""A table that grows row by row while a run lasts, and the settings that it belongs to.

Logs of certification and of attacks are ledgers. The state of a training run is one file, replaced
as a whole; it asks the same question, :func:`same_run`, of the settings inside it.
"""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trustml_helpers._support.files import LogError, only_writer, replace_file


class Ledger:
    """A table of text, one row a line, with its settings beside it as JSON.

    One process writes it. A kill at any moment leaves whole rows, but for the last; a run of the
    same settings goes on where they end, and one of other settings is refused.

    Args:
        path: of the table, with a suffix such as ``.tsv`` or ``.csv``.
        header: its first line, without the end.

    Raises:
        ValueError: for a name whose JSON would be the table itself, or that of other tables too.
    """

    def __init__(self, path: str | Path, header: str) -> None:
        self.path, self.header = Path(path), header
        self.beside = settings_file(self.path)

    def known(
        self, wanted: Mapping[str, Any], *, resume: bool = True, optional: Collection[str] = ()
    ) -> dict[str, Any] | None:
        """The settings that an earlier run left, if they are the wanted ones; None if it is new.

        Args:
            wanted: by name; what is None may be anything.
            resume: whether a table that exists may be gone on with.
            optional: names that the settings of an old table may lack.

        Raises:
            LogError: if table or settings belong to something else (names the difference).
        """
        exists = self.path.exists()
        if not exists and (parts := self.parts()):
            raise LogError(
                f"{', '.join(part.name for part in parts)}: rows of an earlier run are there, but "
                f"{self.path} is not; restore it with {self.beside.name}, or remove them"
            )
        if not exists and not self.beside.exists():
            return None
        if exists and not resume:
            raise LogError(
                f"{self.path} exists: pass resume=True to go on with it, or another path"
            )
        if not self.beside.exists():
            raise LogError(
                f"{self.beside} is missing, so the settings of {self.path} are not known; rename it"
            )
        which, cure = self.path, "use another path"
        if not exists:  # as a kill between the two leaves it, or the JSON of something else
            which, cure = self.beside, f"use another path than {self.path}, or remove it"
        try:
            found = read_settings(self.beside)
        except (OSError, ValueError) as error:
            raise LogError(f"{self.beside} cannot be read ({error}): {cure}") from error
        asked = {k: v for k, v in wanted.items() if k in found or not (exists and k in optional)}
        same_run(found, asked, which, cure)
        return found

    @contextmanager
    def held(self, *, new: bool) -> Iterator[None]:
        """Write the table alone.

        Raises:
            LogError: if another process writes it, or has written it since it was found ``new``.
            OSError: if the folder cannot be written to.
        """
        with only_writer(self.path):
            if new and self.path.exists():
                raise LogError(f"{self.path} was written meanwhile: start again to go on with it")
            yield

    def begin(self, settings: Mapping[str, Any] | None) -> None:
        """Write the settings, if any are new, and the header, if there is no table yet."""
        if settings is not None:
            replace_file(self.beside, (json.dumps(settings, indent=2) + "\n").encode())
        if not self.path.exists():
            replace_file(self.path, f"{self.header}\n".encode())

    def rows(self) -> list[str]:
        """The rows with their line ends, those of other processes last; a cut-off one is dropped.

        Raises:
            LogError: if the table does not begin as this one should.
        """
        header, *rows = _whole_lines(self.path)
        if header.strip() != self.header:
            raise LogError(f"{self.path} does not begin with {self.header[:60]!r}; rename it")
        return rows + [row for part in self.parts() for row in _whole_lines(part)]

    def keep(self, rows: Iterable[str]) -> None:
        """Let the table hold these rows, and no other process any.

        A kill at any moment leaves the old table with its parts, or the new one.
        """
        joined = "".join([f"{self.header}\n", *rows]).encode()
        if joined != self.path.read_bytes():
            replace_file(self.path, joined)
        for part in self.parts():
            part.unlink()

    @contextmanager
    def writing(self, rank: int | None = None) -> Iterator[Callable[[str], None]]:
        """A function that puts rows on the disk at once; with a ``rank``, those of a part."""
        path = self.path if rank is None else self.path.with_name(f"{self.path.name}.part{rank}")
        with path.open("ab", buffering=0) as table:

            def write(rows: str) -> None:
                raw = rows.encode()
                try:
                    while raw:
                        raw = raw[table.write(raw) :]
                except OSError as error:
                    error.add_note(f"{path}: what is in it is kept; make room, then start again")
                    raise

            yield write

    def parts(self) -> list[Path]:
        """What the processes of a run have written beside the table."""
        return sorted(self.path.parent.glob(glob.escape(self.path.name) + ".part[0-9]*"))

    def check_space(self, needed: int) -> None:
        """Refuse to start what could not be written to its end; in bytes."""
        free = shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise LogError(
                f"{self.path}: the rows need {needed:,} bytes, {free:,} are free; make room"
            )


def settings_file(path: Path) -> Path:
    """The JSON beside a table, where its settings are.

    Raises:
        ValueError: for a name whose JSON would be the table itself, or that of other tables too.
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


def same_run(
    known: Mapping[str, Any], wanted: Mapping[str, Any], which: Path, cure: str,
    error: type[Exception] = LogError,
) -> None:  # fmt: skip
    """Raise an error that names the first setting that is not as wanted.

    Args:
        known, wanted: settings by name, as JSON holds them; what is wanted as None may be anything.
        which: the file that holds ``known``.
        cure: what else to do than to use the same settings.
        error: the kind to raise.
    """
    for name, value in wanted.items():
        if value is None or known.get(name) == value:
            continue
        was, now = _apart(known.get(name), value)
        if name.endswith("sha256"):
            what = {
                "model": "another network", "images": "other images or labels",
                "model_code": "a network of other attributes or source",
            }.get(name.removesuffix("_sha256"), "something else")  # fmt: skip
            was, now = f"{str(was)[:12]}...", f"{str(now)[:12]}..."
            raise error(f"{which} was made with {what}, {name} {was}, not {now}: {cure}")
        raise error(
            f"{which} was made with {name}={was!r}, not {now!r}: use the same settings, or {cure}"
        )


def _apart(was: Any, now: Any) -> tuple[Any, Any]:
    """Both, without what two dictionaries have in common."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return was, now
    pairs = {k: _apart(was.get(k), now.get(k)) for k in was | now if was.get(k) != now.get(k)}
    return {k: a for k, (a, _) in pairs.items()}, {k: b for k, (_, b) in pairs.items()}


def joined(old: Any, new: Any) -> Any:
    """What is new, and of dictionaries also what only the old one has."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: joined(old.get(key), value) for key, value in new.items()}


def _whole_lines(path: Path) -> list[str]:
    """Lines with their ends; what a kill left of the last one is dropped."""
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines(keepends=True) or [""]
