"""What ``make quick`` runs, and with how little loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pytest


def quick_first(cases: Sequence[Any], quick: int = 1) -> list[Any]:
    """The everyday suite looks at the first of them, the whole suite at all."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*row, marks=[pytest.mark.slow] * (n >= quick)) for n, row in enumerate(rows)]


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skip where one of these is not installed; `importorskip` would load them for every collection."""
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")
