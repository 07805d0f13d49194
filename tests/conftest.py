"""Fixtures shared by the tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings

if TYPE_CHECKING:  # torch takes seconds, and the process that only deals out the tests needs none
    import torch
    from helpers import Awkward
    from playwright.sync_api import Browser

# CI must be repeatable; at home every run looks at new examples. No test is timed.
settings.register_profile("home", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
# Under a deliberate fault the first counterexample is enough.
settings.register_profile(
    "fault", deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
)
settings.load_profile(os.environ.get("TESTS", "ci" if os.environ.get("CI") else "home"))


@pytest.fixture
def generator() -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium: the system's, or playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    with sync_api.sync_playwright() as play:
        if found is None and not Path(play.chromium.executable_path).exists():
            pytest.skip("no Chromium found: install it, or run 'playwright install chromium'")
        # A container's root has no sandbox; the pages are our own.
        started = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def awkward() -> Awkward:
    import torch
    from helpers import Awkward

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Awkward()
        model(torch.rand(4, 1, 8, 8))
    model.train()
    model.body[4].eval()  # a frozen BatchNorm inside a training network
    model.head.weight.requires_grad_(False)
    model.body[0].weight.grad = torch.full_like(model.body[0].weight, 7.0)
    return model


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make check` does not even import what is slow as a whole."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    return "\npytestmark = pytest.mark.slow" in collection_path.read_text("utf-8") or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks, and files with slow tests, first: in the end no process waits for one of them."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, item.path.suffix != ".ipynb"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep nbval from measuring coverage inside the kernels, where it waits until it times out.

    The package's coverage comes from the unit tests; pytest-cov has already read the option.
    """
    if getattr(session.config.option, "cov_source", None):
        session.config.option.cov_source = None
