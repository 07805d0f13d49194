"""A process that runs somebody else's code, with limits: memory, time, files, network.

The limits stop accidents and the usual pranks. They are no prison: see
``docs/instructor/homework.md``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_PROCESSES = 100
_STOP = threading.Event()
_MOST_OUTPUT = 1_000_000  # characters that a cell may print

# Ends what it starts when the grader ends, however that ends; Linux only.
_TIED = """
import os, sys
try:
    import ctypes, signal
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (AttributeError, OSError, TypeError):
    pass
os.execv(sys.argv[1], sys.argv[1:])
"""

# Runs first in the new process; what it limits, its children cannot raise.
_FIRST = """
import os, sys
alone, memory, size, seconds = (int(word) for word in sys.argv[1:5])
if alone:  # the loopback of a new network is down, and Jupyter needs it
    import fcntl, socket, struct
    with socket.socket() as one:
        fcntl.ioctl(one, 0x8914, struct.pack("16sh", b"lo", 1))
try:
    import resource
    for name, value in (("DATA", memory), ("FSIZE", size), ("CPU", seconds), ("CORE", 0)):
        if hasattr(resource, "RLIMIT_" + name):
            hard = resource.getrlimit(getattr(resource, "RLIMIT_" + name))[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
except (ImportError, ValueError, OSError):
    pass
if alone and (child := os.fork()):  # the first of a process table reaps the others, and only waits
    while (ended := os.wait())[0] != child:
        pass
    code = os.waitstatus_to_exitcode(ended[1])
    sys.exit(code if code >= 0 else 128 - code)
os.execv(sys.argv[5], sys.argv[5:])
"""

# Runs first in the kernel: a cell has its own time on the processor, and may print so much.
_KERNEL = """
def _limits(seconds, end_of_notebook, most):
    import signal
    import time
    from IPython import get_ipython
    from ipykernel.iostream import OutStream

    class OutOfTime(KeyboardInterrupt):
        pass

    def stop(number, _):
        kind = "" if number == signal.SIGALRM else " of processor time"
        raise OutOfTime(f"this cell took more than {allowed[number]:.0f} s{kind}")

    def begin(*_):
        printed[0] = 0
        left = end_of_notebook - time.time()  # for all the cells to come
        for number, timer, most in timers:
            allowed[number] = max(1, min(most, left / 3))
            signal.setitimer(timer, allowed[number], 5)

    def end(*_):
        for _, timer, _ in timers:
            signal.setitimer(timer, 0)

    def write(self, text):
        printed[0] += len(text)
        if printed[0] > most:
            text = "" if printed[0] - len(text) > most else "\\n... more was printed, cut here\\n"
        return whole(self, text)

    timers, allowed = [], {}
    if hasattr(signal, "setitimer"):
        timers = [(signal.SIGPROF, signal.ITIMER_PROF, seconds),
                  (signal.SIGALRM, signal.ITIMER_REAL, 4 * seconds)]  # one that only waits
    for number, _, _ in timers:
        signal.signal(number, stop)
    printed, whole = [0], OutStream.write
    OutStream.write = write
    get_ipython().events.register("pre_run_cell", begin)
    get_ipython().events.register("post_run_cell", end)


_limits({seconds}, {end_of_notebook}, {most})
del _limits
"""


@dataclass(frozen=True)
class Limits:
    """What one submission may use.

    Attributes:
        cell_seconds: of processor time for a cell, and by the clock four times that; it is
            interrupted, the others still count. A cell gets no more than a third of the time that
            is left for the notebook.
        notebook_seconds: for the whole notebook, by the clock.
        memory_gb: for all its processes together.
        file_mb: for one file that it writes.
    """

    cell_seconds: int = 240
    notebook_seconds: int = 1200
    memory_gb: float = 4.0
    file_mb: int = 200


def run(
    command: Sequence[str], folder: Path, log: Path, limits: Limits, environment: Mapping[str, str]
) -> tuple[int, str]:  # fmt: skip
    """Run a command within limits; nothing of it is left afterwards.

    Args:
        command: the program and its arguments.
        folder: where it runs; its kernels find their own limits there.
        log: gets what it writes.
        limits: of memory, time and files.
        environment: all its variables.

    Returns:
        The exit status, and why it was stopped, or an empty text.
    """
    startup = folder / ".ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "00-limits.py").write_text(
        _KERNEL.replace("{seconds}", str(limits.cell_seconds))
        .replace("{end_of_notebook}", str(time.time() + 0.9 * limits.notebook_seconds))
        .replace("{most}", str(_MOST_OUTPUT))
    )
    alone = bool(_own_world())
    words = [
        int(alone), int(limits.memory_gb * 2**30), limits.file_mb * 2**20,
        2 * limits.notebook_seconds,
    ]  # fmt: skip
    program = shutil.which(command[0]) or command[0]
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _TIED, *_own_world(), sys.executable, "-I", "-c", _FIRST,
             *map(str, words), program, *command[1:]],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env=dict(environment) | {"IPYTHONDIR": str(folder.resolve() / ".ipython")},
            start_new_session=True,
        )  # fmt: skip
        try:
            why = _watch(process, limits)
        finally:
            _end(process)
    return process.returncode, why


def stop_all() -> None:
    """End everything that runs now; what is started before :func:`go_on` ends at once."""
    _STOP.set()


def go_on() -> None:
    """Let things run again, where :func:`stop_all` was called earlier in this process."""
    _STOP.clear()


def unlimited() -> list[str]:
    """What cannot be limited on this system, a sentence each."""
    said = []
    if not _own_world():
        said.append("the network is open to submissions, and a process that one leaves behind "
                    "lives on (needs Linux with user namespaces and unshare)")  # fmt: skip
    try:
        import resource  # noqa: F401
    except ImportError:
        said.append("the size of files is not limited, and memory only by looking twice a second")
    return said


@functools.cache
def _own_world() -> tuple[str, ...]:
    """Words that start a program without network, in a process table of its own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    words = (unshare, "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
    trial = [*words, sys.executable, "-I", "-c", _FIRST, "1", *["1000000000"] * 3, "/bin/true"]
    try:
        done = subprocess.run(trial, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return words if done.returncode == 0 else ()


def _watch(process: subprocess.Popen[bytes], limits: Limits) -> str:
    """Wait for the end; why it was stopped before, or an empty text."""
    import psutil

    end = time.monotonic() + limits.notebook_seconds
    while process.poll() is None:
        if _STOP.is_set():
            return "by hand"
        if time.monotonic() > end:
            return f"after {limits.notebook_seconds} seconds"
        family = _family(process.pid)
        if len(family) > _PROCESSES:
            return f"it started more than {_PROCESSES} processes"
        used = 0
        for one in family:
            with contextlib.suppress(psutil.Error):
                used += one.memory_info().rss
        if used > limits.memory_gb * 2**30:
            return f"it used more than {limits.memory_gb:g} GB of memory"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.3)
    return ""


def _family(pid: int) -> list[psutil.Process]:
    import psutil

    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that came from it."""
    import psutil

    family = _family(process.pid)
    if process.poll() is None:
        process.kill()  # with a process table of its own, all others end with it
    for one in family[1:]:
        with contextlib.suppress(psutil.Error):
            one.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
        os.killpg(process.pid, 9)  # what was left behind in its session
    process.wait()
