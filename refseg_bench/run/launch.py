"""Here or on a cluster: freeze every point of an experiment, then have it worked on.

``cluster=debug``, ``local``, ``ray`` and ``slurm`` take one path: compose in the submitting process, freeze
into the run folder, leave a record of the submission, and let workers read nothing but frozen files.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from refseg_bench import env
from refseg_bench.backbones.weights import ModelError, find, hub_megabytes, is_shipped, needs_of
from refseg_bench.config import schema
from refseg_bench.config.compose import Composed, Config, lasting, load
from refseg_bench.errors import ConfigError, DataError, RefsegError
from refseg_bench.files.store_io import read_sealed_yaml, sealed_text, short_id, to_yaml
from refseg_bench.methods.base import Method
from refseg_bench.run import local, ray, server, slurm
from refseg_bench.run.build import assemble, build_method, dataset_of
from refseg_bench.run.progress import Progress
from refseg_bench.run.shards import Planned, Tally, planned, tally_of
from refseg_bench.run.store import RunInfo, RunStore
from refseg_bench.run.submissions import Submission, living, register, submissions
from refseg_bench.run.worker import Shard
from refseg_bench.run.workers import Census, Owner, describe, forget, records
from refseg_bench.segmenters.base import shared_by_rows

#: Most processes that share the runs of a command unasked, and samples that each of them must be worth: a
#: process takes seconds to start.
_MOST, _WORTH = 4, 20
#: Who has a run worked on by others while this process waits.
_ENGINES: dict[str, Callable[..., None]] = {"local": local.work, "ray": ray.work}
#: Clips whose expressions are looked up in the cache for a preview: each lookup reads the clip's frames.
_LOOKED_UP = 20


def freeze(point: Composed, info: RunInfo | None = None) -> RunStore:
    """Make (or open) the run folder of a point, once its components take their options."""
    store = RunStore.create(point.path, to_yaml(point.values), info or _info(point))
    kept = read_sealed_yaml(store.config_path)
    if kept.get("dataset") != point.values["dataset"]:
        # The same set at another place: scoring and reports look where the last command found it.
        store.keep(sealed_text(to_yaml({**kept, "dataset": point.values["dataset"]})), "config.yaml")
    return store


def _planned(points: Sequence[Composed], say: Callable[[str], None]) -> list[Planned]:
    """What is left of points, whose folders are made; if a data set can't be read, none is, nor changed."""
    infos, runs = list(map(_info, points)), list[Planned]()
    for point, info in zip(points, infos, strict=True):
        if point.path.exists():
            RunStore.create(point.path, to_yaml(point.values), info)  # another run's folder is refused
        runs.append(planned(RunStore(point.path), point, say))
    for point, info, run in zip(points, infos, runs, strict=True):
        run.made = not point.path.exists()
        freeze(point, info)
        run.keep()
    return runs


def _info(point: Composed) -> RunInfo:
    server.check(point.values)
    method = assemble(point.values)
    return RunInfo(
        digest=point.digest,
        name=point.name,
        overrides=list(point.overrides),
        choices=point.choices,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        lasting=lasting(point.values),
        bound=method.bound,
        sees_targets=method.sees_targets,
        knows=method.knows,
        printed={"backbone": label} if (label := (point.values["backbone"] or {}).get("label")) else {},
        protocols=list(point.values["dataset"].get("protocols") or ()),
    )


def launch(
    points: Sequence[Composed],
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    *,
    score: bool = True,
    done: Callable[[Planned], None] = lambda run: None,
    lead: bool = False,
) -> list[Planned]:
    """Freeze every point, then work on it here or submit it.

    A run that can't be worked on doesn't keep the others from it; its error is in the answer. ``score``: on
    SLURM, score and report in dependent jobs. ``done`` is called with each run that was worked on here, once
    all of it is there. ``lead``: if the first run can't be worked on, the others are not.

    Raises:
        RefsegError: a point can't be frozen or planned, or nothing of this may be submitted.
    """
    for cluster in (load(point.values).cluster for point in points):
        if cluster.kind == "slurm":
            slurm.check(cluster)
        elif cluster.kind == "ray":
            ray.check()
    runs = _planned(points, say)
    busy = living([run.store for run in runs])
    open_runs = [run for run in runs if run.work]
    if processes := _processes(open_runs):
        for run in open_runs:
            run.shards = processes
    going: list[Planned] = []
    for run in runs:
        if not run.work:
            run.tally = Tally()
            if not run.aside:
                # A process that was killed when all was done may have left its claims.
                forget(run.store.root)
            none = "no sample has failed" if run.cluster.retry_failed else "complete: nothing left to predict"
            say(f"{run.store.root}\n  {none}")
        elif _admitted(run, busy[run.store.root]):
            going.append(run)
    try:
        captures = share_captures([run for run in going if run.cluster.kind != "debug"])
        captured = {name: _capture(run) for name, run in captures.items()}
        for run in (run for run in going if run.cluster.kind == "slurm"):
            _guarded(run, _submit, captured.get(run.capture or ""), score)
        here = [run for run in going if run.cluster.kind != "slurm"]
        _work_here(here, done, runs[0] if lead and runs[0].submission else None, together=processes > 0)
    finally:
        for run in going:
            if not run.submitted:
                _close(run)
                alone = len(submissions(run.store.root)) == 1 and not (run.store.root / "jobs").exists()
                if run.cluster.kind == "slurm" and run.made and alone and not run.record.jobs:
                    shutil.rmtree(run.store.root, ignore_errors=True)  # it was made for jobs that aren't
    submitted = [run for run in going if run.submitted]
    if submitted:
        _finish(submitted)
    return runs


def freeze_for_workers(points: Sequence[Composed], say: Callable[[str], None]) -> list[Planned]:
    """Freeze every point for `refseg work` on any engine, and leave a submission that its workers join.

    Raises:
        RefsegError: a point can't be frozen or planned.
    """
    runs = _planned(points, say)
    for run in runs:
        run.submission = register(run.store, run.values, "frozen", run.shards)
        _close(run, "frozen")
    return runs


def preview(points: Sequence[Composed]) -> dict[str, Any]:
    """What :func:`launch` would do. Nothing is written, and no weights are loaded.

    Returns:
        JSON values. ``runs``: per point its folder, what else tells it apart (``options``), the samples left
        and their clips (``None``: its data set is not here), how many of the first ``asked`` expressions are
        ``cached`` (``None``: its method keeps no cache), shards, jobs on SLURM and the names of its weights.
        ``weights``: name → who needs them, ``here``, their megabytes (``None`` = not known), and the
        ``problem`` of those that can't be had. ``notes``: what could not be told. ``total``.
    """
    runs: list[dict[str, Any]] = []
    left, notes = list[Planned](), list[str]()
    asked: dict[str, dict[str, Any]] = {}
    untold: dict[str, list[str]] = {}
    shared = set[str]().union(*(p.overrides for p in points)).intersection(*(p.overrides for p in points))
    for point in points:
        row: dict[str, Any] = {"run": str(point.path), "cached": None, "asked": 0, "jobs": 0, "weights": []}
        row |= dict.fromkeys(("samples", "clips", "shards"))
        named = shared.union(
            f"{group}={name}" for group, name in point.choices.items()
        )  # by the folder's name
        row["options"] = ", ".join(word for word in point.overrides if word not in named)
        runs.append(row)
        try:
            run = planned(RunStore(point.path), point, notes.append)
        except DataError as error:
            untold.setdefault(error.what, []).append(point.path.name)
        else:
            row |= {"samples": run.samples, "clips": len(run.work), "shards": run.shards}
            if not run.work:
                continue
            row["cached"], row["asked"] = _cache_hits(run, notes.append)
            row["jobs"] = run.shards + run.cluster.finish if run.cluster.kind == "slurm" else 0
            left.append(run)
        row["weights"] = _weights(point.values, asked, notes.append)
    for what, (first, *more) in untold.items():
        others = f" and {len(more)} more" if more else ""
        notes.append(f"{first}{others}: what is left can't be told: {what}")
    if processes := _processes(left):
        notes.append(f"{processes} processes of this machine work on all of it together")
        for row in runs:
            row["shards"] = processes if row["samples"] else row["shards"]
    total = {key: sum(row[key] or 0 for row in runs) for key in ("samples", "clips", "jobs")}
    finished = any(row["jobs"] > row["shards"] for row in runs if row["jobs"])  # one report for all
    sizes = [told["megabytes"] for told in asked.values() if told["here"] is False]
    fetch = None if None in sizes else sum(sizes)
    total |= {"runs": len(runs), "jobs": total["jobs"] + finished, "megabytes_to_fetch": fetch}
    return {"runs": runs, "weights": asked, "notes": notes, "total": total}


def _cache_hits(run: Planned, say: Callable[[str], None]) -> tuple[int | None, int]:
    """How many of the first expressions need no model call, and of how many; ``None`` without a cache."""
    method = build_method(run.values, dataset_of(run.values))
    ready = total = 0
    try:
        for clip, expressions in run.work[:_LOOKED_UP]:
            # A model that isn't on this machine and can't be asked for has left nothing in the cache.
            with suppress(ConfigError):
                found = method.cached(clip, [expression.text for expression in expressions])
                if found is None:
                    return None, 0
                ready += found
            total += len(expressions)
    except RefsegError as error:
        say(f"{run.store.root}: the cache can't be asked: {error.what}")
        return None, 0
    return ready, total


def _weights(
    values: Mapping[str, Any], asked: dict[str, dict[str, Any]], say: Callable[[str], None]
) -> list[str]:
    """The names of a run's weights; ``asked`` grows by those that no run before asked for."""
    names: list[str] = []
    for need in needs_of(values):
        if need.problem is not None:
            say(f"weights of {need.node}: can't tell: {need.problem.splitlines()[0]}")
        for weights in need.weights:
            names.append(str(weights))
            if names[-1] in asked:
                continue
            told = asked[names[-1]] = {"node": need.node, "here": None, "megabytes": None, "problem": None}
            try:
                status = find(weights)
            except RefsegError as error:
                say(f"weights of {need.node}: {weights}: can't tell: {error.what}")
                continue
            size, problem = None if status.path is None else status.megabytes, status.problem
            offline = bool((values.get(need.node) or {}).get("offline"))
            try:
                if size is None and problem is None:
                    size = hub_megabytes(weights, offline=offline)
            except ModelError as error:
                problem = error
            told |= {"here": status.path is not None, "problem": problem and str(problem)}
            told["megabytes"] = None if size is None else round(size, 1)
    return names


def share_captures(runs: Sequence[Planned]) -> dict[str, Planned]:
    """Shared digest → the run whose config serves the capture of all runs (their ``capture`` is set) of the
    same attention.

    A method class may offer ``capture(clip, expressions)``, which fills a cache, and
    ``capture_digest(values)``, which names what goes into it (``None`` = nothing to share). Runs with
    equal digests over the same samples share one capture.
    """
    groups: dict[str, list[Planned]] = {}
    for run in runs:
        cls: type[Method] = schema.locate(str(run.values["method"][schema.TARGET]), "method")
        digest = cls.capture_digest(run.values) if run.work else None
        if digest is None:
            continue
        dataset = schema.lasting(Config, {key: run.values[key] for key in ("dataset", "limit")})
        named = json.dumps([str(digest), dataset], sort_keys=True)
        groups.setdefault(short_id(named), []).append(run)
    shared = {name: members for name, members in groups.items() if len(members) > 1}
    for name, members in shared.items():
        for run in members:
            run.capture = name
    return {name: max(members, key=lambda run: run.samples) for name, members in shared.items()}


def _admitted(run: Planned, busy: Sequence[Submission]) -> bool:
    """Register a submission, and tell it and living ones of the same run of each other."""
    kind, root = run.cluster.kind, run.store.root
    mine = run.submission = register(run.store, run.values, kind, run.shards)
    # Looked at again, now that this one's record is there for others to see.
    others = [s for s in living([run.store])[root] if s.id != mine.id] or busy
    older = [s for s in others if (s.created, s.id) < (mine.created, mine.id)]
    for other in others:
        run.say(f"{root}\n  also submitted: {other.told()}")
    if kind == "slurm" and older and not (run.cluster.join or run.cluster.retry_failed):
        _close(run, "refused")
        named = shlex.quote(str(root))
        run.error = RefsegError(
            f"The run is already being worked on: {older[0].told()}.",
            where=root,
            hint=f"Watch it with `refseg status {named}`, end it with `refseg cancel {named}`, or add "
            "workers to it with cluster.join=true.",
        )
        return False
    if others and kind != "slurm":
        run.say("  each takes clips the others have not started")
    return True


def _close(run: Planned, state: str = "over") -> None:
    # One with jobs is over when they are, whatever came after they were submitted.
    run.record.state = run.record.state if run.record.jobs else state
    run.record.write(run.store)


def _keep_job(run: Planned, role: str, number: str) -> str:
    run.record.jobs[role] = number
    run.record.write(run.store)
    return number


def _capture(run: Planned) -> str | None:
    """Fill the attention cache that several runs read; returns the job to wait for, if it is one."""
    run.say(f"{run.store.root}\n  captures attention once for the runs that share it (digest {run.capture})")
    # A capture that fails is met again, and recorded, by the runs themselves.
    try:
        if run.cluster.kind == "slurm":
            return _keep_job(run, "capture", slurm.submit_array(run, _code(run), capture=True))
        _ENGINES[run.cluster.kind](run, capture=True)
    except RefsegError as error:
        run.say(f"  {error}")
    return None


def _submit(run: Planned, after: str | None, score: bool) -> None:
    root = run.store.root
    work = _keep_job(run, "work", slurm.submit_array(run, _code(run), after=after))
    if score and run.cluster.finish:
        command = ["score", "--after-run", "--launch", run.record.id, str(root.resolve())]
        _follow([run], "score", command, [work])


def _follow(runs: Sequence[Planned], role: str, command: Sequence[str], after: Sequence[str]) -> None:
    """Have a command follow the jobs of some runs; the work is submitted also where it can't."""
    first, *_ = runs
    try:
        job = slurm.submit_command(first, f"{role}-{first.store.root.name}", command, after, _code(first))
    except RefsegError as error:
        first.say(f"{first.store.root}\n  no {role} job, the work is submitted all the same: {error}")
    else:
        for run in runs:
            _keep_job(run, role, job)


def _code(run: Planned) -> Path | None:
    """The copy of the code a submission runs from, where it asked for one."""
    if not run.cluster.snapshot:
        return None
    folder = run.store.root / "launches" / run.record.id / "code"
    return folder if folder.is_dir() else slurm.snapshot(folder, run.say)


def _guarded(run: Planned, work: Callable[..., None], *words: Any) -> None:
    """Keep why a run can't be worked on; the others go on."""
    try:
        work(run, *words)
    except RefsegError as error:
        run.error = error
        _close(run)
    except BaseException:
        _close(run)
        raise


def _work_here(
    runs: Sequence[Planned], done: Callable[[Planned], None], lead: Planned | None, *, together: bool
) -> None:
    """Work through runs; ``together``: by processes that all work on all of them, cheap ones first."""
    before = {run.store.root: dict(run.store.index()) for run in runs}

    def settle(run: Planned) -> None:
        # Others may have worked on it too: what is there counts, not what was done here.
        run.tally = tally_of(run, before[run.store.root])
        _close(run)
        _tell_of_others(run, run.tally)
        if not (run.tally.elsewhere or run.aside):
            done(run)

    def look() -> bool:
        for run in (run for run in runs if run.tally is None):
            found = tally_of(run, before[run.store.root], progress)
            # A process that has stored its last sample still writes what it worked with.
            if not (found.elsewhere or _refused(run) or _at_work(run)):
                run.say(f"{run.store.root}")
                _guarded(run, settle)
        progress.beat()
        return lead is None or not _refused(lead)

    def work(run: Planned) -> None:
        run.say(f"{run.store.root}")
        if run.cluster.kind in _ENGINES:
            _ENGINES[run.cluster.kind](run, progress)
        else:
            parts = 1 if together else run.shards
            for shard in range(parts):
                Shard(str(run.store.root), run.record.id, shard, parts)(progress)
        settle(run)

    with shared_by_rows(), Progress({str(run.store.root): run.samples for run in runs}) as progress:
        if runs and together:
            local.together(sorted(runs, key=_needs_model), look)
        # What those processes couldn't do is done, or refused in its own words, here.
        for run in (run for run in runs if run.tally is None):
            _guarded(run, work)
            progress.end()
            if run is lead and run.error is not None:
                break


def _processes(runs: Sequence[Planned]) -> int:
    """How many processes work on all runs of a command together; 0 = none but this one.

    One per core where a second copy of the models costs nothing to speak of: on a CPU, and all parts and
    weights are this package's.
    """
    samples = sum(run.samples for run in runs if _needs_model(run))
    clips = max((len(run.work) for run in runs), default=0)
    most = min(env.cores() // env.threads(), _MOST, clips, samples // _WORTH)
    return most if most > 1 and all(map(_light, runs)) else 0


def _light(run: Planned) -> bool:
    """Whether more processes are allowed, all that is loaded is this package's, and works on a CPU.

    Parts of others may load what they don't tell of. A backbone without a device is a server, with an idea
    of its own of how many may ask.
    """
    cluster = run.cluster
    backbone, segmenter = run.values.get("backbone"), run.values.get("segmenter")
    return (
        (cluster.kind, cluster.shards, cluster.gpus, cluster.server) == ("debug", None, 0, None)
        and (backbone is None or backbone.get("device") == "cpu")
        and (segmenter is None or segmenter.get("device") in (None, "cpu"))
        and all(
            need.problem is None
            and need.target.startswith("refseg_bench.")
            # What a method reads beside its models (a parser, captions) makes no process large.
            and (need.node == "method" or all(map(is_shipped, need.weights)))
            for need in needs_of(run.values)
        )
    )


def _needs_model(run: Planned) -> bool:
    return any(run.values.get(part) is not None for part in ("backbone", "segmenter"))


def _at_work(run: Planned) -> list[Owner]:
    """Living processes that have not ended their work on a run."""
    census = Census()
    return [r.owner for r in records(run.store.root) if not r.end and census.alive(r.owner)]


def _refused(run: Planned) -> bool:
    """Whether a process of this submission could not work on the run, or found too many failures."""
    mine = [r for r in records(run.store.root) if r.owner.launch == run.record.id]
    return any(r.end and r.end.error for r in mine)


def _tell_of_others(run: Planned, tally: Tally) -> None:
    root = run.store.root
    if tally.elsewhere and (held := _at_work(run)):
        run.say(f"  {tally.elsewhere} samples are with {describe(held)}; who ends last scores the run")
        run.say(f"  if you know that it is dead, remove {root / 'claims'} and run again")
    for other in submissions(root):
        if other.id != run.record.id and other.created >= run.record.created:
            run.say(f"  also submitted meanwhile: {other.told()}")


def _finish(runs: Sequence[Planned]) -> None:
    """Submit the report over all runs, and say what to look at."""
    first = runs[0]
    roots = shlex.join(str(run.store.root) for run in runs)
    after = [run.record.jobs["score"] for run in runs if "score" in run.record.jobs]
    if after:
        out = (first.log / "report.md").resolve()
        command = ["report", "--after-run", *(str(run.store.root.resolve()) for run in runs)]
        _follow(runs, "report", [*command, "--format", "md", "--output", str(out)], after)
    for run in runs:
        jobs = "  ".join(f"{role} {number}" for role, number in run.record.jobs.items())
        run.say(f"{run.store.root}\n  {run.samples} samples in {run.shards} shards; jobs: {jobs}")
        run.say(f"  log: {run.log}")
    first.say(f"watch:  refseg status {roots}")
    first.say(f"result: {'' if after else f'refseg score {roots}; '}refseg report {roots}")
