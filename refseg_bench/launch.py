"""Here or elsewhere: freeze every point of an experiment, then work on it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from refseg_bench.config import Composed, to_yaml
from refseg_bench.run import Tally, work_on
from refseg_bench.store import RunStore


def freeze(point: Composed) -> RunStore:
    """Make (or open) the run folder of a point."""
    info = {
        "name": point.name,
        "digest": point.digest,
        "overrides": list(point.overrides),
        "choices": point.choices,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return RunStore.create(point.path, to_yaml(point.values), info)


def launch(stores: Sequence[RunStore]) -> list[Tally]:
    """Work on the runs in this process, one after the other."""
    return [work_on(store) for store in stores]
