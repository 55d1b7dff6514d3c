"""What tables call runs: by what differs between them, by a digest only where nothing else does."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from refseg_bench.run.store import RunInfo

#: Most options that a label names.
_MOST = 3


def flatten(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested mappings, by dotted key."""
    if isinstance(value, Mapping) and value:
        return [pair for k, v in value.items() for pair in flatten(v, f"{path}.{k}" if path else str(k))]
    return [(path, value)]


def options_of(choices: Mapping[str, str], lasting: Mapping[str, Any]) -> dict[str, Any]:
    """The options that can change a prediction; a component chosen by name goes by that name first."""
    named = {part: choices.get(part) for part in ("dataset", "method", "backbone", "segmenter")}
    return {**{k: v for k, v in named.items() if v not in (None, "None")}, **dict(flatten(lasting))}


def differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """The options that are not the same everywhere.

    What differs because another component was chosen is told by the component's name.
    """
    keys = list(dict.fromkeys(key for known in options for key in known))
    found = [k for k in keys if len({said(known.get(k)) for known in options}) > 1]
    parts = {k for k in found if "." not in k}
    return [k for k in found if "." not in k or k.partition(".")[0] not in parts]


def said(value: Any) -> str:
    """An option's value as a table shows it."""
    return value if isinstance(value, str) else json.dumps(value)


def titles(runs: Sequence[RunInfo]) -> list[str]:
    """What each of some runs is called: its label, with what tells it from others of that label.

    A run given twice has the same title twice.
    """
    labels = [run.label for run in runs]
    # Masks of other code are told apart by themselves: the same options say nothing of where they come from.
    digests = [run.content or run.digest for run in runs]
    same: dict[str, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        same[label].append(place)
    for places in same.values():
        if len({digests[place] for place in places}) < 2:
            continue
        options = [
            options_of(runs[place].choices | runs[place].printed, runs[place].lasting) for place in places
        ]
        keys = differing(options)[:_MOST]
        short = [key.rpartition(".")[2] for key in keys]
        names = [key if short.count(end) > 1 else end for key, end in zip(keys, short, strict=True)]
        words_of = [
            ", ".join(
                said(known.get(key)) if "." not in key else f"{name}={said(known.get(key))}"
                for key, name in zip(keys, names, strict=True)
            )
            for known in options
        ]
        for place, words in zip(places, words_of, strict=True):
            more = [words] if words else []
            if len({digests[p] for p, other in zip(places, words_of, strict=True) if other == words}) > 1:
                more.append(digests[place])
            labels[place] = " · ".join([labels[place], *more])
    return labels
