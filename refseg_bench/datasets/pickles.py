"""Read the pickles of this field without running what is in them.

``refs(unc).p``, ``grefs(unc).p`` and ``mask_dict.pkl`` hold lists, dicts, texts, numbers, and at
times numpy scalars. Anything else a pickle can name (it can name any function) is refused by name.
They are read by a process with bounded memory and time
(:mod:`~refseg_bench.datasets.unpickle`), which hands out entry by entry.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from refseg_bench.datasets import unpickle
from refseg_bench.datasets.archives import GROWTH_FROM, MAX_GROWTH
from refseg_bench.datasets.files import open_data, parse_json
from refseg_bench.datasets.issues import Damage, Place


def pickled_items(path: Path) -> Iterator[tuple[str, Any]]:
    """Key (as text) and value of every entry of a pickled dictionary, in the order of the file.

    Values are what JSON knows: bytes come as Latin-1 text, tuples as lists, numpy scalars as numbers.

    Raises:
        Damage: missing or torn file, no dictionary, or one that names more than plain data.
    """
    return ((key, value) for key, value in _entries(path, "dict"))


def pickled_list(path: Path) -> Iterator[Any]:
    """The items of a pickled list, in its order; else as :func:`pickled_items`.

    Raises:
        Damage: missing or torn file, no list, or one that names more than plain data.
    """
    return _entries(path, "list")


def _entries(path: Path, kind: Literal["dict", "list"]) -> Iterator[Any]:
    with open_data(path) as file, tempfile.TemporaryFile() as told:
        size = os.fstat(file.fileno()).st_size
        # The other process begins where this one's buffer ended.
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        # A pickle may name one object many times, JSON spells it out each time.
        left = max(GROWTH_FROM, MAX_GROWTH * size)
        command = [sys.executable, "-I", "-S", str(unpickle.__file__), kind, str(size)]
        with subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=told) as child:
            assert child.stdout is not None
            try:
                number = 0
                while (line := child.stdout.readline(left + 1)).endswith(b"\n"):
                    yield parse_json(line.decode("ascii"), Place(path, f"entry {number}"))
                    left -= len(line)
                    number += 1
                if len(line) > left:
                    raise _torn(path, "it would grow beyond all measure")
            except BaseException:
                # Nobody wants the rest.
                child.kill()
                raise
        told.seek(0)
        words = told.read(1000).decode("utf-8", "replace")
    if child.returncode == unpickle.REFUSED:
        raise Damage(
            "pickle with a callable",
            f"The pickle names '{words}', which plain data never does; it was not run.",
            path,
            f"global '{words}'",
            allowed=[".".join(pair) for pair in sorted(unpickle.ADMITTED)],
        )
    if child.returncode == unpickle.OTHER_TYPE:
        holds = "dictionary" if kind == "dict" else "list"
        raise Damage("wrong type", f"The pickle holds no {holds}.", path, "the file")
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise _torn(path, "reading it takes more time or memory than any real one")
    if child.returncode < 0:
        raise _torn(path, "it is nested without end")
    if child.returncode:
        raise _torn(path, words or f"its reader ended with status {child.returncode}")


def _torn(path: Path, how: str) -> Damage:
    return Damage("torn pickle", f"The pickle is torn or damaged ({how}).", path)
