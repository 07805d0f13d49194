"""The web book, built once and read from disk in a browser: pages, links, pictures, mathematics."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from helpers import BEYOND, LESSONS, ROOT, read_notebook, sphinx_pages, watched
from nbconvert import HTMLExporter

pytestmark = pytest.mark.slow

pytest.importorskip("sphinx", reason="the site needs pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return sphinx_pages(tmp_path_factory.mktemp("site"), "docs/site/assemble.py")


@pytest.fixture(scope="module")
def pages(site):
    found = {str(path.relative_to(site)): path for path in sorted(site.rglob("*.html"))}
    return {name: path for name, path in found.items() if not name.startswith("_static/")}


class Links(HTMLParser):
    """Where a page points to, and the names that others can point to."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.names, self.remote = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        about = dict(attributes)
        self.names |= {about[key] for key in ("id", "name") if about.get(key)}
        for key in ("href", "src"):
            if about.get(key) is None:
                continue
            if re.match(r"(https?:)?//", about[key]):
                if tag != "a":
                    self.remote.append(about[key])
            elif not about[key].startswith(("mailto:", "data:", "#!", "javascript:")):
                self.targets.append(about[key])


def test_every_link_leads_somewhere(pages):
    read = {path.resolve(): Links(path) for path in pages.values()}
    assert sum(len(links.targets) for links in read.values()) > 1000
    for path, links in read.items():
        for target in links.targets:
            address = urlsplit(target)
            to = (path.parent / unquote(address.path)).resolve() if address.path else path
            assert to.is_file(), f"{path.name}: {target}"
            if address.fragment and to in read:
                assert unquote(address.fragment) in read[to].names, f"{path.name}: {target}"


def test_nothing_is_loaded_from_a_network(pages):
    assert not [each for path in pages.values() for each in Links(path).remote]


def test_the_book_is_whole(pages):
    for lesson in [*LESSONS, *BEYOND]:
        assert f"notebooks/{lesson}.html" in pages
    text = pages["notebooks/hw1.html"].read_text(encoding="utf-8")
    assert "YOUR CODE HERE" in text
    assert "BEGIN SOLUTION" not in text
    assert "trustml_helpers.attacks.pgd" in pages[
        "reference/trustml_helpers.attacks.html"
    ].read_text(encoding="utf-8")  # fmt: skip


# Dollars that are read as such: a formula that was not seen as one.
STRAY = """[...document.querySelectorAll("article *")].flatMap(e =>
  e.closest("code, pre, script, style, mjx-container, .explorer") ? [] :
  [...e.childNodes].filter(n => n.nodeType === 3 && n.data.includes("$")).map(n => n.data))"""


def test_every_page_in_a_browser(browser, pages):
    """No error, no missing picture, every picture with words, every formula rendered."""
    formulas = {}
    for name, path in pages.items():
        bad = []
        page = watched(browser, bad)
        page.goto(path.as_uri())
        page.evaluate("window.MathJax ? MathJax.startup.promise : null")
        assert not bad, (name, bad)
        pictures = page.locator("article img")
        for k in range(pictures.count()):
            picture = pictures.nth(k)
            picture.scroll_into_view_if_needed()
            assert picture.evaluate("i => i.decode().then(() => i.naturalWidth > 0)"), (name, k)
            assert len((picture.get_attribute("alt") or "").split()) >= 5, (name, k)
        raw = page.locator("article :is(span, div).math").count()
        done = page.locator("article mjx-container").count()
        assert page.locator("[data-mml-node='merror']").count() == 0, name
        assert done >= raw, name
        assert not page.evaluate(STRAY), (name, page.evaluate(STRAY))
        formulas[name] = done
        page.close()
    assert all(formulas[f"notebooks/{lesson}.html"] > 5 for lesson in [*LESSONS, *BEYOND])


def test_the_pages_of_make_course_need_no_network(browser, tmp_path):
    """The template, on a stored notebook; make course executes it first."""
    mathjax = next(iter(importlib.import_module("sphinx-mathjax-offline").__path__))
    shutil.copy(Path(mathjax, "static", "mathjax", "tex-svg.js"), tmp_path)
    basedirs = [str(ROOT / "docs/nbconvert")]
    exporter = HTMLExporter(template_name="course", extra_template_basedirs=basedirs)
    bad, led = [], 0
    known = {path.stem: path for path in (LESSONS | BEYOND).values()}
    for name in ("04_proof_of_the_radius", "05_certification", "votes_and_audits"):
        html, _ = exporter.from_filename(str(known[name]))
        path = tmp_path / f"{name}.html"
        path.write_text(html, encoding="utf-8")
        assert not Links(path).remote
        page = watched(browser, bad)
        page.goto(path.as_uri())
        page.evaluate("MathJax.startup.promise")
        assert page.locator("mjx-container").count() > 30
        assert page.locator("[data-mml-node='merror']").count() == 0
        for link in page.locator("a[href]").all():
            target = link.get_attribute("href")
            if not target.startswith(("#", "http")):  # all nine lie in one folder
                assert target.partition("#")[0].removesuffix(".html") in known
                led += 1
        page.close()
    assert led >= 5
    assert not bad


def test_what_is_folded_is_on_paper(browser, pages):
    """Sections beyond the core path and folded answers, for the time of the printing; no hints."""
    page = watched(browser, [])
    page.goto(pages["notebooks/05_certification.html"].as_uri())
    folded, hints = "details:is(.curious, .hide)", "details:not(.curious, .hide)"
    closed = page.locator(f"{folded}:not([open])").count()
    assert closed >= 2
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(f"{folded}:not([open])").count() == 0
    assert page.locator(f"article {hints}:not([open])").count() >= 2
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator(f"{folded}:not([open])").count() == closed


def test_the_search_finds_a_word(browser, pages):
    bad = []
    page = watched(browser, bad)
    page.goto(pages["search.html"].as_uri() + "?q=Clopper")
    hit = page.locator("#search-results a", has_text="Certification").first
    hit.wait_for()
    assert not bad


def test_the_search_knows_every_section(site, pages):
    """Sphinx lists every heading with the page and the place that it leads to."""
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    titles = json.loads(index.removeprefix("Search.setIndex(").rstrip(";)\n"))["alltitles"]
    known = {(title, place) for title, places in titles.items() for _, place in places}
    count = 0
    for name, path in (LESSONS | BEYOND).items():
        page = pages[f"notebooks/{name}.html"].read_text(encoding="utf-8")
        sections = re.findall(r'<section id="([^"]+)"', page)
        headings = re.findall(r"^#{2,3} ", "\n".join(
            cell.source for cell in read_notebook(path).cells if cell.cell_type == "markdown"
        ), flags=re.MULTILINE)  # fmt: skip
        assert len(sections) >= len(headings) > 5
        assert set(sections) <= {place for _, place in known}, name
        count += len(sections)
    assert count > 100


def test_the_plan_of_a_lecture_prints_on_two_sides(browser, pages):
    page = watched(browser, [])
    page.goto(pages["instructor/teaching.html"].as_uri())
    printed = page.pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 2


EXPLORERS = [name for name, path in (LESSONS | BEYOND).items() if '"page": {' in path.read_text()]


@pytest.mark.parametrize("lesson", EXPLORERS)
def test_every_control_of_an_explorer_changes_picture_and_sentence(browser, pages, lesson):
    """By keyboard, from disk, without a kernel; each picture is small and there."""
    bad = []
    page = watched(browser, bad)
    page.goto(pages[f"notebooks/{lesson}.html"].as_uri())
    place = page.locator(".explorer")
    assert place.count() == 1

    def now():
        return place.locator("img, svg").first.evaluate("e => e.src || e.outerHTML"), (
            place.locator("p[aria-live]").inner_text()
        )

    text = pages[f"notebooks/{lesson}.html"].read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json">(.*?)</script></?noscript', text)
    known = [about.get("values") for about in json.loads(data[1])["controls"]]
    controls = place.locator("input, select")
    assert controls.count() == len(known) >= 1
    for k in range(controls.count()):
        control = controls.nth(k)
        assert control.evaluate("c => c.labels.length") == 1
        picture, sentence = now()
        if control.evaluate("c => c.tagName") == "SELECT":
            control.select_option(index=0)
        else:
            control.focus()
            for key in ("End", "Home", "ArrowRight"):
                control.press(key)
                at = control.get_attribute("aria-valuetext")
                if known[k]:  # what is shown and read aloud is the value, not one near it
                    assert at == f"{known[k][int(control.input_value())]:.4g}"
                assert place.locator("label").nth(k).inner_text().endswith(at)
                if now()[1] != sentence:
                    break
        assert now()[0] != picture, (lesson, k)
        assert now()[1] != sentence, (lesson, k)
    if place.locator("img").count():
        assert place.locator("img").evaluate("i => i.decode().then(() => i.naturalWidth)") > 300
        assert place.locator("img").get_attribute("alt") == now()[1]
    assert not bad


def test_the_formula_of_the_page_is_that_of_the_package(browser, pages):
    """What the radius explorer says after its controls were moved is what the live one says."""
    from trustml_helpers import widgets

    live = widgets.radius_explorer()
    page = watched(browser, [])
    page.goto(pages["notebooks/04_proof_of_the_radius.html"].as_uri())
    place = page.locator(".explorer")
    for p_a, sigma, delta in (
        (0.8, 0.5, 0.3),
        (0.99, 1.0, 2.0),
        (0.5, 0.1, 0.05),
        (0.93, 0.37, 0.7),
    ):
        for control, value in zip(place.locator("input").all(), (p_a, sigma, delta), strict=True):
            control.evaluate("(c, v) => {c.value = v; c.dispatchEvent(new Event('input'));}", value)
        said = live.set(p_a=p_a, sigma=sigma, delta=delta).says
        assert place.locator("p[aria-live]").inner_text() == said


def test_no_page_is_heavy(pages):
    assert all(path.stat().st_size < 5e6 for path in pages.values())
    for name in EXPLORERS:
        text = pages[f"notebooks/{name}.html"].read_text(encoding="utf-8")
        (data,) = re.findall(r'<div class="explorer".*?</div>', text, flags=re.DOTALL)
        assert len(data) < 3e6, name


def test_no_violation_of_accessibility(browser, pages):
    """axe-core's rules: contrast, order of headings, names of controls, alt texts."""
    sync = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    for name in (
        "index",
        "reference",
        "trust",
        "package",
        "compare",
        "install",
        "instructor/teaching",
        "instructor/server",
        "notebooks/hw1",
        *(f"notebooks/{each}" for each in [*LESSONS, *BEYOND]),
    ):
        page = watched(browser, [])
        page.goto(pages[f"{name}.html"].as_uri())
        page.evaluate("window.MathJax ? MathJax.startup.promise : null")
        # Drawn formulas are thousands of paths; their readable twin is MathML, not axe's business.
        about = {"exclude": ["mjx-container"]}
        options = {"preload": False, "resultTypes": ["violations"]}
        found = sync.Axe().run(page, about, options=options).response["violations"]
        assert not found, (name, [(each["id"], each["nodes"][0]["html"]) for each in found])
        page.close()
