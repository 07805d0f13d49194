"""The figures of single lessons that have no general form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects, ticker
from matplotlib.figure import Figure
from torch import Tensor

from trustml_helpers._support.arguments import SIGMA, declared, number, numbers
from trustml_helpers.figures.general import LINES, MARKERS, PALETTE, PLATE, some, styled

_PLACES = numbers("(-inf, inf)")
_SYMBOLS = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$"}


def _known_norms(steps: Mapping[str, Any]) -> None:
    for name in steps.keys() - _SYMBOLS.keys():
        raise ValueError(f"steps: {name!r} is no norm, expected {', '.join(_SYMBOLS)}")


@declared(_known_norms, steps=some("step"))
@styled
def norm_balls(gradient: tuple[float, float], steps: Mapping[str, tuple[float, float]]) -> Figure:
    """The unit balls of l-inf, l2 and l1 in the plane, and the best step in each.

    Args:
        gradient: the direction in which the loss grows.
        steps: ``{"linf" | "l2" | "l1": the maximiser of gradient . step on the unit ball}``.
    """
    angle = np.linspace(0, 2 * np.pi, 200)
    outlines = {
        "linf": (np.array([1, 1, -1, -1, 1]), np.array([1, -1, -1, 1, 1])),
        "l2": (np.cos(angle), np.sin(angle)),
        "l1": (np.array([1, 0, -1, 0, 1]), np.array([0, -1, 0, 1, 0])),
    }
    fig, grid = plt.subplots(1, len(steps), figsize=(3.6 * len(steps), 3.7), squeeze=False)
    for axes, (name, step) in zip(grid[0], steps.items(), strict=True):
        axes.fill(*outlines[name], facecolor=PALETTE[4], alpha=0.3, edgecolor=PALETTE[0], lw=2)
        for vector, colour, line, text in (
            (gradient, "black", "--", "gradient"), (step, PALETTE[1], "-", "best step"),
        ):  # fmt: skip
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 2.2, "linestyle": line}
            axes.annotate("", vector, (0, 0), arrowprops=arrow)
            axes.plot([], [], color=colour, linestyle=line, label=text)
        axes.set(title=_SYMBOLS[name], xlim=(-1.5, 1.7), ylim=(-1.5, 1.7), aspect="equal",
                 xlabel="pixel 1", ylabel="pixel 2")  # fmt: skip
    grid[0, -1].legend(loc="lower right", fontsize=10, borderaxespad=0)
    return fig


@declared(a=_PLACES, b=_PLACES, panels=some("panel"))
@styled
def loss_surface(
    a: Sequence[float], b: Sequence[float], panels: Mapping[str, tuple[Tensor, Tensor]], *,
    labels: tuple[str, str], marks: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:  # fmt: skip
    """A loss over planes through an image, on one scale, and where the label is right.

    Args:
        a, b: coordinates along the two directions, lengths m and n.
        panels: by title, the loss ``(m, n)``, loss[i, j] at ``a[i], b[j]``, and bool ``(m, n)``,
            whether the label is right there.
        labels: what the two directions are.
        marks: points to mark, by name.
    """
    fig, grid = plt.subplots(1, len(panels), figsize=(5 * len(panels) + 0.8, 4), squeeze=False)
    highest = max(float(loss.max()) for loss, _ in panels.values())
    levels = np.linspace(0, max(highest, 1e-3), 15)
    horizontal, vertical = np.meshgrid(a, b, indexing="ij")
    look: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markersize": 11}
    for axes, (title, (loss, correct)) in zip(grid[0], panels.items(), strict=True):
        shades = axes.contourf(horizontal, vertical, loss.numpy(), levels=levels, cmap="cividis")
        if bool(correct.any()) and not bool(correct.all()):
            axes.contour(horizontal, vertical, correct.numpy().astype(float), levels=[0.5],
                         colors="white", linewidths=2.5, linestyles="--")  # fmt: skip
        axes.plot([], [], color="white", linestyle="--", label="label changes")
        for k, (name, point) in enumerate((marks or {}).items()):
            axes.plot(*point, MARKERS[k], linestyle="none", label=name, **look)
        axes.set(title=title, xlabel=labels[0], ylabel=labels[1] if axes is grid[0, 0] else "")
        axes.grid(visible=False)
    # Dark as the smallest loss: the marks are white.
    dark = plt.get_cmap("cividis")(0)
    grid[0, -1].legend(loc="upper left", fontsize=10, facecolor=dark, labelcolor="white",
                       frameon=True)  # fmt: skip
    fig.colorbar(shades, ax=grid[0, -1], format="%.0f").ax.set_title("loss", fontsize=10)
    return fig


@declared(panels=some("panel"), edges=_PLACES)
@styled
def smallest_eps(panels: Mapping[str, Sequence[float]], edges: Sequence[float]) -> Figure:
    """Histograms, one over the other, of the smallest size at which each image is fooled.

    Args:
        panels: by name of the network, one size per image; infinite where none fooled it.
        edges: of the bars.
    """
    fig, grid = plt.subplots(len(panels), 1, figsize=(8, 2.1 * len(panels) + 0.4), squeeze=False,
                             sharex=True)  # fmt: skip
    for k, (axes, (name, values)) in enumerate(zip(grid[:, 0], panels.items(), strict=True)):
        sizes = np.asarray(values, dtype=float)
        held = int((sizes > edges[-1]).sum())
        axes.hist(sizes[sizes <= edges[-1]], bins=list(edges), color=PALETTE[k % 5],
                  edgecolor="0.2", hatch=("", "//")[k % 2])  # fmt: skip
        middle = float(np.median(sizes))
        if np.isfinite(middle):
            axes.axvline(middle, color="black", linestyle="--", linewidth=1.5)
            axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the words
            axes.annotate(f" half at {middle:.2f}", (middle, 0.87), fontsize=11, bbox=PLATE,
                          xycoords=("data", "axes fraction"))  # fmt: skip
        axes.set(title=name + (f" ({held} never fooled)" if held else ""), ylabel="digits")
        axes.title.set_fontsize(12)
    grid[-1, 0].set_xlabel(r"smallest $\epsilon$ that was found to fool the digit")
    return fig


@declared(theta=_PLACES, envelope=_PLACES, at=number("(-inf, inf)"))
@styled
def danskin(
    theta: Sequence[float], members: Mapping[str, Sequence[float]], envelope: Sequence[float],
    at: float, tangent: tuple[float, float], maximiser: str,
) -> Figure:  # fmt: skip
    """A family of losses, their maximum, and the tangent that Danskin's theorem gives.

    Args:
        theta: parameter values.
        members: the loss as a function of theta for a few fixed perturbations, by name.
        envelope: the maximum over all perturbations.
        at: where the tangent is drawn.
        tangent: value and slope there, taken from the maximising perturbation alone.
        maximiser: name of that perturbation.
    """
    fig, axes = plt.subplots(figsize=(7.6, 4.4))
    x = np.asarray(theta)
    for k, (name, y) in enumerate(members.items()):
        axes.plot(x, y, color=PALETTE[k % 5], linestyle=LINES[1 + k % 5], linewidth=1.6, label=name)
    axes.plot(x, envelope, color="black", linewidth=3.2, label=r"$\max_\delta$ Loss")
    value, slope = tangent
    near = x[np.abs(x - at) < 0.3 * (x[-1] - x[0]) / 2]
    axes.plot(near, value + slope * (near - at), color=PALETTE[5], linewidth=4)
    axes.plot([at], [value], "o", color=PALETTE[5], markersize=11, markeredgecolor="black",
              label=f"slope {slope:+.2f}, from {maximiser}")  # fmt: skip
    low, high = float(np.min(envelope)), float(np.max(envelope))
    axes.set(xlabel=r"parameter $\theta$", ylabel="loss",
             ylim=(low - 0.6 * (high - low), high * 1.05))  # fmt: skip
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=11)
    return fig


@declared(theta=_PLACES, envelope=_PLACES, slopes=some("slope"), steps=some("step"))
@styled
def tie(
    theta: Sequence[float], envelope: Sequence[float], slopes: Mapping[str, float], *,
    plane: tuple[Sequence[float], Sequence[float], Tensor],
    steps: Mapping[str, tuple[float, float]],
) -> Figure:  # fmt: skip
    """A maximum with a kink at 0: the slopes of two maximisers, and steps from a tie in a plane.

    Args:
        theta: parameter values.
        envelope: the maximum over all perturbations, 0 at 0.
        slopes: at 0, of the flattest and the steepest maximiser, by name.
        plane: values of two parameters, lengths m and n, and a maximum ``(m, n)`` over them.
        steps: from the origin, by name.
    """
    fig, (line, level) = plt.subplots(1, 2, figsize=(10.4, 4.2), width_ratios=(1.25, 1))
    x = np.asarray(theta)
    line.plot(x, envelope, color="black", linewidth=3.2, label=r"$\max_\delta$ Loss")
    low, high = (slope * x for slope in slopes.values())
    line.fill_between(x, low, high, color=PALETTE[4], alpha=0.25, label="slopes of all maximisers")
    for k, (name, slope) in enumerate(slopes.items()):
        line.plot(x, slope * x, color=PALETTE[k], linestyle=LINES[1 + k], label=name)
    line.plot([0], [0], "o", color="white", markeredgecolor="black", markersize=10)
    line.set(xlabel=r"parameter $\theta$", ylabel="loss", title="one parameter: a kink")
    line.legend(loc="upper center", fontsize=10)
    a, b, height = plane
    lines = level.contour(a, b, height.numpy().T, cmap="cividis", linewidths=1.8,
                          locator=ticker.MaxNLocator(8, integer=True))  # fmt: skip
    level.clabel(lines, fontsize=10, fmt="%g", colors="black")
    for k, (name, (across, up)) in enumerate(steps.items()):
        arrow = {"arrowstyle": "-|>", "color": PALETTE[1 - k], "lw": 2.6, "linestyle": LINES[k]}
        level.annotate("", (across, up), (0, 0), arrowprops=arrow)
        level.plot([], [], color=PALETTE[1 - k], linestyle=LINES[k], label=name)
    level.set(xlabel=r"$\theta_1$", ylabel=r"$\theta_2$", title="two parameters: level lines")
    level.grid(visible=False)
    level.legend(loc="upper right", fontsize=10, frameon=True)
    return fig


@declared(t=_PLACES, share=numbers("[0, 1]"))
@styled
def shifted_densities(
    t: Sequence[float], densities: Mapping[str, Sequence[float]], share: Sequence[float], *,
    xlabel: str, marks: Mapping[str, float] | None = None,
    places: Mapping[str, float] | None = None,
) -> Figure:  # fmt: skip
    """Densities on a line and, below them, the share of each place that a classifier calls A.

    Args:
        t: positions, ``(m,)``.
        densities: by name.
        share: f, in [0, 1], at each position.
        xlabel: what the line is.
        marks: vertical lines, by name.
        places: named points of the line, marked on its axis.
    """
    fig, (top, low) = plt.subplots(
        2, 1, figsize=(8, 4.6), sharex=True, gridspec_kw={"height_ratios": [3, 1]}
    )
    for k, (name, values) in enumerate(densities.items()):
        top.plot(t, values, color=PALETTE[k], linestyle=LINES[k], label=name)
    low.fill_between(t, share, step="mid", color=PALETTE[4], hatch="//", edgecolor=PALETTE[0])
    for k, (name, place) in enumerate((marks or {}).items()):
        for axes in (top, low):
            axes.axvline(place, color="black", linestyle=LINES[3 + k], linewidth=1.5)
        top.plot([], [], color="black", linestyle=LINES[3 + k], linewidth=1.5, label=name)
    top.set(ylabel="density")
    top.legend(fontsize=11)
    low.set(xlabel=xlabel, ylabel="called A", ylim=(0, 1.05))
    for name, place in (places or {}).items():
        low.plot(place, 0, "^", color="black", markersize=9, clip_on=False, zorder=5)
        low.annotate(name, (place, 0), (0, 9), textcoords="offset points", ha="center",
                     fontsize=12, bbox=PLATE)  # fmt: skip
    return fig


@declared(panels=some("panel"), sigma=SIGMA)
@styled
def plane(
    edges: tuple[Sequence[float], Sequence[float]], panels: Mapping[str, Any], *,
    centres: Mapping[str, tuple[float, float]], sigma: float,
    border: tuple[tuple[float, float], float] | None = None,
) -> Figure:  # fmt: skip
    """Shares in [0, 1] on the cells of a plane, with level sets of Gaussians drawn over them.

    Args:
        edges: finite edges of the shown cells along both axes, lengths m + 1 and n + 1.
        panels: by title, ``(m, n)`` arrays: the share of each cell that is called A.
        centres: of the Gaussians, by name, marked; circles at sigma and 2 sigma around each.
        sigma: their standard deviation.
        border: a vector, drawn as an arrow from the origin, and the distance at which a dashed line
            crosses its direction at right angles.
    """
    fig, grid = plt.subplots(1, len(panels), figsize=(4.6 * len(panels) + 0.6, 4.4), squeeze=False)
    angle = np.linspace(0, 2 * np.pi, 100)
    for axes, (title, values) in zip(grid[0], panels.items(), strict=True):
        shown = axes.pcolormesh(*edges, np.asarray(values).T, cmap="Blues", vmin=0, vmax=1)
        for k, (name, (a, b)) in enumerate(centres.items()):
            look = ("white", PALETTE[1])[k % 2]
            axes.plot(a, b, MARKERS[k], color=look, markeredgecolor="black", label=name,
                      linestyle="none", markersize=9)  # fmt: skip
            edge = [patheffects.withStroke(linewidth=3.5, foreground="black")]  # seen on any ground
            for radius in (sigma, 2 * sigma):
                axes.plot(a + radius * np.cos(angle), b + radius * np.sin(angle), color=look,
                          linewidth=1.8, path_effects=edge)  # fmt: skip
        if border is not None:
            normal = np.array(border[0]) / np.hypot(*border[0])
            foot, along = border[1] * normal, np.array([-normal[1], normal[0]])
            axes.axline(foot, foot + along, color="black", linestyle="--", linewidth=2)
            axes.annotate("", border[0], (0, 0), arrowprops={"arrowstyle": "->", "linewidth": 2})
        axes.set(title=title, aspect="equal", xlim=edges[0][:: len(edges[0]) - 1],
                 ylim=edges[1][:: len(edges[1]) - 1])  # fmt: skip
        axes.grid(visible=False)
    grid[0, 0].legend(fontsize=10, loc="lower left", frameon=True)
    fig.colorbar(shown, ax=grid[0, -1], label="share called A", shrink=0.8)
    return fig


@declared(
    printed=numbers("(-inf, inf)"), ladders=some("ladder"), unit=number("(0, inf)"),
)  # fmt: skip
@styled
def rungs(
    printed: Sequence[float], ladders: Mapping[str, Sequence[float]], *, unit: float, xlabel: str
) -> Figure:
    """Values that were printed, and the values that several suspects could have printed.

    Args:
        printed: values, each drawn as a grey band as wide as its last digit.
        ladders: by suspect, all values that it can give near the printed ones.
        unit: of the last printed digit.
        xlabel: what the values are.
    """
    fig, axes = plt.subplots(figsize=(9.6, 1.5 + 0.55 * len(ladders)))
    bands, fits = np.asarray(printed), (1 + 1e-9) * unit / 2
    for value in bands:
        axes.axvspan(value - unit / 2, value + unit / 2, color="0.8", linewidth=0)
    looks: tuple[tuple[str, dict[str, Any]], ...] = (
        ("possible, printed", {"marker": "o", "color": PALETTE[0], "markersize": 9}),
        ("possible, not printed", {"marker": "|", "color": "black", "markersize": 14}),
        ("printed, impossible", {"marker": "X", "color": PALETTE[1], "markersize": 10}),
    )
    for row, rung in enumerate(np.asarray(each) for each in ladders.values()):
        apart = np.abs(rung[:, None] - bands[None]) <= fits
        hit = apart.any(1)
        for (name, look), places in zip(
            looks, (rung[hit], rung[~hit], bands[~apart.any(0)]), strict=True
        ):
            label = name if row == 0 else None
            axes.plot(places, np.full(len(places), row), linestyle="none", label=label, **look)
    axes.set_yticks(range(len(ladders)), list(ladders))
    axes.set(xlabel=xlabel, ylim=(len(ladders) - 0.5, -0.5),
             xlim=(bands.min() - 8 * unit, bands.max() + 8 * unit))  # fmt: skip
    axes.grid(visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=11)
    return fig
