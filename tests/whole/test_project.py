"""What must hold of the repository as a whole."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from hashlib import sha256

import pytest
from helpers import ROOT, tracked

import trustml_helpers
from trustml_helpers import data
from trustml_helpers._support.arguments import DECLARED

CONDA_NAMES = {"torch": "pytorch"}
ONLY_PYPI = {"sphinx-mathjax-offline", "efficientnet-lite-pytorch"}  # pip installs them
PROGRAMS = sorted((ROOT / "trustml_helpers").rglob("*.py"))


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
    assert re.findall(r"^      - (.+)$", text, flags=re.M) == [
        "efficientnet-lite-pytorch>=0.1", "--editable .[homework]"
    ]  # fmt: skip


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_order_of_imports_is_kept_and_could_be_broken(tmp_path):
    """`make lint` asks import-linter; here it is asked of a copy that breaks the rules, too."""
    code = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"

    def said():
        run = subprocess.run([sys.executable, "-c", code, "--no-cache"], cwd=tmp_path,
                             capture_output=True, text=True)  # fmt: skip
        return run.stdout + run.stderr

    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "trustml_helpers", tmp_path / "trustml_helpers")
    assert " 0 broken" in said()
    for file, line in (
        ("bounds.py", "import torch"),
        ("attacks/norms.py", "from trustml_helpers import smoothing"),
        ("training/loop.py", "from trustml_helpers.attacks.gradient import pgd"),
        ("models.py", "import typer"),
    ):
        with (tmp_path / "trustml_helpers" / file).open("a") as module:
            module.write(f"\n{line}\n")
    assert " 4 broken" in said()


def test_files_that_settings_name_are_there():
    """A path that finds nothing is silent: mutmut and ruff pass it over."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    mutants = tool["mutmut"]
    paths = [*mutants["only_mutate"], *mutants["pytest_add_cli_args_test_selection"],
             *mutants["also_copy"], *tool["pytest"]["ini_options"]["pythonpath"],
             *tool["pytest"]["ini_options"]["testpaths"],
             *(path for path in tool["ruff"]["lint"]["per-file-ignores"] if "*" not in path),
             "docs/site/reference.md", "docs/site/assemble.py", "docs/slides/cut.py"]  # fmt: skip
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert len(PROGRAMS) > 40
    assert {path.parent.name for path in PROGRAMS} >= {"attacks", "certification", "cli"}


def test_the_reference_names_every_public_module():
    text = (ROOT / "docs/site/reference.md").read_text()
    assert set(re.findall(r"^   (\w+)$", text, flags=re.M)) == set(trustml_helpers.__all__) - {
        "__version__"
    }


def test_examples_of_declared_functions_are_run():
    """A decorator can hide a docstring from doctest; nothing would say so."""
    modules = [importlib.import_module(each.name)
               for each in pkgutil.walk_packages(trustml_helpers.__path__, "trustml_helpers.")
               if not each.name.endswith("__main__")]  # fmt: skip
    finder = doctest.DocTestFinder()
    found = {each.name for module in modules for each in finder.find(module) if each.examples}
    expected = {name for name, function in DECLARED.items() if ">>>" in (function.__doc__ or "")}
    assert "trustml_helpers.attacks.gradient.pgd" in expected
    assert expected <= found
    assert len(found) >= 80


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
        "setup.py",
        "MANIFEST.in",
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
             if p.suffix in (".csv", ".gz", ".tsv", ".safetensors")}  # fmt: skip
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
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("tests/mutations/*.md")]
    for folder in ("benchmarks", "data", "docs"):
        pages += (ROOT / folder).rglob("*.md")
    pages.remove(ROOT / "docs/slides/index.md")  # links what Sphinx makes
    found = 0
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
            found += 1
    assert found > 70


def test_the_readme_is_short_and_its_commands_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"\bmake (?:PYTHON=\S+ )?([a-z][\w-]+)", readme)) - {"the"}
    assert {"course", "test", "lab", "site", "slides"} <= named <= targets
    for command in ("python3 -m venv .venv", "conda env create -f environment.yml"):
        assert command in readme


@pytest.mark.slow
def test_the_examples_of_the_pages_run(monkeypatch, tmp_path, capsys):
    """As they stand, with fewer images."""
    found = {
        page: re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), flags=re.M | re.S)
        for page in ("README.md", "docs/site/package.md")
    }
    train, certify = found["docs/site/package.md"]
    assert found["README.md"] == [train]
    load = data.load_mnist
    monkeypatch.setattr(data, "load_mnist", lambda split: tuple(z[:400] for z in load(split)))
    monkeypatch.chdir(tmp_path)
    for example, changes in (
        (train, {"5000": "100", "epochs=2": "epochs=1", "steps=40": "steps=5"}),
        (certify, {"10_000, 100": "400, 100"}),
    ):
        for old, new in changes.items():
            assert old in example
            example = example.replace(old, new)
        exec(compile(example, "example", "exec"), {})
        assert capsys.readouterr().out.strip()
    assert (tmp_path / "log.tsv").exists()


def body_lines(function):
    """From the first line after signature and docstring to the last."""
    first, *rest = function.body
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and rest:
        first = rest[0]
    return function.end_lineno - first.lineno + 1


def test_no_function_is_longer_than_it_should_be():
    sizes = {}
    for path in PROGRAMS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                sizes[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = body_lines(node)
    assert len(sizes) > 400
    assert {name: size for name, size in sizes.items() if size > 60} == {}
    docstring = ast.parse('def f(a,\n      b):\n    """One\n    two."""\n    a\n\n    b').body[0]
    assert body_lines(docstring) == 3
