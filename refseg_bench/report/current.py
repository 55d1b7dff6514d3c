"""Which stored results still stand: those made from the predictions and the data that are there now.

No data set is opened for it: the frames and the data set's own files are looked for where the last command
that opened it found them. Not for: what was predicted on other data (``refseg_bench.run.inputs`` tells, and
scoring refuses it).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from refseg_bench.run.inputs import Present, RecordedDataset, recorded
from refseg_bench.run.store import RunStore


def leave_out_outdated(stores: Sequence[RunStore], say: Callable[[str], None]) -> None:
    """Take results out of sight that were made from other predictions or data than there are now.

    A result of an older version doesn't tell what it was made from and stands; so does one whose data
    set is not on this machine. Other truth than it was made from is not seen here.

    Args:
        stores: the runs; their ``outdated`` is added to.
        say: takes a line for each result.
    """
    for store in stores:
        results = store.results()
        dataset = recorded(store) if results else None
        present = Present(dataset, dataset.seen) if dataset else None
        for protocol in results:
            made = store.made_from(protocol)
            if not {"predictions", "facts", "state", "files"} <= made.keys():
                continue
            hint = "makes it again"
            why = "predictions" if made.get("predictions") != store.mark() else ""
            if not why:
                why = "" if dataset is None or present is None else _data(dataset, present, made)
                hint = "tells where, the same `refseg run` makes it again"
            if why:
                store.outdated.add(protocol)
                say(
                    f"{store.root}: the result under {protocol} is not shown, for {why} have changed since; "
                    f"`refseg score {shlex.quote(str(store.root))} --protocol {shlex.quote(protocol)}` {hint}"
                )


def _data(dataset: RecordedDataset, present: Present, made: dict[str, str]) -> str:
    """What of the data set has changed."""
    return present.unlike(made, dataset.work) or dataset.changed()
