"""The numbers on the page of trust are those that its command wrote."""

from __future__ import annotations

import json
import re

import pytest
from faults import FAULTS
from helpers import script

trust = script("docs/site/trust.py")


@pytest.fixture
def rows():
    return json.loads(trust.NUMBERS.read_text())


def test_the_page_shows_what_was_measured(rows):
    text = trust.PAGE.read_text()
    assert trust.written(text, rows) == text
    assert {row["part"] for row in rows} <= set(trust.PARTS)
    assert len({row["part"] for row in rows}) >= 4
    for row in rows:
        assert set(row) == {"part", "what", "result", "commit", "date"}
        assert re.fullmatch(r"[0-9a-f]{7,}", row["commit"]), "measured on changed files"
        assert re.fullmatch(r"\d+ \w+ 20\d\d", row["date"])


def test_no_number_of_faults_or_tests_stands_there_by_hand():
    rest = trust.BETWEEN.sub("", trust.PAGE.read_text())
    assert not re.search(r"\d+ (?:faults|passed|failed)|\d+ were caught", rest)


def test_no_planted_fault_was_missed(rows):
    (found,) = [row["result"] for row in rows if row["part"] == "faults"]
    caught, planted = re.fullmatch(r"(\d+) of (\d+) caught", found).groups()
    assert caught == planted
    assert 100 < int(planted) <= len(FAULTS)


def test_what_is_not_measured_again_keeps_its_date(tmp_path, monkeypatch):
    old = [
        {"part": "tests", "what": "a", "result": "1 passed", "commit": "1", "date": "1 May 2026"}
    ]
    monkeypatch.setattr(trust, "NUMBERS", tmp_path / "n.json")
    monkeypatch.setattr(trust, "PAGE", tmp_path / "p.md")
    trust.NUMBERS.write_text(json.dumps(old))
    trust.PAGE.write_text("before\n<!-- numbers -->\nold\n<!-- end of numbers -->\nafter\n")
    monkeypatch.setitem(trust.PARTS, "errors", lambda: {"false answers": "7 of 9"})
    trust.main(["errors"])
    first, second = json.loads(trust.NUMBERS.read_text())
    assert second == old[0]
    assert (first["what"], first["result"]) == ("false answers", "7 of 9")
    text = trust.PAGE.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| false answers | 7 of 9 |" in text
    assert "old" not in text
    with pytest.raises(SystemExit, match=r"parts=\['all'\]: expected some of faults, errors"):
        trust.main(["all"])
    monkeypatch.setitem(trust.PARTS, "errors", lambda: {"false certificates": "none"})
    trust.main(["errors"])  # under another name: the old row goes all the same
    assert [row["what"] for row in json.loads(trust.NUMBERS.read_text())] == [
        "false certificates", "a",
    ]  # fmt: skip
