"""What the lecture promises: its times, its editions, what a page folds, and one deck of slides."""

from __future__ import annotations

import ast
import copy
import re
import subprocess

import nbformat
import pytest
import typer
from helpers import BEYOND, LESSONS, read_notebook, script

from trustml_helpers import checks
from trustml_helpers.cli import course

pytestmark = pytest.mark.slow  # with the reading of five notebooks


minutes = script("docs/minutes.py")
assemble = script("docs/site/assemble.py")
cut = script("docs/slides/cut.py")

EACH = LESSONS | BEYOND


@pytest.fixture(params=EACH)
def lesson(request):
    return read_notebook(EACH[request.param])


def tags(cell):
    return cell.metadata.get("tags", [])


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# --- time ---------------------------------------------------------------------------------------


def test_a_notebook_fits_its_time_and_says_it(lesson):
    core = minutes.core(lesson)
    promise = next(cell.source for cell in lesson.cells if "**Time**" in cell.source)
    said = re.search(r"\*\*Time\*\* about (\d+) minutes", promise)
    assert said, promise
    assert int(said[1]) == core.minutes <= 60, core
    texts = [cell.source for cell in minutes.core_cells(lesson) if cell.cell_type == "markdown"]
    assert sum(len(text.split()) for text in texts) <= 3200  # with the hints
    assert core.lines <= 260, core
    assert core.run_seconds > 0


def test_the_lecture_fits_four_hours():
    found = [minutes.core(read_notebook(path)).minutes for path in LESSONS.values()]
    assert len(found) == 5
    assert sum(found) <= 240, found


def test_the_formula_by_hand():
    import nbformat.v4 as new

    picture = new.new_output("display_data", {"image/png": ""})
    cells = [
        new.new_markdown_cell("word " * 360 + "<details>a hint is not read</details>"),
        new.new_markdown_cell("### Your turn: three words (5 minutes)"),
        new.new_code_cell("a = 1\n\n# a comment\nb = 2", outputs=[picture]),
        new.new_code_cell("assert a", metadata={"tags": ["remove-cell"]}),
        new.new_markdown_cell("## For the curious"),
        new.new_code_cell("c = 3"),
    ]
    found = minutes.core(new.new_notebook(cells=cells, metadata={"run_seconds": 60}))
    assert (found.words, found.lines, found.figures, found.turns) == (360 + 7, 2, 1, (5,))
    # 367 / 180 + 2 / 10 + 1 / 2 + 5 + 1 = 8.7
    assert found.minutes == 10


# --- the edition to fill in ---------------------------------------------------------------------


def imports(cell) -> str:
    body = ast.parse(cell.source).body
    return "\n".join(ast.unparse(x) for x in body if isinstance(x, ast.Import | ast.ImportFrom))


def turns(notebook, *, answers=None):
    """Run the imports, each function to write (or its answer) and the check below it."""
    names: dict = {}
    cells = code(notebook)
    for k, cell in enumerate(cells):
        exec(imports(cell), names)
        if "your-turn" in tags(cell):
            exec(cell.source if answers is None else answers.pop(0), names)
            yield cells[k + 1].source, names


def test_every_check_names_what_is_missing_and_passes_with_the_solution(lesson, capsys):
    to_fill = nbformat.from_dict(course.fill_in(copy.deepcopy(lesson)))
    solutions = [
        found[1]
        for cell in to_fill.cells
        if (found := re.search(r"<summary>Solution</summary>\n\n```python\n(.*?)\n```", cell.source,
                               flags=re.S))
    ]  # fmt: skip
    assert len(solutions) >= (3 if lesson.cells[0].source[2].isdigit() else 2)
    assert not any(cell.outputs for cell in code(to_fill))
    drawing = [cell for cell in code(to_fill) if "figures.show(" in cell.source]
    assert len(drawing) > (4 if lesson.cells[0].source[2].isdigit() else 1)
    for cell in code(to_fill):
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert hidden == (cell in drawing or "remove-cell" in tags(cell)), cell.source
    found = 0
    for call, names in turns(to_fill):
        with pytest.raises(checks.CheckFailed, match="not written yet"):
            exec(call, names)
        found += 1
    assert found == len(solutions)
    assert "wrong" not in capsys.readouterr().out
    for call, names in turns(to_fill, answers=list(solutions)):
        exec(call, names)
    said = capsys.readouterr().out
    assert said.count("cases right") == found


def test_a_stub_keeps_the_docstring_and_nothing_of_the_answer():
    source = (
        'import torch\n\n\ndef f(x: int) -> int:\n    """Twice x."""\n    y = x\n    return 2 * y'
    )
    assert course.stub(source) == (
        'import torch\n\n\ndef f(x: int) -> int:\n    """Twice x."""\n'
        "    # Your turn: about 2 lines.\n    raise NotImplementedError"
    )
    with pytest.raises(ValueError, match="defines no function"):
        course.stub("x = 1")


def test_a_copy_that_is_there_is_left_alone(tmp_path, monkeypatch):
    first, second, *_ = LESSONS.values()
    (tmp_path / first.name).write_text("mine")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("opened"))
    course.course(tmp_path, "complete", show=False)
    assert (tmp_path / first.name).read_text() == "mine"
    assert read_notebook(tmp_path / second.name) == read_notebook(second)
    assert (tmp_path / "beyond" / "a_real_network.ipynb").exists()
    with pytest.raises(ValueError, match="edition='all': expected one of fill-in, complete"):
        course.course(tmp_path / "new", "all", show=False)
    assert not (tmp_path / "new").exists()


def test_the_course_opens_where_the_copies_are(tmp_path, monkeypatch):
    class Ended:
        returncode = 3

    opened = []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: opened.append(words) or Ended)
    with pytest.raises(typer.Exit) as end:
        course.course(tmp_path, "fill-in")
    assert end.value.exit_code == 3
    assert opened[0][1:] == ["-m", "jupyterlab", "--notebook-dir", str(tmp_path)]


# --- what a page shows --------------------------------------------------------------------------


def only_checks(source: str) -> bool:
    """Asserts, also in loops and under names given for them; no output."""
    body = ast.parse(source).body
    return bool(body) and all(isinstance(x, ast.Assert) for x in body)


def test_cells_that_only_check_are_not_on_the_page(lesson):
    hidden = 0
    for cell in code(lesson):
        if only_checks(cell.source):
            assert "remove-cell" in tags(cell), cell.source
        if "remove-cell" in tags(cell):
            hidden += 1
            assert "assert" in cell.source
            assert cell.source.startswith("# Checks the text\n")  # JupyterLab shows this line
            assert not cell.outputs, cell.source
            assert cell.metadata["jupyter"]["source_hidden"]
    assert hidden >= 1


def test_answers_are_folded_on_the_page(lesson):
    page = assemble.folded(copy.deepcopy(lesson))
    asked = [cell for cell in code(page) if "hide-output" in tags(cell)]
    assert len(asked) >= 3
    assert all("hide-input" in tags(cell) for cell in code(page) if "your-turn" in tags(cell))


def test_questions_and_exercises_end_a_notebook(lesson):
    """After what is for the curious, which the book folds and the decks leave out."""
    heads = [cell.source.splitlines()[0] for cell in lesson.cells if cell.source.startswith("## ")]
    if assemble.CURIOUS in heads:
        last = ["## Questions"] * ("## Questions" in heads) + ["## Exercises", "## Further reading"]
        assert heads[heads.index(assemble.CURIOUS) + 1 :] == last
        left = assemble.without_the_curious(lesson)
        assert any(cell.source.startswith("## Exercises") for cell in left)
        assert len(left) <= len(lesson.cells) - 5
        assert any(cell.source == assemble.CURIOUS for cell in lesson.cells)


# --- one deck for one lecture -------------------------------------------------------------------


def words(text: str) -> int:
    """A formula counts as one word."""
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", " formula ", text, flags=re.S)
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


def test_the_deck_of_one_lecture():
    deck = cut.lecture([read_notebook(path) for path in LESSONS.values()])
    slides = [cell for cell in deck.cells if cell.cell_type == "markdown"]
    assert 40 <= len(slides) <= 45
    long = [(words(cell.source), cell.source) for cell in slides if words(cell.source) > 55]
    assert not long  # 45 and the title
    assert sum("picture" in tags(cell) for cell in deck.cells) >= 15
    assert deck.cells[1].cell_type == "markdown"
