"""A part of ``make mutations``: the tests notice what they are there to notice."""

from __future__ import annotations

import subprocess

import pytest
from faults import FAULTS
from helpers import ROOT
from plant import RED, copied, planted, verdict


def test_every_fault_still_fits():
    """Each changes its file into another that runs; there are enough, and no two are the same."""
    assert len(FAULTS) >= 40
    assert len({fault.what for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        sound = (ROOT / fault.file).read_text(encoding="utf-8")
        changed = fault.change(sound)
        assert changed != sound, fault.what
        if fault.file.endswith(".py"):
            compile(changed, fault.what, "exec")  # a file that cannot be read shows nothing


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the files to copy are not known")
    return copied(tmp_path_factory.mktemp("copy"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", [f for f in FAULTS if f.fast], ids=lambda fault: fault.what)
def test_a_fault_turns_a_test_red(fault, copy):
    with planted(fault, copy):
        status, words = verdict(fault.tests, copy)
    assert status == RED, words
