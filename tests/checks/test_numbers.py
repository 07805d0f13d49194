"""The numbers of a year: source and toml agree, another year has others, tasks can be swapped."""

from __future__ import annotations

import copy
import re

import nbformat
import pytest
import tiny_homework as tiny
from helpers import ROOT

from trustml_helpers import checks
from trustml_helpers.checks.grading import homework

YEARS = ("2027", "2028", "2029")


@pytest.fixture
def tiny_source(tmp_path, monkeypatch):
    tiny.build(tmp_path)
    tiny.use(tmp_path, monkeypatch.setattr)
    return tmp_path


def code_of(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def hidden(notebook):
    """Points, seed and the rest of every hidden check."""
    text = "\n".join(code_of(notebook))
    line = r"checks\.score\(\s*([\d.]+), checks\.(\w+), \w+, seed=(\d+)(.*)"
    return re.findall(line, text)


def test_the_source_shows_the_numbers_of_its_toml():
    assert homework.as_written(homework.numbers()) == []
    assert sum(homework.numbers().points.values()) == 100


@pytest.mark.parametrize("year", YEARS)
def test_another_year_has_other_numbers_and_the_same_tasks(year):
    source = homework.source(homework.numbers())
    other = homework.source(homework.numbers(year))
    assert homework.source(homework.numbers(year)) == other  # the same name, the same homework
    pairs = list(zip(hidden(source), hidden(other), strict=True))
    assert len(pairs) == 15
    assert all(a[:2] == b[:2] and a[2] != b[2] for a, b in pairs)
    assert len({seed for _, _, seed, _ in hidden(other)}) == 15
    now, then = homework.numbers().values, homework.numbers(year).values
    assert all(now[name] != then[name] for name in now if name not in ("masked_eps",))
    (text,) = [cell.source for cell in other.cells if "who is on top in between" in cell.source]
    shown = [float(one) for one in re.findall(r"<!--radii\.\d-->([\d.]+)<!---->", text)]
    assert shown == then["radii"]
    assert f"N_MORE = {then['n_more']:_}" in code_of(other)[2]
    (reading,) = [rest for _, name, _, rest in hidden(other) if name == "reading"]
    assert f"radii=({then['radii'][0]:g}, " in reading.replace(".0,", ",")
    assert other.metadata["trustml"] == {"homework": "hw1", "variant": year}


@pytest.mark.parametrize("year", YEARS)
def test_last_years_constants_fail(year):
    """The five numbers of the source earn less with the questions of another year."""
    values, now = homework.numbers(year).values, homework.numbers().values

    def of_the_source():
        return 0.5, 1.0, 0.79, 0.8, 0.9527

    def points(values):
        settings = {name: values[name] for name in ("radii", "curves")} | {"n": values["n_more"]}
        return checks.score(4, checks.reading, of_the_source, seed=0, **settings)

    assert points(now) == 4
    assert points(values) <= 2


def test_the_seeds_of_a_year_need_its_secret(tiny_source):
    """The code is public, and so is the file as it comes; a course writes its own secret."""
    seeds = homework.numbers("2027").seeds
    assert homework.numbers("2027").seeds == seeds
    toml = tiny_source / "hw1.toml"
    toml.write_text(toml.read_text().replace('"tiny"', '"another"'))
    other = homework.numbers("2027").seeds
    assert all(seeds[name] != other[name] for name in seeds)
    toml.write_text(toml.read_text().replace('secret = "another"', ""))
    with pytest.raises(checks.HomeworkError, match="'secret' is not as needed"):
        homework.numbers()


def test_the_visible_checks_use_the_cell_of_numbers_and_the_hidden_ones_do_not():
    """A student may change the cell, and then only deceives himself."""
    source = homework.source(homework.numbers())
    names = {name.upper() for name in homework.numbers().values}
    for cell in source.cells:
        words = set(re.findall(r"\w+", cell.source))
        if "### BEGIN HIDDEN TESTS" in cell.source:
            assert not words & names
    used = {name for text in code_of(source)[3:] for name in names & set(re.findall(r"\w+", text))}
    assert used == names


@pytest.mark.parametrize(("task", "other"), [
    ("pgd-best", "momentum-pgd"), ("abstention", "radius-p-value"),
])  # fmt: skip
def test_a_task_is_swapped_whole(tmp_path, monkeypatch, task, other):
    for path in homework.FOLDER.rglob("*"):
        if path.is_file() and ".ipynb_checkpoints" not in path.parts:
            copy_to = tmp_path / path.relative_to(homework.FOLDER)
            copy_to.parent.mkdir(exist_ok=True)
            copy_to.write_bytes(path.read_bytes())
    toml = tmp_path / "hw1.toml"
    toml.write_text(toml.read_text() + f'{task} = "{other}"\n')
    tiny.use(tmp_path, monkeypatch.setattr)
    year = homework.numbers()
    source = homework.source(year)
    names = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in source.cells]
    assert f"{other}-graded" in names
    assert f"{task}-graded" not in names
    assert sum(year.points.values()) == 100
    text = "\n".join(code_of(source))
    assert f"def {task.replace('-', '_')}(" not in text
    assert f"{task.replace('-', '_')}(" not in text  # nothing that used it is left
    heads = [c.source.split()[1] for c in source.cells if c.source.startswith("## ")]
    assert heads == [str(n) for n in range(1, 14)] or heads[:12] == [str(n) for n in range(1, 13)]
    toml.write_text(toml.read_text().replace(f'"{other}"', '"nothing"'))
    with pytest.raises(checks.HomeworkError, match="there are momentum-pgd, radius-p-value"):
        homework.source(homework.numbers())


def test_alternatives_are_whole_tasks():
    found = sorted((homework.FOLDER / "alternatives").glob("*.ipynb"))
    assert [path.stem for path in found] == ["momentum-pgd", "radius-p-value"]
    for path in found:
        setup, *cells = nbformat.read(path, 4).cells
        assert "left out where the task is swapped in" in setup.source
        names = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in cells]
        assert names[2:5] == [path.stem, f"{path.stem}-check", f"{path.stem}-graded"]
        assert cells[0].source.startswith("## ")
        assert cells[1].source.count("<details>") >= 2


def test_points_that_do_not_agree_are_refused(tiny_source):
    notebook = nbformat.read(homework.SOURCE, 4)
    for change in (
        lambda cell: cell.source.replace("checks.score(4,", "checks.score(5,"),
        lambda cell: cell.source.replace("*4 points*", "*3 points*"),
        lambda cell: cell.source.replace("# Graded, 6 points", "# Graded, 7 points"),
        lambda cell: cell.source.replace("N = 7", "N = 8"),
        lambda cell: cell.source.replace("<!--n-->7", "<!--n-->6"),
    ):
        other = copy.deepcopy(notebook)
        for cell in other.cells:
            cell.source = change(cell)
        assert other != notebook
        nbformat.write(other, homework.SOURCE)
        with pytest.raises(checks.HomeworkError, match="does not show the numbers"):
            checks.release(tiny_source / "out")
        assert not (tiny_source / "out").exists()
    checks.write_numbers()
    assert nbformat.read(homework.SOURCE, 4).cells == notebook.cells
    other = copy.deepcopy(notebook)
    other.cells[6].metadata["nbgrader"]["points"] = 9
    nbformat.write(other, homework.SOURCE)
    with pytest.raises(checks.HomeworkError, match="does not show the numbers"):
        checks.release(tiny_source / "out")


@pytest.mark.parametrize(("old", "new", "message"), [
    ("two-graded = 4\n", "", r"\[points\] and the graded cells .* differ in two-graded"),
    ("three-graded = 2\n", "three-graded = 2\nfour-graded = 1\n", "differ in four-graded"),
    ("n = 7\n", "n = 7\nm = 8\n", "nothing in the notebook shows m"),
    ("[values]", "[value]", "'values' is not as needed"),
    ("[seeds]", "[seeds", "is not as needed"),
    ("two-graded = 4", "two-graded = 0", "points.two-graded=0: expected a number above 0"),
    ("two-graded = 4", "two-graded = 'four'", "points.two-graded='four': expected a number above"),
])  # fmt: skip
def test_a_toml_that_does_not_fit_is_refused(tiny_source, old, new, message):
    path = tiny_source / "hw1.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    if "shows m" in message:  # the cell of numbers would show it
        notebook = nbformat.read(homework.SOURCE, 4)
        notebook.cells = [cell for cell in notebook.cells if "tags" not in cell.metadata]
        nbformat.write(notebook, homework.SOURCE)
    with pytest.raises(checks.HomeworkError, match=message):
        homework.source(homework.numbers())


def test_single_numbers_of_a_year_can_be_decided(tiny_source):
    year = homework.numbers("2030")
    assert year.points == {"two-graded": 1, "three-graded": 6, "why": 5}
    source = homework.source(year)
    assert "*1 points*" in source.cells[3].source
    assert "**Points** 12;" in source.cells[0].source
    assert source.cells[6].metadata["nbgrader"]["points"] == 1


def test_the_source_is_not_one_click_from_the_readme():
    text = (ROOT / "README.md").read_text()
    assert "homework/source" not in text
