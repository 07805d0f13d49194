"""Measure what the page of trust says, and write it there with date and commit.

Usage: python docs/site/trust.py faults errors tests

``faults`` plants every fault (make mutations), ``errors`` counts false certificates, ``mutants``
reads the results of make mutants, ``tests`` runs all tests, ``oldest`` those with the oldest
versions (after make oldest). What is not named keeps its last numbers, with their date and commit,
in ``trust.json``.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

ROOT = Path(__file__).resolve().parents[2]
PAGE, NUMBERS = ROOT / "docs/site/trust.md", ROOT / "docs/site/trust.json"
PICTURE = ROOT / "docs/pictures/error_rates.png"
BETWEEN = re.compile(r"(<!-- numbers -->\n).*?(<!-- end of numbers -->)", re.DOTALL)
Rows = dict[str, str]  # what was measured, by what it is

_VERSIONS = """
import importlib.metadata as m, json, platform
names = ["torch", "numpy", "scipy", "pandas", "pytest"]
print(json.dumps({"Python": platform.python_version()} | {n: m.version(n) for n in names}))
"""


def said(*words: str) -> str:
    """What a command prints on stdout; what it writes on stderr is seen."""
    return subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False).stdout


def faults() -> Rows:
    made = ROOT / "build/mutations.csv"
    made.unlink(missing_ok=True)  # those of another day are not measured today
    said(sys.executable, "tests/mutations/plant.py")
    table = pd.read_csv(made)
    return {"planted faults (`make mutations`)": f"{table['caught'].sum()} of {len(table)} caught"}


def errors() -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "rates.csv")
        said(sys.executable, "tests/error_rates.py", str(PICTURE), str(table))
        return {
            f"false answers of {row['name']}": f"{row['false']:,}, a share of {row['rate']:.5f}; "
            f"exactly {row['exact']:.5f}, promised at most 0.001"
            for row in pd.read_csv(table).to_dict("records")
        }


def mutants() -> Rows:
    said(sys.executable, "-m", "mutmut", "export-cicd-stats")
    found = json.loads((ROOT / "mutants/mutmut-cicd-stats.json").read_text())
    judged = len(pd.read_csv(ROOT / "tests/mutations/survivors.csv"))
    return {"blind changes (`make mutants`)": f"{found['killed']:,} of {found['total']:,} turned a "
            f"test red, {judged} are judged one by one"}  # fmt: skip


def ran(python: str, command: str) -> Rows:
    versions = json.loads(said(python, "-c", _VERSIONS))
    text = said(python, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadscope",
                "--no-loadscope-reorder", "-p", "no:cacheprovider")  # fmt: skip
    last = re.findall(r"^=* ?((?:\d+ \w+(?:, )?)+) in ", text, flags=re.M)
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return {f"all tests (`{command}`)": f"{last[-1] if last else 'did not end'}; {shown}"}


def tests() -> Rows:
    return ran(sys.executable, "make test")


def oldest() -> Rows:
    return ran(str(ROOT / "build/oldest/bin/python"), "make oldest")


PARTS: dict[str, Callable[[], Rows]] = {
    "faults": faults, "errors": errors, "mutants": mutants, "tests": tests, "oldest": oldest,
}  # fmt: skip


def page(rows: list[dict[str, str]]) -> str:
    """The table of the page."""
    lines = ["| what | result | commit | date |", "|---|---|---|---|"]
    lines += [f"| {r['what']} | {r['result']} | {r['commit']} | {r['date']} |" for r in rows]
    return "\n".join(lines) + "\n"


def written(text: str, rows: list[dict[str, str]]) -> str:
    return BETWEEN.sub(lambda found: f"{found[1]}\n{page(rows)}\n{found[2]}", text)


def main(parts: Annotated[list[str], typer.Argument(help=", ".join(PARTS))]) -> None:
    """Measure, and write what was found into the page."""
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"parts={sorted(unknown)}: expected some of {', '.join(PARTS)}")
    commit = said("git", "describe", "--always", "--dirty").strip()
    today = f"{datetime.date.today():%-d %B %Y}"
    rows = json.loads(NUMBERS.read_text())
    for part in parts:
        found = PARTS[part]()
        new = [{"part": part, "what": what, "result": result, "commit": commit, "date": today}
               for what, result in found.items()]  # fmt: skip
        rows = [row for row in rows if row["part"] != part] + new
        rows.sort(key=lambda row: list(PARTS).index(row["part"]))
        NUMBERS.write_text(json.dumps(rows, indent=1) + "\n")
        PAGE.write_text(written(PAGE.read_text(), rows))
        print(page(new))


if __name__ == "__main__":
    typer.run(main)
