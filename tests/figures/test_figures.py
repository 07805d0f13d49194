"""Figures show what they are given: checked on the drawn artists, not on pixels."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.lines import AxLine

from trustml_helpers import data, figures
from trustml_helpers.figures import general

matplotlib.use("agg")


def rendered(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    matplotlib.pyplot.close(figure)
    return len(buffer.getvalue())


def test_perturbations():
    x, z = torch.zeros(1, 5, 5), torch.full((1, 5, 5), 0.2)
    figure = figures.perturbations([("some", x, z, torch.tensor([0.1, 0.9]))], label=0)
    axes = figure.axes
    assert axes[2].get_title().endswith("says 1, wrong")
    assert np.allclose(axes[1].images[0].get_array(), 0.2)
    assert axes[1].images[0].get_clim() == pytest.approx((-0.2, 0.2))
    heights = [bar.get_height() for bar in axes[3].patches]
    assert heights == pytest.approx([0.1, 0.9])
    assert axes[3].patches[0].get_hatch()
    wrong = axes[3].patches[1].get_facecolor()
    assert rendered(figure) > 1000
    figure = figures.perturbations([("some", x, z, torch.tensor([0.9, 0.1]))], label=0)
    assert figure.axes[2].get_title().endswith("says 0")
    assert figure.axes[3].patches[0].get_facecolor() != wrong
    figure.draw_without_rendering()
    widths = [axes.get_window_extent().width for axes in figure.axes[:3]]
    assert widths == pytest.approx([widths[0]] * 3, abs=1)
    rendered(figure)


def test_perturbations_of_photographs_with_names_of_classes():
    x, z = torch.full((3, 5, 5), 0.5), torch.full((3, 5, 5), 0.5)
    z[0] += 0.004
    z[1] -= 0.002
    shares = torch.tensor([0.02, 0.5, 0.01, 0.3, 0.1, 0.03, 0.04])
    figure = figures.perturbations([("PGD", x, z, shares)], label=3, names=list("abcdefg"))
    change, said, bars = (figure.axes[k] for k in (1, 2, 3))
    # Around grey, and full where the change is largest.
    assert np.allclose(change.images[0].get_array()[0, 0], [1, 0.25, 0.5], atol=1e-4)
    assert "0.004" in change.get_title()
    assert said.get_title().endswith(": b, wrong")
    assert [text.get_text() for text in bars.texts] == ["f", "g", "e", "d", "b"]
    widths = [bar.get_width() for bar in bars.patches]
    assert widths == pytest.approx([0.03, 0.04, 0.1, 0.3, 0.5])
    assert [bool(bar.get_hatch()) for bar in bars.patches] == [False, False, False, True, False]
    assert rendered(figure) > 1000


def test_answers():
    image = torch.zeros(1, 5, 5)
    columns = [("drawn", image, torch.tensor([0.2, 0.8])),
               ("attacked", image + 0.5, torch.tensor([0.9, 0.1]))]  # fmt: skip
    figure = figures.answers(columns)
    above, below = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title() for axes in above] == ["drawn", "attacked"]
    assert np.allclose(above[1].images[0].get_array(), 0.5)
    assert [axes.get_title() for axes in below] == ["says 1 (0.80)", "says 0 (0.90)"]
    for axes, (*_, probabilities) in zip(below, columns, strict=True):
        assert [bar.get_height() for bar in axes.patches] == pytest.approx(probabilities.tolist())
        assert [bool(bar.get_hatch()) for bar in axes.patches] == [False, True]
    assert rendered(figure) > 1000


def test_pictures_in_colour_and_signed():
    figure = figures.pictures(
        [[torch.rand(3, 4, 4)], [torch.rand(1, 4, 4)]], [["a"], ["b"]], ["r", "s"]
    )
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert figure.axes[0].images[0].get_array().shape == (4, 4, 3)
    rendered(figure)
    signed = figures.pictures([[torch.tensor([[[-3.0, 1.0]]])]], signed=[0])
    assert signed.axes[0].images[0].get_clim() == (-3, 3)
    rendered(signed)
    two = figures.pictures([[torch.rand(1, 4, 4)] * 2], [["a", "b"]], wrong=[[False, True]])
    right, wrong = (axes.spines["left"].get_linewidth() for axes in two.axes)
    assert wrong > 2 * right
    assert two.axes[1].title.get_weight() == "bold"
    rendered(two)
    with pytest.raises(ValueError, match=r"wrong\[0\] has 1 for 2 images"):
        figures.pictures([[torch.rand(1, 4, 4)] * 2], wrong=[[True]])


def test_curves_keep_one_look_per_name_and_differ_without_colour():
    lines = {name: [0.1, 0.2] for name in "abcdefghijklmn"}
    figure = figures.curves(
        [("x", [0, 1], lines), ("z", [0, 1], {"c": [0, 1]})],
        "y",
        note="a note",
        titles=["left", "right"],
    )
    left, right = figure.axes
    looks = {(str(line._dash_pattern), line.get_marker()) for line in left.lines}
    assert len(looks) == 14
    same = next(line for line in left.lines if line.get_label() == "c")
    assert right.lines[0].get_color() == same.get_color()
    assert left.get_title() == "left"
    rendered(figure)
    rendered(
        figures.curves(
            [("x", [1, 10], {"a": [1, 2]})], "y", ylim=None, logx=True, logy=True, legend="outside"
        )
    )


def test_matrix_prints_percentages():
    table = pd.DataFrame({"clean": [0.991], "worst case": [0.0]}, index=["net"])
    figure = figures.matrix(table, xlabel="columns", note="n")
    assert [text.get_text() for text in figure.axes[0].texts] == ["99.1", "0.0"]
    rendered(figure)


def test_bars_stand_side_by_side_and_differ_without_colour():
    figure = figures.bars(["none", "some"], {"a": [3, 1], "b": [2, 2]}, "digits")
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [3, 1, 2, 2]
    places = sorted((bar.get_x(), bar.get_width()) for bar in axes.patches)
    assert all(sum(places[k]) <= places[k + 1][0] + 1e-9 for k in range(3))
    assert axes.patches[0].get_hatch() != axes.patches[2].get_hatch()
    assert [text.get_text() for text in axes.texts] == ["3", "1", "2", "2"]
    rendered(figure)


def test_norm_balls():
    steps = {"linf": (1.0, 1.0), "l2": (0.8, 0.6), "l1": (1.0, 0.0)}
    figure = figures.norm_balls((1.2, 0.5), steps)
    assert len(figure.axes) == 3
    rendered(figure)


@pytest.mark.parametrize("all_right", [True, False])
def test_loss_surface(all_right):
    a = [0.0, 1.0, 2.0]
    right = torch.ones(3, 3, dtype=torch.bool)
    right[2] = all_right
    loss = torch.full((3, 3), 2.0)
    figure = figures.loss_surface(
        a,
        a,
        {"net": (loss, right), "other": (loss / 4, right)},
        labels=("p", "q"),
        marks={"x": (0, 0)},
    )
    left, other = figure.axes[:2]
    assert [left.get_title(), left.get_xlabel(), other.get_title()] == ["net", "p", "other"]
    assert left.collections[0].get_clim() == other.collections[0].get_clim()  # one scale
    assert len(left.collections) == (1 if all_right else 2)  # the line where the label changes
    rendered(figure)


def test_smallest_eps():
    panels = {"weak": [0.05, 0.05, 0.15], "strong": [0.25, 0.35, np.inf]}
    figure = figures.smallest_eps(panels, [0, 0.1, 0.2, 0.3, 0.4])
    weak, strong = figure.axes
    assert [bar.get_height() for bar in weak.patches] == [2, 1, 0, 0]
    assert [bar.get_height() for bar in strong.patches] == [0, 0, 1, 1]
    assert weak.lines[0].get_xdata()[0] == 0.05
    assert [axes.get_title() for axes in figure.axes] == ["weak", "strong (1 never fooled)"]
    rendered(figure)


def test_danskin():
    figure = figures.danskin([0.0, 1.0, 2.0], {"a": [0, 1, 2]}, [0, 1, 2], 1.0, (1.0, 1.0), "a")
    tangent = figure.axes[0].lines[2]
    assert np.allclose(tangent.get_ydata(), tangent.get_xdata())
    rendered(figure)


def test_a_reference_is_no_data():
    """The same look of the data with and without it."""
    lines = {"level": [0.5, 0.5], "a": [0, 1], "b": [1, 0]}
    drawn = figures.curves([("x", [0, 1], lines)], "y", reference=["level"]).axes[0].lines
    plain = figures.curves([("x", [0, 1], {"a": [0, 1], "b": [1, 0]})], "y").axes[0].lines
    assert [line.get_label() for line in drawn] == ["level", "a", "b"]
    assert drawn[0].get_marker() == "None"
    assert drawn[0].get_color() not in figures.PALETTE
    for one, other in zip(drawn[1:], plain, strict=True):
        assert (one.get_color(), one.get_marker()) == (other.get_color(), other.get_marker())


def test_lines_without_markers_keep_their_colour_and_style():
    panel = ("x", [0, 1], {"a": [0, 1], "b": [1, 0]})
    plain = figures.curves([panel], "y", markers=False).axes[0].lines
    for line, other in zip(plain, figures.curves([panel], "y").axes[0].lines, strict=True):
        assert line.get_marker() in ("", "None")
        assert other.get_marker() not in ("", "None")
        assert line.get_color() == other.get_color()
        assert line._dash_pattern == other._dash_pattern


def test_an_upright_line_is_named_in_every_panel():
    panels = [("x", [0, 1], {"a": [0, 1]}), ("x", [0, 1], {"a": [1, 0]})]
    figure = figures.curves(panels, "y", upright={"here": 0.3})
    for axes in figure.axes:
        assert list(axes.lines[-1].get_xdata()) == [0.3, 0.3]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "here"]
    rendered(figure)


def test_tie():
    theta, axis = [-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0]
    height = torch.tensor(axis)[:, None] + 3 * torch.tensor(axis).abs()
    figure = figures.tie(theta, [1, 0, 1], {"low": -1.0, "high": 1.0}, plane=(axis, axis, height),
                         steps={"up": (-1, -2), "down": (-1, 0)})  # fmt: skip
    line, level = figure.axes
    drawn = {each.get_label(): each.get_ydata() for each in line.lines}
    assert list(drawn["low"]) == [1, 0, -1]
    assert list(drawn["high"]) == [-1, 0, 1]
    assert [each.xy for each in level.texts if hasattr(each, "xy")] == [(-1, -2), (-1, 0)]
    rendered(figure)


def test_show_keeps_the_text_alternative_and_closes(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: shown.append((a, k)))
    figure = figures.curves([("x", [0, 1], {"a": [0, 1]})], "y")
    figures.show(figure, "A line that rises from zero to one.")
    assert shown[0][1]["metadata"]["image/png"]["alt"].startswith("A line")
    assert not matplotlib.pyplot.fignum_exists(figure.number)


@pytest.mark.parametrize(("noisy", "kind", "mode"), [
    (False, "image/png", "P"), (True, "image/jpeg", "RGB")
])  # fmt: skip
def test_a_palette_where_nobody_sees_it(noisy, kind, mode):
    """Line art takes 256 colours; a photograph in colour becomes a JPEG."""
    from PIL import Image

    image = data.load_photo(64)[0]
    figure = (
        figures.pictures([[image]], width=3) if noisy
        else figures.curves([("x", [0, 1, 2], {"a": [0.0, 1.0, 0.5]})], "y")
    )  # fmt: skip
    found, raw = general._encoded(figure)
    assert (found, Image.open(io.BytesIO(raw)).mode) == (kind, mode)
    plain = io.BytesIO()
    with matplotlib.rc_context(figures.STYLE):
        figure.savefig(plain, format="png", bbox_inches="tight")
    whole, shown = (
        np.asarray(Image.open(f).convert("RGB"), dtype=float) for f in (plain, io.BytesIO(raw))
    )
    assert whole.shape == shown.shape
    assert abs(whole - shown).mean() < (3 if noisy else 1)
    assert len(raw) < len(plain.getvalue())


def test_the_style_does_not_leak():
    before = dict(matplotlib.rcParams)
    rendered(figures.curves([("x", [0], {"a": [0]})], "y"))
    assert dict(matplotlib.rcParams) == before


def test_shifted_densities():
    figure = figures.shifted_densities(
        [0, 1, 2], {"a": [0, 1, 0], "b": [0, 0, 1]}, [1, 1, 0], xlabel="t", marks={"border": 1.5},
        places={"x": 0.5},
    )  # fmt: skip
    top, low = figure.axes
    assert [line.get_label() for line in top.lines][:2] == ["a", "b"]
    assert low.get_xlabel() == "t"
    assert [text.get_text() for text in low.texts] == ["x"]
    rendered(figure)


def test_plane():
    share = np.array([[1.0, 0.5], [0.0, 0.25]])
    edges = ([0, 1, 2], [0, 1, 2])
    figure = figures.plane(
        edges, {"f": share}, centres={"x": (1, 1)}, sigma=0.5, border=((0.0, 2.0), 0.5)
    )
    (border,) = [line for line in figure.axes[0].lines if isinstance(line, AxLine)]
    assert border.get_xy1()[1] == border.get_xy2()[1] == 0.5  # at right angles to (0, 2)
    mesh = figure.axes[0].collections[0]
    assert np.allclose(np.asarray(mesh.get_array()).reshape(2, 2), share.T)
    rendered(figure)


def test_regions_and_vote():
    axis = [0.0, 1.0, 2.0]
    classes = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 0, 2]])
    figure = figures.regions(axis, {"f": classes, "g": classes})
    assert [axes.get_title() for axes in figure.axes] == ["f", "g"]
    mesh = np.asarray(figure.axes[0].collections[0].get_array()).reshape(3, 3)
    assert np.array_equal(mesh, classes.T)
    rendered(figure)
    figure = figures.vote(
        axis, classes, (1.0, 1.0), 0.3, [0.7, 0.2, 0.1], {0: ("low", 0.6), 1: ("high", 0.3)}
    )
    right = figure.axes[1]
    assert [bar.get_height() for bar in right.patches] == pytest.approx([0.7, 0.2, 0.1])
    assert [line.get_ydata()[0] for line in right.lines][:2] == [0.6, 0.3]
    rendered(figure)


def test_certified_ball():
    axis = [0.0, 1.0, 2.0, 3.0]
    half = torch.tensor([[0] * 4, [0] * 4, [1] * 4, [1] * 4])
    figure = figures.certified_ball(
        axis, {"f": half, "g": half}, (1.0, 1.0), 0.5, {"g": (1.6, 1.8)}
    )
    left, right = figure.axes
    for axes in figure.axes:
        (ball,) = axes.patches
        away = np.hypot(*(ball.get_xy() - 1.0).T)
        assert np.allclose(away, 0.5)
    assert [line.get_label() for line in right.lines if line.get_linestyle() == "--"] == [
        "to the border: 1.000"
    ]
    assert len(left.lines) == 1  # x alone
    assert right.lines[-1].get_xydata().tolist() == [[1.6, 1.8]]
    rendered(figure)


def test_a_sigma_has_one_look_in_every_figure():
    one = {0.5: ([0.0, 0.1, 0.2], [0.9, 0.4, 0.0])}
    both = {0.12: ([0.0, 0.1, 0.2], [0.8, 0.0, 0.0]), **one}
    alone = figures.by_sigma({"t": one}).axes[0].lines[0]
    left, right = figures.by_sigma({"a": both, "b": one}, points={"b": {0.5: ([0.1], [0.5])}}).axes
    assert [line.get_label() for line in left.lines] == [r"$\sigma=0.12$", r"$\sigma=0.5$"]
    for line in (left.lines[1], *right.lines):
        assert line.get_color() == alone.get_color() != left.lines[0].get_color()
    # A line ends where it reaches 0; points are not joined.
    assert left.lines[0].get_xydata().tolist() == [[0.0, 0.8], [0.1, 0.0]]
    assert left.lines[1].get_ydata().tolist() == [0.9, 0.4, 0.0]
    assert right.lines[1].get_linestyle() == "None"
    assert right.lines[1].get_xydata().tolist() == [[0.1, 0.5]]
    rendered(left.figure)


def test_certified_and_sandwich():
    figure = figures.certified([0, 1], {"a": [0.9, 0.1], "b": [0.8, 0.5]}, title="t")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    assert axes.lines[1].get_ydata().tolist() == [0.8, 0.5]
    assert axes.get_title() == "t"
    rendered(figure)
    figure = figures.sandwich([0, 1, 2], [0.9, 0.5, 0.0], [0.9, 0.8, 0.7], names=("low", "high"))
    (axes,) = figure.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {"high": [0.9, 0.8, 0.7], "low": [0.9, 0.5, 0.0]}
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert [1.0, 0.5] in corners.tolist()
    assert [1.0, 0.8] in corners.tolist()
    rendered(figure)


def test_rungs():
    """Three printed values; one suspect meets all, one the first alone, and has one rung more."""
    ladders = {"meets all": [0.5, 0.4, 0.2004], "one": [0.5006, 0.5004, 0.45]}
    figure = figures.rungs([0.5, 0.4, 0.2], ladders, unit=0.001, xlabel="radius")
    (axes,) = figure.axes
    counts = [len(line.get_xdata()) for line in axes.lines]
    assert counts == [3, 0, 0, 1, 2, 2]  # per suspect: met, rungs that are empty, bands missed
    assert sorted(axes.lines[5].get_xdata()) == [0.2, 0.4]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ladders)
    assert len(axes.get_legend().get_texts()) == 3
    rendered(figure)


def test_an_oblong_loss_surface_is_not_transposed():
    a, b = [0.0, 0.5, 1.0], [0.0, 1.0, 2.0, 3.0, 4.0]
    loss = torch.tensor(a)[:, None].expand(3, 5)
    drawn = figures.loss_surface(a, b, {"t": (loss, loss < 0.25)}, labels=("a", "b")).axes[0]
    paths = [path for each in drawn.collections for path in each.get_paths()]
    border = [path for path in paths if len(path.vertices)][-1].vertices
    assert np.allclose(border[:, 0], 0.25)


def test_a_picture_is_neither_turned_nor_mirrored():
    image = torch.arange(12.0).view(1, 3, 4) / 12
    drawn = figures.pictures([[image]]).axes[0].images[0]
    assert np.allclose(drawn.get_array(), image[0])


def test_norm_balls_and_their_steps():
    figure = figures.norm_balls((1, 0.5), {"linf": (1, 1), "l1": (1, 0)})
    corners = [np.abs(axes.patches[0].get_xy()).sum(1).max() for axes in figure.axes]
    assert np.allclose(corners, [2, 1])
    assert [text.xy for text in figure.axes[1].texts] == [(1, 0.5), (1, 0)]
    looks = [text.arrow_patch.get_linestyle() for text in figure.axes[1].texts]
    assert looks == ["--", "-"]  # the gradient, and the step


def test_the_share_below_densities_is_as_high_as_it_is():
    figure = figures.shifted_densities([0, 1, 2], {"p": [1, 1, 1]}, [0, 0.25, 0.25], xlabel="z")
    (path,) = figure.axes[1].collections[0].get_paths()
    assert path.vertices[:, 1].max() == pytest.approx(0.25)
