"""Write every generated page and table anew: ``make tables``."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from refseg_bench.config.components import aliases, make, names

ROOT = Path(__file__).resolve().parent.parent
_BEGIN, _END = "<!-- generated: begin -->", "<!-- generated: end -->"


def table() -> str:
    """The rules of all shipped protocols as Markdown."""
    head = (
        "| id@version | imitates | unit | frames | matching | void | missing work | rounding | scale "
        "| overlap |",
        "|---|---|---|---|---|---|---|---|---|---|",
    )
    rows = []
    details = []
    for name in names("protocol"):
        protocol = make("protocol", name)
        p = protocol.policy
        called = ", ".join(f"`{alias}`" for alias in aliases("protocol", name))
        rounding = (
            "none"
            if p.rounding == "none"
            else f"{p.digits} decimal{'s' * (p.digits != 1)}, {_WHEN[p.rounding]}"
        )
        cells = (
            f"`{protocol.name}`" + (f" ({called})" if called else ""),
            protocol.imitates,
            p.unit,
            _FRAMES[p.frames],
            p.match.replace("_", " "),
            p.void,
            p.missing_why,
            rounding,
            "percent" if p.scale == 100 else "fraction",
            p.overlap if protocol.id.startswith(("ref", "gref", "reason")) and not _video(protocol) else "–",
        )
        rows.append("| " + " | ".join(cells) + " |")
        text = inspect.cleandoc(type(protocol).__doc__ or "").replace("``", "`")
        source = f"\n\nSource: {protocol.citation}." if protocol.citation else ""
        metrics = ", ".join(protocol.metrics)
        details.append(f"### `{protocol.name}`\n\n{text}{source}\n\nMetrics: {metrics}.")
    return "\n".join((*head, *rows)) + "\n\n## Each protocol\n\n" + "\n\n".join(details) + "\n"


_WHEN = {"unit": "per unit before averaging", "final": "when printed"}
_FRAMES = {
    "all": "all",
    "inner": "all but first and last",
    "annotated": "those annotated",
    "predicted": "those predicted",
}


def _video(protocol: Any) -> bool:
    return "J&F" in protocol.metrics


def page(text: str) -> str:
    """A page with its generated part brought up to date."""
    before, rest = text.split(_BEGIN, 1)
    _, after = rest.split(_END, 1)
    return f"{before}{_BEGIN}\n\n{table()}\n{_END}{after}"


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(f"It takes no word: {' '.join(sys.argv[1:])}.\n\n{__doc__}")
    page_path = ROOT / "docs" / "protocols.md"
    page_path.write_text(page(page_path.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {page_path.relative_to(ROOT)}")
