"""How a check of the homework works: cases, a sentence for each wrong one, a share of points."""

from __future__ import annotations

import functools
import inspect
import io
import math
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trustml_helpers._support.arguments import shown

Answer = Callable[..., Any]  # what a student wrote
Check = Callable[..., None]

_PACKAGE = Path(__file__).parents[1]
# What an answer may use of the package: networks, data, pictures, what a check hands in, and the
# cellar, through which every function is called that declares its arguments.
_ALLOWED = {"", "__init__", "models", "data", "figures", "checks", "_support"}


# Right answers of checks that build on others, and which of them are lent just now.
_RIGHT: set[CodeType] = set()
_LENT: set[CodeType] = set()


class CheckFailed(AssertionError):
    """An answer is wrong; the text says what, case by case.

    Attributes:
        share: cases that are right, as a share of all, in [0, 1].
    """

    def __init__(self, text: str, share: float) -> None:
        super().__init__(text)
        self.share = share

    def _render_traceback_(self) -> list[str]:
        return [str(self)]  # IPython shows the message alone, not the inside of the check


class NoFunction(TypeError):
    """What should be an answer is no function."""


class Wrong(Exception):
    """What is wrong in one case, in a sentence for the student."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Cases:
    """The cases of one check, in order: ``with case("a name"): ...`` records right or wrong."""

    def __init__(self, name: str, lent: str = "") -> None:
        self.name = name
        self.lent = lent  # what the check put in the place of the student's own
        self.wrong: dict[str, str] = {}
        self.names: list[str] = []
        self.trouble = ""

    @contextmanager
    def before_all(self) -> Iterator[None]:
        """What fails in here makes every later case wrong, for this reason."""
        try:
            yield
        except (Exception, SystemExit) as error:
            self.trouble = _reason(error)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.names.append(name)
        try:
            yield
        except (Exception, SystemExit) as error:
            self.wrong[name] = _reason(error)
        if self.trouble:
            self.wrong[name] = self.trouble

    def verdict(self) -> None:
        """Print that all is right, or raise :class:`CheckFailed`."""
        total, wrong = len(self.names), self.wrong
        if not wrong:
            print(f"{self.name}: all {total} cases right{self.lent}")
            return
        lines = [f"{self.name}: {total - len(wrong)} of {total} cases right{self.lent}"]
        lines += [f"  right: {name}" for name in self.names if name not in wrong]
        for said in dict.fromkeys(wrong.values()):
            cases = "; ".join(name for name, text in wrong.items() if text == said)
            lines.append(f"  wrong: {cases}:\n      {said}")
        raise CheckFailed("\n".join(lines), 1 - len(wrong) / total)


def _reason(error: BaseException) -> str:
    if isinstance(error, Wrong):
        return str(error)
    # An answer of a kind that nobody thought of.
    return f"the answer cannot be compared ({type(error).__name__}: {error})"


def check(
    cases: Callable[..., None], *, builds_on: Mapping[str, Answer] | None = None
) -> Check:  # fmt: skip
    """Make ``(answer, case, generator) -> None`` a check ``(answer, *, seed=0) -> None``.

    The check prints one line if every case is right, and raises :class:`CheckFailed` otherwise.
    Its inputs are drawn from the seed, so a grader checks the same on other inputs. Global random
    generators are left as found. What ``cases`` takes by name alone is a setting of the check, for
    a course that changes the task; an unknown one is a TypeError.

    Args:
        builds_on: earlier tasks by name, with a right answer each: a mistake in one of those costs
            nothing here. The student's own come first, then these in their place; what is better
            counts.
    """
    settings = [each for each in inspect.signature(cases).parameters.values()
                if each.kind is inspect.Parameter.KEYWORD_ONLY]  # fmt: skip
    known = [each.name for each in settings]
    _RIGHT.update(each.__code__ for each in (builds_on or {}).values())

    @functools.wraps(cases)
    def run(answer: Answer, *, seed: int = 0, **given: Any) -> None:
        for name in given.keys() - set(known):
            has = f"those are {', '.join(known)}" if known else "it has none"
            raise TypeError(f"checks.{cases.__name__} has no setting {name!r}; {has}")
        if not callable(answer):
            raise NoFunction(f"answer={answer!r}: expected the function itself, as in checks."
                             f"{cases.__name__}({cases.__name__}), without calling it")  # fmt: skip

        def tried(lent: str = "") -> Cases:
            case = Cases(cases.__name__, lent)
            with torch.random.fork_rng(devices=[]):
                generator = torch.Generator().manual_seed(seed)
                cases(functools.partial(call, answer), case, generator, **given)
            return case

        case = tried()
        with _in_place(answer, builds_on or {}) as lent:
            if case.wrong and lent:
                other = tried(f", with a right {' and '.join(lent)} in the place of yours")
                case = min(case, other, key=lambda each: len(each.wrong))
        case.verdict()

    del run.__wrapped__  # help() shows the signature of the check
    of_all = list(inspect.signature(run).parameters.values())[:2]
    run.__signature__ = inspect.Signature([*of_all, *settings])  # type: ignore[attr-defined]
    return run


@contextmanager
def _in_place(answer: Answer, others: Mapping[str, Answer]) -> Iterator[list[str]]:
    """Other functions in the place of those that an answer knows by these names; which."""
    space = getattr(answer, "__globals__", {})
    own = {name: space[name] for name in others if name in space}
    lent = {others[name].__code__ for name in own}
    try:
        space.update({name: others[name] for name in own})
        _LENT.update(lent)
        yield list(own)
    finally:
        space.update(own)
        _LENT.difference_update(lent)


def score(points: float, check: Check, answer: Any, *, seed: int, **settings: Any) -> float:
    """Points for an answer: ``points`` times the share of the cases that are right.

    Prints what is wrong, never fails because of the answer, and writes nothing to stderr, where a
    grader would take it for a failure. What is no function earns 0.

    Args:
        settings: of the check, for a course that changes the task.
    """
    try:
        with silence():
            check(answer, seed=seed, **settings)
    except (CheckFailed, NoFunction) as failed:
        print(failed)
        return round(points * getattr(failed, "share", 0.0), 2)
    return float(points)


def call(answer: Answer, *args: Any, may_borrow: bool = False) -> Any:
    """What the answer returns; what it warns of is dropped.

    Args:
        may_borrow: allow it to call the package.

    Raises:
        Wrong: if it is not written yet, fails (with the line), or hands the work to the package.
    """
    borrowed: list[str] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or borrowed or code.co_name == "<module>":
            return
        room, caller = _room(code), frame.f_back
        if (room not in _ALLOWED and _from_outside(caller, code)) or _inside_of_a_check(
            caller, code
        ):
            name = code.co_qualname.partition(".<locals>")[0].removesuffix(".__init__")
            borrowed.append(f"trustml_helpers.{room}.{name}")

    before = sys.getprofile()
    with silence():
        sys.setprofile(before if may_borrow else watch)
        try:
            found = answer(*args)
        except NotImplementedError:
            raise Wrong("not written yet") from None
        except Wrong:  # what the check hands in may object
            raise
        except (Exception, SystemExit) as error:  # no answer may end the grading
            raise Wrong(_where(error)) from None
        finally:
            sys.setprofile(before)
    if borrowed:
        raise Wrong(f"calls {borrowed[0]}. Write this one yourself, with torch, numpy and scipy; "
                    "only the last task may use the package")  # fmt: skip
    if found is None:
        raise Wrong("returns None: is the return statement missing?")
    return found


@contextmanager
def silence() -> Iterator[None]:
    """Drop warnings, and what is written to stderr."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@functools.lru_cache(maxsize=10_000)
def _module(filename: str) -> str:
    """A file of the package by its path in it, as ``attacks.gradient``; empty if it is none."""
    path = Path(filename)
    inside = path.is_relative_to(_PACKAGE)
    return ".".join(path.relative_to(_PACKAGE).with_suffix("").parts) if inside else ""


def _room(code: CodeType) -> str:
    return _module(code.co_filename).partition(".")[0]


def _from_outside(caller: FrameType | None, callee: CodeType) -> bool:
    """Whether a room is entered here; what it calls inside, it calls for itself."""
    if caller and _module(caller.f_code.co_filename) == "_support.arguments":
        # It calls what is declared, for its own caller; the rules of that room do not count.
        if getattr(caller.f_locals.get("function"), "__code__", None) is not callee:
            return False
        caller = caller.f_back
    return caller is None or _room(caller.f_code) in _ALLOWED


def _inside_of_a_check(caller: FrameType | None, callee: CodeType) -> bool:
    """Whether an answer calls, or is, a function of the checks themselves.

    What they hand in are methods and inner functions: networks, attacks, samplers.
    """
    if callee in _RIGHT:
        return callee not in _LENT
    if _room(callee) != "checks" or "." in callee.co_qualname:
        return False
    return (
        caller is None or caller.f_code is call.__code__ or not _module(caller.f_code.co_filename)
    )


def _where(error: BaseException) -> str:
    """An exception in one sentence, with the line of the student's code where it came up."""
    own = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if frame.line and "site-packages" not in frame.filename and not _module(frame.filename)
    ]  # fmt: skip
    place = f" at line {own[-1].lineno}, `{own[-1].line}`" if own else ""
    return f"{type(error).__name__}{place}: {error}"


# --- comparing ------------------------------------------------------------------------------------


def tensor(found: Any, like: Tensor, what: str) -> Tensor:
    """The answer as a float64 tensor, detached; Wrong unless it has the shape of ``like``."""
    if isinstance(found, tuple | list) and found and isinstance(found[0], Tensor):
        raise Wrong(f"returns {type(found).__name__} of {len(found)} values, expected {what}")
    try:
        values = found.detach() if isinstance(found, Tensor) else torch.as_tensor(np.asarray(found))
        values = values.to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"returns {type(found).__name__}, expected {what}") from None
    if values.shape != like.shape:
        raise Wrong(f"returns shape {tuple(values.shape)}, expected {tuple(like.shape)}: {what}")
    if not values.isfinite().all():
        raise Wrong(f"returns {int((~values.isfinite()).sum())} values that are NaN or infinite")
    return values


def number(found: Any, what: str) -> float:
    """The answer as a float; Wrong if it is none, or NaN."""
    try:
        value = float(found.detach() if isinstance(found, Tensor) else found)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"returns {shown(found)}, expected {what}") from None
    if value != value:
        raise Wrong(f"returns NaN, expected {what}")
    return value


def integer(found: Any, what: str) -> int:
    """The answer as an int; Wrong if it is none."""
    value = number(found, what)
    if not math.isfinite(value) or value != int(value):
        raise Wrong(f"returns {value:g}, expected {what}")
    return int(value)


def two_values(found: Any, names: str) -> Any:
    """The answer, if it has two entries; Wrong if not."""
    if not isinstance(found, tuple | list | Tensor | np.ndarray) or len(found) != 2:
        raise Wrong(f"returns {type(found).__name__}, expected two values: {names}")
    return found


def agree(
    found: Tensor | float, expected: Tensor | float, faults: Mapping[str, Tensor | float], *,
    unit: str = "", tolerance: float = 1e-4,
) -> None:  # fmt: skip
    """Wrong unless two values agree; by name, if the value found is that of a known fault.

    Args:
        faults: what is wrong, in words, and the value that this mistake gives on these inputs.
        unit: of the values, for the message.
        tolerance: largest difference allowed, relative to the largest expected value or 1,
            whichever is smaller but not 0.
    """
    a, b = _float64(found), _float64(expected)
    size = min(b.abs().max().item(), 1.0) or 1.0

    def same(x: Tensor, y: Tensor) -> bool:
        return bool(((x - y).abs() <= tolerance * size).all() or torch.equal(x, y))

    if same(a, b):
        return
    for what, value in faults.items():
        if same(a, _float64(value)):
            raise Wrong(what)
    if a.numel() == 1:
        raise Wrong(f"got {a.item():.6g}{unit}, expected {b.item():.6g}{unit}")
    apart = (a - b).abs()
    raise Wrong(f"{(apart > tolerance * size).double().mean():.0%} of the values differ, by at "
                f"most {apart.max():.3g}{unit} (expected values up to {b.abs().max():.3g})"
                )  # fmt: skip


def untouched(before: Tensor, after: Tensor, name: str) -> None:
    """Wrong if the answer changed its argument."""
    if not torch.equal(before, after.detach()):
        raise Wrong(f"changes its argument {name} in place: work on {name}.clone()")
    if after.requires_grad and not before.requires_grad:
        raise Wrong(f"leaves {name}.requires_grad set: record on a copy, {name}.clone()")


@contextmanager
def left_alone(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Wrong unless the network comes out as it went in: the mode of every module, the weights.

    Args:
        gradients: look at ``.grad`` of the parameters as well.
    """
    before = _state(model)
    yield
    after = _state(model)
    if changed := sum(a != b for a, b in zip(before["modes"], after["modes"], strict=True)):
        raise Wrong(f"changes the mode of the network: {changed} of its modules come back in "
                    "another one (train or eval) than before. Leave each as it is")  # fmt: skip
    if not _same(before["weights"], after["weights"]):
        raise Wrong("changes the weights of the network: an attack only reads them")
    if before["recording"] != after["recording"]:
        raise Wrong("leaves requires_grad of the weights changed: they are not yours to change")
    if gradients and not _same(before["gradients"], after["gradients"]):
        raise Wrong("changes .grad of the parameters, as backward() and zero_grad() do: "
                    "torch.autograd.grad(loss, z) leaves it as it is")  # fmt: skip


def _state(model: nn.Module) -> dict[str, list[Any]]:
    parameters = list(model.parameters())
    return {
        "modes": [module.training for module in model.modules()],
        "weights": [value.clone() for value in model.state_dict().values()],
        "recording": [each.requires_grad for each in parameters],
        "gradients": [None if each.grad is None else each.grad.clone() for each in parameters],
    }


def _same(before: list[Any], after: list[Any]) -> bool:
    return all(
        a is b if a is None or b is None else torch.equal(a, b)
        for a, b in zip(before, after, strict=True)
    )


def modes(model: nn.Module) -> list[bool]:
    """A list that gets the training flag of every forward pass of the network."""
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    return seen


def _float64(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach()
