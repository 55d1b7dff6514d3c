"""Which data sets there are: their configs under ``conf/dataset``, their cards under ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from refseg_bench.config import schema
from refseg_bench.datasets.files import cache_root
from refseg_bench.errors import ConfigError
from refseg_bench.files.resources import resource

#: Spellings people use → the set's name; case, hyphens and spaces don't matter.
ALIASES = {
    "davis17": "ref_davis17",
    "refdavis17": "ref_davis17",
    "ref_davis": "ref_davis17",
    "refytvos": "ref_youtube_vos",
    "ref_ytvos": "ref_youtube_vos",
    "refer_youtube_vos": "ref_youtube_vos",
    "rvos": "ref_youtube_vos",
    "mevisv2": "mevis_v2",
    "reason_vos": "reasonvos",
    "reason_seg": "reasonseg",
    "refcoco": "refcoco_unc",
    "refcoco_plus": "refcoco_plus_unc",
    "refcocog": "refcocog_umd",
    "grefcoco": "grefcoco_unc",
}


def names() -> list[str]:
    """All sets with a config."""
    return sorted(path.stem for path in (resource("conf") / "dataset").glob("*.yaml"))


def resolve(name: str) -> str:
    """A set's own name from a common spelling of it.

    Raises:
        ConfigError: no such set.
    """
    known = names()
    if name in known:
        return name
    plain = name.strip().lower().replace("+", "_plus").replace("-", "_").replace(" ", "_")
    found = ALIASES.get(plain, plain)
    if found not in known:
        raise ConfigError(
            f"No dataset '{name}'.",
            where="conf/dataset",
            allowed=known,
            cure="`refseg data list` shows what each is and where it is found.",
        )
    return found


def open_dataset(name: str, **options: Any) -> Any:
    """Build a set from its config, outside of a run.

    Args:
        name: a set's name or a common spelling of it.
        options: knobs to set; ``None`` leaves the config's own value.

    Raises:
        ConfigError: no such set or option.
    """
    node = OmegaConf.create({"paths": {"cache": str(cache_root())}, "dataset": {}})
    node.dataset = OmegaConf.load(resource("conf") / "dataset" / f"{resolve(name)}.yaml")
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    values = dict(plain["dataset"])
    values.update({key: value for key, value in options.items() if value is not None})
    return schema.build(values, "dataset")


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
    for name in names():
        facts = manifest(name)
        if facts is not None:
            yield facts
