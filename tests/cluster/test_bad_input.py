"""Bad input on the real cluster: one condition, one plain sentence, one attempt."""

from __future__ import annotations

import pytest

import bad_inputs
import tiny
from rooms import Room, make_room

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def rooms(operator, tmp_path_factory):
    """One namespace and volume; every case has its own job in it, one after another."""
    made = make_room(operator, "bad-input", tmp_path_factory.mktemp("bad"))
    yield next(made)
    made.close()


@pytest.mark.parametrize("case", bad_inputs.CASES, ids=lambda case: case.name)
def test_bad_input_is_one_condition_with_the_place_and_the_fix(rooms: Room, case: bad_inputs.Case):
    bad_inputs.furnish(rooms.workspace)
    case.arrange(rooms.workspace)
    rooms.apply(case.name, bad_inputs.spec(case))
    wanted = "False" if case.condition == "Accepted" else "True"
    found = rooms.wait(case.name, case.condition, wanted, seconds=120)
    assert found["reason"] == case.reason, found
    for word in case.words:
        assert word in found["message"]
    assert "Traceback" not in found["message"]
    pods = rooms.pods(f"sftjob.dev/job-name={case.name}")
    codes = [pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] for pod in pods]
    assert codes == ([] if case.exit_code is None else [case.exit_code])
    rooms.kube.kubectl("delete", "sftjob", case.name, "-n", rooms.namespace, check=True)


def test_truncated_answers_are_counted_and_reported(rooms: Room):
    bad_inputs.furnish(rooms.workspace)
    (rooms.workspace / "datasets" / "chats.jsonl").write_text(
        f"{bad_inputs.GOOD_ROW}\n{bad_inputs.LONG_ROW}\n"
    )
    rooms.apply("truncated", {**tiny.spec(), "suspend": False})
    prepared = rooms.wait("truncated", "Prepared", seconds=120)
    assert "1 truncated" in prepared["message"]
    assert rooms.job("truncated")["status"]["data"]["truncatedRows"] == 1
    rooms.kube.kubectl("delete", "sftjob", "truncated", "-n", rooms.namespace, check=True)


def test_a_missing_claim_and_a_missing_secret_are_waited_for(rooms: Room):
    bad_inputs.furnish(rooms.workspace)
    spec = bad_inputs.merged(tiny.spec(), {"model": {"secretRef": {"name": "later"}}})
    rooms.apply("patient", spec)
    waiting = rooms.waits_for("patient", "SecretMissing", 30)
    assert "later" in waiting["message"]
    assert not rooms.pods("sftjob.dev/job-name=patient")
    rooms.kube.kubectl(
        "create", "secret", "generic", "later", "-n", rooms.namespace, "--from-literal=HF_TOKEN=x", check=True
    )
    rooms.wait("patient", "Prepared", seconds=180)
    rooms.kube.kubectl("delete", "sftjob", "patient", "-n", rooms.namespace, check=True)
    lost = {**tiny.spec(), "workspace": {"claimName": "nowhere"}}
    rooms.apply("lost", lost)
    missing = rooms.waits_for("lost", "VolumeMissing", 30)
    assert "nowhere" in missing["message"]
    rooms.kube.kubectl("delete", "sftjob", "lost", "-n", rooms.namespace, check=True)


def test_an_unknown_field_is_refused_by_kubectl_with_its_path(rooms: Room):
    import json

    manifest = rooms.sftjob("unknown", bad_inputs.merged(tiny.spec(), {"training": {"learningrate": 1e-4}}))
    done = rooms.kube.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    assert done.returncode != 0
    assert "spec.training.learningrate" in done.stderr


def test_an_image_that_cannot_be_pulled_is_said_in_the_kubelets_words(rooms: Room):
    bad_inputs.furnish(rooms.workspace)
    spec = {**tiny.spec(), "workers": {"image": "sftjob.local/none:0", "imagePullPolicy": "Never"}}
    rooms.apply("no-image", spec)
    found = rooms.waits_for("no-image", "ImagePull", 90)
    assert "sftjob.local/none:0" in found["message"]
    rooms.kube.kubectl("delete", "sftjob", "no-image", "-n", rooms.namespace, check=True)


def test_pods_that_fit_nowhere_are_said_in_the_schedulers_words(rooms: Room):
    bad_inputs.furnish(rooms.workspace)
    spec = {**tiny.spec(), "workers": {"resources": {"requests": {"cpu": "900"}}}}
    rooms.apply("too-big", spec)
    found = rooms.waits_for("too-big", "Unschedulable", 180)
    assert "cpu" in found["message"].lower()
    rooms.kube.kubectl("delete", "sftjob", "too-big", "-n", rooms.namespace, check=True)


def test_gpus_that_no_node_has_are_planned_for_by_the_nodes_labels_and_waited_for(rooms: Room):
    """The labels are those of GPU feature discovery; nobody here has the resource."""
    bad_inputs.furnish(rooms.workspace)
    label = "nvidia.com/gpu.memory"
    rooms.kube.kubectl("label", "nodes", "--all", f"{label}=24576", check=True)
    try:
        rooms.apply("no-gpu", {**tiny.spec(), "workers": {"gpusPerNode": 1}})
        found = rooms.waits_for("no-gpu", "Unschedulable", 180)
    finally:
        rooms.kube.kubectl("label", "nodes", "--all", f"{label}-", check=True)
    assert "nvidia.com/gpu" in found["message"]
    assert rooms.job("no-gpu")["status"]["plan"]["memory"]["available"] == "24576Mi"
    rooms.kube.kubectl("delete", "sftjob", "no-gpu", "-n", rooms.namespace, check=True)


def test_a_full_volume_is_said_and_not_retried(operator):
    from devcluster import volumes

    with volumes.small("full-volume", "300k") as directory:
        rooms = make_room(operator, "full-volume", directory)
        room = next(rooms)
        bad_inputs.furnish(room.workspace)
        room.apply("full", tiny.spec(maxSteps=4))
        failed = room.wait("full", "Failed", seconds=300)
        assert failed["reason"] == "VolumeFull"
        assert len(room.job("full")["status"].get("attempts", [])) <= 1
        rooms.close()
