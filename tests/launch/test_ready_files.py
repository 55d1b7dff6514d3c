"""The files that docs/cluster.md hands out: by the engines' own schemas, and by what a worker promises."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from refseg_bench.run.worker import DRAIN, PARTS

FILES = Path(__file__).resolve().parents[2] / "docs" / "cluster"


def job() -> dict[str, Any]:
    """The Kubernetes manifest."""
    return yaml.safe_load((FILES / "kubernetes.yaml").read_text())


def test_the_manifest_is_one_by_kubernetes_own_schema() -> None:
    kubernetes = pytest.importorskip(
        "kubernetes_validate", reason="NO KUBERNETES SCHEMA: pip install -e '.[dev]'"
    )
    kubernetes.validate(job(), kubernetes.latest_version(), strict=True)
    wrong = job()
    wrong["spec"]["podFailurePolicy"]["rules"][0]["onExitCode"] = {}
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(wrong, kubernetes.latest_version(), strict=True)


def test_the_manifest_goes_by_what_a_worker_says_and_takes() -> None:
    spec = job()["spec"]
    pod = spec["template"]["spec"]
    (worker,) = pod["containers"]
    told = {each["name"]: each["value"] for each in worker["env"]}
    assert int(told[PARTS["JOB_COMPLETION_INDEX"]]) == spec["completions"] >= spec["parallelism"]
    assert pod["terminationGracePeriodSeconds"] > DRAIN
    # What the API server asks of a policy, beyond the schema.
    assert pod["restartPolicy"] == "Never"
    assert spec["completionMode"] == "Indexed"
    assert "backoffLimitPerIndex" in spec
    codes = {
        rule["action"]: rule["onExitCodes"]
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert {action: code["values"] for action, code in codes.items()} == {"FailIndex": [2], "Ignore": [75]}
    assert all(code["containerName"] == worker["name"] for code in codes.values())
    assert worker["command"][:2] == ["refseg", "work"]
    mounted = {mount["name"] for mount in worker["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_skypilot_file_goes_by_what_a_worker_says() -> None:
    # SkyPilot needs older versions of two packages: `make skypilot` has its loader read the file.
    task = yaml.safe_load((FILES / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert subprocess.run(["sh", "-n", "-c", task["run"]], check=False).returncode == 0


def test_the_script_is_one_that_a_shell_can_read() -> None:
    script = FILES / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    left = re.search(r"--signal=TERM@(\d+)", script.read_text())
    assert left is not None
    assert int(left[1]) > DRAIN
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", str(script)], check=False).returncode == 0
