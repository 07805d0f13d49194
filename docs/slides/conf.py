"""Sphinx: one deck of slides per notebook, from what ``cut.py`` lays out."""

project = "Robust training"
author = "the trustml-helpers authors"
language = "en"

extensions = [
    "myst_nb",
    "sphinx_revealjs",
    "sphinx-mathjax-offline",  # mathematics without a network
]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_mathjax_classes = "math|text_html"  # tables of pandas have formulas too
nb_execution_mode = "off"
nb_merge_streams = True
# MyST-NB knows what to show for its own list of builders only.
nb_mime_priority_overrides = [
    ("revealjs", "image/png", 10),
    ("revealjs", "image/jpeg", 10),
    ("revealjs", "text/html", 20),
    ("revealjs", "text/plain", 30),
]

revealjs_static_path = ["_static"]
revealjs_style_theme = "white"
revealjs_css_files = ["slides.css"]
revealjs_script_files = ["slides.js"]
revealjs_script_conf = {
    "width": 1280,
    "height": 720,
    "margin": 0.04,
    "center": False,
    "hash": True,
    "slideNumber": "c/t",
    "transition": "none",
    "controls": False,
}
pygments_style = "a11y-high-contrast-light"
