"""Which stored results still stand: those made from the predictions and the data that are there now.

Not for: what was predicted on other data (``refseg_bench.run.inputs`` tells, and scoring refuses it).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence

from refseg_bench.errors import RefsegError
from refseg_bench.run.inputs import Present
from refseg_bench.run.loop import Work, dataset_of, frozen, plan
from refseg_bench.run.store import RunStore


def leave_out_outdated(stores: Sequence[RunStore], say: Callable[[str], None]) -> None:
    """Take results out of sight that were made from other predictions or data than there are now.

    A result of an older version doesn't tell what it was made from and stands; so does one whose data
    set can't be read on this machine. Other truth than it was made from is not seen here.

    Args:
        stores: the runs; their ``outdated`` is added to.
        say: takes a line for each result.
    """
    known: dict[str, tuple[Work, Present] | None] = {}
    for store in stores:
        for protocol in store.results():
            made = store.made_from(protocol)
            if not {"predictions", "facts", "state", "files"} <= made.keys():
                continue
            cure = "makes it again"
            why = "predictions" if made.get("predictions") != store.mark() else ""
            if not why:
                why = _data(store, made, known)
                cure = "tells where, the same `refseg run` makes it again"
            if why:
                store.outdated.add(protocol)
                say(
                    f"{store.root}: the result under {protocol} is not shown, for {why} have changed since; "
                    f"`refseg score {shlex.quote(str(store.root))}` {cure}"
                )


def _data(store: RunStore, made: dict[str, str], known: dict[str, tuple[Work, Present] | None]) -> str:
    """What of the data set has changed; data sets that several runs share are looked at once."""
    try:
        values = frozen(store)
        key = json.dumps([values["dataset"], values.get("limit")], sort_keys=True, default=str)
        if key not in known:
            known[key] = None
            dataset = dataset_of(values)
            known[key] = plan(dataset), Present(dataset)
    except RefsegError:
        return ""
    found = known[key]
    return "" if found is None else found[1].unlike(made, found[0])
