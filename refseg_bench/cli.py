"""The command line: ``refseg COMMAND …``.

Each command is a module of :mod:`refseg_bench.commands` with ``add(subparsers)`` and ``main(args)``.
Bad input is told in one message on standard error with exit code 2; a bug keeps its traceback.
"""

from __future__ import annotations

import os
import sys

# All else, typing too, is imported inside the calls: Ctrl-C may come while it is.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from contextlib import ExitStack
    from typing import Any, TextIO


def parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line: the command that ``words`` begin with, or all of them by their names only."""
    import argparse
    import importlib

    import refseg_bench
    from refseg_bench.commands import COMMANDS

    top = argparse.ArgumentParser(
        prog="refseg", description="Benchmark harness for referring and reasoning segmentation."
    )
    top.add_argument("--version", action="version", version=f"refseg {refseg_bench.__version__}")
    top.add_argument("-v", "--verbose", action="store_true", help="log more, to standard error")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in words if not word.startswith("-")), None)
    if chosen in COMMANDS:
        importlib.import_module(f"refseg_bench.commands.{chosen}").add(commands)
        return top
    for name, about in COMMANDS.items():
        commands.add_parser(name, help=about)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 done but with failures, 2 refused, 75 (``EX_TEMPFAIL``) more to do, 130 interrupted,
        141 not read: docs/troubleshooting.md, "Exit codes".
    """
    import gc

    if argv is None:
        # What is loaded stays: looking through it for garbage takes a tenth of a short command's time.
        gc.disable()
        _own_streams()
        if "_ARGCOMPLETE" in os.environ:
            _complete()
    try:
        return _told(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise _unread(sys.stdout) from None
    finally:
        if argv is None:
            # A second Ctrl-C, while the interpreter takes its leave, ends it without a word.
            import signal

            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _own_streams() -> None:
    """Give a closed standard stream its number back: the next file would get it, and all that is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free; what this process starts has it, too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    # A terminal or a pipe in another encoding gets escapes of what that lacks, as standard error does.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _complete() -> None:
    """Answer a shell that asks what may follow (docs/troubleshooting.md, "Completion"), and end."""
    import argcomplete

    words = os.environ.get("COMP_LINE", "").split()[1:]
    argcomplete.autocomplete(parser(words), default_completer=_offered, always_complete_options=False)


def _offered(prefix: str, action: argparse.Action, **_: Any) -> list[str]:
    """What an argument may be: components by name, runs, files; nothing where the search path is wrong."""
    import contextlib

    from refseg_bench.errors import RefsegError

    with contextlib.suppress(RefsegError):
        return _known(prefix, action)
    return []


def _known(prefix: str, action: argparse.Action) -> list[str]:
    from pathlib import Path

    from argcomplete.completers import FilesCompleter

    from refseg_bench.config.components import names

    groups = ("backbone", "cluster", "dataset", "debug", "experiment", "method", "segmenter")
    if action.dest == "overrides":
        group, equals, _value = prefix.partition("=")
        return [f"{group}={name}" for name in names(group)] if equals else [f"{name}=" for name in groups]
    group = "dataset" if action.dest == "name" and not action.option_strings else action.dest
    if group in ("dataset", "protocol"):
        return names(group)
    runs = Path("runs").glob("*/run.json") if str(action.metavar).startswith("RUN") else ()
    return [*sorted(str(path.parent) for path in runs), *FilesCompleter()(prefix)]


def _told(words: Sequence[str]) -> int:
    """Run a command, and tell what it refuses, and what the file system does."""
    from refseg_bench.errors import RefsegError, StoreError, shown

    try:
        with _bordered():
            code = _run(words)
        # What can't be printed is told here, not by the interpreter after the last line.
        sys.stdout.flush()
        return code
    except RefsegError as error:
        told = error
    except OSError as error:
        import errno
        from pathlib import Path

        from refseg_bench.files.store_io import write_error

        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            if not error.filename:
                _unread(sys.stdout)
            told = write_error(error, Path(error.filename or "standard output"))
        elif error.filename:
            what = f"The file system refuses it ({error.strerror})."
            told = StoreError(what, where=error.filename, hint="Check the path, its length and its rights.")
        elif error.errno == errno.ENOENT:
            told = StoreError("The current folder is no longer there.", hint="cd to one that is.")
        else:
            raise
    name = next((word for word in words if not word.startswith("-")), "")
    print(shown(f"refseg {name}: {told}"), file=sys.stderr)
    return told.code


def _bordered() -> ExitStack:
    """Let everything a command prints pass the border."""
    import contextlib

    # Bars of other packages draw with what the border makes visible; progress is told by our own.
    os.environ.setdefault("TQDM_DISABLE", "1")
    stack = contextlib.ExitStack()
    stack.enter_context(contextlib.redirect_stdout(_Border(sys.stdout)))
    stack.enter_context(contextlib.redirect_stderr(_Border(sys.stderr)))
    return stack


class _Border:
    """Standard output as a command sees it: no text from elsewhere moves the terminal's cursor or title."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, its control characters made visible; a terminal gets the colours of our tables."""
        from refseg_bench.errors import shown

        try:
            return self._stream.write(shown(text, self._stream.isatty()))
        except BrokenPipeError:
            # Before others (rich) take it for the end of a command that failed.
            raise _unread(self._stream) from None

    def flush(self) -> None:
        """Pass on what is held back."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise _unread(self._stream) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _unread(stream: TextIO) -> SystemExit:
    """The end of a command that nobody reads (`| head`): that of other programs, for not all may be done.

    What is still to be printed goes nowhere, or the interpreter would try again at its end.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return SystemExit(141)  # 128 + SIGPIPE


def _run(words: Sequence[str]) -> int:
    import gc

    top = parser(words)
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    args, rest = top.parse_known_args(words)
    # argparse takes the positional words of a command in one piece only: `run a=1 -m b=2,3` leaves some.
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}; see `refseg {args.command} --help`")
    if rest:
        args.overrides += rest
    if args.verbose or "logging" in sys.modules:
        import logging

        logging.basicConfig(
            level=logging.INFO if args.verbose else logging.ERROR,
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
    if getattr(args, "json", None) is not None:
        from refseg_bench.files.store_io import check_output

        check_output(args.json)  # before the work, whatever it is
    return int(args.main(args))
