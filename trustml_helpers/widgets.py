"""Widgets of the course: ipywidgets around the plain functions of :mod:`figures`.

Each is an :class:`Explorer`. Its controls can be moved by hand, by keyboard, or by a cell
(``explorer.set(eps=0.2)``); a callback that fails then fails the cell.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
import traitlets
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from trustml_helpers import attacks, bounds, figures, smoothing, theory
from trustml_helpers._support.arguments import ALPHA, SIGMA, Rule, declared, function, number, whole
from trustml_helpers._support.calling import logits_of, unchanged
from trustml_helpers._support.tensors import IMAGES, LABELS
from trustml_helpers.models import predict


class Explorer(ipywidgets.VBox):
    """Controls over a picture that is drawn again whenever one of them moves.

    Args:
        draw: from the controls' values, by name, to ``(figure, what it says in words)``.
        controls: ipywidgets with a ``value``, by name.

    Attributes:
        controls: by name.
        says: the present picture in words; also its text alternative and its caption.

    >>> slider = ipywidgets.FloatSlider(value=0.5, min=0, max=1)
    >>> explorer = Explorer(lambda p: (plt.figure(figsize=(1, 1)), f"p is {p:.1f}"), p=slider)
    >>> explorer.set(p=0.7).says
    'p is 0.7'
    """

    def __init__(self, draw: Callable[..., tuple[Figure, str]], **controls: Any) -> None:
        self.controls = controls
        self.says = ""
        self._draw = draw
        self._drawn: dict[str, Any] | None = None
        self._picture = ipywidgets.HTML()
        self._held = False
        for control in controls.values():
            if hasattr(control, "style"):  # a drawing pad has none
                control.style.description_width = "7em"
            control.layout.width = "32em"
            control.observe(lambda change: self._update(), names="value")
        super().__init__([*controls.values(), self._picture])
        self._update()

    def set(self, **values: Any) -> Explorer:
        """Move controls as a hand would, then draw once; returns the explorer itself.

        Raises:
            ValueError: for a control that does not exist or a value outside its range.
        """
        for name in values.keys() - self.controls.keys():
            raise ValueError(f"{name}: expected one of {', '.join(self.controls)}")
        before = self._values()
        self._held = True
        try:
            self._move(values)
        except Exception:
            self._move(before)
            raise
        finally:
            self._held = False
        self._update()
        return self

    def figure(self) -> Figure:
        """The present picture once more, for a page that has no kernel."""
        return self._draw(**self._values())[0]

    def _values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    def _move(self, values: dict[str, Any]) -> None:
        for name, control in self.controls.items():  # in their order: one may set another's range
            if name not in values:
                continue
            value = values[name]
            if value not in getattr(control, "options", [value]):
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(control.options)}")
            low, high = getattr(control, "min", value), getattr(control, "max", value)
            if not low <= value <= high:
                raise ValueError(f"{name}={value}: expected {low} to {high}")
            control.value = value

    def _update(self) -> None:
        values = self._values()
        if self._held or values == self._drawn:  # one control may have moved another
            return
        figure, self.says = self._draw(**values)
        with io.BytesIO() as buffer, plt.rc_context(figures.STYLE):
            figure.savefig(buffer, format="png")
            source = base64.b64encode(buffer.getvalue()).decode()
        plt.close(figure)
        text = html.escape(self.says, quote=True)
        self._picture.value = (
            f'<img style="max-width:100%" alt="{text}" src="data:image/png;base64,{source}">'
            f"<p>{text}</p>"
        )
        self._drawn = values

    def __repr__(self) -> str:  # what a reader without a running kernel sees in its place
        controls = ", ".join(self.controls)
        return f"Interactive in JupyterLab ({controls}); a static figure nearby shows the same."


def _slider(name: str, value: float, low: float, high: float, step: float = 0.01) -> Any:
    """A slider that reports when it is let go: a picture is drawn once, not at every pixel."""
    return ipywidgets.FloatSlider(
        value=value, min=low, max=high, step=step, description=name, continuous_update=False,
        readout_format=".4f" if step < 0.001 else ".3f" if step < 0.01 else ".2f",
    )  # fmt: skip


def _counter(name: str, value: int, low: int, high: int, step: int = 1) -> Any:
    """The whole-number twin of :func:`_slider`."""
    return ipywidgets.IntSlider(
        value=value, min=low, max=high, step=step, description=name, continuous_update=False
    )


def _choice(name: str, options: list[str], value: str) -> ipywidgets.ToggleButtons:
    """Buttons (Tab, Space): in a menu, JupyterLab takes the arrow keys to go to another cell."""
    style = {"button_width": "auto"}
    buttons = ipywidgets.ToggleButtons(options=options, value=value, description=name, style=style)
    return buttons.add_class("widget-inline-hbox")  # its name beside it, as a slider's


_MODEL = function("from images to logits (n, K)")
_LENGTH = number("[1e-6, 1e6]", "in pixel units")


def _ranges(largest: float, pixels: int) -> dict[str, tuple[float, float]]:
    """Largest eps and step of the slider: in l-inf as given; for digits ten and a hundred times
    that in l2 and l1, and as a change of all pixels grows with their number."""
    many = pixels / 784
    sizes = {"linf": largest, "l2": 10 * largest * many**0.5, "l1": 100 * largest * many}
    rounded = {norm: float(f"{size:.2g}") for norm, size in sizes.items()}
    return {norm: (size, float(f"{size / 30:.2g}")) for norm, size in rounded.items()}


def _one_label_each(images: Tensor, labels: Tensor) -> None:
    if not 0 < len(images) == len(labels):
        raise ValueError("images, labels: expected as many of both, at least one, got "
                         f"{len(images)} and {len(labels)}")  # fmt: skip


@declared(
    _one_label_each, model=_MODEL, images=IMAGES, labels=LABELS, steps=whole(1, 50),
    largest=_LENGTH,
)  # fmt: skip
def attack_explorer(
    model: Any, images: Tensor, labels: Tensor, *, steps: int = 20,
    names: Sequence[str] | None = None, largest: float = 0.3,
) -> Explorer:  # fmt: skip
    """Choose an image, an attack, its norm and eps; see the perturbation and the model's answer.

    The range of eps follows the norm. Only PGD has steps; otherwise that control is grey.

    Args:
        model: images to logits ``(n, K)``.
        images, labels: what the image control runs over, float ``(n, C, H, W)`` and ``(n,)``.
        steps: of PGD at first, 1 to 50.
        names: of the classes; their numbers if not given.
        largest: eps at the end of its slider, in l-inf; 0.3 suits digits, 0.01 photographs.
    """
    word = str if names is None else names.__getitem__
    ranges = _ranges(largest, images[0].numel())
    digits = 2 if ranges["linf"][1] >= 0.01 else 4

    def draw(image: int, attack: str, norm: str, eps: float, steps: int) -> tuple[Figure, str]:
        x, y = images[image : image + 1], labels[image : image + 1]
        x_adv = _PERTURB[attack](model, x, y, eps, norm, steps)
        with unchanged(model), torch.inference_mode():
            probabilities = model(x_adv).softmax(1)[0]
        true = int(y)
        verdict = "still right" if true == int(probabilities.argmax()) else "fooled"
        counted = f", steps {steps}" if attack == "PGD" else ""
        says = (
            f"Image {image}, a {word(true)}, under {attack} ({norm}, eps {eps:.{digits}f}{counted})"
            f": the model says {_answer(probabilities, word)} ({verdict})."
        )
        row = (attack, x[0], x_adv[0], probabilities)
        return figures.perturbations([row], label=true, names=names), says

    size = _slider("eps", round(largest / 3, 6), 0, *ranges["linf"])
    norm = _choice("norm", list(ranges), "linf")

    def rescale(change: Any) -> None:
        largest, step = ranges[change["new"]]
        # In one message: a browser that hears of the range first answers with a value of its own.
        with size.hold_sync(), size.hold_trait_notifications():
            share = size.value / size.max
            size.max, size.step, size.value = largest, step, round(share * largest / step) * step

    norm.observe(rescale, names="value")  # before the explorer listens, which then draws once
    attack, count = _choice("attack", list(_PERTURB), "PGD"), _counter("steps", steps, 1, 50)

    def grey(change: Any) -> None:
        count.disabled = change["new"] != "PGD"

    attack.observe(grey, names="value")
    image = _counter("image", 0, 0, len(images) - 1)
    return Explorer(draw, image=image, attack=attack, norm=norm, eps=size, steps=count)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)  # the same picture for the same controls


def _random_signs(model: Any, x: Tensor, y: Tensor, eps: float, norm: str, steps: int) -> Tensor:
    pixels = x[0].numel()
    per_pixel = eps / {"linf": 1, "l2": pixels**0.5, "l1": pixels}[norm]
    return attacks.sign_noise(model, x, y, per_pixel, generator=_seeded())


_PERTURB: dict[str, Callable[[Any, Tensor, Tensor, float, str, int], Tensor]] = {
    "none": lambda model, x, y, eps, norm, steps: x,
    "random sign noise": _random_signs,
    "FGSM": lambda model, x, y, eps, norm, steps: attacks.fgsm(model, x, y, eps, norm=norm),
    "PGD": lambda model, x, y, eps, norm, steps: attacks.pgd(
        model, x, y, eps, norm=norm, steps=steps, generator=_seeded()),
}  # fmt: skip


def _line(least: int, increasing: bool = False) -> Rule:
    """So many floating-point numbers, as a vector."""

    def read(values: Any) -> Tensor:
        if not isinstance(values, Tensor) or not values.is_floating_point() or values.ndim != 1:
            raise TypeError
        if len(values) < least or (increasing and not (values.diff() > 0).all()):
            raise ValueError
        return values

    words = f"at least {least} {'increasing ' * increasing}floating-point numbers"
    return Rule(f"{words}, a torch.Tensor (m,)", read, (
        None, 17, [0.0, 1.0], torch.arange(3), torch.zeros(2, 2), torch.zeros(least - 1),
    ))  # fmt: skip


@declared(thetas=_line(2, increasing=True), deltas=_line(1), shown=whole(1))
def danskin_explorer(
    loss: Callable[[Tensor, Tensor], Tensor], thetas: Tensor, deltas: Tensor, *, shown: int = 5
) -> Explorer:
    """Move theta; see which perturbation is the worst there and that its slope is the envelope's.

    Args:
        loss: ``(theta, delta) -> loss``, elementwise and differentiable, broadcasting.
        thetas: parameter values of the horizontal axis, ``(m,)``, increasing.
        deltas: a fine grid of the perturbations, ``(k,)``.
        shown: how many perturbations to draw as lines of their own.
    """
    family = loss(thetas[:, None], deltas[None, :]).detach()
    envelope = family.amax(1)
    chosen = torch.linspace(0, len(deltas) - 1, shown).round().long().tolist()
    members = {rf"$\delta={deltas[k]:+.2f}$": family[:, k].tolist() for k in chosen}

    def draw(theta: float) -> tuple[Figure, str]:
        point = torch.tensor(theta, dtype=thetas.dtype, requires_grad=True)
        values = loss(point, deltas)
        worst = int(values.argmax())
        (slope,) = torch.autograd.grad(values[worst], point)
        name = rf"$\delta^*={deltas[worst]:+.2f}$"
        tangent = (float(values[worst].detach()), float(slope))
        figure = figures.danskin(thetas.tolist(), members, envelope.tolist(), theta, tangent, name)
        says = (
            f"At theta {theta:+.2f} the worst perturbation is delta {deltas[worst]:+.2f}; the "
            f"slope of its loss there, {float(slope):+.2f}, is the slope of the maximum."
        )
        return figure, says

    low, high = float(thetas[0]), float(thetas[-1])
    step = (high - low) / 40
    return Explorer(draw, theta=_slider("theta", (low + high) / 2, low, high, step))


@declared(longest=_LENGTH)
def radius_explorer(*, longest: float = 2.0) -> Explorer:
    """Move the bound on p_A, sigma and the length of delta; see what is guaranteed, and the radius.

    Args:
        longest: largest length of delta that can be chosen, in pixel units.
    """
    lengths = np.linspace(0, longest, 201)

    def draw(p_a: float, sigma: float, delta: float) -> tuple[Figure, str]:
        guaranteed = theory.halfspace_probability(p_a, lengths, sigma)
        here = float(theory.halfspace_probability(p_a, delta, sigma))
        radius = float(bounds.certified_radius(p_a, sigma))
        half = [0.5] * len(lengths)
        lines = {"smallest possible P(A)": guaranteed.tolist(), "one half": half}
        title = f"circle: P = {here:.2f} at length {delta:.2f}; upright line: radius {radius:.2f}"
        figure = figures.curves([(r"length of $\delta$", lengths.tolist(), lines)],
                                "probability of A", titles=[title],
                                reference=["one half"])  # fmt: skip
        (axes,) = figure.axes
        axes.vlines(radius, 0, 0.5, color="0.25", linewidth=1.2)
        axes.plot(delta, here, "o", color=figures.PALETTE[1], markeredgecolor="black",
                  markersize=13, zorder=5)  # fmt: skip
        verdict = "still A" if here > 0.5 else "not guaranteed"
        says = (
            f"p_A at least {p_a:.2f}, sigma {sigma:.2f}: after a move of {delta:.2f} class A keeps "
            f"at least probability {here:.3f} ({verdict}); the certified radius is {radius:.3f}."
        )
        return figure, says

    return Explorer(
        draw, p_a=_slider("p_A at least", 0.8, 0.5, 0.99), sigma=_slider("sigma", 0.5, 0.1, 1.0),
        delta=_slider("delta", 0.3, 0.0, longest),
    )  # fmt: skip


@declared(model=_MODEL, num_classes=whole(2), extent=_LENGTH)
def smoothing_explorer(model: Any, *, num_classes: int, extent: float = 2.0) -> Explorer:
    """Smooth a classifier of the plane: choose sigma, the number of samples and a point.

    Args:
        model: points ``(n, 2)`` to logits ``(n, K)``.
        num_classes: K.
        extent: the square shown reaches from ``-extent`` to ``extent``.
    """
    axis = torch.linspace(-extent, extent, 121)
    points = torch.cartesian_prod(axis, axis)
    classes = predict(model, points).view(121, 121)

    def draw(sigma: float, n: int, x: float, y: float) -> tuple[Figure, str]:
        smooth = smoothing.SmoothedClassifier(model, sigma, num_classes)
        counts = smooth.sample_under_noise(torch.tensor([[x, y]]), n, _seeded())[0]
        top, second = counts.topk(2).indices.tolist()
        p_a = float(bounds.lower_conf_bound(int(counts[top]), n, 0.001))
        p_b = float(bounds.upper_conf_bound(int(counts[second]), n, 0.001))
        marks = {top: (r"lower bound of $p_A$", p_a), second: (r"upper bound of $p_B$", p_b)}
        shares = (counts / n).tolist()
        figure = figures.vote(axis.tolist(), classes, (x, y), sigma, shares, marks)
        says = (
            f"At ({x:.2f}, {y:.2f}) with sigma {sigma:.2f} and {n} samples: class {top} has "
            f"{counts[top] / n:.1%} of the votes, its probability is at least {p_a:.3f}; "
            f"class {second} has {counts[second] / n:.1%}, at most {p_b:.3f}."
        )
        return figure, says

    return Explorer(
        draw, sigma=_slider("sigma", 0.4, 0.05, 1.0, 0.05), n=_counter("n", 1000, 20, 5000, 20),
        x=_slider("x", 0.6, -extent, extent, 0.05), y=_slider("y", 0.3, -extent, extent, 0.05),
    )  # fmt: skip


@declared(alpha=ALPHA, sigma=SIGMA, most=whole(20))
def certification_explorer(
    *, alpha: float = 0.001, sigma: float = 0.5, most: int = 5000
) -> Explorer:
    """Watch votes arrive: the observed share and its lower bound, and the radius that each gives.

    Votes are drawn with a known probability p, so the true radius is known as well.

    Args:
        alpha: error probability of the bound.
        sigma: standard deviation of the noise, in pixel units.
        most: largest number of votes, at least 20.
    """

    def draw(p: float, n: int, run: int) -> tuple[Figure, str]:
        won = np.cumsum(np.random.default_rng(run).random(most) < p)
        sizes = np.unique(np.geomspace(10, n, 80).astype(int))
        share = won[sizes - 1] / sizes
        bound = bounds.lower_conf_bound(won[sizes - 1], sizes, alpha)
        lines = {"observed share": share, "lower bound": bound, "truth": np.full(len(sizes), p)}
        # A share of 1 gives an infinite radius, which no axis can show.
        reach = {k: bounds.certified_radius(v, sigma) for k, v in lines.items()}
        drawn = {k: np.where(np.isfinite(v), v, np.nan).tolist() for k, v in reach.items()}
        shares = {k: v.tolist() for k, v in lines.items()}
        figure = figures.curves(
            [("votes $n$", sizes.tolist(), each) for each in (shares, drawn)], "", ylim=None,
            logx=True, legend="lower right",
            titles=["probability of class A", "radius, pixel units"],
        )  # fmt: skip
        plug_in, certified, true = (float(v[-1]) for v in reach.values())
        verdict = "false" if plug_in > true else "true, by luck"
        says = (
            f"After {n} votes of run {run}: observed {share[-1]:.4f}, at least {bound[-1]:.4f}, "
            f"true {p:.4f}. Radius {plug_in:.3f} from the share ({verdict}), {certified:.3f} "
            f"certified, {true:.3f} true."
        )
        return figure, says

    return Explorer(
        draw, p=_slider("p", 0.9, 0.4, 0.999, 0.001), n=_counter("votes", 1000, 20, most, 20),
        run=_counter("run", 0, 0, 20),
    )  # fmt: skip


# --- a digit of your own --------------------------------------------------------------------------

_SIDE = 28  # pixels; a stroke's points count them, (0, 0) in the middle of the first
# What is drawn stays in the browser until the pen is lifted: one message to Python per stroke.
_PAD = """
const SIDE = 28, ZOOM = 9;
const STEPS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const HELP = "Draw with the pointer, or with keys: the arrows move the pen (with Shift by four "
  + "pixels), Space sets it down and lifts it, Backspace takes the last stroke back.";
const inside = z => Math.min(SIDE - 1, Math.max(0, Math.round(10 * z) / 10));

function render({ model, el }) {
  const make = (name, text = "") => el.appendChild(
    Object.assign(document.createElement(name), { textContent: text }));
  make("div", HELP);
  const canvas = make("canvas"), context = canvas.getContext("2d");
  const undo = make("button", "Undo"), clear = make("button", "Clear"), words = make("div");
  Object.assign(canvas, { width: SIDE * ZOOM, height: SIDE * ZOOM, tabIndex: 0 });
  canvas.style.cssText = "display: block; touch-action: none; cursor: crosshair";
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", `Drawing pad. ${HELP}`);
  words.setAttribute("aria-live", "polite");
  el.setAttribute("data-lm-suppress-shortcuts", "true");  // JupyterLab leaves the arrows to us
  for (const button of [undo, clear]) button.className = "jupyter-button widget-button";
  let pen = [14, 14], stroke = null;

  function draw() {
    context.fillStyle = "black";
    context.fillRect(0, 0, canvas.width, canvas.height);
    model.get("paper").forEach((grey, k) => {
      context.fillStyle = `rgb(${grey} ${grey} ${grey})`;
      context.fillRect((k % SIDE) * ZOOM, Math.floor(k / SIDE) * ZOOM, ZOOM, ZOOM);
    });
    context.lineCap = context.lineJoin = "round";
    for (const [colour, width] of [["#999", 3.2], ["white", 2]]) {  // a soft brush
      context.strokeStyle = colour;
      context.lineWidth = width * ZOOM;
      for (const points of [...model.get("value"), ...(stroke ? [stroke] : [])]) {
        context.beginPath();
        for (const [x, y] of [points[0], ...points])
          context.lineTo((x + 0.5) * ZOOM, (y + 0.5) * ZOOM);
        context.stroke();
      }
    }
    if (document.activeElement !== canvas) return;
    context.strokeStyle = "#E69F00";
    context.lineWidth = 2;
    context.strokeRect((pen[0] - 0.5) * ZOOM, (pen[1] - 0.5) * ZOOM, 2 * ZOOM, 2 * ZOOM);
  }
  function become(strokes) {
    stroke = null;
    model.set("value", strokes);
    model.save_changes();
    draw();
  }
  const lift = () => stroke && become([...model.get("value"), stroke]);
  const back = () => become(model.get("value").slice(0, -1));
  const to = (x, y) => { pen = [inside(x), inside(y)]; stroke?.push(pen); draw(); };
  const follow = event => to(event.offsetX / ZOOM - 0.5, event.offsetY / ZOOM - 0.5);

  canvas.onpointerdown = event => {
    canvas.setPointerCapture(event.pointerId);
    canvas.focus();
    stroke = [];
    follow(event);
  };
  canvas.onpointermove = event => stroke && event.buttons && follow(event);
  canvas.onpointerup = canvas.onpointercancel = lift;
  canvas.onkeydown = event => {
    const step = STEPS[event.key], length = event.shiftKey ? 4 : 1;
    if (step) to(pen[0] + length * step[0], pen[1] + length * step[1]);
    else if (event.key === " ") stroke ? lift() : (stroke = [pen], draw());
    else if (event.key === "Backspace") back();
    else return;
    event.preventDefault();
    words.textContent = `Pen ${stroke ? "down" : "up"} at ${pen.join(", ")}`;
  };
  canvas.onfocus = draw;
  canvas.onblur = () => { lift(); draw(); };
  undo.onclick = back;
  clear.onclick = () => become([]);
  model.on("change:value change:paper", draw);
  draw();
  return () => model.off("change:value change:paper", draw);
}
export default { render };
"""


class _Pad(anywidget.AnyWidget):
    """A sheet of 28 x 28 pixels to draw on; ``value`` holds the strokes, lists of points (x, y)."""

    _esm = _PAD
    value = traitlets.Any([]).tag(sync=True)
    paper = traitlets.Any([]).tag(sync=True)  # grey values 0 to 255 under the strokes, row by row

    @traitlets.validate("value")
    def _check(self, proposal: Any) -> list[list[list[float]]]:
        strokes = proposal["value"]
        try:
            found = [[[float(x), float(y)] for x, y in stroke] for stroke in strokes]
            if not all(found) or not all(0 <= z < _SIDE for s in found for p in s for z in p):
                raise ValueError
        except (TypeError, ValueError):
            words = f"strokes, each a list of points (x, y) from 0 to {_SIDE - 1}"
            raise ValueError(f"strokes={strokes!r}: expected a list of {words}") from None
        return found


def _ink(strokes: list[list[list[float]]]) -> Tensor:
    """Strokes with a soft brush as wide as those of MNIST, ``(28, 28)``."""
    axis = torch.arange(float(_SIDE))
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    nearest = torch.full((_SIDE, _SIDE), torch.inf)
    for stroke in strokes:
        points = torch.tensor([stroke[0], *stroke])  # also of a single point a line
        for start, end in itertools.pairwise(points):
            along = end - start
            share = ((pixels - start) @ along / (along @ along).clamp(min=1e-9)).clamp(0, 1)
            gap = (pixels - start - share[..., None] * along).norm(dim=-1)
            nearest = nearest.minimum(gap)
    return (1.5 - nearest / 1.2).clamp(0, 1)  # white to 0.6 from the line, half grey at 1.2


def _as_in_mnist(strokes: list[list[list[float]]], paper: Tensor) -> Tensor:
    """What was drawn, as MNIST was made: its longer side fills 20 pixels, its mass is centred.

    On paper that is not blank strokes keep their place and size. Returns ``(1, 1, 28, 28)``.
    """
    if strokes and not paper.any():
        points = torch.tensor([point for stroke in strokes for point in stroke])
        low, extent = points.amin(0), points.amax(0) - points.amin(0)
        scale = 17 / extent.max().clamp(min=1)  # and the brush around it
        strokes = [((torch.tensor(s) - low - extent / 2) * scale + 13.5).tolist() for s in strokes]
    picture, axis = paper.maximum(_ink(strokes)), torch.arange(float(_SIDE))
    mass = picture.sum().clamp(min=1e-9)
    right = 14 - round(float(picture.sum(0) @ axis / mass)) if picture.any() else 0
    down = 14 - round(float(picture.sum(1) @ axis / mass)) if picture.any() else 0
    # Padding by less than nothing cuts: the picture moves as it is, by whole pixels.
    return torch.nn.functional.pad(picture, (right, -right, down, -down))[None, None]


def _through_png(picture: Tensor, path: Path) -> Tensor:
    """Save a picture with 8 bits a pixel, and read it back."""
    Image.fromarray((picture[0, 0] * 255).round().to(torch.uint8).numpy()).save(path)
    with Image.open(path) as saved:
        return torch.from_numpy(np.array(saved, dtype=np.float32) / 255)[None, None]


def _of_mnist_size(images: Tensor) -> None:
    if images.shape[1:] != (1, _SIDE, _SIDE):
        raise ValueError(f"images: expected (n, 1, 28, 28), got {tuple(images.shape)}")


@declared(_one_label_each, _of_mnist_size, model=_MODEL, images=IMAGES, labels=LABELS,
          steps=whole(1))  # fmt: skip
def draw_explorer(
    model: Any, images: Tensor, labels: Tensor, path: str | Path = "attacked.png",
    *, steps: int = 20,
) -> Explorer:  # fmt: skip
    """Draw a digit, or add to one; attack it, save it as a PNG of 8 bits, and ask what is left.

    The attack is PGD in l-inf on the model's own answer: nobody but you knows what you drew.

    Args:
        model: images ``(n, 1, 28, 28)`` to logits ``(n, K)``.
        images, labels: the first of each class can be drawn upon, ``(n, 1, 28, 28)``, ``(n,)``.
        path: where "saved as PNG" writes the attacked picture.
        steps: of PGD.
    """
    places = {f"a {k}": int((labels == k).nonzero()[0]) for k in labels.unique().tolist()}
    papers = {"blank": torch.zeros(_SIDE, _SIDE)}
    papers |= {name: images[k, 0].detach().cpu().float() for name, k in places.items()}

    def ask(picture: Tensor) -> Tensor:
        with unchanged(model), torch.inference_mode():
            return logits_of(model, picture.to(images)).softmax(1)[0].cpu()

    def draw(paper: str, strokes: Any, eps: float, show: str) -> tuple[Figure, str]:
        x = _as_in_mnist(strokes, papers[paper])
        columns = [("drawn", x[0], ask(x))]
        counted = f"{len(strokes)} stroke{'s' * (len(strokes) != 1)}"
        sheet = "blank paper" if paper == "blank" else paper
        says = f"{counted} on {sheet}: the model says {_answer(columns[0][2])}."
        if not x.any():
            says += " Even to an empty sheet it has to give one of its answers."
        if show == "drawn":
            return figures.answers(columns), says
        y = columns[0][2].argmax()[None].to(images.device)
        z = attacks.pgd(model, x.to(images), y, eps, steps=steps, generator=_seeded()).cpu().float()
        columns.append(("attacked", z[0], ask(z)))
        verdict = "fooled" if _differ(columns) else "not fooled"
        says += f" Attacked with eps {eps:.2f}: {_answer(columns[1][2])} ({verdict})."
        if show == "attacked":
            return figures.answers(columns), says
        read = _through_png(z, Path(path))
        columns.append(("read from the PNG", read[0], ask(read)))
        after = "fooled" if _differ(columns) else "not fooled"
        verdict = f"still {after}" if after == verdict else f"now {after}: rounding did it"
        says += (
            f" Saved as {Path(path).name} and read back: {_answer(columns[2][2])} ({verdict}). "
            f"Rounded to 8 bits, the largest change of a pixel is {_largest(read - x):.3f}."
        )
        return figures.answers(columns), says

    pad, choice = _Pad(), _choice("paper", list(papers), "blank")

    def lay(change: Any) -> None:  # a new sheet
        pad.paper = (papers[change["new"]] * 255).round().int().flatten().tolist()
        pad.value = []

    choice.observe(lay, names="value")  # before the explorer listens
    shown = _choice("show", ["drawn", "attacked", "saved as PNG"], "drawn")
    return Explorer(draw, paper=choice, strokes=pad, eps=_slider("eps", 0.1, 0, 0.3), show=shown)


def _answer(probabilities: Tensor, word: Callable[[int], str] = str) -> str:
    return f"{word(int(probabilities.argmax()))} with probability {float(probabilities.max()):.2f}"


def _largest(change: Tensor) -> float:
    return float(change.abs().max())


def _differ(columns: list[tuple[str, Tensor, Tensor]]) -> bool:
    return int(columns[0][2].argmax()) != int(columns[-1][2].argmax())
