"""A real SLURM of three nodes for the whole session, brought up by ``cluster.sh``."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.runs import HANGS, environment

SCRIPT = Path(__file__).with_name("cluster.sh")


class Slurm:
    """The throw-away cluster."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.environment = {"SLURM_TEST_DIR": str(folder), "BASE_PORT": str(port), "NODES": "3", "CPUS": "12"}

    def script(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Daemons inherit the pipes: output goes to a file, or we would wait for them.
        with tempfile.TemporaryFile("w+") as out:
            done = subprocess.run(
                [str(SCRIPT), *arguments], stdout=out, stderr=out, env={**os.environ, **self.environment}
            )
            out.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, out.read(), "")

    def tell(self, *command: str) -> str:
        """A SLURM client's answer."""
        return subprocess.run(command, capture_output=True, text=True, timeout=HANGS).stdout

    def tasks(self, job: str) -> dict[str, str]:
        """Array task → state, of an array that is not over."""
        text = self.tell("squeue", "-h", "-r", "-j", job, "-o", "%K %T")
        return dict(line.split() for line in text.splitlines() if len(line.split()) == 2)

    def release(self) -> None:
        """Re-queued jobs wait two minutes for their turn; not in a test."""
        for line in self.tell("squeue", "-h", "-r", "-t", "PD", "-o", "%A %r").splitlines():
            job, reason = line.split(maxsplit=1)
            if "BeginTime" in reason:
                subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True)

    def wait(self, condition, every: float = 0.3):
        deadline = time.monotonic() + HANGS
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited too long:\n{self.tell('squeue')}\n{self.tell('sinfo', '-N')}")
            self.release()
            time.sleep(every)
        return value


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if os.geteuid() != 0:
        pytest.skip("NO SLURM TESTS: a throw-away SLURM needs root (tests/slurm/cluster.sh)")
    cluster = Slurm(Path(tempfile.mkdtemp(prefix="refseg-slurm-")), free_port())
    installed = cluster.script("install")
    if shutil.which("slurmctld") is None or shutil.which("munged") is None:
        pytest.skip(f"NO SLURM TESTS: the Debian packages can't be installed\n{installed.stdout}")
    before = dict(os.environ)
    try:
        started = cluster.script("up")
        assert started.returncode == 0, started.stdout
        os.environ["SLURM_CONF"] = str(cluster.folder / "slurm.conf")
        # Jobs inherit this process's environment, and must find the package and its tests.
        os.environ.update(environment())
        yield cluster
    finally:
        cluster.script("down")
        os.environ.clear()
        os.environ.update(before)


def free_port() -> int:
    """The first of five ports in a row that nobody listens on."""
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        taken = False
        for offset in range(5):
            with socket.socket() as probe:
                taken = taken or probe.connect_ex(("127.0.0.1", port + offset)) == 0
        if not taken:
            return port
