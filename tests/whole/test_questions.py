"""Five questions after each notebook: every wrong answer has its reason, every number is right."""

from __future__ import annotations

import re

import nbformat
import numpy as np
import pytest
from helpers import LESSONS, script
from scipy.stats import binomtest, norm

cut = script("docs/slides/cut.py")
SPACE = {"np": np, "norm": norm, "binomtest": binomtest, "max": max}


def questions(lesson):
    cells = nbformat.read(LESSONS[lesson], as_version=4).cells
    return [cell for cell in cells if "question" in cell.metadata.get("tags", [])]


def options(cell):
    """What can be chosen, and what is said to it, by letter."""
    asked, answers = cut.asked(cell.source)
    choice = dict(re.findall(r"^- \*\*([A-E])\*\* (.*)$", asked, flags=re.MULTILINE))
    said = re.findall(r"^- \*\*([A-E])\*\* (Right|Wrong): (.*)$", answers, flags=re.MULTILINE)
    return choice, {letter: (verdict, reason) for letter, verdict, reason in said}


@pytest.mark.parametrize("lesson", LESSONS)
def test_five_questions_each_answer_with_its_reason(lesson):
    cells = questions(lesson)
    assert [cell.source[:7] for cell in cells] == [f"**{k}.** " for k in range(1, 6)]
    for cell in cells:
        choice, said = options(cell)
        assert list(choice) == list(said) == sorted(choice)
        assert len(choice) >= 3
        right = [letter for letter, (verdict, _) in said.items() if verdict == "Right"]
        assert right == [cell.metadata["question"]["answer"]]
        assert all(len(reason.split()) >= 5 for _, reason in said.values())
        assert "?" in cut.asked(cell.source)[0]


def test_the_right_answer_is_not_always_at_the_same_place():
    cells = [cell for lesson in LESSONS for cell in questions(lesson)]
    right = [cell.metadata["question"]["answer"] for cell in cells]
    assert len(right) == 25
    assert all(right.count(letter) <= 13 for letter in "ABC")


def test_the_right_answer_is_not_told_by_its_length():
    """Of the answers in words the right one is the longest about as often as by chance."""
    longest = []
    for cell in (cell for lesson in LESSONS for cell in questions(lesson)):
        choice, about = options(cell)[0], cell.metadata["question"]
        if "value" not in about:
            longest.append(max(choice, key=lambda one: len(choice[one])) == about["answer"])
    assert len(longest) >= 14
    assert sum(longest) <= len(longest) / 3


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_number_is_computed_again(lesson):
    """The right option is the value to its last digit, and no wrong one is."""
    numeric = [cell for cell in questions(lesson) if "value" in cell.metadata["question"]]
    assert len(numeric) >= (1 if lesson.startswith("03") else 2)
    for cell in numeric:
        about, (choice, _) = cell.metadata["question"], options(cell)
        value = float(eval(about["value"], SPACE))  # of this repository
        for letter, text in choice.items():
            text = text.strip("$").replace(",", "")
            if not re.fullmatch(r"-?[\d.]+", text):
                continue  # such as "infinite"
            digits = len(text.partition(".")[2])
            close = abs(float(text) - value) <= 0.5 * 10**-digits + 1e-9
            assert close == (letter == about["answer"]), (cell.source, value)


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_poll_is_two_slides(lesson):
    cells = nbformat.read(LESSONS[lesson], as_version=4)
    slides = [cell.source for cell in cut.cut(cells).cells]
    for cell in questions(lesson):
        asked, answers = cut.asked(cell.source)
        at = slides.index(asked)
        assert slides[at + 1 : at + 3] == [cut.BREAK, answers]
        assert "Right:" not in asked
        assert "<details>" not in answers
