from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from refseg_bench.files.store_io import read_record, sealed
from refseg_bench.run import workers
from refseg_bench.run.workers import BEAT, SILENCE, Census, Desk, JobState, Owner, forget, lives, records


def owner(job: str, launch: str = "L", **changes) -> Owner:
    return replace(Owner.here(job, launch), **changes)


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def leave(root: Path, who: Owner, *clips: str) -> None:
    """Claims of a process that was killed: it never got to end its record."""
    desk = Desk(root, who)
    with desk:
        for clip in clips:
            assert desk.take(clip)
        kept = desk.record.read_text()
    desk.record.write_text(kept)


def test_a_clip_is_taken_once(tmp_path: Path) -> None:
    with Desk(tmp_path, owner("a")) as a, Desk(tmp_path, owner("b")) as b:
        assert a.take("x/y")
        assert not b.take("x/y")
        assert b.take("z")
        assert not a.take("z")


def test_a_run_removed_meanwhile_gets_no_half_record(tmp_path: Path) -> None:
    with Desk(tmp_path, owner("a")) as a:
        a.record.unlink()  # and the same command has made the folder again
    assert not a.record.exists()


@pytest.mark.parametrize("links", [True, False])
def test_of_many_at_once_one_gets_it(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise OSError(1, "no links here")

        monkeypatch.setattr(workers.os, "link", refuse)
    desks = [Desk(tmp_path, owner(f"j{i}")).__enter__() for i in range(8)]
    won: list[tuple[int, int]] = []
    gate = threading.Barrier(len(desks))

    def work(i: int) -> None:
        gate.wait()
        for clip in range(25):
            if desks[i].take(f"clip{clip}"):
                won.append((clip, i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(desks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(clip for clip, _ in won) == list(range(25))
    for desk in desks:
        desk.__exit__(None, None, None)


def test_a_claim_of_a_dead_process_of_this_machine_is_taken_over(tmp_path: Path) -> None:
    leave(tmp_path, owner("a", pid=dead_pid()), "x")
    with Desk(tmp_path, owner("b")) as b, Desk(tmp_path, owner("c")) as c:
        assert b.take("x")
        assert not c.take("x")


def test_a_reused_process_id_is_not_the_owner(tmp_path: Path) -> None:
    me = Owner.here("a", "L")
    assert lives(me.pid, me.born)
    assert not lives(me.pid, me.born + 1)
    leave(tmp_path, owner("a", pid=os.getppid(), born=1), "x")
    with Desk(tmp_path, owner("b")) as b:
        assert b.take("x")


def test_a_reboot_ends_all_claims_of_the_machine(tmp_path: Path) -> None:
    leave(tmp_path, owner("a", boot="another"), "x")
    with Desk(tmp_path, owner("b")) as b:
        assert b.take("x")


def test_within_a_submission_a_clip_is_tried_once_and_by_the_next_again(tmp_path: Path) -> None:
    with Desk(tmp_path, owner("a", "first")) as a:
        assert a.take("x")
    with Desk(tmp_path, owner("b", "first")) as b:
        assert not b.take("x")
    with Desk(tmp_path, owner("c", "second")) as c:
        assert c.take("x")


def test_a_process_that_ends_badly_leaves_its_clips(tmp_path: Path) -> None:
    desk = Desk(tmp_path, owner("a"))
    with suppress(RuntimeError), desk:
        assert desk.take("x")
        raise RuntimeError
    with Desk(tmp_path, owner("b")) as b:
        assert b.take("x")


@pytest.mark.parametrize(
    ("answer", "taken"),
    [
        ({}, True),  # SLURM has forgotten the job
        ({"7": JobState("RUNNING", 0)}, False),
        ({"7": JobState("COMPLETING", 0)}, False),
        ({"7": JobState("PENDING", 1)}, True),  # re-queued: that process is gone
        ({"7": JobState("RUNNING", 1)}, True),  # already running again elsewhere
        (None, False),  # SLURM can't be asked: no clock decides
    ],
)
def test_slurm_decides_about_a_claim_on_another_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, JobState] | None, taken: bool
) -> None:
    leave(tmp_path, owner("a", host="elsewhere", slurm="7"), "x", "y")
    old = records(tmp_path)[0]
    os.utime(old.path, (0, 0))
    asked: list[list[str]] = []

    def queued(ids):
        asked.append(list(ids))
        return answer

    monkeypatch.setattr(workers, "queued", queued)
    with Desk(tmp_path, owner("b")) as b:
        assert b.take("x") is taken
        assert b.take("y") is taken
    assert asked == [["7"]], "SLURM is asked once for a while"


def test_slurm_is_asked_once_for_all_processes_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "launches/L").mkdir(parents=True)
    for number in range(5):
        leave(tmp_path, owner(f"a{number}", host="elsewhere", slurm=str(70 + number)), f"clip{number}")
    asked: list[set[str]] = []

    def queued(ids):
        asked.append(set(ids))
        return {"72": JobState("RUNNING", 0), "75": JobState("RUNNING", 0)}

    monkeypatch.setattr(workers, "queued", queued)
    with Desk(tmp_path, owner("b")) as b:
        assert [b.take(f"clip{number}") for number in range(5)] == [True, True, False, True, True]
        assert asked == [{"70", "71", "72", "73", "74"}]
        # A process that came later is not judged by what was asked before.
        leave(tmp_path, owner("late", host="elsewhere", slurm="75"), "clip5")
        assert not b.take("clip5")
    assert len(asked) == 1
    # Another process of the submission takes the answer, unless it is damaged, old or of the future.
    told = tmp_path / "launches/L/queue.json"
    assert [path.name for path in told.parent.iterdir()] == [told.name]
    record = read_record(told)
    leave(tmp_path, owner("a6", host="elsewhere", slurm="72"), "clip6")
    with Desk(tmp_path, owner("c")) as c:
        assert not c.take("clip6")
    for number, text in enumerate(
        (
            "{",
            sealed({**record, "when": 0}),
            sealed({**record, "when": time.time() + 99}),
            sealed({"when": 1}),
        )
    ):
        assert len(asked) == 1 + number
        told.write_text(text)
        with Desk(tmp_path, owner(f"d{number}")) as d:
            assert not d.take("clip2")
    told.write_text("{")
    for minute in (0, 1):  # this one may be over at once
        (told.parent / f"queue-{int(time.time() // 60) + minute}.lock").touch()
    with Desk(tmp_path, owner("e")) as e:
        assert not e.take("clip2"), "while another asks, all are taken to live"
    assert len(asked) == 5


def test_where_nobody_can_be_asked_a_long_silence_stands_in() -> None:
    far = owner("a", host="elsewhere")
    assert Census().alive(far, silent=SILENCE / 2)
    assert not Census().alive(far, silent=SILENCE * 2)


def test_another_container_on_this_machine_is_not_judged_by_its_process_id() -> None:
    assert Census().alive(owner("a", space="pid:[1]", pid=dead_pid()))


def test_a_worker_sees_that_it_was_given_up(tmp_path: Path) -> None:
    with Desk(tmp_path, owner("a")) as a:
        assert a.take("x")
        assert not a.lost
        with Desk(tmp_path, owner("b"), Census()) as b:
            b.census.alive = lambda *_: False  # type: ignore[method-assign]
            assert b.take("x")
        assert a.lost


@pytest.mark.parametrize("again", [False, True])
def test_so_does_one_whose_claim_was_dropped(tmp_path: Path, again: bool) -> None:
    """All was done while it stood still, or somebody removed the claims of a dead machine."""
    with Desk(tmp_path, owner("a")) as a, Desk(tmp_path, owner("b")) as b:
        assert a.take("x")
        forget(tmp_path, Census())
        assert not a.lost, "it is at work"
        a.census.alive = lambda *_: False  # type: ignore[method-assign]
        forget(tmp_path, a.census)
        assert not again or (b.take("x") and not b.lost)
        assert a.lost


def test_signs_of_life_go_on_whatever_is_told_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats, asked = iter([False, False, True]), []

    def now() -> str:
        asked.append(1)
        raise ValueError("I/O operation on closed file")

    desk = Desk(tmp_path, owner("a"))
    desk.now = now
    monkeypatch.setattr(desk, "_over", SimpleNamespace(wait=lambda seconds: next(beats)))
    (tmp_path / "jobs").mkdir()
    desk.record.touch()
    desk._beat()
    assert len(asked) == 2


def test_records_tell_the_time_and_the_gpus(tmp_path: Path) -> None:
    with Desk(tmp_path, owner("a", gpus=4)) as a:
        a.finish(done=3, failed=1)
    (record,) = records(tmp_path)
    assert record.end.done == 3
    assert record.gpu_hours == pytest.approx(4 * record.end.seconds / 3600)
    forget(tmp_path)
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_clock_that_is_set_changes_no_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Desk(tmp_path, owner("a", gpus=4)):
        monkeypatch.setattr(workers.time, "time", lambda: 4e9)
    (record,) = records(tmp_path)
    assert 0 <= record.gpu_hours < 1


def test_a_record_that_is_being_written_is_nobodys_claim(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims/x.0").write_text('{"job": "a", ')
    with Desk(tmp_path, owner("b")) as b:
        assert not b.take("x")


def test_a_claim_that_was_never_written_whole_is_nobodys_after_a_while(tmp_path: Path) -> None:
    with Desk(tmp_path, owner("a")) as desk:
        torn = tmp_path / "claims" / "x.0"
        torn.write_text("")
        assert not desk.take("x")
        os.utime(torn, (torn.stat().st_mtime - 2 * BEAT - 1,) * 2)
        assert desk.take("x")
        assert (tmp_path / "claims" / "x.1").exists()


def test_owners_name_themselves() -> None:
    assert "SLURM job 9" in workers.describe([owner("a", slurm="9")])
    assert str(os.getpid()) in workers.describe([owner("a", slurm=None)])
