"""A process within limits: what goes too far is stopped, and nothing of it is left."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import replace

import psutil
import pytest

from trustml_helpers.checks.grading import contain

pytestmark = pytest.mark.slow

LIMITS = contain.Limits(cell_seconds=60, notebook_seconds=60, memory_gb=1.0, file_mb=5)
ALONE = pytest.mark.skipif(not contain._own_world(), reason="needs user namespaces")


def run(code, tmp_path, **limits):
    """Run Python within limits: exit status, why it was stopped, what it wrote."""
    log = tmp_path / "log"
    found = contain.run([sys.executable, "-c", code], tmp_path, log, replace(LIMITS, **limits),
                        dict(os.environ))  # fmt: skip
    return *found, log.read_text()


def test_what_behaves_is_left_alone(tmp_path):
    code, why, said = run("import os; print(os.getcwd()); raise SystemExit(3)", tmp_path)
    assert (code, why, said.strip()) == (3, "", str(tmp_path))


def test_what_was_stopped_by_hand_can_go_on(tmp_path):
    contain.stop_all()
    assert run("import time; time.sleep(50)", tmp_path)[1] == "by hand"
    contain.go_on()
    assert run("pass", tmp_path)[:2] == (0, "")


def test_one_large_piece_of_memory_is_refused(tmp_path):
    code, why, said = run("try: bytearray(20 * 2**30)\nexcept MemoryError: print('no')", tmp_path)
    assert (code, why, said) == (0, "", "no\n")


def test_much_memory_in_many_processes_is_stopped(tmp_path):
    grow = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        kept = bytearray(b"x" * 400_000_000)
        time.sleep(60)
time.sleep(60)
"""
    _, why, _ = run(grow, tmp_path)
    assert why == "it used more than 1 GB of memory"


def test_too_many_processes_are_stopped(tmp_path):
    fork = """
import os, time
while True:
    if os.fork() == 0:
        time.sleep(60)
        break
    time.sleep(0.01)
"""
    _, why, _ = run(fork, tmp_path, memory_gb=8)
    assert why == "it started more than 100 processes"
    assert not left(tmp_path)


def test_a_large_file_is_cut_off(tmp_path):
    write = "f = open('big', 'wb')\nfor _ in range(20): f.write(bytes(10**6)); f.flush()"
    code, why, said = run(write, tmp_path)
    assert code != 0
    assert why == ""
    assert "File too large" in said or "SIGXFSZ" in said
    assert (tmp_path / "big").stat().st_size <= LIMITS.file_mb * 2**20


def test_it_ends_after_its_time(tmp_path):
    _, why, _ = run("import time; time.sleep(60)", tmp_path, notebook_seconds=1)
    assert why == "after 1 seconds"


@ALONE  # elsewhere the parent of this program, though not that of a kernel, is the grader
def test_who_kills_its_parent_ends_alone(tmp_path):
    code, why, _ = run("import os; os.kill(os.getppid(), 9); os._exit(9)", tmp_path)
    assert (code != 0, why) == (True, "")


@ALONE
def test_the_network_is_cut_but_not_the_machine_itself(tmp_path):
    code = """
import socket, threading
with socket.create_server(("127.0.0.1", 0)) as here:
    socket.create_connection(here.getsockname()).close()
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    print("cut:", error)
"""
    _, _, said = run(code, tmp_path)
    assert "cut: [Errno 101]" in said  # unreachable, at once


@ALONE
def test_nothing_is_left_behind(tmp_path):
    leave = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open({str(tmp_path / "born")!r}, "w").close()
        time.sleep(60)
else:
    time.sleep(1)
"""
    assert run(leave, tmp_path)[0] == 0
    assert (tmp_path / "born").exists()
    assert not left(tmp_path)


def left(folder):
    """Processes that still work in a folder."""
    time.sleep(0.5)
    found = []
    for one in psutil.process_iter():
        try:
            if one.cwd().startswith(str(folder)) and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except psutil.Error:
            continue
    return found


def test_where_nothing_can_be_limited_that_is_said(monkeypatch):
    monkeypatch.setattr(contain, "_own_world", lambda: ())
    assert "the network is open to submissions" in contain.unlimited()[0]
    monkeypatch.setitem(sys.modules, "resource", None)
    assert len(contain.unlimited()) == 2


def test_without_unshare_it_runs_all_the_same(tmp_path, monkeypatch):
    contain._own_world.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    try:
        assert run("print('here')", tmp_path)[0::2] == (0, "here\n")
    finally:
        contain._own_world.cache_clear()
