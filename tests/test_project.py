"""What must hold of the repository as a whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from hashlib import sha256
from pathlib import Path

import pytest
from helpers import ROOT

import trustml_helpers

CONDA_NAMES = {"torch": "pytorch"}
ONLY_PYPI = {"sphinx-mathjax-offline"}  # pip installs it with the extra "homework"


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the tracked files are not known")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_environment_and_pyproject_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        each for extra in ("dev", "homework") for each in project["optional-dependencies"][extra]
    ]
    expected = {f"python{project['requires-python']}", "pip"}
    for entry in wanted:
        name, bound = re.fullmatch(r"([\w-]+)(.*)", entry).groups()
        if name not in ONLY_PYPI:
            expected.add(CONDA_NAMES.get(name, name) + bound)
    text = (ROOT / "environment.yml").read_text()
    found = set(re.findall(r"^  - (\S+)$", text, flags=re.M)) - {"conda-forge", "pip:"}
    assert found == expected
    # conda writes these lines to a requirements file: options of the command line end in an error.
    assert re.findall(r"^      - (.+)$", text, flags=re.M) == ["--editable .[homework]"]


def test_import_is_light():
    """`import trustml_helpers` must not pull in torchvision, pandas or matplotlib."""
    code = (
        "import sys, trustml_helpers as t; t.attacks.pgd, t.models.load, t.training.fit; "
        "print([m for m in ('torchvision', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_modules_are_reachable_and_others_are_not():
    assert "attacks" in dir(trustml_helpers)
    assert callable(trustml_helpers.attacks.pgd)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = trustml_helpers.nonsense


def test_imports_go_down_the_list_only():
    order = [
        "cli",
        "cli_training",
        "cli_study",
        "study",
        "cli_homework",
        "cli_smoothing",
        "cli_inputs",
        "homework",
        "checks",
        "masked",
        "curve_checks",
        "smoothing_checks",
        "attack_checks",
        "checking",
        "widgets",
        "smoothing_figures",
        "lesson_figures",
        "figures",
        "certification",
        "execution",
        "audit",
        "logs",
        "recipes",
        "training",
        "resume",
        "objectives",
        "noise_objectives",
        "attack_log",
        "robustness",
        "diagnosis",
        "evaluation",
        "smoothing",
        "votes",
        "attacks",
        "strong_attacks",
        "losses",
        "norms",
        "processes",
        "theory",
        "sequential",
        "bounds",
        "models",
        "files",
        "data",
    ]
    for place, name in enumerate(order):
        text = (ROOT / "trustml_helpers" / f"{name}.py").read_text()
        used = set(re.findall(r"^from trustml_helpers\.(\w+) import", text, flags=re.M))
        whole = r"^from trustml_helpers import (?:\(([\w,\s]+)\)|([\w, ]+)$)"
        for group in re.findall(whole, text, flags=re.M):
            used |= set(re.findall(r"\w+", " ".join(group)))
        assert used <= set(order[place + 1 :]), name
    doors = {"__init__", "__main__"}
    assert {path.stem for path in (ROOT / "trustml_helpers").glob("*.py")} == set(order) | doors


def test_repository_stays_small():
    files = tracked()
    assert sum(path.stat().st_size for path in files) < 60e6
    assert {path.relative_to(ROOT).parts[0] for path in files} <= {
        "README.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "CITATION.cff",
        "pyproject.toml",
        "environment.yml",
        "Makefile",
        ".ci",
        ".gitignore",
        "notebooks",
        "trustml_helpers",
        "tests",
        "benchmarks",
        "data",
        "docs",
    }


def test_every_data_folder_explains_itself():
    for folder in (ROOT / "data").iterdir():
        if folder.is_dir() and any(path.parent == folder for path in tracked()):
            text = (folder / "README.md").read_text()
            for word in ("Source", "icence", "sha256", "Made by"):
                assert word in text, f"{folder.name}: {word}"


@pytest.mark.parametrize("folder", ["published", "results", "checkpoints"])
def test_stored_results_are_those_their_page_describes(folder):
    found = {p.relative_to(ROOT / "data" / folder).as_posix(): p
             for p in (ROOT / "data" / folder).rglob("*")
             if p.suffix in (".csv", ".tsv", ".safetensors")}  # fmt: skip
    described, row = {}, re.compile(r"^\| ([\w./-]+) \| ([0-9a-f]{64}) \|$", flags=re.M)
    for page in (ROOT / "data" / folder).rglob("README.md"):  # names are relative to their page
        for name, key in row.findall(page.read_text()):
            described[(page.parent / name).relative_to(ROOT / "data" / folder).as_posix()] = key
    assert described == {
        name: sha256(path.read_bytes()).hexdigest() for name, path in found.items()
    }


def test_make_course_copies_what_is_there():
    """The last step comes after minutes of notebooks: too late to find a wrong path."""
    if not shutil.which("make") or not (ROOT / ".venv/.installed").exists():
        pytest.skip("needs make and the environment that it installs")
    planned = subprocess.run(
        ["make", "--dry-run", "course"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    copied = re.findall(r"^cp (\S+) build/course/$", planned.stdout, flags=re.M)
    assert len(copied) == 1
    assert list(ROOT.glob(copied[0])), copied


def test_readme_links_lead_somewhere():
    pages = set((ROOT / "docs").rglob("*.md"))
    for built in ("site", "slides"):  # whose links are Sphinx's
        pages -= set((ROOT / "docs" / built).rglob("*.md"))
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *pages]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_function_is_longer_than_it_should_be():
    for path in (ROOT / "trustml_helpers").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 480, path.name
