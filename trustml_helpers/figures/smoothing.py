"""The figures of randomized smoothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from trustml_helpers._support.arguments import SIGMA, declared, number, one_of
from trustml_helpers.figures.general import (
    LINES,
    MARKERS,
    PALETTE,
    PLATE,
    curves,
    one_each,
    some,
    styled,
)

_HATCHES = ("", "//", "..", "xx", "--")
_IN = {
    "l2": r"radius $r$ in $\ell_2$, pixel units", "l1": r"radius $r$ in $\ell_1$, pixel units",
    "l0": "pixels that may change",
}  # fmt: skip
_RADIUS = _IN["l2"]


def _regions(axes: Axes, axis: Sequence[float], classes: Any, title: str) -> None:
    """Decision regions over a square, told apart by colour and by hatching."""
    values = np.asarray(classes).T
    count = max(int(values.max()) + 1, 2)
    axes.pcolormesh(axis, axis, values, cmap=ListedColormap(PALETTE[:count]), vmin=-0.5,
                    vmax=count - 0.5, alpha=0.55, rasterized=True)  # fmt: skip
    for k in range(1, count):  # class by class: level sets of the numbers would draw false borders
        mask = (values == k).astype(float)
        if mask.any():
            axes.contourf(axis, axis, mask, levels=[0.5, 1.5], colors="none", hatches=[_HATCHES[k]])
    for k in range(count):  # its number, well inside
        if (values == k).any():
            row, column = (int(np.median(where)) for where in np.nonzero(values == k))
            if values[row, column] == k:
                axes.text(axis[column], axis[row], str(k), ha="center", va="center",
                          fontweight="bold", bbox=PLATE)  # fmt: skip
    axes.set(title=title, aspect="equal")
    axes.grid(visible=False)


def _told_apart(classes: Any, name: str = "classes") -> None:
    """Refuse classes that have no colour and hatching of their own."""
    low, high = int(np.min(np.asarray(classes))), int(np.max(np.asarray(classes)))
    if not 0 <= low <= high < len(_HATCHES):
        raise ValueError(f"{name} holds classes {low} to {high}, expected 0 to {len(_HATCHES) - 1}")


def _all_told_apart(panels: Mapping[str, Any]) -> None:
    for title, classes in panels.items():
        _told_apart(classes, f"panels: {title!r}")


@declared(_all_told_apart, panels=some("panel"))
@styled
def regions(axis: Sequence[float], panels: Mapping[str, Any]) -> Figure:
    """Decision regions of several classifiers of the plane, side by side.

    Args:
        axis: coordinates along both axes, ``(m,)``.
        panels: by title, classes ``(m, m)``, the first index along the horizontal axis.
    """
    fig, grid = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4.3), squeeze=False)
    for axes, (title, classes) in zip(grid[0], panels.items(), strict=True):
        _regions(axes, axis, classes, title)
    return fig


def _bounds_have_bars(shares: Sequence[float], bounds: Mapping[int, Any]) -> None:
    for k in bounds:
        if not 0 <= k < len(shares):
            raise ValueError(f"bounds: class {k} has no share, expected 0 to {len(shares) - 1}")


@declared(_bounds_have_bars, _told_apart, shares=some("share"), sigma=SIGMA)
@styled
def vote(
    axis: Sequence[float], classes: Any, point: tuple[float, float], sigma: float,
    shares: Sequence[float], bounds: Mapping[int, tuple[str, float]],
) -> Figure:  # fmt: skip
    """Regions of f with the noise around a point, and the share of each class under the noise.

    Rebuilt after figure 1 of Cohen et al. (2019), from computed values.

    Args:
        axis, classes: as for :func:`regions`, of the base classifier.
        point: x, marked; circles at sigma, 2 sigma and 3 sigma around it.
        sigma: standard deviation of the noise.
        shares: observed share of each class.
        bounds: by class, the name and the value of a confidence bound to draw on its bar.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.4, 4.3), width_ratios=[1.15, 1])
    _regions(left, axis, classes, "base classifier $f$, noise around $x$")
    angle = np.linspace(0, 2 * np.pi, 100)
    for k in (1, 2, 3):
        left.plot(point[0] + k * sigma * np.cos(angle), point[1] + k * sigma * np.sin(angle),
                  color="black", linestyle=":", linewidth=1.4)  # fmt: skip
    left.plot(*point, "X", color="white", markeredgecolor="black", markersize=12)
    left.set(xlim=(axis[0], axis[-1]), ylim=(axis[0], axis[-1]))
    bars = right.bar(range(len(shares)), shares, color=PALETTE[: len(shares)], alpha=0.55,
                     edgecolor="0.3")  # fmt: skip
    for bar, hatch in zip(bars, _HATCHES, strict=False):
        bar.set_hatch(hatch)
    for k, (name, value) in bounds.items():
        right.plot([k - 0.45, k + 0.45], [value, value], color="black", linewidth=3)
        right.annotate(name, (k, value), (k, max(value, shares[k], 0.5) + 0.16), ha="center",
                       fontsize=11, bbox=PLATE, arrowprops={"arrowstyle": "->"})  # fmt: skip
    right.axhline(0.5, color="0.4", linestyle="--", linewidth=1.3)
    right.text(len(shares) - 0.5, 0.51, "1/2", color="0.2", ha="right", va="bottom")
    right.set(xticks=range(len(shares)), ylim=(0, 1.1), xlim=(-0.9, len(shares) - 0.4),
              xlabel="class", ylabel="share of votes", title="class shares")  # fmt: skip
    return fig


@declared(
    _all_told_apart, panels=some("panel"), radius=number("[0, inf)", "in pixel units")
)  # fmt: skip
@styled
def certified_ball(
    axis: Sequence[float], panels: Mapping[str, Any], point: tuple[float, float], radius: float,
    nearest: Mapping[str, tuple[float, float]],
) -> Figure:  # fmt: skip
    """The certified ball around a point of the plane, in the regions of several classifiers.

    Args:
        axis, panels: as for :func:`regions`.
        point: x, the centre of the ball.
        radius: of the ball.
        nearest: by the title of its panel, the point of the border nearest to x.
    """
    fig, grid = plt.subplots(1, len(panels), figsize=(4.8 * len(panels), 4.9), squeeze=False)
    angle = np.linspace(0, 2 * np.pi, 200)
    x, y = np.cos(angle), np.sin(angle)
    for axes, (title, classes) in zip(grid[0], panels.items(), strict=True):
        _regions(axes, axis, classes, title)
        axes.fill(point[0] + radius * x, point[1] + radius * y, facecolor=(1, 1, 1, 0.55),
                  edgecolor="black", linewidth=2.2, label=f"certified: {radius:.3f}")  # fmt: skip
        axes.plot(*point, "X", color="white", markeredgecolor="black", markersize=10)
        if title in nearest:
            away = np.hypot(*np.subtract(nearest[title], point))
            axes.plot(point[0] + away * x, point[1] + away * y, color="black", linestyle="--",
                      linewidth=1.8, label=f"to the border: {away:.3f}")  # fmt: skip
            axes.plot(*nearest[title], "D", color="black", markeredgecolor="white", markersize=9)
        axes.set(xlim=(axis[0], axis[-1]), ylim=(axis[0], axis[-1]))
        axes.legend(loc="upper right", frameon=True, fontsize=11, framealpha=0.9)
    return fig


@declared(accuracies=some("line"), norm=one_of(*_IN))
def certified(
    radii: Sequence[float], accuracies: Mapping[str, Any], *, title: str | None = None,
    norm: str = "l2",
) -> Figure:  # fmt: skip
    """Certified accuracy against the radius, one line per log.

    Args:
        radii: in pixel units, ``(m,)``.
        accuracies: by name, shares in [0, 1], ``(m,)``.
        title: over the figure.
        norm: of the radii, ``"l2"``, ``"l1"`` or ``"l0"``.
    """
    return curves([(_IN[norm], radii, accuracies)], "certified accuracy",
                  titles=[title] if title else None)  # fmt: skip


_SIGMAS = (0.25, 0.5, 1.0, 0.12)  # each has its look, the same in every figure


def _look(sigma: float) -> int:
    """The place of a sigma in the palette; one that the course does not use comes after these."""
    return _SIGMAS.index(sigma) if sigma in _SIGMAS else len(_SIGMAS)


def _as_long_as_radii(panels: Any, points: Any) -> None:
    for name, each in (("panels", panels), ("points", points or {})):
        for title, lines in each.items():
            for sigma, (radii, shares) in lines.items():
                one_each(f"{name}: {title!r}, sigma {sigma:g},", shares, len(radii), "radii")


@declared(_as_long_as_radii, panels=some("panel"))
@styled
def by_sigma(
    panels: Mapping[str, Mapping[float, tuple[Sequence[float], Sequence[float]]]], *,
    points: Mapping[str, Mapping[float, tuple[Sequence[float], Sequence[float]]]] | None = None,
) -> Figure:  # fmt: skip
    """Certified accuracy against the radius: a line per sigma, with the same look in every figure.

    Args:
        panels: by title and sigma, radii close together and the share at each; a line ends where
            it reaches 0.
        points: by title and sigma, shares at single radii, drawn as markers beside the lines.
    """
    fig, grid = plt.subplots(1, len(panels), figsize=(5.6 * len(panels) + 0.8, 4.0), sharey=True,
                             squeeze=False)  # fmt: skip
    for axes, (title, lines) in zip(grid[0], panels.items(), strict=True):
        for sigma, (radii, shares) in sorted(lines.items()):
            k, above = _look(sigma), np.flatnonzero(np.asarray(shares) > 0)
            end = above[-1] + 2 if len(above) else 1
            axes.plot(radii[:end], shares[:end], color=PALETTE[k], linestyle=LINES[k],
                      label=rf"$\sigma={sigma:g}$")  # fmt: skip
        for sigma, (radii, shares) in (points or {}).get(title, {}).items():
            axes.plot(radii, shares, MARKERS[_look(sigma)], color=PALETTE[_look(sigma)],
                      markerfacecolor="none", markersize=8)  # fmt: skip
        axes.set(xlabel=_RADIUS, title=title, ylim=(-0.02, 1.02))
        axes.legend(fontsize=11, loc="upper right")
    grid[0, 0].set_ylabel("certified accuracy")
    return fig


def _one_per_radius(radii: Any, certified: Any, attacked: Any) -> None:
    for name, values in (("certified", certified), ("attacked", attacked)):
        one_each(name, values, len(radii), "radii")


@declared(_one_per_radius)
@styled
def sandwich(
    radii: Sequence[float], certified: Sequence[float], attacked: Sequence[float], *,
    names: tuple[str, str], note: str = "",
) -> Figure:  # fmt: skip
    """Lower and upper bound on robust accuracy, and the band between them.

    Args:
        radii: in pixel units, ``(m,)``.
        certified, attacked: shares in [0, 1] at each radius, ``(m,)``.
        names: of the two lines.
        note: a small line under the figure.
    """
    figure = curves([(_RADIUS, radii, {names[1]: attacked, names[0]: certified})],
                    "share of images", note=note, legend="lower left", markers=False)  # fmt: skip
    (axes,) = figure.axes
    axes.lines[0].set_color("black")  # the colours are those of the sigmas, see by_sigma
    axes.fill_between(radii, certified, attacked, color=PALETTE[4], alpha=0.3, hatch="//",
                      edgecolor="white", label="the truth lies here")  # fmt: skip
    axes.legend(loc="lower left", fontsize=11)
    return figure
