"""Sphinx: the web book, from notebooks as ``assemble.py`` lays them out."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

project = "Robust training"
author = "the trustml-helpers authors"
copyright = "MIT licence; MNIST is CC BY-SA 3.0 (LeCun, Cortes, Burges)"
html_title = "Robust training: an executable lecture"
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # mathematics without a network
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_mathjax_classes = "math|text_html"  # tables of pandas have formulas too
myst_heading_anchors = 2
nb_execution_mode = "off"  # the stored outputs, which the tests compare with fresh ones
nb_merge_streams = True

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autosummary_generate = True
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["book.js", "explorer.js"]
html_context = {"default_mode": "light"}
html_domain_indices = False
html_show_sphinx = False
html_show_search_summary = False  # a page read from disk may not fetch others
html_theme_options = {
    "show_toc_level": 1,
    "show_navbar_depth": 1,
    "use_download_button": True,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the sidebar has the search field
    # The default styles are below 4.5 in contrast in places.
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def resolve(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, content: nodes.Element
) -> nodes.Node | None:
    """Docstrings write ``attacks.pgd``: without the name of the package."""
    python = env.get_domain("py")
    target = f"trustml_helpers.{node.get('reftarget')}"
    if node.get("refdomain") != "py" or target not in python.objects:
        return None
    return python.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], target, node, content
    )


def fold(app: Sphinx, document: nodes.document) -> None:
    """What is for the curious is closed until asked for."""
    for section in document.findall(nodes.section):
        if "for-the-curious" in section["ids"]:
            opening = '<details class="curious"><summary>Beyond the core path</summary>'
            section.insert(1, nodes.raw("", opening, format="html"))
            section.append(nodes.raw("", "</details>", format="html"))


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", fold)
    app.connect("missing-reference", resolve)
