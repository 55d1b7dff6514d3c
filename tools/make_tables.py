"""Write every generated page and table anew: ``make tables``."""

from __future__ import annotations

from pathlib import Path

from refseg_bench.scoring.protocols import catalogue

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    page = ROOT / "docs" / "protocols.md"
    page.write_text(catalogue.page(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {page.relative_to(ROOT)}")
