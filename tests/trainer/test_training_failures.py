"""However a training fails, it says so in one sentence, with its class, and keeps what was committed."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gang
from machine import skip_or_fail
from sft_trainer.checkpoint import manifest

pytestmark = pytest.mark.processes


def outcome(ended: gang.Ended) -> Any:
    assert ended.outcomes[0] is not None, ended.output
    return ended.outcomes[0]


def test_a_training_that_diverges_says_what_to_change(tmp_path: Path) -> None:
    changes = {
        "training__learningRate": 1e30,
        "training__scheduler__type": "Constant",
        "training__maxGradNorm": 1e9,
    }
    ended = gang.Job(tmp_path / "volume", changes=changes).run()
    assert ended.codes == [71, 71], "another attempt would diverge again"
    assert outcome(ended).reason == "Diverged"
    assert "training.learningRate" in outcome(ended).message


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A volume of four megabytes: room for the model and two checkpoints."""
    volume = tmp_path / "small"
    volume.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(volume)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        skip_or_fail("mounting a small volume takes root")
    yield volume
    subprocess.run(["umount", str(volume)], check=True)


def test_a_full_volume_ends_the_run_and_keeps_the_previous_checkpoint(small_volume: Path) -> None:
    changes = {"checkpoint__periodSteps": 1, "checkpoint__keepLast": 9}
    job = gang.Job(small_volume, changes=changes)
    ended = job.run()
    assert ended.codes == [72, 72], ended.output
    told = outcome(ended)
    assert told.reason == "VolumeFull"
    assert "are free on the workspace volume" in told.message
    assert told.last_verified_step == told.last_step - 1
    newest = job.folder / "checkpoints" / f"step-{told.last_verified_step}"
    assert manifest.problem(newest, every_byte=True) is None


def test_a_peer_that_is_killed_is_told_apart_from_a_crash_of_our_own(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume", changes={"training__maxSteps": 500})
    with job.start() as run:
        run.ranks.until("step 2/500")
        run.ranks.send(signal.SIGKILL, [1])
        ended = run.end()
    assert ended.codes == [73, -9]
    assert outcome(ended).failure_class == "PeerLost"
    assert ended.outcomes[1] is None


def test_a_configuration_of_another_version_is_a_user_error(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume", ranks=1)
    with job.start() as run:
        pass
    config = run.scratch / "config" / "train.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "surprise": 1}))
    variables = {"SFTJOB_CONFIG": str(run.scratch / "config"), "SFTJOB_RUN": str(run.scratch)}
    with gang.started(gang.train, (), 1, variables) as ranks:
        assert ranks.end()[0][0] == 71
    marker = json.loads((run.scratch / "ranks" / "0.json").read_text())
    assert marker["reason"] == "InvalidTrainConfig"
    assert "surprise" in marker["message"]


def test_lora_on_layers_that_do_not_exist_names_the_field(tmp_path: Path) -> None:
    adapters = {"rank": 4, "alpha": 8, "dropout": 0.0, "targetModules": ["nonsense"]}
    changes = {"training__method": "LoRA", "training__lora": adapters}
    ended = gang.Job(tmp_path / "volume", ranks=1, changes=changes).run()
    assert ended.codes == [71]
    assert outcome(ended).reason == "UnknownTargetModules"
    assert "training.lora.targetModules" in outcome(ended).message
