"""Writes the figures into the pages of doc/.

    python -m benchmarks.report

Between the lines `<!-- figures: NAME -->` and `<!-- end -->` of a page stands what benchmarks/results/NAME.json
holds: the command, the commit, the machine, and the tables. Such a file is what a benchmark writes with
`--json`, and the ablation as its `results.json`; copy it there to publish it.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

from benchmarks.common import ROOT, Table, format_tables
from utils.errors import UserError, run_script
from utils.files import atomic_path

RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def block(path: Path) -> str:
    """The Markdown of a published JSON file.

    Raises:
        UserError: it is not there, or not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        words = textwrap.wrap(content["command"], 110, break_long_words=False, break_on_hyphens=False)
        command = " \\\n    ".join(words)
        commit = re.sub(r"[0-9a-f]{8,40}", lambda digits: digits[0][:7], content["commit"] or "not recorded")
        tables = format_tables(Table(**table) for table in content["tables"])
        return f"```\n{command}\n```\n{content['machine']}, commit {commit}. {tables}\n"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a published result: {error!r}") from error


def filled(page: str, results: Path = RESULTS) -> str:
    """A page with its blocks written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(results / f'{found[2]}.json')}{found[3]}", page)


def main() -> None:
    for page in sorted((ROOT / "doc").glob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            with atomic_path(page) as temporary:
                temporary.write_text(new, encoding="utf-8")
            print(f"Written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    run_script(main)
