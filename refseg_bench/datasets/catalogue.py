"""What is known of each data set: the manifests of the cards under ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from refseg_bench.config.components import names
from refseg_bench.errors import ConfigError
from refseg_bench.files.resources import resource


@dataclass(frozen=True)
class SplitFacts:
    """What a manifest says of one split.

    Attributes:
        counts: ``videos``, ``images``, ``frames``, ``expressions``, ``objects``, ``refs`` → number.
        public: whether the masks are public.
        unchecked: counts that come from a paper and were never counted in the files.
    """

    counts: Mapping[str, int]
    public: bool
    unchecked: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Manifest:
    """The facts of one set, from ``datasets/NAME/manifest.yaml``.

    Attributes:
        name: name of the set.
        title: as the field writes it.
        kind: ``video`` or ``image``.
        licence: in a few words.
        splits: by name.
        total: counts of the whole release, for the reader.
    """

    name: str
    title: str
    kind: str
    licence: str
    splits: Mapping[str, SplitFacts]
    total: Mapping[str, int] = field(default_factory=dict)


_KEYS = {"title", "kind", "licence", "splits", "total"}


def manifest(name: str) -> Manifest | None:
    """The facts of a set; ``None`` if it has no card (a set of an outside package).

    Raises:
        ConfigError: the manifest is malformed.
    """
    path = resource("datasets") / name / "manifest.yaml"
    return read_manifest(path) if path.is_file() else None


def read_manifest(path: Path) -> Manifest:
    """Read and check one manifest.

    Raises:
        ConfigError: an unknown or missing key, or a count that is no number.
    """
    plain = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    if not isinstance(plain, dict) or not {"title", "kind", "licence", "splits"} <= set(plain) <= _KEYS:
        raise ConfigError(
            "The manifest lacks a key or has an unknown one.", where=path, allowed=sorted(_KEYS)
        )
    splits = {
        str(split): SplitFacts(
            {key: int(n) for key, n in record.items() if key not in ("masks", "unchecked")},
            record["masks"] == "public",
            frozenset(record.get("unchecked", ())),
        )
        for split, record in plain["splits"].items()
    }
    return Manifest(
        path.parent.name,
        str(plain["title"]),
        str(plain["kind"]),
        str(plain["licence"]),
        splits,
        plain.get("total", {}),
    )


def cards() -> Iterator[Manifest]:
    """The manifests of all sets, sorted by name."""
    for name in names("dataset"):
        facts = manifest(name)
        if facts is not None:
            yield facts
