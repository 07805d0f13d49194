"""Submissions whose labels are lost: what is found again, what is not guessed."""

from __future__ import annotations

import copy
import re

import nbformat
import pytest

from trustml_helpers.checks.grading import homework, labels, needed

SOURCE = homework.source(homework.numbers())


def made_blank():
    """The release as nbgrader makes it, in short."""
    notebook = copy.deepcopy(SOURCE)
    for cell in notebook.cells:
        stub = "YOUR ANSWER HERE"
        if cell.cell_type == "code":
            stub = "# YOUR CODE HERE\n    raise NotImplementedError()"
        cell.source = re.sub(
            r"### BEGIN SOLUTION.*?### END SOLUTION", stub, cell.source, flags=re.DOTALL
        )
        cell.source = re.sub(
            r"### BEGIN HIDDEN TESTS.*### END HIDDEN TESTS", "", cell.source, flags=re.DOTALL
        )
    return notebook


BLANK = made_blank()
RELEASED = labels.released_cells(BLANK)
ANSWERS = [name for name, cell in RELEASED.items() if labels.label(cell)["solution"]]
WRITTEN = ["danskin-written", "two-class-derivation"]


def solved():
    """The release with the answers of the source in it."""
    notebook = copy.deepcopy(BLANK)
    for cell in notebook.cells:
        if labels.label(cell).get("solution"):
            cell.source = labels.released_cells(SOURCE)[labels.name_of(cell)].source
    return notebook


def without(notebook, *names, ids=True):
    """Labels gone, all or some; with ``ids`` those of the cells as well."""
    for number, cell in enumerate(notebook.cells):
        if not names or labels.name_of(cell) in names:
            cell.metadata = nbformat.from_dict({})
            if ids:
                cell["id"] = f"other-{number}"
    return notebook


def cell_of(notebook, name):
    return labels.released_cells(notebook)[name]


def as_released(notebook, found):
    """Every label is back, with the answers of the source in the right cells."""
    names = [labels.name_of(cell) for cell in notebook.cells if labels.label(cell)]
    assert names == list(labels.released_cells(BLANK))
    for name in ANSWERS:
        assert cell_of(notebook, name).source == cell_of(SOURCE, name).source, name
    assert not found.lost
    return True


def test_what_is_whole_stays_as_it_is():
    notebook = solved()
    found = labels.restore(notebook, BLANK)
    assert as_released(notebook, found)
    assert found.notes == []


@pytest.mark.parametrize("ids", [True, False])
def test_all_labels_lost_and_every_answer_is_found(ids):
    """With lost ids functions are found by name, written answers by the texts around them."""
    notebook = without(solved(), ids=ids)
    found = labels.restore(notebook, BLANK)
    assert as_released(notebook, found)
    (note,) = found.notes
    assert note == f"labels were lost and found again: {len(labels.released_cells(BLANK))} cells"


@pytest.mark.parametrize("name", labels.written(BLANK))
def test_an_answer_written_below_its_cell_is_found(name):
    """A student may add cells, and some write beside the cell that is meant."""
    notebook = solved()
    cell = labels.released_cells(notebook)[name]
    cell.source = labels.released_cells(BLANK)[name].source
    at = labels._index(notebook, cell)
    notebook.cells.insert(at + 1, nbformat.v4.new_markdown_cell("Since delta is the maximiser."))
    found = labels.restore(notebook, BLANK)
    assert labels.answered(found, BLANK)[name] == "Since delta is the maximiser."
    assert found.notes == [f"{name}: blank, the text beside it was taken"]


@pytest.mark.parametrize("name", ANSWERS)
def test_one_label_lost(name):
    notebook = without(solved(), name)
    found = labels.restore(notebook, BLANK)
    assert as_released(notebook, found)
    assert found.notes == [f"labels were lost and found again: {name}"]


def test_all_labels_lost_in_a_notebook_of_an_old_format_with_added_cells():
    notebook = without(solved())
    for number in range(len(notebook.cells), 0, -3):
        new = nbformat.v4.new_code_cell("my_notes = 1")
        notebook.cells.insert(number, new)
    notebook = nbformat.convert(nbformat.from_dict(notebook), 3)
    notebook = nbformat.convert(notebook, 4)
    assert as_released(notebook, labels.restore(notebook, BLANK))


def test_a_written_answer_in_several_cells_is_one():
    notebook = without(solved(), "danskin-written")
    at = next(i for i, cell in enumerate(notebook.cells) if "**(i)** For a fixed" in cell.source)
    notebook.cells.insert(at + 1, nbformat.v4.new_markdown_cell("And this, too."))
    found = labels.restore(notebook, BLANK)
    assert cell_of(notebook, "danskin-written").source.endswith("END SOLUTION\n\nAnd this, too.")
    assert "danskin-written: 2 cells of text, taken as one" in found.notes
    assert not found.lost


def test_a_written_answer_that_may_be_anywhere_is_not_guessed():
    """The texts around it are gone, and there is a text that is nothing else."""
    notebook = without(solved())
    answer = next(cell for cell in notebook.cells if "**(i)** For a fixed" in cell.source)
    kept = [cell for cell in notebook.cells if cell.cell_type == "code" or cell is answer]
    notebook.cells = [*(cell for cell in kept if cell is not answer), answer]
    found = labels.restore(notebook, BLANK)
    assert found.lost == WRITTEN
    assert not any(labels.label(cell) for cell in notebook.cells)  # nothing is half mended
    guessed = labels.restore(notebook, BLANK, guess=True)
    assert not guessed.lost
    (note,) = [n for n in guessed.notes if n.startswith("danskin-written: guessed, the longest")]
    assert "For a fixed" in note  # what it took, not a text of the release
    assert cell_of(notebook, "danskin-written").source == answer.source


def test_a_guess_is_never_a_text_of_the_release():
    """A short answer far from its place, and longer texts of the release that name the blank."""
    notebook = without(solved())
    at = next(i for i, cell in enumerate(notebook.cells) if "**(i)** For a fixed" in cell.source)
    answer = notebook.cells[at]
    answer.source = "Short."
    notebook.cells = [cell for cell in notebook.cells if cell is not answer]
    notebook.cells.insert(1, answer)
    found = labels.restore(copy.deepcopy(notebook), BLANK)
    assert found.lost == ["danskin-written"]
    found = labels.restore(notebook, BLANK, guess=True)
    assert cell_of(notebook, "danskin-written").source == "Short."


def test_a_function_that_is_there_twice_is_not_guessed_unless_one_is_in_its_place():
    notebook = without(solved(), "abstention")
    early = nbformat.v4.new_code_cell("def abstention(p, n, alpha):\n    return 0")
    notebook.cells.insert(3, early)
    found = labels.restore(notebook, BLANK)
    assert as_released(notebook, found)
    assert "abstention: of 2 cells that define it, the one in its place" in found.notes
    notebook = without(solved(), "abstention")
    answer = next(c for c in notebook.cells if c.source.startswith("def abstention"))
    other = nbformat.v4.new_code_cell("abstention = lambda p, n, alpha: 0")
    notebook.cells.insert(notebook.cells.index(answer), other)
    found = labels.restore(notebook, BLANK)
    assert found.lost == ["abstention"]
    found = labels.restore(notebook, BLANK, guess=True)
    assert cell_of(notebook, "abstention").source.startswith("def abstention")
    assert "abstention: guessed, the last of 2 cells that define it" in found.notes


def test_an_answer_that_was_deleted_is_no_lost_label():
    notebook = solved()
    notebook.cells = [c for c in notebook.cells if labels.name_of(c) != "pgd-best"]
    found = labels.restore(notebook, BLANK)
    assert found.lost == []
    assert found.notes == ["pgd-best was missing and put back"]
    names = [labels.name_of(cell) for cell in notebook.cells]
    assert names.index("pgd-best") + 1 == names.index("pgd-best-check")


def test_labels_on_the_wrong_answers_are_put_right():
    notebook = solved()
    one, other = cell_of(notebook, "free-step"), cell_of(notebook, "pgd-best")
    one.metadata, other.metadata = other.metadata, one.metadata
    found = labels.restore(notebook, BLANK)
    assert as_released(notebook, found)
    assert "the label pgd-best was on the answer to free-step" in found.notes


def test_a_check_above_its_answer_is_moved_below():
    notebook = solved()
    graded = cell_of(notebook, "sample-batch-graded")
    notebook.cells.remove(graded)
    notebook.cells.insert(5, graded)
    found = labels.restore(notebook, BLANK)
    assert as_released(notebook, found)
    assert found.notes == ["sample-batch-graded stood above its answer and was moved below it"]


def test_a_release_may_begin_with_a_text_and_stays_as_it_is():
    """A labelled cell that is no answer; a cell that is put back is a copy."""
    release = nbformat.v4.new_notebook(cells=copy.deepcopy(BLANK.cells))
    kept = [cell for cell in release.cells if labels.name_of(cell)]
    release.cells = [kept[1], *[cell for cell in release.cells if cell is not kept[1]]]
    assert not labels.label(kept[1])["solution"]
    whole = copy.deepcopy(release)
    notebook = copy.deepcopy(release)
    notebook.cells = [c for c in notebook.cells if labels.name_of(c) != labels.name_of(kept[1])]
    labels.restore(copy.deepcopy(release), release)
    found = labels.restore(notebook, release)
    assert found.notes == [f"{labels.name_of(kept[1])} was missing and put back"]
    for cell in notebook.cells:
        cell.metadata["tags"] = ["mine"]
    assert release == whole


def test_another_notebook_is_not_taken_for_the_homework():
    other = nbformat.read(homework.ROOT / "notebooks" / "01_adversarial_examples.ipynb", 4)
    found = labels.restore(other, BLANK)
    assert len(found.lost) > 40
    assert not any(labels.label(cell) for cell in other.cells)


def test_a_byte_order_mark_does_no_harm(tmp_path):
    path = tmp_path / "ada.ipynb"
    path.write_text(nbformat.writes(BLANK), encoding="utf-8-sig")
    assert labels.read(path) == BLANK
    path.write_text('{"cells": [')
    with pytest.raises(ValueError, match="not a notebook"):
        labels.read(path)


def test_a_copy_with_labels_is_written_beside_what_was_handed_in(tmp_path):
    path, out = tmp_path / "ada.ipynb", tmp_path / "mended" / "ada.ipynb"
    nbformat.write(without(solved()), path)
    before = path.read_bytes()
    found = labels.relabel(path, BLANK, out)
    assert as_released(labels.read(out), found)
    assert path.read_bytes() == before
    with pytest.raises(homework.HomeworkError, match="would replace"):
        labels.relabel(path, BLANK, path)
    path.write_text("no notebook")
    with pytest.raises(homework.HomeworkError, match="not a notebook"):
        labels.relabel(path, BLANK, out)


@pytest.mark.parametrize(
    ("code", "noted"),
    [
        ("checks.fgsm = print", True), ("checks = None", True), ("del checks.score", True),
        ("setattr(checks.harness, 'call', print)", True), ("trustml_helpers.checks.x = 1", True),
        ("checks.fgsm(fgsm)", False), ("mine = checks.accuracy_left(f)", False),
        ("self.checks = 1", False), ("def f(:", True), ("!pip list", False),
        ("%matplotlib inline\nx = 1", False), ("%%time\nchecks = None", True), ("x?", False),
        ("%%bash\nls -l", False),
    ],
)  # fmt: skip
def test_code_that_replaces_a_check_is_noted(code, noted):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    assert bool(labels.changes_to_the_checks(notebook)) == noted


# --- what need not run ----------------------------------------------------------------------------


def skipped(notebook):
    """The graded notebook's cells that nbclient leaves out, by the start of their code."""
    needed.skip_the_rest(notebook, BLANK)
    cells = [cell for cell in notebook.cells if "skip-execution" in cell.metadata.get("tags", [])]
    return [labels.name_of(cell) or cell.source.split("\n")[0] for cell in cells]


SHOWN = ["def accuracy(network, pictures, wanted=labels):", "zero = torch.zeros_like(images)",
         "panels = torch.cat([images[:6], attacked[:6]])",
         'train_images, train_labels = data.load_mnist("train")',
         "chosen = (labels == 3) | (labels == 7)", "def phi(w):",
         "shares = np.linspace(0.5, 1, 11)",
         'lenet = models.load(f"mnist_lenet_gaussian_{SIGMA}")',
         'folder = data.data_folder() / "results" / "mnist_study"',
         "def pgd_as_it_is(defense, x, y, eps):"]  # fmt: skip
CHECKS = [name for name in RELEASED if name.endswith("-check")]


def test_visible_checks_and_what_is_only_shown_need_not_run():
    assert len(CHECKS) >= 12
    assert sorted(skipped(solved())) == sorted(SHOWN + CHECKS)
    assert sorted(skipped(copy.deepcopy(BLANK))) == sorted(SHOWN + CHECKS)


@pytest.mark.parametrize(
    ("code", "runs"),
    [
        ("print(accuracy(standard, images))", [0, 1]),  # of two that give `attacked`, both
        ("figures.show(attacked)", [0, 1]),  # and what that needs itself
        ("def mine(network):\n    lenet = network\n    return lenet, accuracy", [0, 1]),
        ("def mine():\n    return [accuracy for zero in radii]", [0, 1, 6, 8]),
        ("%matplotlib inline\nphi(weights)", [4, 5]), ("%time phi(digits)", [4, 5]),
        ("a = b = = pgd_as_it_is", [9]),  # no Python: every word counts
        ("globals()['zero']", range(10)), ("x = eval('ze' + 'ro')", range(10)),
        ("if SIGMA:\n    del (\n        pgd_as_it_is, phi)", [4, 5, 9]), ("gap += 1", [4, 5]),
        ("class Mine:\n    gap = gap", [4, 5]), ("import __main__", range(10)),
        ("def mine():\n    global gap\n    gap += 1", [4, 5]),
        ("def mine(gap):\n    gap += 1\n    del gap", []),
        ("zero = 0  # a name of its own", []), ("# zero attacked", []),
    ],
)  # fmt: skip
def test_what_something_else_uses_runs(code, runs):
    notebook = solved()
    notebook.cells.append(nbformat.v4.new_code_cell(code))
    assert sorted(skipped(notebook)) == sorted(
        CHECKS + [start for k, start in enumerate(SHOWN) if k not in runs]
    )


def test_no_tag_of_a_student_keeps_a_graded_cell_from_running():
    notebook = solved()
    for number, cell in enumerate(notebook.cells):
        cell.metadata["tags"] = [None, 5, "skip-execution", ["skip-execution", "mine"]][number % 4]
    assert sorted(skipped(notebook)) == sorted(SHOWN + CHECKS)
    assert any(cell.metadata.get("tags") == ["mine"] for cell in notebook.cells)


def test_what_a_student_changed_runs():
    notebook = solved()
    next(c for c in notebook.cells if c.source.startswith(SHOWN[6])).source += "\nradii = shares"
    cell_of(notebook, "pgd-best").source += "\nTRAINED = trained if 'trained' else 0"
    assert set(SHOWN) - set(skipped(notebook)) == {
        SHOWN[k] for k in (0, 1, 3, 6, 8)
    }  # fmt: skip
