"""Widgets: every control changes the picture, and a broken callback is not swallowed."""

from __future__ import annotations

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import Linear
from PIL import Image

from trustml_helpers import bounds, data, models, widgets


@pytest.fixture(scope="module")
def explorer():
    images, labels = data.load_mnist("test")
    model = models.load("mnist_smallcnn_standard")
    return widgets.attack_explorer(model, images[:5], labels[:5], steps=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("control", "value"), [("image", 3), ("attack", "FGSM"), ("attack", "random sign noise"),
                           ("attack", "none"), ("eps", 0.25), ("norm", "l2"), ("steps", 1)]
)  # fmt: skip
def test_attack_explorer_answers_every_control(explorer, control, value):
    explorer.set(image=0, attack="PGD", norm="linf", eps=0.1, steps=5)
    before = explorer._picture.value
    explorer.controls[control].value = value  # as a hand would
    assert explorer._picture.value != before
    assert explorer.says in explorer._picture.value
    assert 'alt="Image' in explorer._picture.value


@pytest.mark.parametrize("attack", ["random sign noise", "FGSM", "PGD"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.4), ("l1", 2.0)])
def test_attack_explorer_keeps_to_the_size(attack, norm, eps, generator):
    x = torch.full((1, 1, 4, 4), 0.5)
    w = torch.randn(16, generator=generator)
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    changed = widgets._PERTURB[attack](Linear(w), x, torch.tensor([0]), eps, norm, 5)
    assert torch.linalg.vector_norm(changed - x, order).item() == pytest.approx(eps, rel=1e-4)


def test_attack_explorer_draws_once_when_the_norm_brings_its_own_range(explorer, monkeypatch):
    explorer.set(image=0, attack="PGD", norm="linf", eps=0.1)
    drawn = []
    draw = explorer._draw
    monkeypatch.setattr(explorer, "_draw", lambda **values: drawn.append(values) or draw(**values))
    explorer.controls["norm"].value = "l2"
    assert [(v["norm"], v["eps"]) for v in drawn] == [("l2", pytest.approx(1.0))]
    explorer.set(norm="l1", eps=25)
    assert "(l1, eps 25.00, " in explorer.says
    with pytest.raises(ValueError, match=r"eps=25: expected 0.0 to 0.3"):
        explorer.set(norm="linf", eps=25)
    assert explorer.controls["norm"].value == "l1"
    assert explorer.controls["eps"].value == 25
    with pytest.raises(TypeError):
        explorer.set(norm="linf", eps="large")
    assert explorer.controls["norm"].value == "l1"
    with pytest.raises(ValueError, match=r"norm='l3': expected one of linf, l2, l1"):
        explorer.set(norm="l3")


def test_attack_explorer_for_photographs_with_names():
    x = torch.full((2, 3, 56, 56), 0.5)
    model = lambda z: torch.stack([z.mean((1, 2, 3)) - 0.5, z[:, 0].mean((1, 2)) * 0], 1)  # noqa: E731
    found = widgets.attack_explorer(
        model, x, torch.tensor([0, 1]), steps=3, names=["cat", "toaster"], largest=0.01
    )
    said = found.set(image=1, attack="PGD", eps=0.006).says
    assert said.startswith("Image 1, a toaster, under PGD (linf, eps 0.0060, steps 3): the model ")
    assert "says cat" in said
    # As a change of all pixels grows: with the root of their number in l2, with it in l1.
    assert found.set(norm="l2").controls["eps"].max == pytest.approx(0.35, rel=0.05)
    assert found.set(norm="l1").controls["eps"].max == pytest.approx(12, rel=0.05)


def test_attack_explorer_says_what_happens(explorer):
    explorer.set(norm="linf", steps=5)
    assert "(still right)" in explorer.set(image=0, attack="none", eps=0.3).says
    assert "(fooled)" in explorer.set(image=0, attack="PGD", eps=0.3).says
    assert "a 7" in explorer.says


@pytest.mark.slow
def test_only_pgd_has_steps(explorer):
    count = explorer.controls["steps"]
    for attack in ("FGSM", "random sign noise", "none"):
        assert "steps" not in explorer.set(image=0, attack=attack, norm="linf", eps=0.1).says
        assert count.disabled
    assert "eps 0.10, steps 3)" in explorer.set(attack="PGD", steps=3).says
    assert not count.disabled


def test_danskin_explorer():
    family = lambda theta, delta: theta * delta - delta**2 / 2  # noqa: E731
    explorer = widgets.danskin_explorer(
        family, torch.linspace(-2, 2, 81), torch.linspace(-1, 1, 201)
    )
    assert "slope of its loss there, +0.50" in explorer.set(theta=0.5).says
    assert "delta -1.00" in explorer.set(theta=-1.5).says


def test_a_broken_callback_raises():
    def draw(p):
        if p > 0.5:
            raise ZeroDivisionError("broken callback")
        return plt.figure(figsize=(1, 1)), "fine"

    explorer = widgets.Explorer(draw, p=ipywidgets.FloatSlider(value=0.1, min=0, max=1))
    with pytest.raises(ZeroDivisionError):
        explorer.set(p=0.9)
    with pytest.raises(ZeroDivisionError):
        explorer.controls["p"].value = 0.8


def test_set_draws_once_and_rejects_what_it_cannot_show():
    plt.close("all")
    drawn = []

    def draw(p, q):
        drawn.append((p, q))
        return plt.figure(figsize=(1, 1)), f"{p} {q}"

    sliders = {name: ipywidgets.IntSlider(value=0, min=0, max=5) for name in "pq"}
    explorer = widgets.Explorer(draw, **sliders)
    assert explorer.set(p=1, q=2).says == "1 2"
    assert drawn == [(0, 0), (1, 2)]
    with pytest.raises(ValueError, match="r: expected one of p, q"):
        explorer.set(r=1)
    with pytest.raises(ValueError, match="p=9: expected 0 to 5"):
        explorer.set(p=9)
    assert "static figure" in repr(explorer)
    assert plt.get_fignums() == []


def test_words_are_escaped():
    explorer = widgets.Explorer(lambda: (plt.figure(figsize=(1, 1)), 'a < b "c"'))
    assert "a &lt; b &quot;c&quot;" in explorer._picture.value


def test_radius_explorer():
    explorer = widgets.radius_explorer()
    assert "radius is 0.421" in explorer.set(p_a=0.8, sigma=0.5, delta=0.42).says
    assert "still A" in explorer.says
    before = explorer._picture.value
    assert "not guaranteed" in explorer.set(delta=0.43).says
    assert explorer._picture.value != before
    figure, _ = explorer._draw(p_a=0.8, sigma=0.5, delta=1.0)
    (axes,) = figure.axes
    ((x,), (y,)) = axes.lines[-1].get_data()  # the circle, at Phi(0.8416 - 1 / 0.5)
    assert (x, y) == (1.0, pytest.approx(0.1233, abs=1e-4))
    assert axes.collections[-1].get_segments()[0][:, 0] == pytest.approx([0.4208] * 2, abs=1e-4)
    plt.close(figure)


@pytest.mark.slow
def test_smoothing_explorer():
    def thirds(z):
        return torch.stack([z[:, 0], -z[:, 0], z[:, 1] - 5], 1)

    explorer = widgets.smoothing_explorer(thirds, num_classes=3)
    says = explorer.set(x=1.0, y=0.0, sigma=0.05, n=100).says
    assert "class 0 has 100.0% of the votes, its probability is at least 0.933" in says
    assert says.endswith("has 0.0%, at most 0.067.")  # 1 - 0.001 ** (1 / 100)
    for control, value in (("sigma", 1.0), ("n", 400), ("x", -1.0), ("y", 0.5)):
        before = explorer._picture.value
        explorer.controls[control].value = value
        assert explorer._picture.value != before
    assert "class 1" in explorer.says


@pytest.mark.slow
def test_certification_explorer():
    explorer = widgets.certification_explorer(alpha=0.01, sigma=0.5, most=500)
    says = explorer.set(p=0.999, n=20, run=0).says
    assert "observed 1.0000, at least 0.7943" in says  # 0.01 ** (1 / 20)
    assert "Radius inf from the share (false), 0.411 certified, 1.545 true" in says
    for control, value in (("p", 0.6), ("n", 400), ("run", 5)):
        before = explorer._picture.value
        explorer.controls[control].value = value
        assert explorer._picture.value != before
    won = (np.random.default_rng(5).random(500) < 0.6)[:400].sum()
    assert f"observed {won / 400:.4f}" in explorer.says
    assert f"at least {float(bounds.lower_conf_bound(won, 400, 0.01)):.4f}" in explorer.says
    share = explorer.figure().axes[0].lines[0]  # the same picture, for a page without a kernel
    assert (share.get_label(), share.get_ydata()[-1]) == ("observed share", won / 400)
    plt.close("all")


# --- a digit of one's own -------------------------------------------------------------------------

SEVEN = [[(8, 6), (20, 6), (13, 23)]]


@pytest.fixture(scope="module")
def paper():
    images, labels = data.load_mnist("test")
    model = models.load("mnist_smallcnn_standard")
    return widgets.draw_explorer(model, images[:20], labels[:20], steps=10)


def blank(explorer, **values):
    """On a new sheet."""
    explorer.set(paper="blank", show="drawn", eps=0.1)
    return explorer.set(**{"strokes": SEVEN} | values)


def test_a_drawn_seven_is_a_seven_until_it_is_attacked(paper):
    assert "1 stroke on blank paper: the model says 7 with probability 1.00." in blank(paper).says
    says = paper.set(show="attacked").says
    assert "Attacked with eps 0.10: 3 with" in says
    assert says.endswith("(fooled).")
    assert paper.set(eps=0.01).says.endswith("(not fooled).")


@pytest.mark.slow
def test_the_attacked_picture_comes_through_a_png_of_8_bits(tmp_path):
    sheet, path = torch.zeros(1, 1, 28, 28), tmp_path / "attacked.png"
    model = models.load("mnist_smallcnn_standard")
    paper = widgets.draw_explorer(model, sheet, torch.tensor([7]), path, steps=10)
    says = blank(paper, show="attacked").says
    assert not path.exists()
    says = paper.set(show="saved as PNG").says
    assert " Saved as attacked.png and read back: 3" in says
    with Image.open(path) as saved:
        assert (saved.mode, saved.size, saved.format) == ("L", (28, 28), "PNG")
        pixels = torch.from_numpy(np.array(saved) / 255).float()[None, None]
    assert "(still fooled)" in says
    assert int(models.predict(model, pixels)) == 3
    change = (pixels - widgets._as_in_mnist(SEVEN, torch.zeros(28, 28))).abs().max()
    assert 0.1 <= change <= 0.1 + 0.5 / 255 + 1e-6
    assert f"largest change of a pixel is {change:.3f}." in says
    assert "(still not fooled)" in paper.set(eps=0.01).says


@pytest.mark.slow
def test_it_says_when_rounding_undid_the_attack(tmp_path):
    """Class 1 from a mean of 0.001 on: less than one of 255 levels."""

    def model(x):
        z = 1e4 * (x.mean((1, 2, 3)) - 0.001)
        return torch.stack([-z, z], 1)

    sheet, path = torch.zeros(1, 1, 28, 28), tmp_path / "a.png"
    explorer = widgets.draw_explorer(model, sheet, torch.tensor([0]), path)
    explorer.controls["eps"].step = 0.001
    says = explorer.set(eps=0.0015, show="saved as PNG").says
    assert "Attacked with eps 0.00: 1" in says
    assert "read back: 0" in says
    assert "(now not fooled: rounding did it)" in says


def test_strokes_look_like_mnist():
    """Size, weight and place, each within what is usual there."""
    images, labels = data.load_mnist("test")
    real = images[labels == 7][:, 0]
    drawn = widgets._as_in_mnist(SEVEN, torch.zeros(28, 28))[0, 0]
    scattered = [[(0.5 * x, 0.5 * y + 10) for x, y in SEVEN[0]]]  # half as large, elsewhere
    torch.testing.assert_close(widgets._as_in_mnist(scattered, torch.zeros(28, 28))[0, 0], drawn)
    rows, columns = (drawn > 0).any(1), (drawn > 0).any(0)
    assert max(rows.sum(), columns.sum()) == 20
    ink = real.sum((1, 2))
    assert ink.quantile(0.1) < drawn.sum() < ink.quantile(0.9)
    soft = lambda z: ((z > 0) & (z < 0.9)).sum((-2, -1)) / (z > 0).sum((-2, -1))  # noqa: E731
    assert soft(real).quantile(0.1) < soft(drawn) < soft(real).quantile(0.9)
    axis = torch.arange(28.0)
    centre = torch.stack([drawn.sum(0) @ axis, drawn.sum(1) @ axis]) / drawn.sum()
    assert (centre - 14).abs().max() <= 0.5


def test_strokes_on_a_test_digit_keep_their_place(paper):
    paper.set(paper="a 3", show="drawn")
    assert "0 strokes on a 3: the model says 3" in paper.says
    pad = paper.controls["strokes"]
    assert len(pad.paper) == 784
    assert max(pad.paper) > 250
    assert "1 stroke on a 3: the model says 8" in paper.set(strokes=[[(10, 8), (10, 18)]]).says
    assert "0 strokes on blank paper" in paper.set(paper="blank").says  # a new sheet
    assert "it has to give one of its answers" in paper.says
    assert pad.value == []


def test_a_point_is_a_dot_and_nothing_leaves_the_picture():
    sheet = torch.zeros(28, 28)
    dot = widgets._as_in_mnist([[(3, 3)]], sheet)[0, 0]
    assert dot.argmax() == 14 * 28 + 14
    assert widgets._as_in_mnist([], sheet).shape == (1, 1, 28, 28)
    sheet[0, 27] = 1  # its mass goes to the middle
    assert widgets._as_in_mnist([], sheet)[0, 0].nonzero().tolist() == [[14, 14]]


@pytest.mark.parametrize("strokes", [5, "ab", [[]], [[3, 4]], [[(3, 28)]], [[(float("nan"), 3)]]])
def test_what_is_no_stroke_is_refused(paper, strokes):
    before = blank(paper).says
    with pytest.raises(ValueError, match=r"strokes=.*expected a list of strokes, each a list of"):
        paper.set(strokes=strokes)
    assert paper.says == before


def test_the_attack_explorer_attacks_as_its_controls_say(monkeypatch):
    asked = []

    def attack(model, x, y, eps, norm, steps):
        asked.append((round(eps, 3), norm, steps))
        return x

    monkeypatch.setitem(widgets._PERTURB, "PGD", attack)
    x = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    explorer = widgets.attack_explorer(lambda z: z.flatten(1)[:, :3], x, torch.tensor([0, 1]))
    explorer.set(eps=0.2, steps=7)
    assert asked[-1] == (0.2, "linf", 7)
