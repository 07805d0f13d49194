"""Plant every fault of ``faults.py`` in a copy of the repository and see a test turn red.

Usage: python tests/mutations/plant.py [--only WORDS] [--jobs 2]

Prints a table of faults and their catchers, also to build/mutations.csv; ends with 1 if a fault
was not caught, or if the tests that should catch it are red without it.
"""

from __future__ import annotations

import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from faults import FAULTS, Fault
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
RED, GREEN, NO_VERDICT = 1, 0, -1  # pytest's exit status; anything but red and green is no verdict


def copied(folder: Path) -> Path:
    """The repository's files as they are now, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@contextmanager
def planted(fault: Fault, copy: Path) -> Iterator[None]:
    """The fault in the copy, and the sound file back afterwards."""
    path = copy / fault.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(fault.change(sound), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(sound, encoding="utf-8")


def verdict(tests: str, copy: Path) -> tuple[int, str]:
    """pytest's exit status in the copy, and the first test that failed."""
    own = {
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "TESTS": "fault",
    }
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist",
             *shlex.split(tests)],
            cwd=copy, env=os.environ | own, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return NO_VERDICT, "no verdict: stopped after 600 s"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, flags=re.M)
    # A run that crashed may have said nothing, or only on stderr.
    said = (ran.stdout.strip() or ran.stderr.strip() or "nothing was printed").splitlines()[-1]
    return ran.returncode, failed[1] if failed else f"exit status {ran.returncode}: {said}"


def together(faults: list[Fault]) -> dict[str, str]:
    """One run per file for all its tests that are named: by file, as pytest takes it."""
    words: dict[str, list[str]] = {}
    for fault in faults:
        files, _, expression = fault.tests.partition(" -k ")
        words.setdefault(files, []).append(f"({expression.strip(chr(39))})" if expression else "")
    return {
        files: f"{files} -k '{' or '.join(dict.fromkeys(each))}'" if all(each) else files
        for files, each in words.items()
    }


def main(
    only: Annotated[str, typer.Option(help="Faults whose description holds these words.")] = "",
    jobs: Annotated[int, typer.Option(help="Processes side by side.", min=1)] = 2,
) -> None:
    """Every fault must be caught, by tests that are green without it."""
    chosen = [fault for fault in FAULTS if only in fault.what]
    for fault in chosen:
        fault.change((ROOT / fault.file).read_text(encoding="utf-8"))  # it still fits
    with tempfile.TemporaryDirectory() as folder:
        copies: queue.Queue[Path] = queue.Queue()
        for k in range(jobs):
            copies.put(copied(Path(folder, str(k))))

        def tried(work: Fault | str) -> tuple[int, str, float]:
            copy, started = copies.get(), time.monotonic()
            try:
                with planted(work, copy) if isinstance(work, Fault) else nullcontext():
                    found = verdict(work.tests if isinstance(work, Fault) else work, copy)
                return *found, time.monotonic() - started
            finally:
                copies.put(copy)

        sound = together(chosen)
        with ThreadPoolExecutor(jobs) as pool:
            work = [*chosen, *sound.values()]
            results = list(tqdm(pool.map(tried, work), total=len(work), desc="faults", leave=False))
    without = dict(zip(sound, results[len(chosen) :], strict=True))
    rows = []
    for fault, (status, words, seconds) in zip(chosen, results, strict=False):
        before, what, _ = without[fault.tests.partition(" -k ")[0]]
        words = words if before == GREEN else f"red without it: {what}"
        caught = status == RED and before == GREEN
        rows.append({"fault": fault.what, "in": fault.file, "caught": caught, "by": words,
                     "seconds": round(seconds, 1)})  # fmt: skip
    table = pd.DataFrame(rows)
    out = ROOT / "build/mutations.csv"
    out.parent.mkdir(exist_ok=True)
    table.to_csv(out, index=False)
    print(table[["fault", "by"]].to_string(index=False, max_colwidth=100))
    missed = table.loc[~table["caught"], "fault"].tolist()
    print(f"{len(table) - len(missed)} of {len(table)} faults caught; the table is in {out}")
    if missed:
        sys.exit(f"not caught: {'; '.join(missed)}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
