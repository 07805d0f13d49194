"""Which submissions have the same code: what a disguise hides, and what the innocent share."""

from __future__ import annotations

import ast
import inspect
import os
import random
import re
import subprocess
import sys
import textwrap

import pandas as pd
import pytest
from homework_answers import RIGHT

from trustml_helpers.checks.grading import similarity
from trustml_helpers.checks.grading.similarity import side_by_side, similar, similar_texts

IMPORTS = """import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from trustml_helpers import checks, data
"""
USE = """images, labels = data.load_mnist("test")
for name, each in [("standard", standard), ("trained", robust)]:
    print(f"{name}: {accuracy(each, fgsm(each, images[:500], labels[:500], 0.1)):.1%}")
"""

# What Ada hands in, and Bob's copy of it: other names, order, words, spaces, one task of his own.
ADA = [
    """def direction(model, x, y):
    # gradient of the loss at x
    leaf = x.detach().clone()
    leaf.requires_grad = True
    value = cross_entropy(model(leaf), y, reduction="sum")
    value.backward()
    return leaf.grad.sign()
""",
    '''def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """x (n, 1, 28, 28) in [0, 1], y (n,) int64, eps in pixel units. Returns x_adv like x."""
    moved = x + eps * direction(model, x, y)
    moved[moved < 0] = 0.0
    moved[moved > 1] = 1.0
    return moved.detach()
''',
    '''def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, step_size: float, steps, start):
    """x, start (n, 1, 28, 28). Returns the last point, like x."""
    lower = torch.maximum(x - eps, torch.zeros_like(x))
    upper = torch.minimum(x + eps, torch.ones_like(x))
    point = torch.minimum(torch.maximum(x + start, lower), upper)
    k = 0
    while k < steps:
        point = point + step_size * direction(model, point, y)
        point = torch.minimum(torch.maximum(point, lower), upper)
        k += 1
    return point
''',
    '''def sample_under_noise(model, x, sigma, n, batch_size, num_classes, generator) -> Tensor:
    """x (1, 28, 28). Returns counts (num_classes,), sum n."""
    votes = []
    left = n
    with torch.no_grad():
        while left:
            size = batch_size if batch_size < left else left
            noise = torch.empty(size, *x.shape).normal_(0, sigma, generator=generator)
            votes.append(model(x.unsqueeze(0) + noise).argmax(dim=-1))
            left -= size
    every = torch.cat(votes)
    return torch.stack([(every == c).sum() for c in range(num_classes)])
''',
    '''def lower_conf_bound(k: int, n: int, alpha: float) -> float:
    """k successes of n. Returns a probability."""
    from scipy.stats import binom

    low, high = 0.0, k / n
    for _ in range(60):
        middle = (low + high) / 2
        if binom.sf(k - 1, n, middle) > alpha:
            high = middle
        else:
            low = middle
    return low
''',
    '''def certified_accuracy(label, prediction, radius, r) -> float:
    """Returns a share in [0, 1]."""
    hits = 0
    for c, p, s in zip(label, prediction, radius):
        if c == p and not s < r:
            hits += 1
    return hits / len(radius)
''',
]
BOB = [
    '''def lower_conf_bound(successes, trials, level):
    """Bisection on the tail of the binomial law."""
    from scipy.stats import binom as law
    a, b = 0.0, successes/trials   # bracket
    for iteration in range( 60 ):
        m = (a + b)/2
        if law.sf(successes - 1, trials, m) > level: b = m
        else: a = m
    return a
''',
    '''def certified_accuracy(label, prediction, radius, r) -> float:
    """Returns a share in [0, 1]."""
    return np.count_nonzero((label == prediction) & (radius >= r)) / label.shape[0]
''',
    """def pgd(net, images, truth, budget, rate, iterations, init):
    ub = torch.minimum(images + budget, torch.ones_like(images))
    lb = torch.maximum(images - budget, torch.zeros_like(images))
    current = torch.minimum(torch.maximum(images + init, lb), ub)
    it = 0
    # loop until done
    while it < iterations:
        current = current + rate * get_sign(net, current, truth)
        current = torch.minimum(torch.maximum(current, lb), ub)
        it += 1
    return current
""",
    """def get_sign(net, images, truth):
    copy = images.detach().clone()
    copy.requires_grad = True
    total = nn.functional.cross_entropy(net(copy), truth, reduction='sum')
    total.backward()
    return copy.grad.sign()

def fgsm(net, images, truth, budget):
    'One step.'
    result: Tensor = images + budget*get_sign(net, images, truth)
    result[result>1] = 1.
    result[result<0] = 0.
    return result.detach()
""",
    """def sample_under_noise(net, img, std, total, chunk, classes, gen):
    remaining = total; answers = []
    with torch.no_grad():
        while remaining:
            m = chunk if chunk < remaining else remaining
            eta = torch.empty(m, *img.shape).normal_(0, std, generator=gen)
            answers.append(net(img.unsqueeze(0) + eta).argmax(dim=-1))
            remaining -= m
    stacked = torch.cat(answers)
    return torch.stack([(stacked == label).sum() for label in range(classes)])
""",
]


class Habits(ast.NodeTransformer):
    """How another author would write the same: half of the places where there is a choice."""

    def __init__(self, dice):
        self.dice = dice

    def visit(self, node):
        node = self.generic_visit(node)
        habit = getattr(self, f"of_{type(node).__name__}", None)
        return habit(node) if habit and self.dice.random() < 0.5 else node

    def of_BinOp(self, node):
        if isinstance(node.op, ast.Add | ast.Mult):
            node.left, node.right = node.right, node.left
        return node

    def of_IfExp(self, node):
        return ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.orelse, node.body)

    def of_Return(self, node):
        result = ast.Name("result", ast.Store())
        return [ast.Assign([result], node.value, lineno=0), ast.Return(result)]

    def of_Assign(self, node):
        name = ast.Name(self.dice.choice(["first", "part"]), ast.Store())
        return [ast.Assign([name], node.value, lineno=0), ast.Assign(node.targets, name, lineno=0)]

    def of_Call(self, node):
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("clamp", "norm", "sum"):
            node.args = [node.func.value, *node.args]
            node.func = ast.Attribute(ast.Name("torch", ast.Load()), node.func.attr, ast.Load())
        return node


def answers():
    """By task, the short right answers to the homework, by the name of the task."""
    found = {}
    for task, functions in RIGHT.items():
        written = filter(inspect.isfunction, functions)
        sources = [textwrap.dedent(inspect.getsource(each)) for each in written]
        named = [re.sub(r"^def \w+", f"def {task}", each) for each in sources]
        short = [each for each in named if each.startswith("def") and len(each) < 350]
        if len(short) > 1:
            found[task] = short
    return found


def stub(source):
    """A function of the release."""
    function = ast.parse(source).body[0]
    function.body = [
        ast.parse(text).body[0]
        for text in ("'''What it returns.'''", "raise NotImplementedError()")
    ]
    return ast.unparse(function)


ANSWERS = answers()
assert len(ANSWERS) > 9
TASKS = [each[0] for each in ANSWERS.values()]
TASKS += [each for each in ADA[1:] if each[4:].split("(")[0] not in ANSWERS]
RELEASED = [IMPORTS, *map(stub, TASKS), USE]


def classmates(number, seed=0):
    """Students who answer all tasks in a style drawn for each, with habits of their own."""
    dice = random.Random(seed)
    codes = {}
    for k in range(number):
        trees = [ast.parse(dice.choice(each)) for each in ANSWERS.values()]
        cells = [ast.unparse(ast.fix_missing_locations(Habits(dice).visit(t))) for t in trees]
        codes[f"student{k:02}"] = [IMPORTS, *cells, USE]
    return codes


def renamed(cells, sign):
    """Every name that is given in a function, with a sign before it."""
    trees = [ast.parse(cell) for cell in cells]
    for tree in trees:
        chosen = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        chosen |= {
            n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                node.arg = sign + node.arg
            elif isinstance(node, ast.Name) and node.id in chosen:
                node.id = sign + node.id
    return [ast.unparse(tree) for tree in trees]


def pairs(table):
    return set(zip(table["first"], table["second"], strict=True))


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_disguised_copy_is_found_and_nobody_else(seed):
    codes = {**classmates(22, seed), "bob": [IMPORTS, USE, *BOB], "ada": [IMPORTS, *ADA, USE]}
    table = similar(codes, RELEASED)
    assert pairs(table) == {("ada", "bob")}
    (row,) = table.itertuples()
    assert 0.7 < row.share < 0.8
    assert 60 < row.own < 200
    assert row.functions == "direction = get_sign, lower_conf_bound"  # in the others lines moved
    assert row.verbatim == 0
    copied = similar({**codes, "bob": ADA}, RELEASED).iloc[0]
    assert copied.verbatim == copied.functions.count(",") + 1


def test_written_answers_that_share_phrases():
    question = "Why may the maximiser be held fixed when we differentiate the robust loss?"
    ada = ("The set of perturbations is compact, and at the only maximiser a small change of it "
           "costs nothing to first order; so one may hold it fixed.")  # fmt: skip
    bob = ("Well, as I see it: at the ONLY maximiser a small change of it costs nothing (to first "
           "order); so one may hold it fixed.")  # fmt: skip
    cy = "Because of the envelope theorem: the derivative of the inner argument vanishes there."
    texts = {"cy": cy, "bob": bob, "ada": ada, "dora": question + " It is compact."}
    table = similar_texts({**texts, "eva": question + " I do not know."}, question)
    words = "at the only maximiser a small change of it costs nothing to first order so one may "
    phrases = len((words + "hold it fixed").split()) - 4
    bobs = len(bob.split()) - 4
    assert table.values.tolist() == [["ada", "bob", round(phrases / bobs, 3), phrases]]
    assert not len(similar_texts({"ada": "", "bob": "Four words and no", "cy": cy}, ""))


DISGUISES = {
    "names": renamed(ADA[1:], "my_") + renamed(ADA[:1], "its_"),
    "helper": [cell.replace("direction(", "helper(") for cell in ADA],
    "comments": [cell.replace("\n    ", "\n    # mine\n    ", 2) for cell in ADA],
    "docstrings": [re.sub('"""[^"]*"""', "'''What I have found out.'''", cell) for cell in ADA],
    "annotations": [
        re.sub(r": (nn\.Module|Tensor|float|int)(?=[,)])| -> \w+", "", cell) for cell in ADA
    ],
    "layout": [ast.unparse(ast.parse(cell)).replace("    ", "  ") for cell in ADA],
    "cells": ADA[::-1],
    "one cell": ["\n\n".join(ADA[::-1])],
    "imports": [
        "import torch as t, torch.nn.functional as F",
        *(
            re.sub(r"\btorch\.", "t.", cell).replace("cross_entropy", "F.cross_entropy")
            for cell in ADA
        ),
    ],
    "inner helper": [ADA[1].replace('"""\n', '"""\n' + textwrap.indent(ADA[0], "    ")), *ADA[2:]],
    "magic": ["%matplotlib inline\n!pip install x\n" + ADA[0], *ADA[1:], "%%time\n" + "x = 1"],
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_no_single_disguise_hides_anything(disguise):
    table = similar({"ada": ADA, "bob": DISGUISES[disguise], **classmates(3)}, RELEASED)
    assert table[["first", "second", "share"]].to_numpy().tolist() == [["ada", "bob", 1.0]]
    assert table.functions[0].count(",") == 5


def test_a_function_with_its_names_exchanged_is_another_function():
    turned = ADA[4].replace("high = m", "lo = m").replace("low = m", "high = m")
    turned = turned.replace("lo = m", "low = m")
    table = similar({"ada": ADA, "bob": [turned, *ADA[:4]]}, RELEASED)
    assert table.share[0] > 0.9
    assert "fgsm" in table.functions[0]
    assert "lower_conf_bound" not in table.functions[0]


def test_a_function_that_many_wrote_is_not_listed():
    codes = classmates(12)
    for cells in codes.values():
        cells.append(ADA[4])
    table = similar({**codes, "ada": ADA, "bob": ADA}, RELEASED)
    assert pairs(table) == {("ada", "bob")}
    assert "fgsm" in table.functions[0]
    assert "lower_conf_bound" not in table.functions[0]


def test_what_is_called_is_compared():
    """Two functions of the same shape: alike only if they call the same."""

    def calls(*functions):
        dice = random.Random(0)
        lines = (
            f"    a = {dice.choice(functions)}({dice.choice(functions)}(a))\n" for _ in range(30)
        )
        return ["def f(a):\n" + "".join(lines)]

    codes = {"ada": calls("len", "max", "np.exp"), "bob": calls("sum", "min", "np.log")}
    assert not len(similar(codes, [IMPORTS], least=0.01))
    assert len(similar({**codes, "cy": codes["ada"]}, [IMPORTS])) == 1


def test_much_code_of_his_own_does_not_hide_a_copy():
    codes = classmates(12)
    codes["student05"] += renamed(ADA, "my_")
    table = similar({**codes, "ada": ADA}, RELEASED)
    assert pairs(table) == {("ada", "student05")}
    assert table.share[0] == 1


@pytest.mark.parametrize(("group", "number"), [(2, 2), (2, 3), (3, 5), (5, 25), (8, 25)])
def test_a_group_does_not_hide_itself_by_being_many(group, number):
    copies = {f"copy{k}": [IMPORTS, *renamed(ADA, f"c{k}_"), USE] for k in range(group)}
    table = similar({**copies, **classmates(number - group)}, RELEASED)
    assert len(table) == group * (group - 1) / 2
    assert all(name.startswith("copy") for pair in pairs(table) for name in pair)
    assert (table.share == 1).all()


def test_the_hardest_task_alone_gets_a_row():
    hard = ADA[2].replace("    return point\n", ADA[3].partition('"""\n')[2])
    codes = classmates(22)
    codes["student03"] = [*codes["student03"], hard]
    codes["student07"] = [*codes["student07"], *renamed([hard], "v_")]
    table = similar(codes, RELEASED)
    assert pairs(table) == {("student03", "student07")}
    assert table.share[0] < 0.6
    assert "pgd" in table.functions[0]


def test_the_most_similar_come_first():
    half = [*ADA[:3], *classmates(1, seed=9)["student00"][:6]]
    codes = {**classmates(9), "ada": ADA, "bob": renamed(ADA, "b_"), "cy": half}
    table = similar(codes, RELEASED, least=0.3)
    assert pairs(table.head(1)) == {("ada", "bob")}
    assert {("ada", "cy"), ("bob", "cy")} <= pairs(table)
    assert table.share.is_monotonic_decreasing
    assert pairs(similar(codes, RELEASED, least=0.95)) == {("ada", "bob")}


# --- what is not ----------------------------------------------------------------------------------


def test_two_who_follow_the_hints_are_not_reported():
    """Half of the class writes the natural solution of each task; two write nothing else."""
    natural = {task: each[0] for task, each in ANSWERS.items()}
    codes, dice = classmates(24), random.Random(3)
    for cells in codes.values():
        for k, task in enumerate(natural, 1):
            if dice.random() < 0.5:
                cells[k] = natural[task]
    codes["kim"] = codes["lee"] = [IMPORTS, *list(natural.values())[:9], USE]
    assert not len(similar(codes, RELEASED))


def test_who_wrote_nothing_is_not_suspicious():
    codes = {"ada": RELEASED, "bob": RELEASED, "cy": RELEASED[::-1], "dee": [], "eve": [""]}
    table = similar(codes, RELEASED)
    assert not len(table)
    assert list(table) == ["first", "second", "share", "own", "functions", "verbatim"]
    assert not len(similar({"ada": RELEASED, "bob": RELEASED}, RELEASED))
    assert len(similar({"ada": RELEASED, "bob": RELEASED}, [])) == 1
    assert not len(similar({}, RELEASED))


def test_a_short_function_in_common_is_no_evidence():
    """Three lines that are the same, and nothing else handed in."""
    assert not len(similar({"ada": ADA[:1], "bob": ADA[:1]}, RELEASED))


# --- what is handed in ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell",
    ["def f(:\n  x = (1,", "'''not closed", "\x00", "a\\", "[" * 5000, "-" * 9999 + "1",
     "x.y" * 9999, "if 1:\n\tx = 1\n        y = 2", '"' * 10_001, "%%bash\nls -l | grep 'x",
     "x = !ls $HOME", "?", "\ufeffx = 1", "match x:\n    case {'a': b}: pass",
     "async def f():\n    await g()", "return 5",
     "x + \ud800 + " * 9],
    ids=range(17),
)  # fmt: skip
def test_no_cell_is_an_error(cell):
    broken = [cell, *ADA]
    table = similar({"ada": broken, "bob": renamed(ADA, "b_"), "cy": [cell]}, [*RELEASED, cell])
    assert pairs(table) == {("ada", "bob")}
    assert "<pre>" in side_by_side({"ada": broken, "bob": ADA}, ("ada", "bob"))


def test_a_copy_that_is_no_python_any_more_is_still_a_copy():
    broken = [cell + "\n)" for cell in renamed(ADA, "b_")]
    table = similar({**classmates(22), "ada": ADA, "bob": broken}, RELEASED)
    assert pairs(table) == {("ada", "bob")}
    assert table.share[0] > 0.8


@pytest.mark.slow
def test_a_notebook_of_a_megabyte():
    lines = (f"def f{k}(a, b):\n    return np.log(a[{k}]) + b.c{k % 77}\n" for k in range(20_000))
    codes = {**classmates(3), "big": ["".join(lines)], "ada": ADA}
    assert len(codes["big"][0]) > 10**6
    assert not len(similar(codes, RELEASED))


def test_order_and_process_do_not_matter():
    codes = {**classmates(8), "bob": BOB, "ada": ADA}
    table = similar(codes, RELEASED, least=0.2)
    assert len(table) > 3
    turned = {name: codes[name] for name in reversed(codes)}
    pd.testing.assert_frame_equal(table, similar(turned, RELEASED, least=0.2))
    program = (
        "import runpy, sys; similar = runpy.run_path(sys.argv[1])['similar'];"
        f"print(similar({codes!r}, {RELEASED!r}, least=0.2).to_csv())"
    )
    for seed in "12":
        run = subprocess.run(
            [sys.executable, "-c", program, similarity.__file__],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert run.stdout.strip() == table.to_csv().strip()


# --- side by side ---------------------------------------------------------------------------------


def test_side_by_side_shows_what_is_alike_as_it_was_handed_in():
    codes = {"ada": [*ADA, USE], "<b>": [USE, *BOB]}
    page = side_by_side(codes, ("ada", "<b>"), RELEASED)
    rows = re.findall("<tr>(.*?)</tr>", page, flags=re.DOTALL)
    assert rows[0] == '<th scope="col">ada</th><th scope="col">&lt;b&gt;</th>'
    assert len(rows) == 6  # without the task that Bob solved himself
    both = next(row for row in rows if "def direction" in row)
    assert "# gradient of the loss at x" in both
    assert "def get_sign" in both
    assert "moved[moved &lt; 0]" in page
    assert "certified_accuracy" not in page
    assert "load_mnist" not in page
    assert "load_mnist" in side_by_side(codes, ("ada", "<b>"))


def test_side_by_side_escapes_all():
    code = ADA[4].replace("60", "len('</pre><script>alert(1)</script>&')")
    page = side_by_side({"a": [code], "b": [code]}, ("a", "b"))
    assert page.count("&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;") == 2
    assert "<script" not in page
