"""An operator that was put back to an older release meets what a newer one has left: it goes on, or says why not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sftjob_operator.policy.accept import read_sftjob
from sftjob_operator.step import unreadable
from worlds import Scene, progress, sftjob

APPROVED = {
    "type": "Approved",
    "status": "True",
    "reason": "Budget",
    "message": "",
    "lastTransitionTime": "2026-01-01T12:00:00Z",
}


def training() -> Scene:
    """A job that trains, with what only a newer operator knows in its status."""
    scene = Scene()
    scene.start()
    status = scene.status
    status["power"] = {"kilowattHours": 3}
    status["attempts"][0] |= {"zone": "a", "state": "Throttled"}
    status["plan"]["expertParallelSize"] = 4
    status["conditions"].append(APPROVED)
    scene.manifest["spec"]["training"] = {"curriculum": "ByLength"}
    return scene


def test_a_training_goes_on_and_newer_fields_of_its_status_stay():
    scene = training()
    scene.run(1)
    scene.progress = progress(step=200)
    scene.step(60)
    status = scene.status
    assert status["progress"]["step"] == 200
    assert scene.says("Running") == ("True", "TrainingSteps")
    assert scene.attempt(1)["state"] == "Running", "an unknown state is one of an attempt that is not over"
    assert (status["power"], scene.attempt(1)["zone"]) == ({"kilowattHours": 3}, "a")
    assert status["plan"]["expertParallelSize"] == 4
    assert status["conditions"][-1] == APPROVED


def test_a_job_does_not_start_without_a_field_that_only_a_newer_operator_knows():
    manifest = sftjob(training={"curriculum": "ByLength"})
    with pytest.raises(
        ValueError, match=r"^spec\.training\.curriculum: this operator does not know the field"
    ):
        read_sftjob(manifest)


def test_a_value_that_only_a_newer_operator_knows_is_said_and_what_runs_runs_on():
    scene = training()
    scene.manifest["spec"]["training"] = {"optimizer": {"type": "Lion"}}
    with pytest.raises(ValueError, match=r"^spec\.training\.optimizer\.type: ") as refused:
        read_sftjob(scene.manifest)
    before = copy.deepcopy(scene.status)
    found = unreadable(scene.manifest, str(refused.value), scene.now)
    assert found.status is not None
    assert by_type(found.status)["Accepted"]["reason"] == "InvalidSpec"
    assert by_type(found.status)["Running"] == by_type(before)["Running"]
    assert without_conditions(found.status) == without_conditions(before)
    assert [event.reason for event in found.events] == ["InvalidSpec"]
    again = {**scene.manifest, "status": found.status}
    assert unreadable(again, str(refused.value), scene.now).status is None, "said once"


def test_a_status_that_cannot_be_read_is_said_and_left_as_it_is():
    scene = training()
    scene.status["restarts"] = {"charged": 2}
    with pytest.raises(ValueError, match=r"^status\.restarts: ") as refused:
        read_sftjob(scene.manifest)
    found = unreadable(scene.manifest, str(refused.value), scene.now)
    assert found.status is not None
    assert by_type(found.status)["Accepted"]["status"] == "False"
    assert found.status["restarts"] == {"charged": 2}


def by_type(status: dict[str, Any]) -> dict[str, Any]:
    return {one["type"]: one for one in status["conditions"]}


def without_conditions(status: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in status.items() if key != "conditions"}
