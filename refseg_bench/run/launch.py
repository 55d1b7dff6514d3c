"""Here or on a cluster: freeze every point of an experiment, then have it worked on.

``cluster=debug``, ``local`` and ``slurm`` take one path: compose in the submitting process, freeze into
the run folder, leave a record of the submission, and let workers read nothing but frozen files.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from refseg_bench.backbones.weights import find, hub_megabytes, needs_of
from refseg_bench.config import schema
from refseg_bench.config.compose import Composed, Config, from_yaml, lasting, load, to_yaml
from refseg_bench.errors import ConfigError, RefsegError
from refseg_bench.files.store_io import sealed_text
from refseg_bench.methods.base import Method
from refseg_bench.run import local, slurm
from refseg_bench.run.build import build_method, dataset_of
from refseg_bench.run.shards import Planned, Tally, planned, tally_of
from refseg_bench.run.store import RunInfo, RunStore
from refseg_bench.run.submissions import Submission, living, register, submissions
from refseg_bench.run.worker import Shard
from refseg_bench.run.workers import Census, describe, forget, records

#: Clips whose expressions are looked up in the cache for a preview: each lookup reads the clip's frames.
_LOOKED_UP = 20


@dataclass
class Launched:
    """What became of one run.

    Attributes:
        store: its folder.
        tally: what was done here; ``None`` where it was submitted, stood back or failed.
        submission: the record of this submission; ``None`` where nothing was left to predict.
        error: why it could not be worked on.
    """

    store: RunStore
    tally: Tally | None = None
    submission: Submission | None = None
    error: RefsegError | None = None

    @property
    def submitted(self) -> bool:
        """True if jobs of a cluster go on with it (and score and report it, where asked)."""
        return self.submission is not None and self.submission.kind == "slurm" and self.error is None


def freeze(point: Composed) -> RunStore:
    """Make (or open) the run folder of a point."""
    method: type[Method] = schema.locate(point.values["method"][schema.TARGET], "method")
    info = RunInfo(
        digest=point.digest,
        name=point.name,
        overrides=list(point.overrides),
        choices=point.choices,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        lasting=lasting(point.values),
        bound=method.bound,
        sees_targets=method.sees_targets,
    )
    store = RunStore.create(point.path, to_yaml(point.values), info)
    kept = from_yaml(store.config_path)
    if kept.get("dataset") != point.values["dataset"]:
        # The same set at another place: scoring and reports look where the last command found it.
        store.keep(sealed_text(to_yaml({**kept, "dataset": point.values["dataset"]})), "config.yaml")
    return store


def launch(
    points: Sequence[Composed], say: Callable[[str], None] | None = None, *, score: bool = True
) -> list[Launched]:
    """Freeze every point, then work on it here or submit it.

    A run that can't be worked on doesn't keep the others from it; its error is in the answer.

    Args:
        points: composed points of an experiment.
        say: takes lines for the user; standard error by default.
        score: on SLURM, score and report in dependent jobs.

    Raises:
        RefsegError: a point can't be frozen or planned, or nothing of this may be submitted.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    for cluster in (load(point.values).cluster for point in points):
        if cluster.kind == "slurm":
            slurm.check(cluster)
    runs = [planned(freeze(point), point, say) for point in points]
    answers = {id(run): Launched(run.store) for run in runs}
    busy = living([run.store for run in runs])
    going: list[Planned] = []
    for run in runs:
        if not run.work:
            answers[id(run)].tally = Tally()
            # A process that was killed when all was done may have left its claims.
            forget(run.store.root)
            say(f"{run.store.root}\n  complete: nothing left to predict")
        elif _admitted(run, answers[id(run)], busy[run.store.root], say):
            going.append(run)
    captures = share_captures([run for run in going if run.cluster.kind != "debug"])
    captured = {name: _capture(run, answers[id(run)], say) for name, run in captures.items()}
    for run in going:
        answer = answers[id(run)]
        assert answer.submission is not None
        if answer.error is not None:
            continue
        try:
            if run.cluster.kind == "slurm":
                _submit(run, answer.submission, captured.get(run.capture or ""), score, say)
            else:
                answer.tally = _here(run, answer.submission, say)
        except RefsegError as error:
            answer.error = error
            _close(run.store, answer.submission)
        except BaseException:
            _close(run.store, answer.submission)
            raise
    submitted = [run for run in going if answers[id(run)].submitted]
    if submitted:
        _finish(submitted, answers, score, say)
    return list(answers.values())


def preview(points: Sequence[Composed]) -> list[str]:
    """What :func:`launch` would do: a line a run, what the cache holds of it, and the weights all need.

    Nothing is written and no weights are loaded. What can't be told is said, not raised.
    """
    lines: list[str] = []
    needed: dict[str, None] = {}
    for point in points:
        run = planned(RunStore(point.path), point, lines.append, keep=False)
        where = f"cluster={run.cluster.kind}"
        lines.append(
            f"{point.path}: {run.samples} samples left in {run.clips} clips, {run.shards} shards, {where}"
        )
        if run.work:
            lines += _cache_hits(run)
            needed |= dict.fromkeys(_weights(run))
    return [*lines, *needed]


def _cache_hits(run: Planned) -> list[str]:
    """How many of the first expressions need no model call; nothing for a method that keeps no cache."""
    method = build_method(run.values, dataset_of(run.values))
    ready = total = clips = 0
    try:
        for clip, expressions in run.work[:_LOOKED_UP]:
            clips, total = clips + 1, total + len(expressions)
            # A model that isn't on this machine and can't be asked for has left nothing in the cache.
            with suppress(ConfigError):
                found = method.cached(clip, [expression.text for expression in expressions])
                if found is None:
                    return []
                ready += found
    except RefsegError as error:
        return [f"  cache: can't be asked: {error.what}"]
    return [f"  cache: {ready} of {total} expressions of the first {clips} clips need no model call"]


def _weights(run: Planned) -> Iterator[str]:
    """Which weights a run needs, and whether they are here."""
    for need in needs_of(run.values):
        if need.problem is not None:
            yield f"weights of {need.node}: can't tell: {need.problem.splitlines()[0]}"
        for weights in need.weights:
            try:
                status = find(weights)
            except RefsegError as error:
                yield f"weights of {need.node}: {weights.repo}: can't tell: {error.what}"
                continue
            if status.path is not None:
                told = f"here, {status.megabytes:,.0f} MB"
            else:
                offline = bool((run.values.get(need.node) or {}).get("offline"))
                size = None if offline else hub_megabytes(weights)
                told = f"missing, {'size unknown' if size is None else f'{size:,.0f} MB to fetch'}"
            yield f"weights of {need.node}: {weights.repo}: {told}"


def share_captures(runs: Sequence[Planned]) -> dict[str, Planned]:
    """Find the runs that would capture the same attention.

    A method class may offer ``capture(clip, expressions)``, which fills a cache, and
    ``capture_digest(values)``, which names what goes into it (``None`` = nothing to share). Runs with
    equal digests over the same samples share one capture.

    Returns:
        Shared digest → the run whose config the capture uses; the runs' ``capture`` is set.
    """
    groups: dict[str, list[Planned]] = {}
    for run in runs:
        cls: type[Method] = schema.locate(str(run.values["method"][schema.TARGET]), "method")
        digest = cls.capture_digest(run.values) if run.work else None
        if digest is None:
            continue
        dataset = schema.lasting(Config, {key: run.values[key] for key in ("dataset", "limit")})
        named = json.dumps([str(digest), dataset], sort_keys=True)
        groups.setdefault(hashlib.sha256(named.encode()).hexdigest()[:8], []).append(run)
    shared = {name: members for name, members in groups.items() if len(members) > 1}
    for name, members in shared.items():
        for run in members:
            run.capture = name
    return {name: max(members, key=lambda run: run.samples) for name, members in shared.items()}


def _admitted(run: Planned, answer: Launched, busy: list[Submission], say: Callable[[str], None]) -> bool:
    """Register a submission, and tell it and living ones of the same run of each other."""
    cluster = run.cluster
    kind = cluster.kind
    submission = register(run.store, run.values, kind, run.shards)
    answer.submission = submission
    # Looked at again, now that this one's record is there for others to see.
    busy = [s for s in living([run.store])[run.store.root] if s.id != submission.id] or busy
    busy = [s for s in busy if s.id != submission.id]
    older = [s for s in busy if (s.created, s.id) < (submission.created, submission.id)]
    for other in busy:
        say(f"{run.store.root}\n  also submitted: {other.told()}")
    if kind == "slurm" and older and not cluster.join:
        submission.state = "refused"
        submission.write(run.store)
        answer.error = RefsegError(
            f"The run is already being worked on: {older[0].told()}.",
            where=run.store.root,
            hint=f"Watch it with `refseg status {run.store.root}`, end it with `refseg cancel "
            f"{run.store.root}`, or add workers to it with cluster.join=true.",
        )
        return False
    if busy and kind != "slurm":
        say("  each takes clips the others have not started")
    return True


def _capture(run: Planned, answer: Launched, say: Callable[[str], None]) -> str | None:
    """Fill the attention cache that several runs read; returns the job to wait for, if it is one."""
    submission = answer.submission
    assert submission is not None
    say(f"{run.store.root}\n  captures attention once for the runs that share it (digest {run.capture})")
    if run.cluster.kind != "slurm":
        # A capture that fails is met again, and recorded, by the runs themselves.
        try:
            local.work(run, submission, say, capture=True)
        except RefsegError as error:
            say(f"  {error}")
        return None
    code = _code(run, submission, say)
    job = slurm.submit_array(run.store.root, submission.id, run.shards, run.cluster, capture=True, code=code)
    submission.jobs["capture"] = job
    submission.write(run.store)
    return job


def _submit(
    run: Planned, submission: Submission, after: str | None, score: bool, say: Callable[[str], None]
) -> None:
    code = _code(run, submission, say)
    submission.jobs["work"] = slurm.submit_array(
        run.store.root, submission.id, run.shards, run.cluster, after=after, code=code
    )
    submission.write(run.store)
    if score and run.cluster.finish:
        submission.jobs["score"] = slurm.submit_command(
            run.store.root / "log" / submission.id,
            f"score-{run.store.root.name}",
            ["score", "--after-run", "--launch", submission.id, str(run.store.root.resolve())],
            run.cluster,
            [submission.jobs["work"]],
            code,
        )
        submission.write(run.store)


def _code(run: Planned, submission: Submission, say: Callable[[str], None]) -> Path | None:
    """The copy of the code a submission runs from, where it asked for one."""
    if not run.cluster.snapshot:
        return None
    folder = run.store.root / "launches" / submission.id / "code"
    return folder if folder.is_dir() else slurm.snapshot(folder, say)


def _here(run: Planned, submission: Submission, say: Callable[[str], None]) -> Tally:
    say(f"{run.store.root}")
    if run.cluster.kind == "local":
        tally = local.work(run, submission, say)
    else:
        before = dict(run.store.index())
        for shard in range(run.shards):
            Shard(str(run.store.root), submission.id, shard, run.shards)()
        # Others may have worked on it too: what is there counts, not what was done here.
        tally = tally_of(run, before)
    _close(run.store, submission)
    if tally.elsewhere:
        census = Census()
        held = [r.owner for r in records(run.store.root) if not r.end and census.alive(r.owner)]
        if held:
            say(f"  {tally.elsewhere} samples are with {describe(held)}; who ends last scores the run")
            say(f"  if you know that it is dead, remove {run.store.root / 'claims'} and run again")
    for other in submissions(run.store.root):
        if other.id != submission.id and other.created >= submission.created:
            say(f"  also submitted meanwhile: {other.told()}")
    return tally


def _close(store: RunStore, submission: Submission) -> None:
    submission.state = "over"
    submission.write(store)


def _finish(
    runs: Sequence[Planned], answers: dict[int, Launched], score: bool, say: Callable[[str], None]
) -> None:
    """Submit the report over all runs, and say what to look at."""
    first = runs[0]
    roots = [str(run.store.root) for run in runs]
    made = [s for s in (answers[id(run)].submission for run in runs) if s is not None]
    if score and first.cluster.finish:
        try:
            report = _report(runs, made, say)
        except RefsegError as error:
            # The work is submitted all the same.
            say(f"no report job: {error}")
        else:
            for run, submission in zip(runs, made, strict=True):
                submission.jobs["report"] = report
                submission.write(run.store)
    for run, submission in zip(runs, made, strict=True):
        jobs = "  ".join(f"{role} {number}" for role, number in submission.jobs.items())
        say(f"{run.store.root}\n  {run.samples} samples in {run.shards} shards; jobs: {jobs}")
        say(f"  log: {run.store.root / 'log' / submission.id}")
    say(f"watch:  refseg status {' '.join(roots)}")
    say(f"result: refseg report {' '.join(roots)}")


def _report(runs: Sequence[Planned], made: Sequence[Submission], say: Callable[[str], None]) -> str:
    first = runs[0]
    folder = first.store.root / "log" / made[0].id
    form = ("--format", "md", "--output", str((folder / "report.md").resolve()))
    return slurm.submit_command(
        folder,
        f"report-{first.store.root.name}",
        ["report", "--after-run", *(str(run.store.root.resolve()) for run in runs), *form],
        first.cluster,
        [s.jobs["score"] for s in made if "score" in s.jobs],
        _code(first, made[0], say),
    )
