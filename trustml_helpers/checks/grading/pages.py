"""Pages for those who grade: answers side by side, a summary of the class, pairs that look alike.

Each is one file that needs no network. What students wrote is shown as text, never run.
"""

from __future__ import annotations

import collections
import html
import json
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from trustml_helpers._support.files import replace_file
from trustml_helpers.checks.grading import book, homework, labels
from trustml_helpers.checks.grading.run import GRADED, Row, mathjax

if TYPE_CHECKING:
    import pandas as pd

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 80rem; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .6rem; text-align: left;
vertical-align: top; border-bottom: 1px solid #bbb; } td.n, th.n { text-align: right; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); gap: 1rem; }
.card { border: 1px solid #767676; border-radius: .4rem; padding: .6rem; overflow-x: auto; }
.card.older { border: 3px solid #a33; } .bar { position: sticky; top: 0; background: #fff;
padding: .5rem 0; border-bottom: 1px solid #767676; z-index: 1; } textarea { width: 100%; }
.count { background: #2a6; display: inline-block; height: .9rem; } pre { overflow-x: auto; }
"""
_TAGS = {
    "a", "blockquote", "br", "code", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol",
    "p", "pre", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
_BLANK = "not written yet"  # says a check; no mistake
_SAVE = """
const keys = JSON.parse(document.getElementById("keys").textContent);
const cell = text => /[",\\n\\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
const field = (kind, student, name) =>
  document.querySelector(`[data-${kind}="${CSS.escape(student + "/" + name)}"]`);
let changed = false;
addEventListener("input", () => { changed = true; count(); });
addEventListener("beforeunload", event => { if (changed) event.preventDefault(); });
function count() {
  const all = [...document.querySelectorAll("[data-points]")];
  const bad = all.filter(one => !one.checkValidity());
  document.getElementById("open").textContent =
    all.filter(one => one.value === "").length + " of " + all.length + " without points" +
    (bad.length ? ", " + bad.length + " out of range" : "");
  document.getElementById("save").disabled = bad.length > 0;
}
document.getElementById("save").onclick = () => {
  const head = ["student"].concat(keys.names.flatMap(n => [n, n + " comment", n + " read"]));
  const lines = keys.students.map(one => [one.student].concat(keys.names.flatMap(name => {
    const points = field("points", one.student, name), old = one.given[name] || ["", "", ""];
    if (!points) return old;
    const value = points.value, comment = field("comment", one.student, name).value;
    const read = value === old[0] && comment === old[1] ? old[2] : points.dataset.read;
    return [value, comment, value === "" && comment === "" ? "" : read];
  })));
  const text = [head, ...lines].map(line => line.map(cell).join(",")).join("\\n") + "\\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.download = "by_hand.csv";
  link.click();
  changed = false;
};
count();
"""


def write(
    out: Path, rows: dict[str, Row], given: book.ByHand, table: pd.DataFrame, blank: Any
) -> None:  # fmt: skip
    """``written.html``, ``summary.html``, ``summary.csv`` and ``similar.html``."""
    replace_file(out / "written.html", written(rows, given, blank).encode())
    tasks = tasks_of(rows, blank)
    replace_file(out / "summary.csv", tasks.to_csv(index=False).encode())
    replace_file(out / "summary.html", summary(table, tasks).encode())
    replace_file(out / "similar.html", similar(rows, blank).encode())


def written(rows: dict[str, Row], given: book.ByHand, blank: Any) -> str:
    """All written answers by task, with the rubric, and fields for points and a comment.

    The button saves ``by_hand.csv``, which :func:`enter_points` reads.
    """
    points, names = book.maxima(blank)
    rubric = {labels.name_of(cell): cell.source for cell in labels.read(homework.SOURCE).cells}
    students = [row for row in rows.values() if not row.of]
    parts = []
    for name in names:
        model = re.sub(r"^### (?:BEGIN|END) SOLUTION$", "", rubric.get(name, ""), flags=re.M)
        cards = "".join(
            _card(row, name, points[name], given.get(row.student, {}).get(name))
            for row in students if name in row.written
        )  # fmt: skip
        parts.append(
            f"<h2 id='{name}'>{name}, {points[name]:g} points</h2><details open><summary>Solution "
            f"and rubric</summary>{_markdown(model)}</details><div class='cards'>{cards}</div>"
        )
    keys = {"names": names, "students": [
        {"student": who, "given": {
            name: [one.shown(), one.comment, one.read]
            for name, one in given.get(who, {}).items()
        }} for who in dict.fromkeys([*given, *(row.student for row in students)])
    ]}  # fmt: skip
    data = json.dumps(keys).replace("</", "<\\/")
    bar = ("<div class='bar'><button id='save'>Save by_hand.csv</button> <span id='open' "
           "aria-live='polite'></span>. Put the saved file into the folder of the results, then: "
           "<code>trustml homework points FOLDER</code></div>")  # fmt: skip
    script = f"<script type='application/json' id='keys'>{data}</script><script>{_SAVE}</script>"
    return _page("Written answers", bar + "".join(parts) + script, head=mathjax())


def _card(row: Row, name: str, most: float, one: book.Given | None) -> str:
    read = book.digest_of(row.written[name])
    key, who = html.escape(f"{row.student}/{name}", quote=True), html.escape(row.student)
    older = one is not None and one.read not in ("", read)
    value, comment = ("", "") if one is None else (one.shown(), html.escape(one.comment))
    note = "<p><strong>These points were given for an older text.</strong></p>" if older else ""
    return (
        f"<div class='card{' older' * older}'><h3>{who} {html.escape(row.name)}</h3>"
        f"{_markdown(row.written[name])}{note}<p><label>Points <input type='number' min='0' "
        f"max='{most:g}' step='0.25' value='{value}' data-read='{read}' data-points=\"{key}\">"
        f"</label> of {most:g}</p><label>Comment <textarea rows='2' data-comment=\"{key}\">"
        f"{comment}</textarea></label></div>"
    )


def tasks_of(rows: dict[str, Row], blank: Any) -> pd.DataFrame:
    """What the class did in each task: mean share of the points, and the commonest mistake."""
    import pandas as pd

    points, written = book.maxima(blank)
    graded = [row for row in rows.values() if row.status == GRADED and not row.of]
    lines = []
    for name in (each for each in points if each not in written):
        got = [row.points.get(name, 0.0) / points[name] for row in graded]
        said = collections.Counter(
            sentence for row in graded for sentence in messages(row.said.get(name, ""))
        )
        not_written = said.pop(_BLANK, 0)
        (first, count), *_ = said.most_common(1) or [("", 0)]
        lines.append({
            "task": name.removesuffix("-graded"), "points": points[name],
            "mean_share": round(sum(got) / len(got), 3) if got else None,
            "full": sum(one >= 1 for one in got), "none": sum(one <= 0 for one in got),
            "not_written": not_written, "commonest_message": first, "students": count,
        })  # fmt: skip
    return pd.DataFrame(lines)


def messages(said: str) -> set[str]:
    """The sentences of a check on what is wrong, with their numbers left out."""
    found = re.findall(r"^  wrong: .*\n((?:      .*\n?)+)", said, flags=re.MULTILINE)
    return {re.sub(r"-?\d[\d.,e+-]*\d|\d", "#", " ".join(each.split())) for each in found}


def summary(table: pd.DataFrame, tasks: pd.DataFrame) -> str:
    """Distribution of points, tasks with their commonest mistake, time per submission; no names."""
    graded = table[table["status"] == GRADED]
    states = collections.Counter(re.split("[:,]| by ", str(one))[0] for one in table["status"])
    body = "<p>" + ", ".join(f"{n} {html.escape(state)}" for state, n in states.items()) + ".</p>"
    if len(graded):
        most = float(graded["of"].iloc[0])
        steps = collections.Counter(min(int(10 * p / most), 9) for p in graded["points"])
        body += "<h2>Points</h2><table>" + "".join(
            f"<tr><td class='n'>{k * most / 10:g} to {(k + 1) * most / 10:g}</td><td class='n'>"
            f"{steps[k]}</td><td><span class='count' style='width: {steps[k] * 12}px'></span></td>"
            "</tr>" for k in range(9, -1, -1)
        ) + "</table>"  # fmt: skip
        times, got = graded["seconds"], graded["points"]
        waiting = int((graded["by_hand_open"] > 0).sum())
        body += (f"<p>Mean {got.mean():.1f}, median {got.median():.1f} of {most:g}. {waiting} have "
                 "written answers that nobody has read yet. Seconds per submission: "
                 f"{times.min():.0f} to {times.max():.0f}, median {median(times):.0f}.</p>"
                 )  # fmt: skip
    body += "<h2>Tasks</h2>" + tasks.to_html(index=False, border=0, na_rep="")
    return _page("Summary of the class", body)


def similar(rows: dict[str, Row], blank: Any) -> str:
    """Pairs whose code is alike, side by side: for a person to judge."""
    from trustml_helpers.checks.grading import similarity

    own = {f"{row.student} {row.name}".strip(): row for row in rows.values() if not row.of}
    codes = {who: row.code for who, row in own.items() if row.code}
    released = [cell.source for cell in blank.cells if cell.cell_type == "code"]
    pairs = similarity.similar(codes, released)
    body = ("<p>Names, comments, spacing and the order of cells do not count here, nor what was "
            "released or what a third of the class shares. Short tasks have few solutions: read "
            "before you ask.</p>"
            )  # fmt: skip
    body += pairs.to_html(index=False, border=0) if len(pairs) else "<p>No pair.</p>"
    for first, second in zip(pairs["first"][:30], pairs["second"][:30], strict=True):
        body += f"<h2>{html.escape(first)} and {html.escape(second)}</h2>"
        body += similarity.side_by_side(codes, (first, second), released)
    known = "\n".join(cell.source for cell in blank.cells)
    for name in labels.written(blank):
        texts = {who: row.written[name] for who, row in own.items() if name in row.written}
        pairs = similarity.similar_texts(texts, known)
        body += f"<h2>Written: {name}</h2>"
        body += pairs.to_html(index=False, border=0) if len(pairs) else "<p>No pair.</p>"
        for first, second in zip(pairs["first"][:30], pairs["second"][:30], strict=True):
            body += "<div class='cards'>" + "".join(
                f"<div class='card'><h3>{html.escape(who)}</h3>{_markdown(texts[who])}</div>"
                for who in (first, second)
            ) + "</div>"  # fmt: skip
    return _page("Pairs that look alike", body, head=mathjax())


def board(rows: Iterable[Row], *, pseudonyms: bool = False) -> str:
    """The open task: accuracy that each student's attack leaves, the best first."""
    left = {}
    for row in rows:
        for said in row.said.values():
            if (found := re.search(r"^left: (.*)$", said, re.MULTILINE)) and not row.of:
                pairs = re.findall(r"(\w+) ([\d.]+)%", found[1])
                left[row.student] = {kind: float(share) for kind, share in pairs}
    order = sorted(left, key=lambda who: (sum(left[who].values()), who))
    kinds = list(dict.fromkeys(kind for own in left.values() for kind in own))
    best = {kind: min(own.get(kind, 100.0) for own in left.values()) for kind in kinds}
    head = "<tr><th></th><th>attacker</th>" + "".join(f"<th class='n'>{k}</th>" for k in kinds)
    body = ("<p>Accuracy left of each defense, in per cent; less is better. The best in bold.</p>"
            f"<table>{head}<th class='n'>mean</th></tr>")  # fmt: skip
    for place, who in enumerate(order, 1):
        name = f"attacker {place}" if pseudonyms else html.escape(who)
        shares = [left[who].get(kind, 100.0) for kind in kinds]
        cells = "".join(
            f"<td class='n'>{f'<b>{share:.1f}</b>' if share == best[kind] else f'{share:.1f}'}</td>"
            for kind, share in zip(kinds, shares, strict=True)
        )
        mean = sum(shares) / len(shares)
        body += f"<tr><td class='n'>{place}</td><td>{name}</td>{cells}<td class='n'>{mean:.1f}</td>"
        body += "</tr>"
    return _page("Scoreboard of the open task", body + "</table>")


def _markdown(text: str) -> str:
    """Markdown as HTML without scripts and styles; formulas stay for MathJax."""
    import bleach  # of nbconvert
    from nbconvert.filters import markdown2html

    return str(bleach.clean(markdown2html(text), tags=_TAGS, attributes={"a": ["href"]}))


def _page(title: str, body: str, head: str = "") -> str:
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{_STYLE}</style>{head}</head><body><main><h1>{title}</h1>{body}</main></body></html>"
    )
