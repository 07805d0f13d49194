"""The figures of a general form, and the style that all share.

One style for all: large type for the last row, the Okabe-Ito palette, and a line style and a
marker of its own for every line, so that nothing depends on colour alone.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from trustml_helpers._support.arguments import Rule, declared, kind, maybe, number, whole

if TYPE_CHECKING:
    import pandas as pd

# Okabe & Ito (2008), without yellow, which is too light for a line on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
PLATE = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2}  # under words
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SIGNED = "PuOr_r"  # diverging, safe for the colour-blind: purple below zero, orange above
STYLE: dict[Any, Any] = {
    "figure.dpi": 100, "figure.constrained_layout.use": True, "font.size": 12,
    "axes.titlesize": 13, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.3, "lines.linewidth": 2.2, "lines.markersize": 6, "legend.frameon": False,
    "image.cmap": "gray",
}  # fmt: skip
UPPER_BOUND = "an attack gives an upper bound on robust accuracy"

styled = matplotlib.rc_context(STYLE)  # a decorator: the style holds while a figure is drawn


# --- what the arguments may be --------------------------------------------------------------------


def some(what: str) -> Rule:
    """At least one of them: without, there is nothing to draw."""

    def read(values: Any) -> Any:
        if len(values) == 0:
            raise ValueError
        return values

    return Rule(f"at least one {what}", read, ([], {}, None, 17))


def one_each(name: str, values: Sequence[Any] | None, count: int, of: str) -> None:
    """Refuse too few or too many, where any are given."""
    if values is not None and len(values) != count:
        raise ValueError(f"{name} has {len(values)} for {count} {of}: expected one for each")


def _sentence(text: Any) -> str:
    if not isinstance(text, str) or len(text.split()) < 5:
        raise ValueError
    return text


def _class_of_all(rows: Sequence[tuple[str, Tensor, Tensor, Tensor]], label: int | None) -> None:
    classes = min(len(probabilities) for *_, probabilities in rows)
    if label is not None and label >= classes:
        raise ValueError(f"label={label}: expected a class from 0 to {classes - 1}, or None")


def _texts_fit(images: Any, titles: Any, row_names: Any, wrong: Any) -> None:
    for r, row in enumerate(images):
        some("image")(f"images[{r}]", row)
    one_each("titles", titles or None, len(images), "rows")
    for r, texts in enumerate(titles or ()):
        one_each(f"titles[{r}]", texts or None, len(images[r]), "images")
    one_each("row_names", row_names or None, len(images), "rows")
    one_each("wrong", wrong or None, len(images), "rows")
    for r, flags in enumerate(wrong or ()):
        one_each(f"wrong[{r}]", flags, len(images[r]), "images")


def _lines_fit(panels: Any, titles: Any) -> None:
    for where, x, lines in panels:
        for name, y in lines.items():
            one_each(f"panels: {name!r}", y, len(x), f"values of {where}")
    one_each("titles", titles or None, len(panels), "panels")


def _bars_fit(groups: Sequence[str], values: Mapping[str, Sequence[float]]) -> None:
    for name, heights in values.items():
        one_each(f"values: {name!r}", heights, len(groups), "groups")


def _not_empty(table: pd.DataFrame) -> None:
    if table.empty:
        raise ValueError("table is empty: expected at least one row and one column")


# --- figures --------------------------------------------------------------------------------------


@declared(
    figure=kind("a matplotlib Figure, such as figures.curves(...) returns", Figure),
    alt=Rule("a sentence that says what the figure shows", _sentence, ("plot", "", None)),
)
def show(figure: Figure, alt: str) -> None:
    """Display a figure in a notebook with a text alternative, and close it.

    Args:
        figure: what a function of this module returned.
        alt: what the picture shows, for readers who cannot see it.
    """
    from IPython.display import display

    kind, picture = _encoded(figure)
    display({kind: picture, "text/plain": repr(figure)}, metadata={kind: {"alt": alt}}, raw=True)
    plt.close(figure)


@styled  # here as well: the resolution is read when the picture is made
def _encoded(figure: Figure) -> tuple[str, bytes]:
    """The picture and its kind: PNG with a palette of 256 colours, JPEG if one would see that."""
    from PIL import Image, ImageChops, ImageStat

    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", bbox_inches="tight")
    whole = Image.open(raw).convert("RGB")
    palette = whole.quantize(256, dither=Image.Dither.NONE)
    difference = ImageChops.difference(whole, palette.convert("RGB"))
    # Line art is off by far less than one of 255 levels, photographs by several.
    if max(ImageStat.Stat(difference).mean) < 1:
        palette.save(small, format="png", optimize=True)
        return "image/png", small.getvalue()
    whole.save(small, format="jpeg", quality=75, optimize=True)
    return "image/jpeg", small.getvalue()


def _picture(axes: Axes, image: Any, title: str = "", *, signed: float | None = None) -> Any:
    """One image (C, H, W) or (H, W), without ticks; ``signed`` is the ± range of a signed scale."""
    pixels = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    if signed is not None and pixels.ndim == 3:  # colours around grey
        pixels, signed = (0.5 + pixels / (2 * signed)).clip(0, 1), None
    scale = {"vmin": 0, "vmax": 1} if signed is None else {"vmin": -signed, "vmax": signed}
    cmap = "gray" if signed is None else SIGNED
    shown = axes.imshow(pixels, cmap=cmap, interpolation="nearest", **scale)
    axes.set(xticks=[], yticks=[], title=title)
    axes.grid(visible=False)
    axes.spines[:].set(visible=True, color="0.6")
    return shown


@declared(_class_of_all, rows=some("row"), label=maybe(whole()))
@styled
def perturbations(
    rows: Sequence[tuple[str, Tensor, Tensor, Tensor]], *, label: int | None = None,
    names: Sequence[str] | None = None,
) -> Figure:  # fmt: skip
    """Image, perturbation, sum and class probabilities, one row per perturbation.

    Args:
        rows: ``(name, x, x_adv, probabilities of x_adv)``, images ``(C, H, W)``, probabilities
            ``(K,)``. In colour the perturbation is drawn around grey.
        label: the true class, hatched in the bar chart; an answer that is wrong is drawn in
            another colour, and said to be wrong.
        names: of the K classes; then the five of largest probability are shown.
    """
    fig, grid = plt.subplots(len(rows), 4, figsize=(11, 2.9 * len(rows)), squeeze=False,
                             width_ratios=[1, 1, 1, 1.5])  # fmt: skip
    for axes, (name, x, x_adv, probabilities) in zip(grid, rows, strict=True):
        delta = x_adv - x
        size = max(float(delta.abs().max()), 1e-3)
        _picture(axes[0], x, "image $x$")
        if len(x) == 3:
            _picture(axes[1], delta, rf"$\delta$, $\pm${size:.2g}", signed=size)
        else:
            shown = _picture(axes[1], delta, r"perturbation $\delta$", signed=size)
            beside = axes[1].inset_axes((1.04, 0.1, 0.05, 0.8))  # the picture keeps its size
            fig.colorbar(shown, cax=beside, ticks=[-size, 0, size], format="%.2f")
        says = int(probabilities.argmax())
        verdict = ", wrong" if label not in (None, says) else ""
        answer = f"says {says}" if names is None else names[says]
        _picture(axes[2], x_adv, rf"$x+\delta$: {answer}{verdict}")
        axes[0].set_ylabel(name)
        title = "class probabilities (hatched: true class)"
        _probability_bars(axes[3], probabilities, label, title, names)
    return fig


@declared(columns=some("column"))
@styled
def answers(columns: Sequence[tuple[str, Tensor, Tensor]]) -> Figure:
    """Pictures in a row, and under each what a model answers to it.

    Args:
        columns: ``(name, image (C, H, W), probabilities (K,))``; the answer to the first picture
            is hatched everywhere.
    """
    fig, grid = plt.subplots(2, len(columns), figsize=(3.6 * len(columns), 4.6), squeeze=False,
                             height_ratios=[1, 0.8])  # fmt: skip
    first = int(columns[0][2].argmax())
    for (above, below), (name, image, probabilities) in zip(grid.T, columns, strict=True):
        _picture(above, image, name)
        most = f"{float(probabilities.max()):.2f}"
        _probability_bars(
            below, probabilities, first, f"says {int(probabilities.argmax())} ({most})"
        )
    grid[1, 0].set_ylabel("probability")
    return fig


def _probability_bars(
    axes: Axes, probabilities: Tensor, label: int | None, title: str,
    names: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """A bar for each class; with names lying bars, for the five of largest probability."""
    predicted = int(probabilities.argmax())
    few = names is not None
    classes = probabilities.topk(min(5, len(probabilities))).indices.tolist()[::-1]
    classes = classes if few else list(range(len(probabilities)))
    said = PALETTE[0] if label in (None, predicted) else PALETTE[1]
    colours = [said if k == predicted else "0.8" for k in classes]
    draw = axes.barh if few else axes.bar
    places = range(len(classes))
    bars = draw(places, probabilities[classes].tolist(), color=colours, edgecolor="0.3")
    if label in classes:
        bars[classes.index(label)].set_hatch("///")
    if names is not None:
        axes.set(yticks=[], xlim=(0, 1.05), title=title)
        for place, k in zip(places, classes, strict=True):
            axes.text(0.02, place, names[k], va="center", fontsize=10)
    else:
        axes.set(xticks=classes, ylim=(0, 1.05), title=title)
    axes.title.set_fontsize(11)
    axes.grid(visible=False, axis="y" if few else "x")


@declared(_texts_fit, images=some("row"), width=number("(0, inf)", "in inches"))
@styled
def pictures(
    images: Sequence[Sequence[Tensor]], titles: Sequence[Sequence[str]] | None = None,
    row_names: Sequence[str] | None = None, *, signed: Sequence[int] = (), width: float = 1.35,
    wrong: Sequence[Sequence[bool]] | None = None,
) -> Figure:  # fmt: skip
    """A grid of images with a title over each.

    Args:
        images: rows of images ``(C, H, W)``.
        titles, row_names: text over each image and left of each row.
        signed: which rows hold signed values, such as gradients; each of these rows is drawn on one
            symmetric scale.
        width: inches per image.
        wrong: which images get a thick frame and a bold title: those that are answered wrongly.
    """
    tall, wide = len(images), max(len(row) for row in images)
    left = 1.0 if row_names else 0.0
    size = (left + width * wide, (width + (0.35 if titles else 0.08)) * tall)
    fig, grid = plt.subplots(tall, wide, figsize=size, squeeze=False)
    for r, row in enumerate(images):
        scale = (max(float(image.abs().max()) for image in row) or 1.0) if r in signed else None
        for c, image in enumerate(row):
            _picture(grid[r, c], image, titles[r][c] if titles else "", signed=scale)
            grid[r, c].title.set_fontsize(11)
            if wrong and wrong[r][c]:
                grid[r, c].spines[:].set(color=PALETTE[1], linewidth=3.5)
                grid[r, c].title.set(color=PALETTE[1], weight="bold")
        if row_names:
            grid[r, 0].set_ylabel(row_names[r], rotation=0, ha="right", va="center")
    return fig


@declared(_lines_fit, panels=some("panel"))
@styled
def curves(
    panels: Sequence[tuple[str, Sequence[float], Mapping[str, Sequence[float]]]], ylabel: str, *,
    ylim: tuple[float, float] | None = (0, 1), note: str = "", titles: Sequence[str] | None = None,
    logx: bool = False, logy: bool = False, legend: str = "best", reference: Collection[str] = (),
    markers: bool = True, upright: Mapping[str, float] | None = None,
) -> Figure:  # fmt: skip
    """Lines in one or more panels side by side.

    Args:
        panels: ``(xlabel, x, {name: y})``; the same name has the same look in every panel.
        ylabel: what is on the vertical axis, with its unit.
        ylim: of every panel, or None for automatic limits.
        note: a small line under the figure, such as :data:`UPPER_BOUND`.
        titles: one per panel.
        logx, logy: logarithmic axes.
        legend: matplotlib's position of the legend in each panel, or ``"outside"``.
        reference: names of lines that are no data, such as a level: thin, dark, without markers.
        markers: on the lines; False where a line jumps up and down.
        upright: places on the horizontal axis, by name: a thin line across each panel.
    """
    names = list(dict.fromkeys(name for _, _, lines in panels for name in lines))
    names = [name for name in names if name not in reference]
    fig, grid = plt.subplots(1, len(panels), figsize=(5.6 * len(panels) + 0.8, 4.0),
                             squeeze=False, sharey=ylim is not None)  # fmt: skip
    for k, (axes, (xlabel, x, lines)) in enumerate(zip(grid[0], panels, strict=True)):
        for name, y in lines.items():
            if name in reference:
                axes.plot(x, y, label=name, color="0.25", linestyle=(0, (6, 3)), linewidth=1.2)
                continue
            turn, look = divmod(names.index(name), len(PALETTE))
            style, sign = (look + turn) % len(LINES), (look + 2 * turn) % len(MARKERS)
            axes.plot(x, y, label=name, color=PALETTE[look], linestyle=LINES[style],
                      marker=MARKERS[sign] if markers else "",
                      markevery=max(1, len(x) // 12))  # fmt: skip
        for name, place in (upright or {}).items():
            axes.axvline(place, label=name, color="0.25", linestyle=":", linewidth=1.6)
        axes.set(xlabel=xlabel, ylabel=ylabel if k == 0 or ylim is None else "")
        if ylim is not None:
            margin = 0.02 * (ylim[1] - ylim[0])
            axes.set_ylim(ylim[0] - margin, ylim[1] + margin)
        if logx and _any_positive([x]):
            axes.set_xscale("log")
            if len(x) <= 10:  # the values themselves, not powers of ten between them
                axes.xaxis.set_major_locator(ticker.FixedLocator(x))
                axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,g}"))
                axes.xaxis.set_minor_locator(ticker.NullLocator())
            axes.xaxis.set_minor_formatter(ticker.NullFormatter())  # labels take long to place
        elif all(float(value).is_integer() for value in x):
            axes.xaxis.set_major_locator(ticker.MaxNLocator("auto", integer=True))
        if logy and _any_positive(lines.values()):
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            subs = (1, 2, 5) if high < 300 * low else (1,)
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs))
            axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        if titles:
            axes.set_title(titles[k])
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
        axes.legend(fontsize=11, **(beside if legend == "outside" else {"loc": legend}))
    if note:
        fig.supxlabel(note, fontsize=10, color="0.3", style="italic")
    return fig


def _any_positive(rows: Iterable[Sequence[float]]) -> bool:
    """Without one, a logarithmic axis has no ticks, and matplotlib gives up."""
    return any(0 < value < np.inf for row in rows for value in row)


@declared(_bars_fit, values=some("row of bars"))
@styled
def bars(
    groups: Sequence[str], values: Mapping[str, Sequence[float]], ylabel: str, *, xlabel: str = ""
) -> Figure:
    """Bars side by side in groups, with their values above them.

    Args:
        groups: what is below each group.
        values: heights by name, one for each group.
        ylabel, xlabel: what the axes are.
    """
    fig, axes = plt.subplots(figsize=(2.2 + 1.1 * len(groups), 3.8))
    width = 0.8 / len(values)
    for k, (name, heights) in enumerate(values.items()):
        left = np.arange(len(groups)) - 0.4 + width * (k + 0.5)
        drawn = axes.bar(left, heights, width, label=name, color=PALETTE[k % len(PALETTE)],
                         hatch=("", "//", "..", "xx")[k % 4], edgecolor="white")  # fmt: skip
        axes.bar_label(drawn, fmt="{:g}", fontsize=10, padding=2)
    axes.set_xticks(range(len(groups)), groups)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(visible=False, axis="x")
    axes.legend(fontsize=11)
    return fig


@declared(_not_empty)
@styled
def matrix(table: pd.DataFrame, *, xlabel: str = "", ylabel: str = "", note: str = "") -> Figure:
    """A table of shares in [0, 1] as annotated squares, in percent.

    Args:
        table: rows and columns by name, as ``robustness.attack_matrix`` returns.
        xlabel, ylabel: what columns and rows are.
        note: a small line under the figure.
    """
    values = table.to_numpy(dtype=float)
    fig, axes = plt.subplots(figsize=(3.2 + 1.15 * values.shape[1], 1.6 + 0.55 * values.shape[0]))
    axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (r, c), value in np.ndenumerate(values):
        axes.text(c, r, f"{100 * value:.1f}", ha="center", va="center",
                  color="black" if value > 0.55 else "white")  # fmt: skip
    columns = [str(name).replace(" ", "\n", 1) for name in table.columns]
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(table)), [str(name) for name in table.index])
    axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    axes.grid(visible=False)
    # Apart from the names of columns and rows, also in their look.
    axes.set_xlabel(xlabel, labelpad=18, fontweight="bold")
    axes.set_ylabel(ylabel, labelpad=12, fontweight="bold")
    axes.xaxis.set_label_position("top")
    if note:
        fig.supxlabel(note, fontsize=10, color="0.3", style="italic")
    return fig
