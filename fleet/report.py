"""What stands in OUT: status.json for scripts, summary.csv and summary.md, and a gallery to look at."""

from __future__ import annotations

import csv
import html
import io
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fleet.preview import PREVIEW
from fleet.work import State, read_json, state_of
from utils.files import atomic_path, write_json

COLUMNS = ("name", "state", "attempts", "node", "points", "seconds", "iterations_per_second")
LABELS = {"points": "Gaussians", "iterations_per_second": "it/s"}  # in the gallery
PAGES = ("avatar.html", "avatar/avatar.html")  # what export.py --format html writes


def collect(out: Path, names: Sequence[str]) -> list[State]:
    """The states of these subjects, as they stand in their folders."""
    return [{"name": name, "state": "waits", **state_of(out / name)} for name in names]


def totals(states: Sequence[State]) -> dict[str, int]:
    """How many subjects are in which state."""
    return dict(Counter(state["state"] for state in states))


def write_status(out: Path, states: Sequence[State]) -> None:
    write_json(out / "status.json", {"time": time.time(), "totals": totals(states), "subjects": list(states)})


def rows_of(out: Path, states: Sequence[State]) -> list[dict[str, Any]]:
    """A row for each subject: its state, and what its results.json says, and the metrics.json of what was rendered."""
    rows = []
    for state in states:
        folder = out / state["name"]
        results = read_json(folder / "results.json")
        results = results if isinstance(results, dict) and state["state"] != "failed" else {}
        row: dict[str, Any] = {name: results.get(name, state.get(name)) for name in COLUMNS}
        metrics = dict(results.get("metrics") or {})
        for path in sorted(folder.glob(f"*/ours_{results.get('iterations')}/metrics.json")):
            found = read_json(path)
            if isinstance(found, dict) and isinstance(found.get("mean"), dict):
                metrics[path.parts[-3]] = {**metrics.get(path.parts[-3], {}), **found["mean"]}
        for split, means in metrics.items():
            row.update({f"{split} {name}": value for name, value in means.items() if value is not None})
        rows.append({**row, "reason": state.get("reason", "") if state["state"] == "failed" else ""})
    return rows


def write_report(out: Path, states: Sequence[State]) -> None:
    """Writes summary.csv, summary.md and index.html."""
    rows = rows_of(out, states)
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "reason")) + ["reason"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(_shown(row.get(name)).replace("|", "\\|") for name in columns) + " |" for row in rows]
    counted = ", ".join(f"{count} {state}" for state, count in totals(states).items())
    _write(out / "summary.csv", text.getvalue())
    _write(out / "summary.md", f"{len(rows)} subjects: {counted}\n\n" + "\n".join(lines) + "\n")
    _write(out / "index.html", _gallery(out, rows, columns, f"{len(rows)} subjects: {counted}"))


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _gallery(out: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str], heading: str) -> str:
    """A page without anything from the network: a table that a click on a heading sorts, and on a phone cards."""
    labels = {name: html.escape(LABELS.get(name, name.replace("_", " "))) for name in columns}
    numbers = {name for row in rows for name in columns if isinstance(row.get(name), (int, float))}
    kinds = {name: "number" if name in numbers else "text" for name in columns}
    head = "<th></th>" + "".join(f'<th class="{kinds[name]}" tabindex="0">{labels[name]}</th>' for name in columns)
    body = []
    for row in rows:
        folder = out / row["name"]
        place = quote(row["name"])
        page = next((page for page in PAGES if (folder / page).is_file()), None)
        picture = ""
        if (folder / PREVIEW).is_file():
            shown = f'<img loading="lazy" src="{place}/{PREVIEW}" alt="rendering, photograph and error">'
            picture = f'<a href="{place}/{page or PREVIEW}">{shown}</a>'
        cells = [f'<td class="picture">{picture}</td>']
        for name in columns:
            value = row.get(name)
            shown = html.escape(_shown(value))
            if name == "name" and page:
                shown = f'<a href="{place}/{page}">{shown}</a>'
            value = html.escape("" if value is None else str(value))
            cells.append(f'<td class="{kinds[name]}" data-label="{labels[name]}" data-value="{value}">{shown}</td>')
        body.append(f'<tr class="{html.escape(row["state"])}">{"".join(cells)}</tr>')
    return PAGE.format(heading=html.escape(heading), head=head, body="\n".join(body))


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{heading}</title>
<style>
:root {{ color-scheme: light dark; --line: #8885; --soft: #8881 }}
body {{ font: 14px/1.45 system-ui, sans-serif; max-width: 1500px; margin: 1.5rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.4rem; margin: 0 }}
p {{ color: GrayText; margin: .3rem 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ padding: .45rem .6rem; border-bottom: 1px solid var(--line); text-align: left }}
th {{ position: sticky; top: 0; background: Canvas; vertical-align: bottom; cursor: pointer }}
th[data-sorted]::after {{ content: attr(data-sorted) }}
tbody tr:hover {{ background: var(--soft) }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums }}
.picture {{ width: 1px; padding-left: 0 }}
img {{ height: 160px; border-radius: 4px; display: block }}
.failed {{ background: #f443361f }}
@media (max-width: 800px) {{
  table, tbody {{ display: block }}
  thead tr {{ display: flex; flex-wrap: wrap; gap: .4rem }}
  th {{ position: static; border: 1px solid var(--line); border-radius: 1rem; padding: .1rem .7rem; font-weight: 400 }}
  th:first-child, td[data-value=""] {{ display: none }}
  tbody tr {{ display: grid; grid-template-columns: 1fr 1fr; margin: .9rem 0; padding: .6rem;
    border: 1px solid var(--line); border-radius: 8px }}
  td, td.number {{ border: 0; padding: .1rem .2rem; text-align: left }}
  td[data-label]::before {{ content: attr(data-label) " "; color: GrayText }}
  td[data-label=name] {{ font-size: 1.1rem; overflow-wrap: anywhere }}
  td[data-label=name]::before {{ content: none }}
  .picture, td[data-label=reason] {{ grid-column: 1 / -1; width: auto }}
  img {{ width: 100%; height: auto }}
}}
</style>
<h1>{heading}</h1>
<p>Pictures: rendering, photograph, error. A click on a heading sorts; a name leads to the avatar's page, where one was
exported.</p>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
<script>
const body = document.querySelector("tbody"), heads = [...document.querySelectorAll("th")];
function sort(th) {{
  const column = th.cellIndex, sign = th.dataset.sorted === " ▲" ? -1 : 1;
  heads.forEach(other => delete other.dataset.sorted);
  th.dataset.sorted = sign > 0 ? " ▲" : " ▼";
  const value = row => row.cells[column].dataset.value ?? "";
  [...body.rows].sort((a, b) => {{
    const x = value(a), y = value(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  }}).forEach(row => body.append(row));
}}
heads.slice(1).forEach(th => {{
  th.addEventListener("click", () => sort(th));
  th.addEventListener("keydown", event => event.key === "Enter" && sort(th));
}});
</script>
</html>
"""
