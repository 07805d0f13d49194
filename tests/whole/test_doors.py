"""Ways into the course besides the repository: source distribution, wheel, PyTorch for the CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
from helpers import BEYOND, LESSONS, ROOT, tracked

pytestmark = pytest.mark.slow

ALONE = """
import trustml_helpers
from trustml_helpers import data
try:
    data.load_mnist("test")
except data.DataError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Built from a copy of what git tracks, so that nothing else can come along."""
    copy = tmp_path_factory.mktemp("repository")
    for path in tracked():
        if path.suffix != ".md" or path.name == "README.md":
            to = copy / path.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    made = tmp_path_factory.mktemp("dist")
    for kind in ("sdist", "wheel"):
        build = f"import setuptools.build_meta as b, sys; b.build_{kind}(sys.argv[1])"
        subprocess.run([sys.executable, "-c", build, str(made)], cwd=copy, check=True,
                       capture_output=True)  # fmt: skip
    return made


def installed(sdist, folder, pattern):
    """A new environment that has the dependencies from here, and this package from an archive."""
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    (site / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")  # not its own .pth files
    (archive,) = sdist.glob(pattern)
    words = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *words, str(archive)],
                   check=True)  # fmt: skip
    return python


def said(python, *words):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRUSTML_DATA")}
    done = subprocess.run([str(python), "-I", *words], env=environment, cwd=python.parent,
                          capture_output=True, text=True, check=False)  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_source_distribution_brings_and_opens_the_course(sdist, tmp_path):
    python = installed(sdist, tmp_path / "new", "*.tar.gz")
    code, text = said(python, "-c", "import trustml_helpers as t; print(t.__file__)")
    assert (code, str(tmp_path) in text) == (0, True)
    folder = tmp_path / "my course"
    command = ["-m", "trustml_helpers", "course", str(folder), "--no-open"]
    code, text = said(python, *command)
    assert (code, f"{len(LESSONS) + len(BEYOND)} notebooks copied" in text) == (0, True), text
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*.ipynb")}
    wanted = [*LESSONS.values(), *BEYOND.values()]
    assert there == {path.relative_to(ROOT / "notebooks").as_posix() for path in wanted}
    first = folder / LESSONS["01_adversarial_examples"].name
    assert "Your turn: about" in first.read_text()
    nbformat.validate(json.loads(first.read_text()))
    first.write_text("mine")
    code, text = said(python, *command, "--edition", "complete")
    assert "0 notebooks copied" in text
    assert first.read_text() == "mine"
    code, text = said(python, "-c", "from trustml_helpers import data, models\n"
                      "x, y = data.load_mnist('test')\n"
                      "print(models.load('mnist_smallcnn_standard')(x[:8]).argmax(1).tolist())"
                      )  # fmt: skip
    assert "[7, 2, 1, 0, 4, 1, 4, 9]" in text


def test_the_wheel_is_the_package_alone_and_says_so(sdist, tmp_path):
    python = installed(sdist, tmp_path / "new", "*.whl")
    code, text = said(python, "-c", ALONE)
    assert code == 0
    assert "is the package alone, without the notebooks and the data" in text
    assert "TRUSTML_DATA" in text
    code, text = said(python, "-m", "trustml_helpers", "course", str(tmp_path / "c"), "--no-open")
    assert code == 2
    assert "error: " in text
    assert "source distribution" in text
    assert not (tmp_path / "c").exists()


def test_the_wheel_holds_the_whole_package(sdist):
    """An editable install, as here, would not miss a room."""
    (wheel,) = sdist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}
    programs = [path for path in tracked() if ROOT / "trustml_helpers" in path.parents]
    assert packed == {path.relative_to(ROOT).as_posix() for path in programs}
    assert len({Path(name).parent for name in packed}) >= 10


def test_neither_holds_the_solved_homework_and_the_wheel_is_small(sdist):
    (source,) = sdist.glob("*.tar.gz")
    (wheel,) = sdist.glob("*.whl")
    names = subprocess.run(["tar", "tzf", str(source)], capture_output=True, text=True,
                           check=True).stdout.split()  # fmt: skip
    assert any(name.endswith("/notebooks/05_certification.ipynb") for name in names)
    assert any("/data/results/mnist_study/" in name for name in names)
    assert not [name for name in names if "homework/source" in name or "/tests/" in name]
    assert source.stat().st_size < 40e6
    assert wheel.stat().st_size < 1e6


def test_one_variable_chooses_pytorch_without_nvidia():
    """The index of PyTorch is asked before anything needs torch, and only if the variable says."""

    def commands(*words):
        done = subprocess.run(["make", "-n", "-W", "pyproject.toml", ".venv/.installed", *words],
                              cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
        return done.stdout.replace("\\\n", " ")

    text = commands("TORCH=cpu")
    line = "pip install --quiet torch torchvision"
    assert text.index(line) < text.index("--editable '.[dev,homework,docs]'")
    assert "--index-url https://download.pytorch.org/whl/cpu" in text
    assert 'test -z "cpu" ||' in text
    assert 'test -z "" ||' in commands()
