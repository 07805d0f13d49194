"""The decks, built once and read from disk in a browser: every slide fits on its screen."""

from __future__ import annotations

import nbformat
import pytest
from helpers import LESSONS, script, sphinx_pages, watched

assemble = script("docs/site/assemble.py")

pytestmark = pytest.mark.slow

pytest.importorskip("sphinx_revealjs", reason="the slides need pip install -e '.[docs]'")

# Shows a slide with all its fragments, and says what sticks out of the window or is too small.
LOOK = """k => {
  const slide = Reveal.getSlides()[k], at = Reveal.getIndices(slide);
  Reveal.slide(at.h, at.v, 99);
  const all = "h1, h2, h3, p, li, pre, table, img, summary, mjx-container";
  const parts = [...slide.querySelectorAll(all)];
  const out = parts.filter(part => {
    const box = part.getBoundingClientRect();
    return box.bottom > innerHeight + 1 || box.right > innerWidth + 1 || box.top < 0;
  });
  return {out: out.length, scale: Number(slide.dataset.scale), parts: parts.length};
}"""


@pytest.fixture(scope="module")
def decks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    return sphinx_pages(folder, "docs/slides/cut.py", "-b", "revealjs")


def test_the_deck_of_one_lecture_is_read_from_the_last_row(browser, decks):
    """Nothing is made smaller than .85 of its size, and every slide has its picture."""
    bad = []
    page = watched(browser, bad, height=720)
    page.goto((decks / "lecture.html").as_uri())
    page.wait_for_selector("body[data-fitted]")
    count = page.evaluate("Reveal.getTotalSlides()")
    assert 40 <= count <= 45
    for k in range(count):
        found = page.evaluate(LOOK, k)
        assert found["out"] == 0, (k + 1, found)
        assert found["scale"] >= 0.85, (k + 1, found)
    assert page.locator(".slides img").evaluate_all("all => all.every(i => i.naturalWidth > 0)")
    assert page.locator("[data-mml-node='merror']").count() == 0
    assert not bad
    page.close()


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_deck_in_a_browser(browser, decks, lesson):
    """On a screen of 1280 x 720: no error, no request that fails, nothing cut off or tiny."""
    bad = []
    page = watched(browser, bad, height=720)
    page.on("request", lambda r: bad.append(r.url) if r.url.startswith("http") else None)
    page.goto((decks / f"{lesson}.html").as_uri())
    page.wait_for_selector("body[data-fitted]")
    count = page.evaluate("Reveal.getTotalSlides()")
    assert count >= 30
    for k in range(count):
        found = page.evaluate(LOOK, k)
        assert found["out"] == 0, (k + 1, found)
        assert found["scale"] >= 0.75, (k + 1, found)
        assert found["parts"] >= 2, (k + 1, "a title and something below it")
    notebook = nbformat.read(LESSONS[lesson], as_version=4)
    core = assemble.without_the_curious(notebook)
    stored = [
        output.metadata[kind]["alt"]
        for cell in core if cell.cell_type == "code" for output in cell.outputs
        for kind in ("image/png", "image/jpeg") if kind in output.get("data", {})
    ]  # fmt: skip
    assert page.locator(".slides img").evaluate_all("all => all.map(i => i.alt)") == stored
    assert page.locator(".slides img").evaluate_all("all => all.every(i => i.naturalWidth > 0)")
    assert page.locator("mjx-container").count() > 20
    assert page.locator("[data-mml-node='merror']").count() == 0
    assert page.locator(".slides .fragment").count() > 5
    assert not bad
    page.close()
