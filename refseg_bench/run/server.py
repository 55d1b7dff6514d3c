"""A chat model's server beside the workers: started once per job or machine, waited for, and ended with them.

Who uses a server holds a lock on a file of this machine; :mod:`~refseg_bench.run.supervise` ends the server
when nobody does any more, so also after `kill -9`. What asks it is in :mod:`refseg_bench.backbones.chat`.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import logging
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from refseg_bench.config.compose import Cluster, load
from refseg_bench.errors import ConfigError
from refseg_bench.files.store_io import writing
from refseg_bench.run.local import tail
from refseg_bench.run.store import job_name
from refseg_bench.run.workers import Owner

log = logging.getLogger(__name__)
T = TypeVar("T")

_WHERE, _HERE = "cluster.server", "http://127.0.0.1:"
#: How often a server that ended is started in one worker.
_STARTS = 3
#: Seconds between two looks whether it is ready, and after which a file of a lock is nobody's.
_LOOK, _OLD = 0.5, 30 * 24 * 3600.0
#: Seconds that the server of the work before may take to give its port back.
_LEAVING = 30.0


def check(values: Mapping[str, Any]) -> None:
    """Refuse early what can't serve a config.

    Raises:
        ConfigError: two servers are named, the address holds a password, or the command can't be one.
    """
    cluster, backbone = load(values).cluster, values.get("backbone") or {}
    if cluster.server is None or "url" not in backbone:
        return
    if backbone["url"]:
        raise ConfigError(
            "Two servers are named for the chat model.",
            where="backbone.url",
            hint=f"Leave out backbone.url or {_WHERE}.",
        )
    if not 0 < cluster.server_minutes < math.inf:
        raise ConfigError("A server needs some minutes.", where="cluster.server_minutes", allowed=["above 0"])
    if _is_address(cluster.server):
        if "@" in cluster.server:
            raise ConfigError(
                "The server's address holds a name or password, which would be written into the run folder.",
                where=_WHERE,
                hint="Put it into the environment, as OPENAI_BASE_URL.",
            )
        with contextlib.suppress(ValueError):
            parts = urllib.parse.urlsplit(cluster.server)
            if parts.hostname and parts.port != 0:
                return
        raise ConfigError("There is no such address.", where=_WHERE, allowed=["http://HOST:PORT/v1"])
    if not 0 <= cluster.server_port < 1 << 16:
        raise ConfigError("There is no such port.", where="cluster.server_port", allowed=["0 to 65535"])
    words = _words(cluster, "", 0)
    if not words or not (cluster.server_port or "{port}" in cluster.server):
        raise ConfigError(
            "The command has no place for the port it is to listen on." if words else "The command is empty.",
            where=_WHERE,
            allowed=["a command with {port}", "http://HOST:PORT/v1"],
            hint="{model} stands for backbone.model; cluster.server_port sets a port that the command fixes.",
        )


def served(
    values: Mapping[str, Any], launch: str, folder: Path, work: Callable[[], T], ours: bool = True
) -> T:
    """Do some work with the server that its config asks for, if it asks for one.

    Args:
        values: the config.
        launch: the submission: what its workers on one machine share.
        folder: for the server's log.
        work: is called once the server answers; again where it failed because the server has ended.
        ours: False for a config that may come from elsewhere: no command of it is run, nothing (clips, a
            key) is sent where it says; OPENAI_BASE_URL has to name the server.

    Raises:
        ConfigError: that isn't set; the server doesn't start, isn't ready in time, or ends again and again.
    """
    cluster, backbone = load(values).cluster, values.get("backbone") or {}
    if "url" not in backbone or backbone.get("offline"):
        return work()
    if not ours:
        agreed, named = os.environ.get("OPENAI_BASE_URL"), backbone["url"]
        if (cluster.server is None and not named) or (agreed and named in ("", agreed)):
            return work()
        raise ConfigError(
            "The run was frozen with a server for its chat model; here none is started, and no key sent to "
            "one, that only a folder names.",
            where="backbone.url" if named else _WHERE,
            hint=f"If you trust it: OPENAI_BASE_URL={named}"
            if named
            else "Start it beside the workers, and set OPENAI_BASE_URL to its address.",
        )
    if cluster.server is None:
        return work()
    if _is_address(cluster.server):
        _wait(_health(cluster, cluster.server), cluster.server_minutes)
        with _environment(OPENAI_BASE_URL=cluster.server):
            return work()
    owner = Owner.here(job_name(), launch)
    name, log_name = (launch, owner.host) if cluster.server_per == "node" else (owner.job, owner.job)
    path = folder / f"server-{log_name}.log"
    for start in range(_STARTS):
        with _started(cluster, str(backbone.get("model", "")), name, path) as url:
            # Where both are set, the one in small letters counts.
            known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
            quiet = ",".join(filter(None, [known, "127.0.0.1"]))
            try:
                with _environment(OPENAI_BASE_URL=url, NO_PROXY=quiet, no_proxy=quiet):
                    return work()
            except ConfigError as error:
                if _answers(_health(cluster, url)):
                    raise
                if start + 1 == _STARTS:
                    raise _ended(f"has ended {_STARTS} times", path) from error
                log.warning("the chat model's server has ended (log: %s), it is started again", path)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _started(cluster: Cluster, model: str, name: str, path: Path) -> Iterator[str]:
    """The address of the server of that name on this machine, which runs as long as anybody is in here."""
    process: subprocess.Popen[bytes] | None = None
    place = _folder() / name
    try:
        with _locked(place.with_suffix(".users")) as users:
            with _locked(place.with_suffix(".start")) as start:
                # One starts it; who comes meanwhile waits until it is ready.
                fcntl.flock(start, fcntl.LOCK_EX)
                fcntl.flock(users, fcntl.LOCK_SH)
                port = int(os.pread(start, 16, 0) or 0)
                # One that is busy may keep a caller waiting; one that is gone refuses at once.
                if not (port and any(_answers(_health(cluster, _address(port))) for _ in range(3))):
                    port = cluster.server_port or _free_port()
                    with _locked(_folder() / f"{port}.port") as held:
                        _end_left_over(place.with_suffix(".users"))
                        _take(port, held)
                        words = _words(cluster, model, port)
                        process = _start(words, place.with_suffix(".users"), path, held)
                    _wait(_health(cluster, _address(port)), cluster.server_minutes, process, path)
                    os.ftruncate(start, 0)
                    os.pwrite(start, str(port).encode(), 0)
            yield _address(port)
    finally:
        # On a cluster the server ends with the job that started it: others of the machine may need it still.
        shared = cluster.kind == "local" and cluster.server_per == "node"
        if process is not None and not shared and process.wait() == -signal.SIGKILL:
            _end_left_over(place.with_suffix(".users"))


def _end_left_over(lock: Path) -> None:
    """End what a server has started whose supervisor was killed: it may hold the accelerator's memory."""
    name, left = str(lock).encode(), list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if name in (folder / "cmdline").read_bytes().split(b"\0"):
                return  # the supervisor is there: a busy server may keep callers waiting
            if b"REFSEG_SERVER=" + name in (folder / "environ").read_bytes().split(b"\0"):
                left.append(int(folder.name))
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _take(port: int, held: int) -> None:
    """Wait until the port is free, and lock it: else another's server would be taken for this one."""
    deadline = time.monotonic() + _LEAVING
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            socket.create_server(("", port)).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"The chat model's server can't have port {port} ({error.strerror}).",
                    where="cluster.server_port",
                    hint="0 takes a free one; cluster.server_per=node shares one server among its workers.",
                ) from None
        time.sleep(_LOOK)


def _start(words: list[str], lock: Path, path: Path, held: int) -> subprocess.Popen[bytes]:
    supervise = [sys.executable, "-I", str(Path(__file__).with_name("supervise.py")), str(lock), *words]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as out:
            return subprocess.Popen(
                supervise,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                pass_fds=(held,),  # the port's lock, as long as the server runs
            )


def _wait(
    health: str, minutes: float, process: subprocess.Popen[bytes] | None = None, path: Path | None = None
) -> None:
    """Return once the server answers; refuse one that ended before, or takes too long."""
    deadline = time.monotonic() + 60 * minutes
    while True:
        ready = _answers(health)
        if process is not None and process.poll() is not None:
            # What answers then is another's.
            raise _ended(f"ended with code {process.returncode} before it was ready", path)
        if ready:
            return
        if time.monotonic() > deadline:
            raise ConfigError(
                f"The chat model's server is not ready after cluster.server_minutes={minutes:g}."
                + (f" It said last:\n{tail(path)}" if path else ""),
                where=path or health,
                hint="cluster.server_minutes waits longer; cluster.server_health is the path that is asked.",
            )
        time.sleep(_LOOK)


def _ended(how: str, path: Path | None) -> ConfigError:
    said = tail(path) if path else ""
    return ConfigError(
        f"The chat model's server {how}. It said last:\n{said}", where=path, hint=f"Try {_WHERE} by hand."
    )


def _answers(health: str) -> bool:
    # Asked the way that the work will ask it.
    proxies = urllib.request.ProxyHandler({} if health.startswith(_HERE) else None)
    try:
        with urllib.request.build_opener(proxies).open(health, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it runs, and wants the key
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _health(cluster: Cluster, address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/{cluster.server_health.lstrip('/')}"


def _address(port: int) -> str:
    return f"{_HERE}{port}/v1"


def _is_address(server: str) -> bool:
    return server.startswith(("http://", "https://"))


def _words(cluster: Cluster, model: str, port: int) -> list[str]:
    try:
        words = shlex.split(cluster.server or "")
    except ValueError as error:
        raise ConfigError(f"The command can't be read: {error}.", where=_WHERE) from None
    return [word.replace("{port}", str(port)).replace("{model}", model) for word in words]


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def _folder() -> Path:
    """Where this user's locks of this machine lie, away from the run folder, which may be another's disk."""
    folder = Path(tempfile.gettempdir()) / f"refseg-{os.getuid()}"
    with writing(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
        if not folder.is_dir() or folder.is_symlink() or state.st_uid != os.getuid() or state.st_mode & 0o77:
            raise ConfigError(
                "The folder for locks is not this user's alone.", where=folder, hint="Set TMPDIR to another."
            )
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _OLD:
                    path.unlink()
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A file to lock; closing it gives the lock back."""
    with writing(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
