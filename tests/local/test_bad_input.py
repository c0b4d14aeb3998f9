"""Bad input through `sftjob run`: the same cases, reasons and words as on the real cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bad_inputs
import tiny
from machine import skip_or_fail

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


def run(folder: Path, name: str, spec: dict) -> subprocess.CompletedProcess[str]:
    spec = {**spec, "workers": {"nodes": 2, "gpusPerNode": 0}, "workspace": {"claimName": "workspace"}}
    manifest = {
        "apiVersion": "sftjob.dev/v1alpha1",
        "kind": "SFTJob",
        "metadata": {"name": name},
        "spec": spec,
    }
    file = folder / "job.yaml"
    file.write_text(json.dumps(manifest))  # JSON is YAML
    words = ["run", str(file), "--workspace", str(folder / "workspace"), "--state", str(folder / "state")]
    command = [sys.executable, "-m", "sftjob_operator.cli.app", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, env={**os.environ, "COLUMNS": "400"}
    )


def objects(folder: Path, kind: str) -> list[dict]:
    found = [json.loads(file.read_text()) for file in (folder / "state" / "objects").rglob("*.json")]
    return [item for item in found if item.get("kind") == kind]


@pytest.mark.parametrize("case", bad_inputs.CASES, ids=lambda case: case.name)
def test_bad_input_is_one_condition_with_the_place_and_the_fix(case: bad_inputs.Case, tmp_path: Path):
    (tmp_path / "workspace" / "datasets").mkdir(parents=True)
    bad_inputs.furnish(tmp_path / "workspace")
    case.arrange(tmp_path / "workspace")
    done = run(tmp_path, case.name, bad_inputs.spec(case))
    assert done.returncode in (1, 2), done.stdout + done.stderr
    (job,) = objects(tmp_path, "SFTJob")
    found = next(one for one in job["status"]["conditions"] if one["type"] == case.condition)
    assert found["status"] == ("False" if case.condition == "Accepted" else "True")
    assert found["reason"] == case.reason, found
    for word in case.words:
        assert word in found["message"]
        assert word in " ".join(done.stdout.split()), "the person at the terminal reads it too"
    assert "Traceback" not in done.stdout + done.stderr
    codes = [
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
        for pod in objects(tmp_path, "Pod")
    ]
    assert codes == ([] if case.exit_code is None else [case.exit_code])


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small tmpfs")
def test_a_full_volume_is_said_and_not_retried(tmp_path: Path):
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(workspace)], check=False
    )
    if mounted.returncode != 0:
        skip_or_fail("a tmpfs cannot be mounted here")
    try:
        bad_inputs.furnish(workspace)
        done = run(tmp_path, "full", tiny.spec(maxSteps=4))
        (job,) = objects(tmp_path, "SFTJob")
    finally:
        subprocess.run(["umount", "-l", str(workspace)], check=True)
    assert done.returncode == 1
    assert "full has failed: VolumeFull: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert len(job["status"].get("attempts", [])) <= 1


def test_an_unknown_field_is_refused_with_its_path_and_the_nearest_name(tmp_path: Path):
    (tmp_path / "workspace").mkdir()
    done = run(tmp_path, "unknown", bad_inputs.merged(tiny.spec(), {"training": {"learningrate": 1e-4}}))
    assert done.returncode == 2
    words = " ".join((done.stdout + done.stderr).split())
    assert "spec.training.learningrate" in words
    assert "learningRate" in words
