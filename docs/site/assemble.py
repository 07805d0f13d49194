"""Lay out the sources of the web book: pages, notebooks with their alt texts, the blank homework.

Usage: python docs/site/assemble.py build/site-source
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat

from trustml_helpers import checks

ROOT = Path(__file__).resolve().parents[2]
# Pages in the book, by where they lie: its own, and some for those who teach.
PAGES = {path: path.name for path in sorted(Path(__file__).resolve().parent.glob("*.md"))} | {
    ROOT / "docs/instructor" / name: f"instructor/{name}"
    for name in ("teaching.md", "homework.md", "server.md")
}
NOTEBOOKS = [*(ROOT / "notebooks").glob("0*.ipynb"), *(ROOT / "notebooks/beyond").glob("*.ipynb")]
PICTURES = [*(ROOT / "docs/pictures").iterdir(), ROOT / "data/images/toaster.jpg"]
PLACES = (
    PAGES
    | {path: str(path.relative_to(ROOT)) for path in NOTEBOOKS}
    | {path: f"pictures/{path.name}" for path in PICTURES}
)
CURIOUS = "## For the curious"  # what stands there is beyond the time that the notebook states


def without_the_curious(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells without the section "For the curious"."""
    kept, inside = [], False
    for cell in notebook.cells:
        if cell.source.startswith("## "):
            inside = cell.source.startswith(CURIOUS)
        if not inside:
            kept.append(cell)
    return kept


def readable(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Alt texts where MyST-NB looks for them, and tables with formulas."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            table = output.get("data", {}).get("text/html", "")
            if table:  # pandas leaves the corner empty, which is no header for a reader
                table = table.replace("<th></th>", "<td></td>")
                table = re.sub(r"\$([^$<>]+)\$", r"\\(\1\\)", table)
                # A formula alone is an empty heading, too.
                output.data["text/html"] = re.sub(r"<th>(\\\(.*?\\\))</th>", r"<td>\1</td>", table)
            for kind, about in output.get("metadata", {}).items():
                if kind.startswith("image/") and about.get("alt"):
                    cell.metadata["mystnb"] = {"image": {"alt": about["alt"]}}
    return notebook


def asks(text: str) -> bool:
    """Whether a text ends with a bold question: what follows answers it, up to the next text."""
    return bool(re.search(r"\*\*[^*]+\?\*\*", text.rstrip().rpartition("\n\n")[2]))


def folded(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Guess, then see: the answer to a bold question, and to a "Your turn", opens on demand."""
    asked = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            asked = asks(cell.source)
            continue
        tags = cell.metadata.setdefault("tags", [])
        if "your-turn" in tags:
            tags.append("hide-input")
        elif asked and cell.outputs and "page" not in cell.metadata:  # explorers are the question
            tags.append("hide-output")
    return notebook


def laid_out(path: Path) -> nbformat.NotebookNode:
    """A notebook as a page shows it, its explorers at work."""
    from explorers import static

    return static(folded(readable(nbformat.read(path, as_version=4))))


def for_the_book(path: Path) -> str:
    """A page with its links as they lead in the book; what is not in it is named, not linked."""

    def link(found: re.Match[str]) -> str:
        target = (path.parent / found[2]).resolve()
        if target not in PLACES:
            return found[1]
        return f"[{found[1]}]({os.path.relpath(PLACES[target], home)})"

    home = Path(PAGES[path]).parent
    text = path.read_text(encoding="utf-8")
    return re.sub(r"\[([^\]]+)\]\((?!https?:)([^)#\s]+)\)", link, text)


def emptied(what: str) -> Path:
    """The folder that the command line names, without what an earlier run left there."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("out", type=Path, help="folder for the sources; replaced if there is one")
    out: Path = parser.parse_args().out
    if out.exists() and any(out.iterdir()) and not (out / "conf.py").exists():
        parser.error(f"out={str(out)!r}: holds something else, and would be replaced")
    shutil.rmtree(out, ignore_errors=True)
    return out


def main() -> None:
    out = emptied(__doc__.splitlines()[0])
    shutil.copytree(Path(__file__).parent, out, ignore=shutil.ignore_patterns("__pycache__"))
    (out / "instructor").mkdir()
    (out / "pictures").mkdir()
    for picture in PICTURES:
        shutil.copy(picture, out / PLACES[picture])
    for path, name in PAGES.items():
        (out / name).write_text(for_the_book(path), encoding="utf-8")
    released = checks.release(out / "release")
    (out / "notebooks/beyond").mkdir(parents=True)
    paths = [*NOTEBOOKS, released.with_suffix(".ipynb")]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several kernels at once
    cores, fresh = min(4, os.cpu_count() or 1), multiprocessing.get_context("spawn")
    # Explorers take a while, most of all those of large pictures: the largest file begins.
    paths.sort(key=lambda path: path.stat().st_size, reverse=True)
    with ProcessPoolExecutor(cores, mp_context=fresh) as pool:
        for path, page in zip(paths, pool.map(laid_out, paths), strict=True):
            nbformat.write(page, out / PLACES.get(path, f"notebooks/{path.name}"))
    shutil.rmtree(out / "release")


if __name__ == "__main__":
    main()
