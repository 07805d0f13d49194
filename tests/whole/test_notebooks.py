"""What a notebook here must look like, and that its own algorithms are the package's."""

from __future__ import annotations

import ast
import itertools
import math
import re
import statistics
from functools import partial

import helpers
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from helpers import ROOT, read_notebook, script

from trustml_helpers import attacks, bounds, models, objectives, smoothing, theory, training

pytestmark = pytest.mark.slow  # with the reading of five notebooks

still = script("docs/nbconvert/still.py")

FOLDER = ROOT / "notebooks"
PATHS, BEYOND = list(helpers.LESSONS.values()), list(helpers.BEYOND.values())
HOMEWORK = FOLDER / "homework/source/hw1/hw1.ipynb"
SECTIONS = (
    "You will be able to",
    "You need",
    "Time",
    "## Common mistakes",
    "## Exercises",
    "## Further reading",
)


@pytest.fixture(params=[*PATHS, *BEYOND, HOMEWORK], ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return read_notebook(path)


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def lesson(request):
    """A notebook of the lecture; the homework has another structure."""
    return read_notebook(request.param)


@pytest.fixture(params=[*PATHS, *BEYOND], ids=lambda path: path.stem)
def chapter(request):
    """A notebook of the lecture, or one beyond it."""
    return read_notebook(request.param)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def lines_of(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def test_there_are_notebooks():
    assert len(PATHS) >= 2
    assert len(BEYOND) >= 2


def test_code_cells_are_short(notebook):
    lengths = sorted(len(lines_of(cell)) for cell in code_cells(notebook))
    assert min(lengths) > 0
    assert statistics.median(lengths) <= 6
    assert lengths[int(0.9 * (len(lengths) - 1))] <= 15
    assert lengths[-1] <= 25
    assert len(lines_of(code_cells(notebook)[0])) <= 3


def test_sections_are_there(chapter):
    text = "\n".join(cell.source for cell in chapter.cells if cell.cell_type == "markdown")
    for section in SECTIONS:
        assert section in text, section
    assert re.search(r"## \d+ What we (proved|measured)", text)
    assert text.count("<details>") >= 6  # graded hints
    assert "RUNTIME" not in text
    titles = re.findall(r"^## (\d+) ", text, flags=re.M)
    assert titles == [str(k) for k in range(1, len(titles) + 1)]


def test_outputs_are_of_one_clean_run(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output.output_type for output in outputs(notebook)}
    assert "error" not in kinds
    assert kinds & {"display_data", "execute_result"}
    text = "".join(output.get("text", "") for output in outputs(notebook))
    assert "UsageError" not in text
    assert "Warning" not in text
    # JupyterLab reports a view without its kernel: docs/nbconvert/still.py leaves the words.
    views = {kind for output in outputs(notebook) for kind in output.get("data", {})}
    assert not any("jupyter.widget" in kind for kind in views)


def test_every_figure_has_a_text_alternative(notebook):
    for output in outputs(notebook):
        for kind in {"image/png", "image/jpeg"} & set(output.get("data", {})):
            assert len(output.metadata[kind]["alt"].split()) >= 5


def test_the_pictures_of_the_readme_are_those_of_the_notebooks():
    assert len(still.PICTURES) == 2
    for (name, cell), file in still.PICTURES.items():
        shown = ROOT / "docs/pictures" / file
        assert shown.read_bytes() == still.picture(read_notebook(ROOT / "notebooks" / name), cell)


def test_every_figure_is_followed_by_a_sentence(notebook):
    cells = notebook.cells
    for k, cell in enumerate(cells):
        if cell.cell_type == "code" and "figures.show(" in cell.source:
            assert cells[k + 1].cell_type == "markdown", cell.source


def test_size_and_no_other_picture_formats(path, notebook):
    assert path.stat().st_size <= 1_000_000
    for output in outputs(notebook):
        assert not {"image/svg+xml", "application/pdf"} & set(output.get("data", {}))


def test_a_lesson_has_figures(lesson):
    kinds = {"image/png", "image/jpeg"}
    assert sum(bool(kinds & set(output.get("data", {}))) for output in outputs(lesson)) >= 5


def test_widgets_are_driven_by_a_cell(lesson):
    sources = [cell.source for cell in code_cells(lesson)]
    assert any("_explorer(" in source for source in sources)
    assert any("explorer.set(" in source for source in sources)


def test_code_reads_no_url_and_imports_nothing_in_vain(notebook):
    code = "\n".join(cell.source for cell in code_cells(notebook))
    assert not re.search(r"https?://|^\s*[%!]", code, flags=re.M)
    tree = ast.parse(code)
    imported = [
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set(imported) <= used


def test_some_results_are_compared_by_nbval(notebook):
    assert any("nbval-check-output" in cell.metadata.get("tags", []) for cell in notebook.cells)


def test_every_slide_has_a_section_that_exists():
    """Each "k Title" in the table is the (beginning of a) title in the notebook named before it."""
    rows = (FOLDER.parent / "docs/slide_map.md").read_text().splitlines()
    rows = [row.split("|")[2] for row in rows if row.startswith("| ") and "slide |" not in row]
    assert len(rows) == 30  # the slides of the lecture
    headings = {
        path.stem[:2]: re.findall(
            r"^## (\d+ .*)$",
            "\n".join(cell.source for cell in read_notebook(path).cells),
            flags=re.M,
        )
        for path in PATHS
    }
    found = 0
    for row in rows:
        plain = re.sub(r"\[(\d\d)\]\([^)]*\)", r"\1", row)
        notebook = ""
        for part in re.split(r"[,;] | to ", plain):
            if re.fullmatch(r"\s*0\d", part):
                notebook = part.strip()
            elif title := re.match(r"\s*(?:and |with )?(\d+ [A-Z][^(:?]*)", part):
                wanted = title.group(1).strip()
                assert any(h.replace("$", "").startswith(wanted) for h in headings[notebook]), row
                found += 1
    assert found >= 30


# --- the notebooks' own algorithms, on inputs that the notebooks do not use ---------------------


def defined(tag: str, names: dict | None = None) -> dict:
    """Run the one cell that defines an algorithm, with some names given, and return its names."""
    (cell,) = [
        cell
        for path in [*PATHS, *BEYOND]
        for cell in read_notebook(path).cells
        if tag in cell.metadata.get("tags", [])
    ]
    assert len(lines_of(cell)) <= 15
    names = {"torch": torch} if names is None else names
    exec(cell.source, names)
    return names


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(11)
    return torch.rand(6, 1, 28, 28, generator=g), torch.randint(10, (6,), generator=g)


def test_fgsm_cell(batch):
    model = models.build("SmallCNN", seed=9)
    mine = defined("defines-fgsm")["fgsm"](model, *batch, 0.07)
    assert torch.allclose(mine, attacks.fgsm(model, *batch, 0.07), atol=1e-6)


def test_pgd_cell(batch):
    model = models.build("SmallCNN", seed=9).double()
    x, y = batch[0].double(), batch[1]
    mine = defined("defines-pgd")["pgd"](model, x, y, 0.07, 0.02, 6, torch.zeros_like(x))
    package = attacks.pgd(
        model, x, y, 0.07, steps=6, step_size=0.02, random_start=False, keep="last"
    )
    assert torch.allclose(mine, package, atol=1e-10)


def test_steepest_cell():
    w = torch.tensor([0.5, -2.0, 1.0])
    steepest = defined("defines-steepest")["steepest"]
    for norm, ball in attacks.NORMS.items():
        assert torch.allclose(steepest(w, norm), ball.ascend(0 * w[None], w[None], 1.0, None)[0])
    assert steepest(w, "l1").tolist() == [0.0, -1.0, 0.0]


def test_training_cell(batch):
    ours, theirs = models.build("SmallCNN", seed=2), models.build("SmallCNN", seed=2)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(8))
    defined("defines-train")["train"](ours, *batch, 0.1, 4, order)
    training.fit(theirs, batch, epochs=1, batch_size=4, seed=8, progress=False,
                 optimizer=partial(torch.optim.SGD, lr=0.1))  # fmt: skip
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_adversarial_step_and_mixed_cells(batch):
    attack = partial(attacks.fgsm, eps=0.1)
    ours, theirs = models.build("SmallCNN", seed=2), models.build("SmallCNN", seed=2)
    sgd = partial(torch.optim.SGD, lr=0.1)
    step = defined("defines-adversarial-step")["adversarial_step"]
    loss = step(ours, sgd(ours.parameters()), *batch, attack)
    assert loss == pytest.approx(
        F.cross_entropy(theirs(attack(theirs, *batch)), batch[1]).item(), rel=1e-5
    )
    training.fit(theirs, batch, objectives.adversarial(attack), epochs=1, batch_size=6,
                 optimizer=sgd, progress=False)  # fmt: skip
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    mixed = defined("defines-mixed")["mixed_loss"](ours, *batch, attack, 0.5)
    assert torch.isclose(mixed, objectives.mixed(attack, 0.5)(ours, *batch), rtol=1e-5)


def test_trades_cell(batch):
    x, y = batch
    model = models.build("SmallCNN", seed=2)
    trades = defined("defines-trades")["trades_loss"]
    seen = []
    model.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach()))
    seeded = torch.Generator().manual_seed(1)
    package = objectives.trades(0.1, 4.0, steps=3, generator=seeded)(model, x, y)
    assert torch.isclose(trades(model, x, y, seen[-1], 4.0), package, rtol=1e-5)


def test_neyman_pearson_cell():
    names: dict = {"np": np}
    rng = np.random.default_rng(3)
    p, q = rng.dirichlet(np.ones(9)), rng.dirichlet(np.ones(9))
    f, worst = defined("defines-neyman-pearson", names)["cheapest"](p, q, 0.6)
    expected_f, expected = theory.neyman_pearson(p, q, 0.6)
    assert np.allclose(f, expected_f)
    assert worst == pytest.approx(expected)


def test_vote_cell():
    count = defined("defines-vote")["sample_under_noise"]
    model = models.build("SmallCNN", seed=4).eval()
    x = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(1))
    mine = count(model, x, 0.7, 60, 20, 10, torch.Generator().manual_seed(2))
    g = smoothing.SmoothedClassifier(model, 0.7, 10)
    package = g.sample_under_noise(x[None], 60, torch.Generator().manual_seed(2))[0]
    assert torch.equal(mine, package)


def test_decide_cell():
    mine = defined("defines-decide")["decide"]
    counts = torch.randint(0, 40, (200, 4), generator=torch.Generator().manual_seed(0))
    for alpha in (0.3, 0.01):
        found = [mine(row, alpha) for row in counts]
        package = smoothing.decide(counts, alpha).tolist()
        ties = (counts.topk(2).values[:, 0] == counts.topk(2).values[:, 1]).tolist()
        assert [a for a, t in zip(found, ties, strict=True) if not t] == [
            b for b, t in zip(package, ties, strict=True) if not t
        ]


def test_noisy_loss_cell(batch):
    model = models.build("SmallCNN", seed=4)
    mine = defined("defines-noisy-loss", {"torch": torch, "F": F})["noisy_loss"]
    loss = mine(model, *batch, 0.7, torch.Generator().manual_seed(2))
    package = objectives.gaussian(0.7, generator=torch.Generator().manual_seed(2))(model, *batch)
    assert torch.isclose(loss, package, rtol=1e-5)


def test_lower_conf_bound_cell():
    names = {"binom": scipy.stats.binom}
    mine = defined("defines-lower-conf-bound", names)["lower_conf_bound"]
    for k, n, alpha in ((0, 7, 0.01), (3, 7, 0.01), (7, 7, 0.2), (880, 1000, 1e-4)):
        expected = float(bounds.lower_conf_bound(k, n, alpha))
        assert mine(k, n, alpha) == pytest.approx(expected, abs=1e-10)


def votes_of(g, x, generator, n):
    return g.sample_under_noise(x[None], n, generator)[0]


def test_certify_cell():
    names: dict = {"norm": scipy.stats.norm}
    names["lower_conf_bound"] = lambda k, n, alpha: float(bounds.lower_conf_bound(k, n, alpha))
    mine = defined("defines-certify", names)["certify"]
    x = torch.linspace(-1, 1, 9)[:, None]
    g = smoothing.SmoothedClassifier(lambda z: torch.cat([z, -z, 0 * z - 0.1], 1), 0.5, 3)
    found = set()
    for row in x:
        expected = g.certify(row[None], 10, 80, 0.01, generator=torch.Generator().manual_seed(5))
        noise = torch.Generator().manual_seed(5)
        sample = partial(votes_of, g, row, noise)
        label, radius = mine(sample, 10, 80, 0.01, 0.5)
        assert label == int(expected.prediction)
        assert radius == pytest.approx(float(expected.radius), abs=1e-10)
        found.add(label)
    assert found == {0, 1, smoothing.ABSTAIN}


def test_consistency_cell():
    """Two images, three copies, four classes, against the formula written out."""
    mine = defined("defines-consistency")["consistency_loss"]
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(4))
    y = [1, 3]
    each = []
    for image, label in zip(logits.double().numpy(), y, strict=True):
        p = scipy.special.softmax(image, axis=1)
        mean = p.mean(0)
        apart = np.mean([scipy.stats.entropy(mean, one) for one in p])
        each.append(-np.log(p[:, label]).mean() + 7 * apart + 0.3 * scipy.stats.entropy(mean))
    assert mine(logits, torch.tensor(y), 7, 0.3).item() == pytest.approx(np.mean(each), rel=1e-5)


def test_ablation_radius_cell():
    mine = defined("defines-ablation-radius", {"math": math})["ablation_radius"]
    for d, k in ((784, 30), (50, 7), (9, 9)):
        noise = smoothing.Ablation(k, d)
        for p_a in (0.3, 0.5, 0.5001, 0.77, 0.912, 0.9999, 1.0):
            assert mine(p_a, d, k) == noise.radius(p_a)


def test_l1_radii_cell():
    mine = defined("defines-l1-radii", {"math": math})["l1_radii"]
    for p_a, sigma in ((0.51, 2.0), (0.8, 0.3), (0.9995, 1.0)):
        package = [kind(sigma).radius(p_a) for kind in (smoothing.Uniform, smoothing.Laplace)]
        assert mine(p_a, sigma) == pytest.approx(package)


def test_defence_success_cell():
    """Against all choices of the swapped places of a short text, for votes of one and of two."""
    mine = defined("defines-defence-success", {"math": math})["defence_success"]
    choices = list(itertools.combinations(range(9), 4))
    one = np.mean([sum(place < 3 for place in chosen) >= 2 for chosen in choices])
    assert mine(9, 3, 4, 2, 1) == pytest.approx(one)
    assert mine(9, 3, 4, 2, 2) == pytest.approx(1 - (1 - one) ** 2)  # a tie withstands
