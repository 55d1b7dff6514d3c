"""Find protocols by id, and the table of their rules in ``docs/protocols.md``.

``python -m refseg_bench.scoring.protocols.catalogue`` prints the table, ``--write`` updates the
page. There is no registry: ``conf/protocol/*.yaml`` names the classes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refseg_bench.config import schema
from refseg_bench.errors import ConfigError
from refseg_bench.files.resources import resource
from refseg_bench.files.store_io import parse_yaml, read_yaml
from refseg_bench.scoring.protocols.base import ScoringProtocol
from refseg_bench.types import Result

_BEGIN, _END = "<!-- generated: begin -->", "<!-- generated: end -->"


def find(spec: str, folders: Sequence[Path] = ()) -> ScoringProtocol:
    """The protocol a word on the command line means.

    Args:
        spec: ``ID``, ``ID@VERSION`` or an alias, with knobs as ``ID:knob=value``; or the dotted
            path of a protocol class of another package.
        folders: further folders of YAML files, searched before the shipped one.

    Raises:
        ConfigError: there is no such protocol, version or knob.
    """
    head, *pairs = spec.strip().split(":")
    name, _, version = head.partition("@")
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"'{pair}' in protocol '{spec}' is no knob=value.")
        try:
            values[key.strip()] = parse_yaml(text)
        except ValueError as error:
            raise ConfigError(f"'{pair}' in protocol '{spec}' can't be read ({error}).") from error
    made = _built({**_node(name, folders), **values}, name)
    if version and version != str(made.version):
        raise ConfigError(
            f"Protocol '{name}' has no version {version}.",
            allowed=(made.version,),
            cure="Install the release of refseg-bench that had it.",
        )
    return made


def rules(result: Result) -> ScoringProtocol:
    """The protocol that made a result, of whatever package, with the knobs it had.

    Raises:
        ConfigError: its class is not importable here, or there is no such protocol.
    """
    node = result.details.get("rules")
    if not isinstance(node, dict):
        return find(result.protocol)
    return _built(node, result.protocol)


def _built(node: Mapping[str, Any], name: str) -> ScoringProtocol:
    target = str(node.get(schema.TARGET))
    if not issubclass(schema.locate(target, name), ScoringProtocol):
        raise ConfigError(f"'{name}' is no protocol.", where=target)
    made: ScoringProtocol = schema.build(node, name)
    return made


def shipped() -> list[ScoringProtocol]:
    """One instance of every shipped protocol with its defaults, in the order of their ids."""
    return [schema.build(_read(path), path.stem) for path in sorted(resource("conf").glob("protocol/*.yaml"))]


def _node(name: str, folders: Sequence[Path]) -> dict[str, Any]:
    places = [*folders, resource("conf") / "protocol"]
    for folder in places:
        # The name is compared, never joined: it may come from a file.
        for path in sorted(folder.glob("*.yaml")):
            if path.stem == name:
                return _read(path)
    known: list[str] = []
    for folder in places:
        for path in sorted(folder.glob("*.yaml")):
            node = _read(path)
            cls = schema.locate(str(node[schema.TARGET]), path.stem)
            aliases = getattr(cls, "aliases", ())
            if name in aliases:
                return node
            known += [path.stem, *aliases]
    if "." in name and name.rpartition(".")[2].isidentifier():
        return {schema.TARGET: name}
    raise ConfigError(
        f"No protocol '{name}'.",
        allowed=sorted(known),
        cure="docs/protocols.md says what each one counts; one of your own goes by package.module.Class.",
    )


def _read(path: Path) -> dict[str, Any]:
    node = read_yaml(path)
    if schema.TARGET not in node:
        raise ConfigError("A protocol's YAML needs a _target_.", where=path)
    return node


def table() -> str:
    """The rules of all shipped protocols as Markdown."""
    head = (
        "| id@version | imitates | unit | frames | matching | void | missing work | rounding | scale "
        "| overlap |",
        "|---|---|---|---|---|---|---|---|---|---|",
    )
    rows = []
    details = []
    for protocol in shipped():
        p = protocol.policy
        names = ", ".join(f"`{alias}`" for alias in protocol.aliases)
        rounding = (
            "none"
            if p.rounding == "none"
            else f"{p.digits} decimal{'s' * (p.digits != 1)}, {_WHEN[p.rounding]}"
        )
        cells = (
            f"`{protocol.name}`" + (f" ({names})" if names else ""),
            protocol.imitates,
            p.unit,
            _FRAMES[p.frames],
            p.match.replace("_", " "),
            p.void,
            p.missing_why,
            rounding,
            "percent" if p.scale == 100 else "fraction",
            p.overlap if protocol.id.startswith(("ref", "gref", "reason")) and not _video(protocol) else "–",
        )
        rows.append("| " + " | ".join(cells) + " |")
        text = inspect.cleandoc(type(protocol).__doc__ or "").replace("``", "`")
        source = f"\n\nSource: {protocol.citation}." if protocol.citation else ""
        metrics = ", ".join(protocol.metrics)
        details.append(f"### `{protocol.name}`\n\n{text}{source}\n\nMetrics: {metrics}.")
    return "\n".join((*head, *rows)) + "\n\n## Each protocol\n\n" + "\n\n".join(details) + "\n"


_WHEN = {"unit": "per unit before averaging", "final": "when printed"}
_FRAMES = {
    "all": "all",
    "inner": "all but first and last",
    "annotated": "those annotated",
    "predicted": "those predicted",
}


def _video(protocol: ScoringProtocol) -> bool:
    return "J&F" in protocol.metrics


def page(text: str) -> str:
    """A page with its generated part brought up to date."""
    before, rest = text.split(_BEGIN, 1)
    _, after = rest.split(_END, 1)
    return f"{before}{_BEGIN}\n\n{table()}\n{_END}{after}"


def main(argv: Sequence[str]) -> int:
    """Print the table, or bring ``docs/protocols.md`` up to date (``--write``)."""
    if "--write" not in argv:
        print(table())
        return 0
    path = Path(__file__).resolve().parents[3] / "docs" / "protocols.md"
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
