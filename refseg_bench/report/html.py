"""One folder with everything about some runs, opened from disk: numbers, samples, pictures.

Not a server and not a build: pages are drawn by the scripts under ``templates/`` from data files that
each call ``refseg.give(key, value)``. Data comes in parts (an index of the samples in chunks, one file
per clip), so that a report of many thousand samples opens at once. All text stays data: no markup is
ever made of it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

import refseg_bench
from refseg_bench.config import schema
from refseg_bench.config.components import protocol_of
from refseg_bench.datasets.base import Dataset
from refseg_bench.errors import RefsegError, ScoreError, StoreError
from refseg_bench.files.store_io import (
    is_temporary,
    read_bytes,
    read_text,
    short_id,
    sweep,
    to_plain,
    within,
    without_nan,
    write_atomic,
    writing,
)
from refseg_bench.report.compare import compare, differences, paired, said, titles
from refseg_bench.report.pictures import MediaFolder, spread
from refseg_bench.report.sweeps import sweep_of
from refseg_bench.report.tables import (
    COST,
    Cell,
    ResultTable,
    in_percent,
    number_cell,
    rows_of,
    shared_by,
    tabulate,
    unsettled,
)
from refseg_bench.run.build import dataset_of, received
from refseg_bench.run.inputs import Present, stale, without
from refseg_bench.run.shards import plan
from refseg_bench.run.store import MADE_FROM, RESULT, RunStore
from refseg_bench.scoring.results import level_of
from refseg_bench.scoring.stats import Bootstrap
from refseg_bench.scoring.table import GROUPS, ScoreTable, breakdown, group_of, splitting
from refseg_bench.types import Clip, Expression, MaskTrack, Prediction, Result, Target, sample_id

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_ASSETS = ("app.css", "draw.js", "charts.js", "app.js", "pages.js", "sample.js")
_MARK = '<meta name="generator" content="refseg report">'
_UNFINISHED = f"<!doctype html>{_MARK}<p>This report is not finished. Give its command again.\n"
_CHUNK = 2000
#: What the pages were made from; gone with the first step of making them anew.
_MADE_FROM = "data/made_from"
_STATUS = {"ok": 0, "failed": 1, "missing": 2, "absent": 3, "empty": 4, "not asked": 5}

#: `refseg run` leaves the pages of more samples than this to `refseg report --html`.
_AT_ONCE = 3000


#: Words that a page shows of a turn of a conversation; most turns, parts of one and characters of a part.
_TURN = ("step", "reply", "finish", "error")
_MOST_TURNS, _MOST_WORDS = 200, 20_000

#: Pairs of runs tested against each other in all metrics and by every attribute at most, per data set.
_PAIRS = 6
#: Of more runs than this the headline metric is tested against the first run only.
_ALL_PAIRS = 10


def write_report(stores: Sequence[RunStore], folder: Path, *, frames: int = 32, side: int = 480) -> Path:
    """Write the report of some runs; returns the page to open, ``folder/index.html``.

    ``frames``: of a clip at most, besides those that maps, points and boxes lie on; ``side``: their longest,
    in pixels.

    Raises:
        StoreError: the folder holds something else, or can't be written.
    """
    with writing(folder):
        _clear(folder)
        media = MediaFolder(folder, side=side)
        media.prepare()
        (folder / "data").mkdir(exist_ok=True)
        (folder / "assets").mkdir(exist_ok=True)
        for name in _ASSETS:
            shutil.copyfile(_TEMPLATES / name, folder / "assets" / name)
        groups = _grouped(stores)
        runs = [run for group in groups for run in group]
        pages: list[dict[str, Any]] = []
        for index, group in enumerate(groups):
            first_run = sum(map(len, groups[:index]))
            pages.append(_GroupWriter(index, first_run, group, media, frames).write())
        _give(folder, "meta", _meta(groups, runs, pages))
        media.sweep()
        write_atomic(folder / "index.html", (_TEMPLATES / "index.html").read_text(encoding="utf-8"))
    return folder / "index.html"


def home(stores: Sequence[RunStore]) -> Path:
    """Where the pages of some runs go: inside the run, or beside several, in a folder of these runs' own."""
    if len(stores) == 1:
        return stores[0].place("report")
    beside = stores[0].root.parent
    names = chr(0).join(sorted(os.path.relpath(store.root.resolve(), beside.resolve()) for store in stores))
    return beside / f"report-{len(stores)}-runs-{short_id(names, 6)}"


def pages(stores: Sequence[RunStore]) -> str:
    """Make the pages of runs that just finished; a line that says where they are.

    Raises:
        StoreError: the folder holds something else, or can't be written.
    """
    samples = sum(len(store.index()) for store in stores)
    if samples > _AT_ONCE:
        where = [s.root for s in stores] if len(stores) <= 3 else [stores[0].root.parent]
        command = shlex.join(["refseg", "report", *map(str, where), "--html"])
        return f"pages to browse the {samples} samples: {command}"
    folder, mark = home(stores), _mark(stores)
    kept = ""
    with suppress(OSError, ValueError):
        kept = read_bytes(folder / _MADE_FROM).decode()
    if kept != mark or not (folder / "index.html").is_file():
        write_report(stores, folder)
        if mark is not None:
            write_atomic(folder / _MADE_FROM, mark)
    return f"every sample: {folder / 'index.html'}"


def _mark(stores: Sequence[RunStore]) -> str | None:
    """Names all that the pages of some runs show; ``None`` where that isn't known."""
    told = [refseg_bench.__version__, *((_TEMPLATES / name).read_text("utf-8") for name in _ASSETS)]
    for store in stores:
        results = store.results()
        if not results or not all(store.made_from(name).get("annotations") for name in results):
            return None
        files = [store.scores_dir(name) / file for name in results for file in (RESULT, MADE_FROM)]
        told += [read_text(path) for path in (store.info_path, store.config_path, *files)]
        told += [str(store.root.resolve()), store.mark(store.made_from(next(iter(results))))["lines"]]
    return short_id("\0".join(told), 32)


def _clear(folder: Path) -> None:
    """Make room for a new report; pictures stay, for most of them will be shown again."""
    page = folder / "index.html"
    for name in ("data", "assets", *(f"assets/{asset}" for asset in _ASSETS)):
        within(folder, folder / name)
    sweep(folder)
    filled = folder.is_dir() and not all(is_temporary(p.name) for p in folder.iterdir())
    if filled and not (page.is_file() and _MARK.encode() in read_bytes(page)):
        raise StoreError(
            "The folder holds something that is no report.",
            where=folder,
            hint="refseg report RUNS --html DIR",
        )
    folder.mkdir(parents=True, exist_ok=True)
    # First of all, so that a report that is killed is known as one, and not shown, or taken, as whole.
    (folder / _MADE_FROM).unlink(missing_ok=True)
    write_atomic(page, _UNFINISHED)
    shutil.rmtree(folder / "data", ignore_errors=True)


def _give(folder: Path, key: str, value: Any) -> None:
    """Write one data file. ASCII only: it reads the same under any encoding a browser may assume."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    (folder / "data" / f"{key}.js").write_text(f"refseg.give({json.dumps(key)},{text});\n", encoding="ascii")


# ── runs ─────────────────────────────────────────────────────────────────────


@dataclass
class _Run:
    store: RunStore
    values: Mapping[str, Any]
    dataset: str
    split: str
    tables: dict[str, ScoreTable] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    label: str = ""
    seconds: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    peak_mb: float | None = None
    missing: int = 0


def _grouped(stores: Sequence[RunStore]) -> list[list[_Run]]:
    """Runs of one data set and split together, in the order given."""
    groups: dict[tuple[str, str], list[_Run]] = {}
    for store in stores:
        values = received(store)
        node = values["dataset"]
        name = str(node.get("name") or node[schema.TARGET].rpartition(".")[2])
        run = _Run(store, values, name, str(node.get("split", "")))
        run.results = store.results()
        for protocol in run.results:
            run.tables[protocol] = ScoreTable.read_parquet(*store.samples(protocol))
        groups.setdefault((run.dataset, run.split), []).append(run)
    for group in groups.values():
        for run, name in zip(group, titles([run.store.info() for run in group]), strict=True):
            run.label = name
    return list(groups.values())


def _meta(
    groups: Sequence[Sequence[_Run]], runs: Sequence[_Run], pages: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    names = [run.store.root.name for run in runs]
    group_at = {id(run): (g, place) for g, group in enumerate(groups) for place, run in enumerate(group)}
    return {
        "title": names[0] if len(names) == 1 else f"{len(names)} runs",
        "made": time.strftime("%Y-%m-%d %H:%M %Z"),
        "version": refseg_bench.__version__,
        "level": level_of(r for run in runs for r in run.results.values()) or "no",
        "runs": [_run_record(run, *group_at[id(run)]) for run in runs],
        "costs": COST,
        "groups": list(pages),
        "tables": [asdict(t) for t in tabulate(rows_of([run.store for run in runs]))],
        "breakdowns": [t for g, group in enumerate(groups) for t in _breakdowns(g, group)],
        "sweeps": [found for group in groups for found in _sweeps(group, list(runs))],
        "comparisons": [c for group in groups for c in _comparisons(group, list(runs))],
    }


def _run_record(run: _Run, group: int, place: int) -> dict[str, Any]:
    info = run.store.info()
    done = [line.ok for line in run.store.index().values()]
    records = list(run.store.environments().values())
    env = records[-1] if records else {}
    commit = str(env.get("commit") or "")[:12]
    made = [
        f"refseg_bench {env.get('refseg_bench', '?')}" + (f" at {commit}" if commit else ""),
        "with changes that no commit holds" if env.get("dirty") else "",
        f"Python {env.get('python', '?')}",
    ]
    return {
        "name": run.store.root.name,
        "label": run.label,
        "path": f"{run.store.root.parent.name}/{run.store.root.name}",
        "bound": info.sees_targets,
        "group": group,
        "place": place,
        "method": info.choices.get("method", "?"),
        "dataset": run.dataset,
        "split": run.split,
        "digest": info.digest,
        "created": info.created,
        "ok": sum(done),
        "failed": len(done) - sum(done),
        "missing": run.missing,
        "seconds": run.seconds,
        "stages": run.stages,
        "peak_mb": run.peak_mb,
        "cost": {name: value for name, value in run.store.cost().items() if name in COST},
        "made": f"masks of other code, read from {info.source}"
        if info.source
        else ", ".join(part for part in made if part),
        "config": read_text(run.store.config_path),
    }


def _breakdowns(place: int, group: Sequence[_Run]) -> Iterator[dict[str, Any]]:
    """The first metric that all groups have, runs side by side, one table per protocol and attribute."""
    for protocol in dict.fromkeys(name for run in group for name in run.tables):
        scored = [run for run in group if protocol in run.tables]
        rules = protocol_of(scored[0].results[protocol])
        having = [run for run in scored if len(run.tables[protocol])]
        for attribute in splitting(run.tables[protocol] for run in having):
            columns = [
                breakdown(rules, run.tables[protocol], attribute, Bootstrap.of(run.results[protocol]))
                if attribute in run.tables[protocol].attrs
                else {}
                for run in having
            ]
            headline, rows = shared_by(columns, rules.metrics), []
            if headline is None:
                continue  # the groups are the protocol's own columns
            percent = rules.policy.percent(headline)
            for value in dict.fromkeys(value for column in columns for value in column):
                most = "–".join(map(str, sorted({column[value][0] for column in columns if value in column})))
                found = (column[value][1][headline] if value in column else None for column in columns)
                rows.append((Cell(value), Cell(most), *(number_cell(e, percent) for e in found)))
            caption = f"{group[0].dataset} · {protocol} · {headline} by {attribute}, percent"
            table = ResultTable(caption, (attribute, "n", *(run.label for run in having)), tuple(rows))
            yield {**asdict(table), "group": place, "protocol": protocol, "attribute": attribute}


def _sweeps(group: Sequence[_Run], runs: list[_Run]) -> Iterator[dict[str, Any]]:
    """The runs of each method that differ in options, as points; two runs are a comparison, not a sweep."""
    methods: dict[str, list[_Run]] = defaultdict(list)
    for run in group:
        methods[run.store.info().choices.get("method", "?")].append(run)
    for method, swept in methods.items():
        if len(swept) < 3:
            continue
        try:
            found = sweep_of([run.store for run in swept])
        except ScoreError:
            continue  # under no common protocol, or different in nothing
        points = [
            {
                "run": runs.index(run),
                "values": [said(point.values[key]) for key in found.keys],
                **{end: _finite(getattr(point.estimate, end)) for end in ("value", "low", "high")},
                **{"best": point.best, "lacks": point.row.lacks},
            }
            for run, point in zip(swept, found.points, strict=True)
        ]
        title = f"{method} · {group[0].dataset} · {found.metric}, {found.protocol}, percent"
        yield {"title": title, "keys": found.keys, "points": points}


def _comparisons(group: Sequence[_Run], runs: list[_Run]) -> list[dict[str, Any]]:
    out = []
    for first, second in islice(combinations(group, 2), _PAIRS):
        try:
            found = compare(first.store, second.store, most=0)
        except RefsegError:
            # Not scored, or under no common protocol: the page says so where the pair is chosen.
            continue
        rows = [
            {
                "group": f"{part.attribute} = {part.value}" if part.attribute else "all",
                "metric": metric,
                **{e: _finite(getattr(d, e) * found.percents[metric]) for e in ("value", "low", "high")},
                "p": _finite(d.p),
                "units": d.units,
                "clusters": d.clusters,
            }
            for part in (found.overall, *found.groups)
            for metric, d in part.differences.items()
        ]
        config = [[key, said(a), said(b)] for key, (a, b) in found.config.items()]
        told = {"protocol": found.protocol, "rows": rows, "config": config}
        out.append({"a": runs.index(first), "b": runs.index(second), **told})
    return out


def _finite(value: float) -> float | None:
    # So many digits that what a page rounds again comes out as a table rounds it.
    return round(value, 7) if math.isfinite(value) else None


# ── samples ──────────────────────────────────────────────────────────────────


#: Numbers that samples have in every run, such as a protocol's headline: name → by run, by sample id.
_Measures = dict[str, list[dict[str, float]]]


@dataclass
class _GroupWriter:
    index: int
    first_run: int
    runs: Sequence[_Run]
    media: MediaFolder
    frames: int
    rows: list[dict[str, Any]] = field(default_factory=list, init=False)
    note: str = field(default="", init=False)

    def __post_init__(self) -> None:
        #: Per run, its samples that were predicted on other data than there are now, and all it asks about.
        self.stale: list[dict[str, str]] = [{} for _ in self.runs]
        self.asked: list[set[str]] = [set() for _ in self.runs]

    def write(self) -> dict[str, Any]:
        """All files of the group; what the overview needs to know of it."""
        clips = 0
        for number, (dataset, clip, expressions) in enumerate(self._clips()):
            clips += 1
            self._clip(f"clip-{self.index}-{number}", dataset, clip, expressions)
        ious = ({row["id"]: row["iou"][n] for row in self.rows} for n in range(len(self.runs)))
        shown = [{name: iou for name, iou in column.items() if iou is not None} for column in ious]
        measures = self._measures() or {"mean IoU of the shown frames": shown}
        for place, run in enumerate(self.runs):
            seconds = [row["seconds"][place] for row in self.rows if row["seconds"][place] is not None]
            run.seconds = float(np.mean(seconds)) if seconds else None
            run.stages = {name: total / len(seconds) for name, total in run.stages.items() if name != "total"}
        attrs = self._attributes()
        chunks = []
        for start in range(0, max(1, len(self.rows)), _CHUNK):
            key = f"index-{self.index}-{start // _CHUNK}"
            _give(self.media.root, key, self._chunk(self.rows[start : start + _CHUNK], measures, attrs))
            chunks.append(key)
        return {
            "name": self.runs[0].dataset,
            "split": self.runs[0].split,
            "runs": [self.first_run + place for place in range(len(self.runs))],
            "n": len(self.rows),
            "clips": clips,
            "note": self.note,
            "chunks": chunks,
            "measures": [{"name": name} for name in measures],
            "attrs": [{"name": n, "title": n.replace("_", " "), "values": v} for n, v in attrs.items()],
            "scores": list(self._scores()),
        }

    def _protocols(self) -> list[str]:
        return list(dict.fromkeys(name for run in self.runs for name in run.tables))

    def _scores(self) -> Iterator[dict[str, Any]]:
        """Per protocol the numbers of every run, and how pairs of runs differ in the headline metric."""
        for protocol in self._protocols():
            scored = {p: run.results[protocol] for p, run in enumerate(self.runs) if protocol in run.results}
            metrics = list(dict.fromkeys(name for result in scored.values() for name in result.metrics))
            rows = [
                {
                    "run": self.first_run + place,
                    **result.coverage,
                    "absent": result.answers["absent"],
                    "cells": [_ends(result, name) for name in metrics],
                }
                for place, result in scored.items()
            ]
            rules = {unsettled(result) for result in scored.values()}
            yield {
                "protocol": protocol,
                "open": rules.pop() if len(rules) == 1 else "each run its own way",
                "metrics": metrics,
                "rows": rows,
                "pairs": list(self._pairs(protocol)),
            }

    def _pairs(self, protocol: str) -> Iterator[list[Any]]:
        """Rows of run, run, and the difference second − first with its interval."""
        having = [place for place, run in enumerate(self.runs) if len(run.tables.get(protocol, ()))]
        for i, j in combinations(having, 2):
            if len(having) > _ALL_PAIRS and i != having[0]:
                return
            first, second = self.runs[i], self.runs[j]
            if unsettled(first.results[protocol]) != unsettled(second.results[protocol]):
                continue  # held against other truth
            rules = protocol_of(first.results[protocol])
            try:
                a, b = paired(first.tables[protocol], second.tables[protocol])
            except ScoreError:
                continue  # no unit in common, or not the same truth
            gap = differences(rules, a, b, Bootstrap.of(first.results[protocol]))[rules.metrics[0]]
            percent = rules.policy.percent(rules.metrics[0])
            ends = (_finite(end * percent) for end in (gap.value, gap.low, gap.high))
            yield [self.first_run + i, self.first_run + j, *ends]

    def _measures(self) -> _Measures:
        """Headlines of the protocols whose units are samples."""
        measures: _Measures = {}
        for protocol in self._protocols():
            rules = next(protocol_of(run.results[protocol]) for run in self.runs if protocol in run.tables)
            columns: list[dict[str, float]] = []
            for run in self.runs:
                stored, values = run.store.index(), {}
                if protocol in run.tables:
                    units, values = run.tables[protocol].units, run.tables[protocol].values
                names = [name for name in (*rules.metrics, "iou", "IoU") if name in values]
                column: dict[str, float] = {}
                if names:
                    metric = names[0]
                    percent = values[metric] * rules.policy.percent(metric)
                    column = {u: float(v) for u, v in zip(units, percent, strict=True) if u in stored}
                columns.append(column)
            if any(columns):
                measures[f"{metric}, {protocol}"] = columns
        return measures

    # ── which samples ──

    def _clips(self) -> list[tuple[Dataset | None, Clip, Sequence[Expression]]]:
        """All clips that any run asks about, with their expressions.

        Where the data set isn't found on this machine, what the runs predicted stands in for it: ids
        instead of words, and clips without pictures.
        """
        found: dict[str, tuple[Dataset | None, Clip, dict[str, Expression]]] = {}
        try:
            for place, run in enumerate(self.runs):
                dataset = dataset_of(run.values)
                work = plan(dataset)
                self.stale[place] = stale(run.store, work, Present(dataset))
                for clip, expressions in work:
                    self.asked[place] |= {sample_id(clip.id, e.id) for e in expressions}
                    _, _, known = found.setdefault(clip.id, (dataset, clip, {}))
                    known.update({e.id: e for e in expressions})
        except RefsegError as error:
            self.note = f"The data set can't be read here, so there are no frames or targets: {error.what}"
            self.__post_init__()
            lines = [line for run in self.runs for line in run.store.index().values()]
            self.asked = [{line.sample for line in lines}] * len(self.runs)
            found = {line.clip: (None, self._stand_in(line.clip), {}) for line in lines}
            for line in lines:
                name = line.sample[len(line.clip) + 1 :]
                found[line.clip][2][name] = Expression(name, "")
        return [(dataset, clip, list(known.values())) for dataset, clip, known in found.values()]

    def _stand_in(self, clip_id: str) -> Clip:
        """A clip without pictures, as long and large as the first prediction of it."""
        known = (p for run in self.runs for p in run.store.predictions(clip_id).values())
        track = next((p.track for p in known if p.track is not None), MaskTrack((1, 1), ()))
        paths = (Path(os.devnull, "no picture"),) * len(track)
        return Clip(clip_id, paths, tuple(map(str, range(len(track)))), track.size)

    # ── one clip ──

    def _clip(self, key: str, dataset: Dataset | None, clip: Clip, expressions: Sequence[Expression]) -> None:
        answers = [
            without(run.store.predictions(clip.id), clip, differing)
            for run, differing in zip(self.runs, self.stale, strict=True)
        ]
        maps = {
            (place, e.id): run.store.read_maps(sample_id(clip.id, e.id))
            for place, run in enumerate(self.runs)
            for e in expressions
        }
        wanted = [
            int(t) for found in maps.values() for n, v in found.items() if n.endswith(".frames") for t in v
        ]
        told = [p for known in answers for p in known.values()]
        wanted += [p.point.frame for p in told if p.point is not None]
        wanted += [int(box[0]) for p in told for box in _boxes(p.details)]
        frames = spread(len(clip), self.frames, wanted)
        samples = {}
        thumb = self.media.thumb(clip, frames[len(frames) // 2]) if frames else ""
        for e in expressions:
            name = sample_id(clip.id, e.id)
            target, objects = self._target(dataset, clip, e)
            row: dict[str, Any] = {"status": [], "iou": [], "seconds": []}
            runs = []
            for place, known in enumerate(answers):
                p = known.get(e.id)
                found = maps[place, e.id] if p is not None and p.ok else {}
                record = None if p is None else self._answer(place, p, target, frames, clip.size, found)
                runs.append(record)
                lacking = "missing" if name in self.asked[place] else "not asked"
                said = lacking if p is None else p.answer or "ok" if p.ok else "failed"
                self.runs[place].missing += said == "missing"
                row["status"].append(_STATUS.get(said, 0))
                inside = [v for v in (record or {}).get("iou") or () if v is not None]
                row["iou"].append(float(np.mean(inside)) if inside else None)
                row["seconds"].append(None if p is None else p.seconds.get("total"))
                if p is not None:
                    run = self.runs[place]
                    for stage, spent in p.seconds.items():
                        run.stages[stage] = run.stages.get(stage, 0.0) + spent
                    if p.peak_mb is not None:
                        run.peak_mb = max(p.peak_mb, run.peak_mb or 0.0)
            attrs = _short(e.attrs)
            samples[name] = {
                "id": name,
                "text": e.text,
                "attrs": {**{k: str(v) for k, v in attrs.items()}, **objects},
                "target": None if target is None else [_ascii(target[t]) for t in frames],
                "runs": runs,
            }
            self.rows.append(
                {"id": name, "clip": key, "text": e.text[:240], "thumb": thumb, "attrs": attrs, **row}
            )
        pictures = [
            {"index": t, "name": clip.frame_names[t], "source": self.media.frame(clip, t)} for t in frames
        ]
        record = {"key": key, "size": clip.size, "length": len(clip), "frames": pictures, "samples": samples}
        _give(self.media.root, key, record)

    def _target(
        self, dataset: Dataset | None, clip: Clip, expression: Expression
    ) -> tuple[Sequence[bytes | None] | None, dict[str, str]]:
        """The target's union per frame, ``None`` where it is hidden or can't be read."""
        if dataset is None:
            return None, {}
        try:
            target: Target | None = dataset.target(clip, expression)
        except RefsegError as error:
            self.note = f"Some targets can't be read: {error.what}"
            return None, {}
        if target is None:
            return None, {"target": "not public"}
        for track in target.objects:
            if why := track.misfit(clip.size, len(clip)):
                self.note = f"Some targets don't fit their clips: {why}"
                return None, {}
        return target.union().rles, {"objects": str(len(target.objects))}

    def _answer(
        self,
        place: int,
        p: Prediction,
        target: Sequence[bytes | None] | None,
        frames: Sequence[int],
        size: tuple[int, int],
        maps: Mapping[str, NDArray[Any]],
    ) -> dict[str, Any]:
        rles = None if p.track is None else [p.track.rles[t] for t in frames]
        iou = None
        if rles is not None and target is not None:
            iou = [_iou(rle, target[t], size) for rle, t in zip(rles, frames, strict=True)]
        sprites = []
        for name, volume in maps.items():
            if not name.endswith(".frames"):
                source, height, width = self.media.map_sprite(volume)
                of = [int(t) for t in maps[f"{name}.frames"]]
                sprites.append(
                    {"name": name, "source": source, "height": height, "width": width, "frames": of}
                )
        failure, details = p.failure, without_nan(to_plain(p.details))
        return {
            "rles": None if rles is None else [_ascii(rle) for rle in rles],
            "iou": iou,
            "point": None if p.point is None else [p.point.frame, p.point.y, p.point.x],
            "points": _points(p.details),
            "boxes": _boxes(p.details),
            "no_target": p.no_target,
            "conversation": self._conversation(place, details.pop("conversation", None)),
            "details": details,
            "seconds": dict(p.seconds),
            "peak_mb": p.peak_mb,
            "failure": None if failure is None else asdict(failure),
            "maps": sprites,
        }

    def _conversation(self, place: int, turns: Any) -> list[dict[str, Any]]:
        """What was said, with the pictures that are there; nothing of it has to be what a method writes."""

        def part(value: Any) -> Any:
            if isinstance(value, str):
                return value[:_MOST_WORDS] + ("…" if len(value) > _MOST_WORDS else "")
            name = value.get("image") if isinstance(value, dict) else None
            path = self.runs[place].store.picture(name) if isinstance(name, str) else None
            size = value.get("size") if isinstance(value, dict) else None
            fit = isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)
            return {"source": path and self.media.sent(path), "size": size if fit else None}

        def several(value: Any) -> tuple[list[Any], list[str]]:
            found = value if isinstance(value, list) else []
            more = len(found) - _MOST_TURNS
            return found[:_MOST_TURNS], [f"{more} more are in the run folder only"] * (more > 0)

        def one(turn: Mapping[str, Any]) -> dict[str, Any]:
            words = {name: part(turn[name]) for name in _TURN if isinstance(turn.get(name), str)}
            messages, more = several(turn.get("messages"))
            asked = []
            for message in (message for message in messages if isinstance(message, dict)):
                parts, left = several(message.get("parts"))
                asked.append({"role": part(str(message.get("role"))), "parts": [*map(part, parts), *left]})
            return {**words, "asked": [*asked, *({"role": "", "parts": [words]} for words in more)]}

        turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
        half, more = _MOST_TURNS // 2, len(turns) - _MOST_TURNS
        if more <= 0:
            return [*map(one, turns)]
        # The beginning and, where it may have broken, the end.
        return [*map(one, turns[:half]), {"left_out": more, "asked": []}, *map(one, turns[-half:])]

    # ── the index ──

    def _attributes(self) -> dict[str, list[str]]:
        """Attributes to filter by, with their values; fills ``row["kinds"]``."""
        facts: dict[str, dict[str, str]] = defaultdict(dict)
        for run in self.runs:
            for table in run.tables.values():
                for name in (n for n in GROUPS if n in table.attrs):
                    for unit, value in zip(table.units, table.attrs[name], strict=True):
                        facts[unit][name] = group_of(name, value)
        for row in self.rows:
            row["kinds"] = {k: str(v) for k, v in row["attrs"].items()} | facts.get(row["id"], {})
        found: dict[str, set[str]] = defaultdict(set)
        for row in self.rows:
            for name, value in row["kinds"].items():
                if len(found[name]) <= 24:
                    found[name].add(value)
        order = {name: {v: i for i, v in enumerate(names)} for name, (_, names) in GROUPS.items()}
        return {
            name: sorted(values, key=lambda v: (order.get(name, {}).get(v, 0), v))
            for name, values in found.items()
            if name == "type" or 2 <= len(values) <= 24
        }

    def _chunk(
        self, rows: Sequence[Mapping[str, Any]], measures: _Measures, attrs: Mapping[str, list[str]]
    ) -> dict[str, Any]:
        codes = {name: {value: code for code, value in enumerate(values)} for name, values in attrs.items()}
        return {
            **{name: [row[name] for row in rows] for name in ("id", "clip", "text", "thumb")},
            "attrs": [[codes[name].get(row["kinds"].get(name), -1) for row in rows] for name in attrs],
            "status": [[row["status"][place] for row in rows] for place in range(len(self.runs))],
            "score": [
                [[_finite(column.get(row["id"], math.nan)) for row in rows] for column in columns]
                for columns in measures.values()
            ],
        }


def _ends(result: Result, metric: str) -> dict[str, float | None] | None:
    """A metric and its interval in percent; ``None`` where the result has no such number."""
    estimate = result.metrics.get(metric)
    if estimate is None or not math.isfinite(estimate.value):
        return None
    shown = in_percent(result, metric)
    return {end: _finite(getattr(shown, end)) for end in ("value", "low", "high")}


def _ascii(rle: bytes | None) -> str | None:
    return None if rle is None else rle.decode("ascii")


def _iou(answer: bytes | None, truth: bytes | None, size: tuple[int, int]) -> float | None:
    """Percent of the union that is common; 100 where both are empty, ``None`` where one isn't known."""
    if answer is None or truth is None:
        return None
    coded: list[Any] = [{"size": list(size), "counts": counts} for counts in (answer, truth)]
    if not coco_mask.area(coded).any():
        return 100.0
    return _finite(100 * float(coco_mask.iou([coded[0]], [coded[1]], [0])[0][0]))


def _points(details: Mapping[str, Any]) -> list[list[float]]:
    """Clicks a method tells, as rows of frame, x, y in [0, 1].

    ``points`` and ``clicks`` are such rows; ``keypoints`` are rows of frame, y, x and a value, best first.
    """
    out = []
    for name, x_at, y_at in (("points", 1, 2), ("clicks", 1, 2), ("keypoints", 2, 1)):
        rows = to_plain(details.get(name))
        for row in rows[:200] if isinstance(rows, list) else ():
            if (
                isinstance(row, list)
                and len(row) >= 3
                and all(isinstance(v, (int, float)) and abs(v) < 1e9 for v in row[:3])
            ):
                out.append([int(row[0]), float(row[x_at]), float(row[y_at])])
    return out


def _boxes(details: Mapping[str, Any]) -> list[list[float]]:
    """Boxes a method tells, ``{frame: [[x0, y0, x1, y1], …]}``, as rows: frame, x0, y0, x1, y1 in [0, 1]."""
    told = details.get("boxes")
    said = told.items() if isinstance(told, dict) else ()
    found = [(frame, row) for frame, rows in said if isinstance(rows, list) for row in rows]
    return [
        [int(frame), *map(float, row)]
        for frame, row in found[:200]
        if re.fullmatch(r"\d{1,9}", frame)
        and isinstance(row, list)
        and len(row) == 4
        and all(type(v) in (int, float) and 0 <= v <= 1 for v in row)
    ]


def _short(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that are one plain value."""
    return {
        str(k): v
        for k, v in attrs.items()
        if isinstance(v, (bool, int, str)) and not (isinstance(v, str) and len(v) > 60)
    }
