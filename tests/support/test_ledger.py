"""A ledger: whole rows whatever ends the run, one writer, and no row of another run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest

from trustml_helpers._support import ledger as under_test
from trustml_helpers._support.files import InUseError, LogError
from trustml_helpers._support.ledger import Ledger, read_settings, same_run, settings_file

HEADER, ROWS = "number\tsquare", [f"{k}\t{k * k}\n" for k in range(12)]
SETTINGS = {"n": 100, "model_sha256": "ab" * 32, "how": {"layout": "plain", "batch": 8}}


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "log.tsv", HEADER)


def run(ledger: Ledger, rows: list[str] = ROWS, **changed: object) -> int:
    """A run of these settings from its start, or from where it was; how many rows it wrote."""
    new, settings = not ledger.path.exists(), SETTINGS | changed
    known = ledger.known(settings)
    with ledger.held(new=new):
        ledger.begin(settings if known is None else None)
        done = ledger.rows()
        ledger.keep(done)
        left = [row for row in rows if row not in done]
        write_all(ledger, left)
    return len(left)


def write_all(ledger: Ledger, rows: list[str], rank: int | None = None) -> None:
    with ledger.writing(rank) as write:
        for row in rows:
            write(row)


def whole() -> str:
    return HEADER + "\n" + "".join(ROWS)


def test_a_run_writes_its_rows_and_its_settings_beside_them(ledger):
    assert run(ledger) == len(ROWS)
    assert ledger.path.read_text() == whole()
    assert json.loads((ledger.path.parent / "log.json").read_text()) == SETTINGS
    assert sorted(each.name for each in ledger.path.parent.iterdir()) == ["log.json", "log.tsv"]
    assert run(ledger) == 0


def test_a_kill_at_any_byte_costs_the_row_that_it_cut_and_no_other(ledger):
    run(ledger)
    text = whole()
    for cut in range(len(HEADER) + 1, len(text) + 1):
        ledger.path.write_text(text[:cut])
        stand = text[:cut].count("\n") - 1
        assert ledger.rows() == ROWS[:stand], cut
        assert run(ledger) == len(ROWS) - stand, cut
        assert ledger.path.read_text() == text, cut


WRITE = """
import sys, time
from trustml_helpers._support.ledger import Ledger
ledger = Ledger(sys.argv[1], "number\\tsquare")
with ledger.held(new=True):
    ledger.begin({})
    with ledger.writing() as write:
        for k in range(6):
            write(f"{k}\\t{k * k}\\n")
        print("five", flush=True)
        time.sleep(600)
"""


def test_each_row_is_on_disk_before_the_next_and_a_kill_frees_the_file(ledger):
    words = [sys.executable, "-c", WRITE, str(ledger.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "five\n"
        assert ledger.rows() == ROWS[:6]
        with pytest.raises(InUseError, match="is being written by another process"), \
                ledger.held(new=False):  # fmt: skip
            pass
        writer.send_signal(signal.SIGKILL)
    with ledger.held(new=False):
        assert ledger.rows() == ROWS[:6]


FILL = """
import resource, signal, sys
from trustml_helpers._support.ledger import Ledger
ledger = Ledger(sys.argv[1], "number\\tsquare")
with ledger.held(new=True):
    ledger.begin({})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
    try:
        with ledger.writing() as write:
            for k in range(12):
                write(f"{k}\\t{k * k}\\n")
    except OSError as error:
        print(error.__notes__[0])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX's")
def test_a_disk_that_is_full_keeps_the_rows_before(ledger):
    ran = subprocess.run([sys.executable, "-c", FILL, str(ledger.path)], capture_output=True,
                         text=True)  # fmt: skip
    assert ran.stdout == f"{ledger.path}: what is in it is kept; make room, then start again\n"
    stand = ledger.rows()
    assert 0 < len(stand) < len(ROWS)
    assert stand == ROWS[: len(stand)]


def test_too_little_space_is_said_before_the_first_row(ledger, monkeypatch):
    run(ledger)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**6, 0, 999))
    ledger.check_space(999)
    with pytest.raises(LogError, match="need 1,000 bytes, 999 are free; make room"):
        ledger.check_space(1000)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"n": 10}, "n=100, not 10: use the same settings"),
        ({"model_sha256": "cd" * 32}, r"another network, model_sha256 abab\S+, not cdcd"),
        # Of two dictionaries only what is not the same.
        ({"how": {"layout": "plain", "batch": 9}}, r"how={'batch': 8}, not {'batch': 9}"),
        ({"new": 1}, "new=None, not 1"),
    ],
)  # fmt: skip
def test_a_run_of_other_settings_is_refused_and_changes_nothing(ledger, changed, words):
    run(ledger, ROWS[:3])
    before = ledger.path.read_bytes(), ledger.beside.read_bytes()
    with pytest.raises(LogError, match=words):
        run(ledger, **changed)
    assert (ledger.path.read_bytes(), ledger.beside.read_bytes()) == before


def test_what_is_wanted_as_none_may_be_anything(ledger):
    run(ledger, ROWS[:3])
    assert ledger.known({"n": None, "model_sha256": "ab" * 32}) == SETTINGS
    same_run({"n": 1}, {"n": None}, ledger.path, "")
    with pytest.raises(KeyError):  # the caller's kind of error
        same_run({"n": 1}, {"n": 2}, ledger.path, "", KeyError)


def test_only_an_old_table_may_lack_what_is_optional(ledger):
    run(ledger, ROWS[:3])
    wanted = SETTINGS | {"since": 2}
    assert ledger.known(wanted, optional={"since"}) == SETTINGS
    ledger.path.unlink()  # what is left may be the JSON of something else
    with pytest.raises(LogError, match=r"log\.json was made with since=None, not 2"):
        ledger.known(wanted, optional={"since"})


def test_an_existing_table_is_not_gone_on_with_unasked(ledger):
    assert ledger.known(SETTINGS, resume=False) is None
    run(ledger, ROWS[:3])
    with pytest.raises(LogError, match="exists: pass resume=True"):
        ledger.known(SETTINGS, resume=False)


@pytest.mark.parametrize("damage", [b"{", b"[]", b'"text"', b"\xff\xfe"])
def test_settings_that_cannot_be_read(ledger, damage):
    run(ledger, ROWS[:3])
    ledger.beside.write_bytes(damage)
    with pytest.raises(LogError, match=r"log\.json cannot be read .*: use another path"):
        run(ledger)
    assert ledger.beside.read_bytes() == damage


def test_settings_that_are_missing(ledger):
    run(ledger, ROWS[:3])
    ledger.beside.unlink()
    with pytest.raises(LogError, match="is missing, so the settings of"):
        run(ledger)


def test_a_run_killed_between_its_settings_and_its_table_goes_on(ledger):
    run(ledger, [])
    ledger.path.unlink()
    assert run(ledger) == len(ROWS)
    assert ledger.path.read_text() == whole()


@pytest.mark.parametrize("text", ["", "other\tcolumns\n1\t1\n", "0\t0\n", HEADER])
def test_a_table_that_begins_otherwise_is_refused(ledger, text):
    run(ledger, ROWS[:3])
    ledger.path.write_text(text)
    with pytest.raises(LogError, match="does not begin with"):
        run(ledger)
    assert ledger.path.read_text() == text


def test_a_table_that_came_meanwhile_is_not_overwritten(ledger):
    ledger.path.write_text("mine\n")
    with pytest.raises(LogError, match="was written meanwhile"), ledger.held(new=True):
        pass
    assert ledger.path.read_text() == "mine\n"


def test_parts_of_other_processes_are_joined_and_removed(ledger):
    run(ledger, ROWS[:2])
    write_all(ledger, ROWS[2:4], rank=0)
    write_all(ledger, ROWS[4:6], rank=1)
    part = ledger.path.with_name("log.tsv.part1")
    part.write_text(part.read_text() + ROWS[6][:2])  # cut off
    assert [each.name for each in ledger.parts()] == ["log.tsv.part0", "log.tsv.part1"]
    assert ledger.rows() == ROWS[:6]
    ledger.keep(ledger.rows())
    assert ledger.parts() == []
    assert ledger.rows() == ROWS[:6]


def test_parts_without_their_table_are_refused(ledger):
    write_all(ledger, ROWS[:2], rank=1)
    with pytest.raises(LogError, match=r"log\.tsv\.part1: rows of an earlier run are there"):
        ledger.known(SETTINGS)


def test_a_kill_while_rows_are_joined_leaves_the_old_table_and_the_parts(ledger, monkeypatch):
    run(ledger, ROWS[:2])
    write_all(ledger, ROWS[2:4], rank=0)
    before = ledger.rows()

    def killed(path, raw):
        raise KeyboardInterrupt

    monkeypatch.setattr(under_test, "replace_file", killed)
    with pytest.raises(KeyboardInterrupt):
        ledger.keep(before)
    assert ledger.rows() == before


@pytest.mark.parametrize("name", ["log", "run_0.25", "log.json", "log.JSON", "."])
def test_a_name_whose_settings_would_be_anothers_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"path=.*expected the name of a log with a suffix"):
        settings_file(tmp_path / name)
    assert settings_file(tmp_path / "log.tsv") == tmp_path / "log.json"


def test_settings_are_an_object(tmp_path):
    (tmp_path / "s.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected names and values, got list"):
        read_settings(tmp_path / "s.json")
