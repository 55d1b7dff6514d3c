"""The glossary's nouns are the package's classes."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
NOUNS = dict(re.findall(r"^\| ([a-z ]+) \| .* \| `(\w+)` \|$", PAGE, re.M))


def classes(*paths: Path) -> Counter[str]:
    """How often each public class name is defined in these modules."""
    return Counter(
        node.name
        for path in paths
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )


def test_every_noun_is_one_class() -> None:
    found = classes(*(ROOT / "refseg_bench").rglob("*.py"))
    assert 15 < len(NOUNS) <= 25
    assert {name: found[name] for name in NOUNS.values() if found[name] != 1} == {}


def test_the_core_types_are_there() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert set(classes(ROOT / "refseg_bench" / "types.py")) - named == set()
