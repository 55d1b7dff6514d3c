"""The command line: ``refseg run | score | report | data | submission | status``.

Each command is a module of :mod:`refseg_bench.commands` with ``add(subparsers)`` and ``main(args)``.
Bad input is told in one message on standard error with exit code 2; a bug keeps its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

import refseg_bench
from refseg_bench.commands import COMMANDS
from refseg_bench.errors import RefsegError


def parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The whole command line; only the command that ``words`` begin with is loaded, if they name one."""
    top = argparse.ArgumentParser(
        prog="refseg", description="Benchmark harness for referring and reasoning segmentation."
    )
    top.add_argument("--version", action="version", version=f"refseg {refseg_bench.__version__}")
    top.add_argument("-v", "--verbose", action="store_true", help="log more, to standard error")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name in (chosen,) if chosen in COMMANDS else COMMANDS:
        importlib.import_module(f"refseg_bench.commands.{name}").add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 done but with failures, 2 refused, 130 interrupted.
    """
    words = sys.argv[1:] if argv is None else argv
    top = parser(words)
    args, rest = top.parse_known_args(words)
    # argparse takes the positional words of a command in one piece only: `run a=1 -m b=2,3` leaves some.
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.ERROR,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        return int(args.main(args))
    except RefsegError as error:
        print(f"refseg {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `refseg … | head` closed the pipe: nothing is wrong, and nothing more can be said.
        sys.stderr.close()
        return 0
