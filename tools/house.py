"""How large the house is: lines, modules, public classes and rooms of the package, against its ceilings.

python tools/house.py            # the figures now; exits with 1 above a ceiling or where commands cross
python tools/house.py 0df7b8c    # those of a commit beside them
python tools/house.py --scope    # lines of what was there at 7aeb87c apart from those of what came since
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "refseg_bench"
#: What the package may be at most. The aim for what stood at 33,649 lines: 28,000, 130 modules, 18 rooms.
#: A commit that adds what users were promised may raise them by what it adds; others leave or lower them.
CEILINGS = {"lines": 40_100, "modules": 152, "public classes": 277, "rooms": 15}
#: Commits that brought what was not there at 7aeb87c (docs/decisions/0013): the net of their lines is what it
#: cost. What later commits made of it counts as of old.
SINCE = (
    "1c93d32", "62ecabc", "0b8198b", "21326d7", "5a61bf8", "074bafd", "43bd41a", "e1cb4af", "32bf612",
    "2d312b7", "ecb73df", "4702680", "2556cb7", "45c905d", "f0791a8", "7b6cd9f", "2c82182", "6821999",
    "8369aa5", "52f5e2e", "06464a9", "e98e930", "cd1fd1a", "b35d753", "d3a0de2", "1332955", "86695bf",
    "d23e099", "e1beb75", "2f242a7", "5c8879e", "bb86248", "160d17d", "c37fe85", "7d47279",
    "9f1fe49", "d41bb29", "d1a05f2", "2abe8b9",
)  # fmt: skip


def scope() -> int:
    """Print what each of the commits brought, and what is left for what was there before them."""
    lines = []
    for commit in SINCE:
        rows = [row.split() for row in _git("show", "--numstat", "--format=", commit, PACKAGE).splitlines()]
        lines.append(sum(int(plus) - int(minus) for plus, minus, *name in rows if name[-1].endswith(".py")))
        print(f"{lines[-1]:6}  {_git('show', '-s', '--format=%s', commit).strip()}")
    now, then = figures()["lines"], figures("7aeb87c")["lines"]
    print(f"{sum(lines):6}  of what came since\n{now - sum(lines):6}  of what was there ({then} lines then)")
    return 0


def sources(commit: str | None) -> Iterator[tuple[str, str]]:
    """Path and text of every module of the package, in the work tree or at a commit."""
    listing = ["ls-files", PACKAGE] if commit is None else ["ls-tree", "-r", "--name-only", commit, PACKAGE]
    for name in _git(*listing).splitlines():
        if name.endswith(".py") and (commit is not None or (ROOT / name).is_file()):
            yield (
                name,
                (ROOT / name).read_text("utf-8") if commit is None else _git("show", f"{commit}:{name}"),
            )


def figures(commit: str | None = None) -> dict[str, int]:
    """Lines, modules, public classes, and entries directly below the package (weights and marks left out)."""
    texts = dict(sources(commit))
    classes = sum(
        isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        for text in texts.values()
        for node in ast.parse(text).body
    )
    rooms = {Path(name).relative_to(PACKAGE).parts[0] for name in texts}
    return {
        "lines": sum(text.count("\n") for text in texts.values()),
        "modules": len(texts),
        "public classes": classes,
        "rooms": len(rooms - {"__init__.py", "__main__.py"}),
    }


def crossings() -> list[str]:
    """Imports of one command by another: what commands share belongs into the library."""
    commands = f"{PACKAGE}.commands"
    out = []
    for name, text in sources(None):
        if Path(name).parent != Path(PACKAGE) / "commands" or name.endswith("__init__.py"):
            continue
        for node in ast.walk(ast.parse(text)):
            named = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            )
            if isinstance(node, ast.ImportFrom):
                named = [f"{node.module}.{part}" for part in named]
            out += [f"{name}:{node.lineno} imports {found}" for found in named
                    if found.startswith(f"{commands}.") and not found.endswith(".COMMANDS")]  # fmt: skip
    return out


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main() -> int:
    """Print the table."""
    words = sys.argv[1:]
    if words == ["--scope"]:
        return scope()
    try:
        then = figures(_git("rev-parse", "--verify", f"{words[0]}^{{commit}}").strip()) if words else {}
        wrong = words[1:]
    except subprocess.CalledProcessError:
        wrong = words
    if wrong:
        sys.exit(f"No commit: {' '.join(words)}.\n\n{__doc__}")
    now = figures()
    print(f"{'':16}{'then':>8}{'now':>8}{'at most':>9}")
    for name, value in now.items():
        print(f"{name:16}{then.get(name, ''):>8}{value:>8}{CEILINGS.get(name, ''):>9}")
    crossed = crossings()
    print(*crossed, sep="\n", end="\n" if crossed else "")
    return int(bool(crossed) or any(now[name] > most for name, most in CEILINGS.items()))


if __name__ == "__main__":
    sys.exit(main())
