"""A chat model's server beside the workers: started, shared, ended with them, whatever ends them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from refseg_bench.backbones.weights import shipped
from refseg_bench.cli import main
from refseg_bench.config.compose import Cluster
from refseg_bench.errors import ConfigError
from refseg_bench.run import server
from refseg_bench.run.store import runs_in
from tests.launch.runs import CONF, HANGS, alive, refseg, reserved, wait_for
from tests.quick import needs

pytestmark = needs("openai")
SCRIPT = Path(__file__).with_name("chat_server.py")


def command(folder: Path, *more: object) -> str:
    return " ".join([sys.executable, str(SCRIPT), "{port}", str(folder), *map(str, more)])


def words(folder: Path, serve: str, *more: str, clips: int = 2) -> list[str]:
    """A run of boxes on grey frames, two expressions a clip."""
    return [
        *(f"hydra.searchpath=[file://{CONF}]", "dataset=fake", f"dataset.root={folder / 'data'}"),
        *(f"dataset.n_clips={clips}", "dataset.n_expressions=2", "method=mllm_box", "backbone=chat"),
        *("backbone.model=tiny", "backbone.retries=0", "segmenter=grabcut", f"cluster.server='{serve}'"),
        *(f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}", *more),
    ]


def started(folder: Path) -> list[tuple[int, int]]:
    """Process and helper of every server that was started."""
    return [(int(a), int(b)) for a, b in (p.name.split("-")[1:] for p in sorted(folder.glob("started-*")))]


def gone(folder: Path) -> bool:
    return wait_for(lambda: not any(alive(pid) for pair in started(folder) for pid in pair), every=0.01)


def done(folder: Path) -> int:
    (store,) = runs_in(folder / "runs")
    return len(store.done())


@pytest.fixture(autouse=True)
def _no_server_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.mark.slow
def test_it_serves_the_run_and_ends_with_it(tmp_path: Path) -> None:
    assert main(["run", *words(tmp_path, command(tmp_path)), "--no-html"]) == 0
    assert done(tmp_path) == 4
    assert len(started(tmp_path)) == 1
    assert gone(tmp_path)
    assert "OPENAI_BASE_URL" not in os.environ
    (log,) = tmp_path.glob("runs/*/log/*/server-*.log")
    assert "here I am" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("per", ["node", "job"])
def test_workers_share_one_or_have_their_own(tmp_path: Path, per: str) -> None:
    local = ["cluster=local", "cluster.shards=2", "cluster.parallel=2", f"cluster.server_per={per}"]
    run = refseg("run", *words(tmp_path, command(tmp_path), *local, clips=4), "--no-html", cwd=tmp_path)
    told = run.communicate(timeout=HANGS)
    assert run.returncode == 0, told
    assert done(tmp_path) == 8
    assert len(list(tmp_path.glob("runs/*/log/*/server-*.log"))) == (1 if per == "node" else 2)
    assert not (tmp_path / "together").exists() or per == "job"
    assert gone(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("per", ["node", "job"])
def test_kill_9_of_everything_ends_it(tmp_path: Path, per: str) -> None:
    local = ["cluster=local", "cluster.shards=2", "cluster.parallel=2", f"cluster.server_per={per}"]
    run = refseg("run", *words(tmp_path, command(tmp_path), *local, clips=40), "--no-html", cwd=tmp_path)
    wait_for(lambda: list(tmp_path.glob("asked-*")) or run.poll() is not None)
    assert list(tmp_path.glob("asked-*")), run.communicate()
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert gone(tmp_path)


@pytest.mark.slow
def test_one_that_ends_at_work_is_started_again(tmp_path: Path) -> None:
    assert main(["run", *words(tmp_path, command(tmp_path, 2)), "--no-html"]) == 0
    assert done(tmp_path) == 4
    assert len(started(tmp_path)) == 2
    assert gone(tmp_path)


@pytest.mark.slow
def test_kill_9_of_its_supervisor_ends_it_too(tmp_path: Path) -> None:
    cluster = Cluster(server=command(tmp_path))
    known: set[tuple[int, int]] = set()
    for _ in range(2):
        with server._started(cluster, "tiny", f"{tmp_path.name}-left", tmp_path / "log"):
            ((serving, helper),) = {*started(tmp_path)} - known
            known = {*started(tmp_path)}
            supervisor = int(Path(f"/proc/{serving}/stat").read_text().rpartition(")")[2].split()[1])
            server._end_left_over((server._folder() / f"{tmp_path.name}-left").with_suffix(".users"))
            assert alive(serving), "nothing is left over of one that is supervised"
            os.kill(supervisor, signal.SIGKILL)
            assert alive(helper)
    assert gone(tmp_path)


@pytest.mark.slow
def test_no_proxy_of_the_machine_stands_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org")
    assert main(["run", *words(tmp_path, command(tmp_path), clips=1), "--no-html"]) == 0
    assert done(tmp_path) == 2
    assert os.environ["no_proxy"] == "example.org"


@pytest.mark.slow
def test_nobody_elses_server_is_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_LEAVING", 0.0)
    with reserved() as port:
        cluster = Cluster(server=command(tmp_path), server_port=port)
        for _ in range(2):
            with server._started(cluster, "tiny", f"{tmp_path.name}-first", tmp_path / "log"):
                other = server._started(cluster, "large", f"{tmp_path.name}-second", tmp_path / "log")
                with pytest.raises(ConfigError, match=f"can't have port {port}"), other:
                    pass
            assert gone(tmp_path)
    assert len(started(tmp_path)) == 2


def test_an_answer_of_another_kind_is_no_readiness() -> None:
    def greet(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-other\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=greet, args=[listening])
        thread.start()
        assert not server._answers(f"http://127.0.0.1:{listening.getsockname()[1]}/v1/models")
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("serve", "minutes", "told"),
    [
        (f"{sys.executable} -c \"print('no memory'); raise SystemExit(7)\" {{port}}", 10.0, "no memory"),
        ("no-such-program {port}", 10.0, "before it was ready"),
        ("sleep 600 {port}", 0.02, "not ready after"),
    ],
)
def test_one_that_never_answers_is_told(tmp_path: Path, serve: str, minutes: float, told: str) -> None:
    cluster = Cluster(server=serve, server_minutes=minutes)
    with (
        pytest.raises(ConfigError, match=told),
        server._started(cluster, "tiny", tmp_path.name, tmp_path / "log"),
    ):
        pass


@pytest.mark.slow
def test_one_that_runs_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[subprocess.Popen[bytes]] = []
    answers = server._answers

    def asked(health: str) -> bool:
        """Starts it after the first look."""
        found = answers(health)
        if not others:
            assert not found
            port = health.rpartition(":")[2].partition("/")[0]
            others.append(subprocess.Popen([sys.executable, SCRIPT, port, tmp_path]))
        return found

    monkeypatch.setattr(server, "_answers", asked)
    with reserved() as port:
        try:
            assert main(["run", *words(tmp_path, f"http://127.0.0.1:{port}/v1"), "--no-html"]) == 0
            assert done(tmp_path) == 4
            assert others[0].poll() is None
        finally:
            for other in others:
                other.kill()
                other.wait()
            for _, helper in started(tmp_path):
                os.kill(helper, signal.SIGKILL)


@pytest.mark.parametrize(
    ("serve", "more", "told"),
    [
        ("serve --port {port}", "backbone.url=http://x/v1", "Two servers"),
        ("http://me:secret@host/v1", "", "would be written"),
        ("serve", "", "no place for the port"),
        ("serve \"{port}", "", "can't be read"),
        (" ", "", "is empty"),
        ("http://host/v1", "cluster.server_minutes=nan", "needs some minutes"),
        ("http://host:port/v1", "", "no such address"),
        ("https:///v1", "", "no such address"),
        ("serve {port}", "cluster.server_port=70000", "no such port"),
    ],
)  # fmt: skip
def test_what_can_be_no_server_is_refused_before_anything_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], serve: str, more: str, told: str
) -> None:
    assert main(["run", *words(tmp_path, serve, *filter(None, [more]))]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_no_command_that_a_folder_names_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--freeze", *words(tmp_path, command(tmp_path))]) == 0
    (store,) = runs_in(tmp_path / "runs")
    assert main(["work", str(store.root)]) == 2
    assert "here none is started" in capsys.readouterr().err
    assert started(tmp_path) == []


@pytest.mark.slow
def test_nothing_is_sent_to_a_server_that_only_a_folder_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder from elsewhere could ask for any variable of the environment as its key."""
    monkeypatch.setenv("A_SECRET", "s3cret")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        asked = [f"backbone.url={url}", "backbone.key_variable=A_SECRET", "cluster.server=null"]
        assert main(["run", "--freeze", *words(tmp_path, "", *asked, clips=1)]) == 0
        (store,) = runs_in(tmp_path / "runs")
        for elsewhere in ("", "http://127.0.0.1:1/v1"):
            monkeypatch.setenv("OPENAI_BASE_URL", elsewhere)
            assert main(["work", str(store.root)]) == 2
            assert f"OPENAI_BASE_URL={url}" in capsys.readouterr().err
        with pytest.raises(BlockingIOError):
            listening.accept()
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    assert main(["work", str(store.root)]) == 2
    assert "No answer from the chat model's server" in capsys.readouterr().err


@pytest.mark.slow
def test_transformers_own_server(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("transformers")
    serve = f"{program} serve {{model}} --port {{port}} --host 127.0.0.1 --device cpu --dtype float32"
    model = shipped("tiny_mllm")
    more = [f"backbone.model={model}", "backbone.max_tokens=8", "method.tries=1", "cluster.server_minutes=5"]
    # The tiny model never learned to write boxes: its words are kept with the failure.
    assert main(["run", *words(tmp_path, serve, *more, clips=1), "--no-html", "--no-score"]) == 1
    (store,) = runs_in(tmp_path / "runs")
    failures = list(store.failures())
    assert len(failures) == 2
    assert all(turn["reply"] for p in failures for turn in p.details["conversation"])
    assert store.cost()["answer_tokens"] > 0
