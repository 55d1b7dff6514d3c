"""``cluster=slurm``: one array per run through submitit, then score and report as dependent CPU jobs."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from refseg_bench import env
from refseg_bench.config import searchpath
from refseg_bench.config.compose import Cluster
from refseg_bench.errors import RefsegError, printable, require, some
from refseg_bench.files.store_io import write_atomic, writing
from refseg_bench.run.shards import Planned
from refseg_bench.run.worker import Command, Shard


def check(cluster: Cluster) -> None:
    """Refuse early what can't or shouldn't be submitted.

    Raises:
        MissingExtra: submitit is not installed.
        RefsegError: there is no SLURM here, or the code has uncommitted changes.
    """
    require("submitit", "cluster=slurm")
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise RefsegError(
            "There is no SLURM here: sbatch and srun are not on the PATH.",
            hint="Submit from a login node, or use cluster=local or cluster=debug.",
        )
    changed = changes()
    if changed and not cluster.allow_dirty:
        raise RefsegError(
            "The code has changes that no commit holds, so the results could not be traced to it.",
            where=some(changed, 8),
            hint="Commit them, or add cluster.allow_dirty=true (the run then records the diff's hash).",
        )


def changes() -> list[str]:
    """Files of the package and its configs that differ from the last commit."""
    told = env.git("status", "--porcelain", "--", "refseg_bench", "conf") or ""
    return [line[3:] for line in told.splitlines()]


def snapshot(folder: Path, say: Callable[[str], None]) -> Path:
    """Copy the checkout's tracked files, so that later edits don't reach jobs that are still queued.

    What git doesn't track (data sets, notes, new code) stays behind, and is said.

    Raises:
        RefsegError: the package does not run from a git checkout, or the copy can't be written.
    """
    told = env.git("ls-files", "-z")
    if told is None:
        raise RefsegError(
            "cluster.snapshot needs a git checkout.", where=env.HOME, hint="Set cluster.snapshot=false."
        )
    tracked = told.split("\0")[:-1]
    others = env.git("ls-files", "-z", "--others", "--exclude-standard", "--directory") or ""
    left_out = others.split("\0")[:-1]
    with writing(folder):
        for name in tracked:
            source = env.HOME / name
            if source.is_file():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        # The copy is no checkout: what its results are traced to goes with it.
        write_atomic(folder / env.ORIGIN, json.dumps(env.commit()) + "\n")
    if left_out:
        names = printable(some(left_out, 8))
        say(f"  the snapshot leaves out what git does not track: {names} (git add what the jobs need)")
    return folder


def submit_array(
    run: Planned, code: Path | None = None, *, capture: bool = False, after: str | None = None
) -> str:
    """Submit all shards of a run as one array; returns its job id.

    ``code``: a snapshot to run from; ``after``: id of a job that must have ended first, well or not.
    """
    cluster, root = run.cluster, run.store.root.resolve()
    options = {
        "job_name": f"{'capture' if capture else 'work'}-{root.name}",
        "partition": cluster.partition,
        "time": cluster.minutes,
        "mem": None if cluster.mem_gb is None else f"{int(cluster.mem_gb * 1024)}M",
        "gpus_per_node": cluster.gpus or None,
        "array_parallelism": cluster.parallel or run.shards,
    }
    jobs = [Shard(str(root), run.record.id, shard, run.shards, capture) for shard in range(run.shards)]
    return _submit(run, {**_common(cluster, after, code), **options}, jobs)


def submit_command(
    run: Planned, name: str, arguments: Sequence[str], after: Sequence[str], code: Path | None = None
) -> str:
    """Submit `refseg ARGUMENTS` as a job without a GPU, once other jobs have ended; returns its id."""
    cluster = run.cluster
    options = {
        "job_name": name,
        "partition": cluster.cpu_partition or cluster.partition,
        "time": cluster.cpu_minutes,
    }
    common = _common(cluster, ":".join(after) or None, code)
    return _submit(run, {**common, **options}, [Command(tuple(arguments))])


def _common(cluster: Cluster, after: str | None, code: Path | None) -> dict[str, Any]:
    setup = list(cluster.setup)
    if searchpath.SEARCHPATH in os.environ:
        # What the submitting command named may be built by its jobs.
        setup.append(f"export {searchpath.SEARCHPATH}={shlex.quote(os.environ[searchpath.SEARCHPATH])}")
    if cluster.conda is not None:
        setup += ['eval "$(conda shell.bash hook)"', f"conda activate {shlex.quote(cluster.conda)}"]
    if code is not None:
        # Without safe path, `python -m` would look for the package in the current folder first.
        setup += [
            "export PYTHONSAFEPATH=1",
            f'export PYTHONPATH={shlex.quote(str(code.resolve()))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        ]
    return {
        "cpus_per_task": cluster.cpus,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "nodelist": cluster.nodelist,
        "exclude": cluster.exclude,
        "signal_delay_s": cluster.signal_seconds,
        "stderr_to_stdout": True,
        "setup": setup or None,
        "dependency": None if after is None else f"afterany:{after}",
        # Without it a site may set jobs of failed nodes aside instead of starting them again.
        "additional_parameters": {
            "requeue": True,
            # An option without a value is a flag.
            **{name: value or True for name, value in cluster.extra.items()},
        },
    }


def _python(cluster: Cluster) -> str | None:
    inside = cluster.conda is not None or cluster.container is not None
    program = cluster.python or ("python" if inside else None)
    if program is None:
        return None
    return f"{cluster.container} {program}" if cluster.container else program


def _submit(run: Planned, options: Mapping[str, Any], jobs: Sequence[Any]) -> str:
    import submitit

    folder = run.log.resolve()
    executor = submitit.SlurmExecutor(
        folder, max_num_timeout=run.cluster.requeues, python=_python(run.cluster)
    )
    executor.update_parameters(**{key: value for key, value in options.items() if value is not None})
    told = io.StringIO()  # submitit prints what sbatch says of a refusal, too
    try:
        with redirect_stderr(told), executor.batch():
            submitted = [executor.submit(job) for job in jobs]
        return str(submitted[0].job_id).split("_")[0]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        said = "; ".join(str(error).strip().replace("sbatch: error: ", "").splitlines())
        raise RefsegError(
            f"sbatch refused {options['job_name']}: {said}",
            hint="Check cluster.partition, account, qos, gpus and minutes against `sinfo` and `sacctmgr`.",
        ) from error
