"""What the arguments of a public function may be: declared once, checked and converted at its door.

``@declared(eps=number("[0, inf)", "in pixel units"), steps=whole(0))`` refuses what does not fit
before any work, in a sentence with the argument, its value and the cure; inside, the function
trusts what it got. What concerns several arguments is a relation: a function of arguments by their
names that raises. There is no torch in here: the mathematics that knows none uses it, too.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import operator
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

DECLARED: dict[str, Any] = {}  # every declared function, by module and name; the tests read it


class Rule(NamedTuple):
    """What one argument may be."""

    expected: str  # ends the sentence "sigma=-1: expected ..."
    read: Callable[[Any], Any]  # what the function gets; raises where the value does not fit
    wrong: tuple[Any, ...] = ()  # some values that are refused, for the tests
    error: type[Exception] = ValueError

    def __call__(self, name: str, value: Any) -> Any:
        try:
            return self.read(value)
        except (ValueError, TypeError, OverflowError, RuntimeError):
            sentence = f"{name}={shown(value)}: expected {self.expected}"
        raise self.error(sentence)


def shown(value: Any) -> str:
    """A value in a sentence: numbers as they are, large things by what they are."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        return (
            str(value.item())
            if value.ndim == 0
            else np.array2string(np.asarray(value), threshold=4)
        )
    if getattr(value, "shape", ()) and hasattr(value, "dtype"):
        return f"({value.dtype} of shape {tuple(value.shape)})"
    text = repr(value)
    return text if len(text) <= 80 else f"({type(value).__module__}.{type(value).__qualname__})"


def declared(
    *relations: Callable[..., None], **rules: Rule
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check and convert arguments by their rules, then call the relations, then the function.

    Args:
        relations: functions of any of the arguments, by their names, that raise.
        rules: by argument; one that has none is trusted as it is.
    """

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        if unknown := rules.keys() - signature.parameters.keys():
            raise TypeError(f"{function.__qualname__} has no argument {', '.join(unknown)}")
        wanted = [(each, list(inspect.signature(each).parameters)) for each in relations]
        missing = inspect.Parameter.empty

        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # Python's own words for a wrong call
            bound.apply_defaults()
            values = bound.arguments
            for name, rule in rules.items():
                values[name] = rule(name, values[name])
            for relation, names in wanted:
                known = {name: values.get(name, missing) for name in names}
                relation(**{name: v for name, v in known.items() if v is not missing})
            return function(*bound.args, **bound.kwargs)

        # With the globals of the function's module, since doctest passes over what has others.
        inner: Any = types.FunctionType(
            checked.__code__, function.__globals__, checked.__name__, None, checked.__closure__
        )
        functools.update_wrapper(inner, function)
        inner.rules, inner.relations = rules, relations
        DECLARED[f"{function.__module__}.{function.__qualname__}"] = inner
        return inner

    return declare


def trusted(function: Callable[P, R]) -> Callable[P, R]:
    """The function behind its declaration, for callers that have checked the arguments."""
    return getattr(function, "__wrapped__", function)


# --- rules ----------------------------------------------------------------------------------------


def number(interval: str, meaning: str = "") -> Rule:
    """A number of an interval, such as ``"(0, inf)"``; the function gets a float."""
    inside, words, wrong = _interval(interval)

    def read(value: Any) -> float:
        if isinstance(value, str | bytes) or not inside(found := float(value)):
            raise ValueError
        return found

    return Rule(_joined(f"a {words[0]}number{words[1]}", meaning), read, wrong)


def numbers(interval: str, meaning: str = "") -> Rule:
    """Numbers of an interval, of any shape; the function gets a float64 array."""
    inside, words, wrong = _interval(interval)

    def read(value: Any) -> Any:
        found = np.asarray(value)
        if found.dtype.kind not in "biuf" or not np.all(inside(found := found.astype(float))):
            raise ValueError
        return found

    more = tuple(np.array([each, each]) for each in wrong if isinstance(each, float))
    return Rule(_joined(f"{words[0]}numbers{words[1]}", meaning), read, (*wrong, *more))


def whole(least: int = 0, most: int | None = None) -> Rule:
    """A whole number, also one that is written as 1e3; the function gets an int of 64 bits."""
    largest = 2**63 - 1 if most is None else most

    def read(value: Any) -> int:
        try:
            found = operator.index(value)
        except TypeError:
            if isinstance(value, str | bytes) or float(value) % 1 != 0:
                raise
            found = int(value)
        if not least <= found <= largest:
            raise ValueError
        return found

    end = f", at least {least}" if most is None else f" from {least} to {most}"
    wrong = (least - 1, least + 0.5, largest + 1, 1e300, math.nan, math.inf, "three", None)
    return Rule(f"a whole number{end}", read, wrong)


def wholes(least: int = 0, meaning: str = "") -> Rule:
    """Whole numbers of any shape; the function gets an int64 array."""

    def read(value: Any) -> Any:
        found = np.asarray(value)
        if found.dtype.kind not in "biuf":
            raise TypeError
        if not np.all((found >= least) & (found < 2.0**63)) or np.any(found % 1 != 0):
            raise ValueError
        return found.astype(np.int64)

    wrong = (least - 1, least + 0.5, math.nan, math.inf, "three", None, [least, least - 1])
    return Rule(_joined(f"whole numbers of at least {least}", meaning), read, wrong)


def increasing(rule: Rule, words: str) -> Rule:
    """Several numbers ``(m,)``, each larger than the last and as ``rule`` for arrays says; one
    number is a sequence of one."""

    def read(values: Any) -> Any:
        found = np.atleast_1d(rule.read(values))
        if found.ndim != 1 or len(found) == 0 or np.any(np.diff(found) <= 0):
            raise ValueError
        return found

    # Two that are equal, or fall, are wrong whatever the numbers.
    return Rule(f"one or more increasing {words}", read, (*rule.wrong, [], [0.5, 0.5], [2, 1]))


def one_of(*names: Any, function: bool = False) -> Rule:
    """One of some names; with ``function`` also anything that can be called."""

    def read(value: Any) -> Any:
        if not (any(value is each or value == each for each in names)
                or (function and callable(value))):  # fmt: skip
            raise ValueError
        return value

    words = f"one of {', '.join(map(repr, names))}" if len(names) != 2 else _either(names)
    return Rule(words + (", or a function" if function else ""), read, ("nonsense", None, 17.5))


def kind(expected: str, *types: type, error: type[Exception] = TypeError) -> Rule:
    """An instance of one of these types."""

    def read(value: Any) -> Any:
        if not isinstance(value, types):
            raise TypeError
        return value

    return Rule(expected, read, (object(),), error)


def record() -> Rule:
    """Names and values, as JSON has them."""

    def read(value: Any) -> Any:
        return json.loads(json.dumps(dict(value)))

    return Rule("names and values that JSON can hold", read, ({"x": {1, 2}}, 17))


def function(words: str) -> Rule:
    """Anything that can be called."""

    def read(value: Any) -> Any:
        if not callable(value):
            raise TypeError
        return value

    return Rule(f"a function {words}", read, (None, 17, "nonsense"), TypeError)


def maybe(rule: Rule) -> Rule:
    """The same, or None."""
    wrong = tuple(each for each in rule.wrong if each is not None)
    return rule._replace(
        expected=f"{rule.expected}, or None",
        read=lambda value: None if value is None else rule.read(value),
        wrong=wrong,
    )


def each(rule: Rule, *, least: int = 1) -> Rule:
    """Several of them, at least so many; the function gets a list."""

    def read(values: Any) -> list[Any]:
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise TypeError
        found = [rule.read(value) for value in values]
        if len(found) < least:
            raise ValueError
        return found

    wrong = (17, None, *([value] for value in rule.wrong), *([[]] if least else []))
    return Rule(f"a list of at least {least}, each {rule.expected}", read, wrong, rule.error)


def _either(names: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, names))


def _joined(words: str, meaning: str) -> str:
    return f"{words}, {meaning}" if meaning else words


def _interval(text: str) -> tuple[Callable[[Any], Any], tuple[str, str], tuple[Any, ...]]:
    """Membership in ``"[low, high)"``; the words before and after "number"; what lies outside."""
    low, high = (float(each) for each in text.strip("[]() ").split(","))
    above = operator.ge if text[0] == "[" else operator.gt
    below = operator.le if text[-1] == "]" else operator.lt

    def inside(value: Any) -> Any:
        return above(value, low) & below(value, high)

    finite = math.isinf(high) and text[-1] == ")"
    if math.isinf(low) and math.isinf(high):
        after = ""
    elif math.isinf(high):
        after = f" of at least {low:g}" if text[0] == "[" else f" above {low:g}"
    elif text[0] == "(" and text[-1] == ")":
        after = f" strictly between {low:g} and {high:g}"
    elif text[0] == "[" and text[-1] == "]":
        after = f" from {low:g} to {high:g}"
    else:
        left = f"at least {low:g}" if text[0] == "[" else f"above {low:g}"
        after = f" {left} and {'at most' if text[-1] == ']' else 'below'} {high:g}"
    ends = [low] * (text[0] == "(") + [high] * (text[-1] == ")")
    beyond = [e for e in (low - 1 - abs(low), high + 1 + abs(high)) if math.isfinite(e)]
    wrong = (*map(float, [*ends, *beyond]), math.nan, "three", None)
    return inside, ("finite " if finite else "", after), wrong


# Those that many rooms share.
SIGMA = number("(0, inf)", "in pixel units")
ALPHA = number("(0, 1)", "an error probability")
SEED = whole(0, 2**63 - 1)
