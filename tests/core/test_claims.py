"""A claim of the job's own: made once, before anything lies on it; never another's; kept or deleted with the job."""

from __future__ import annotations

from typing import Any

import pytest

from sftjob_operator.api.objects import Manifest, Ref
from sftjob_operator.effects import Create
from sftjob_operator.world import Refusal
from worlds import Scene, exited, sftjob

CLAIM = Ref("v1", "PersistentVolumeClaim", "team", "bot-workspace")
TEMPLATE = {"spec": {"resources": {"requests": {"storage": "500Gi"}}, "storageClassName": "fast"}}
LABELS = {"sftjob.dev/job-name": "bot", "app.kubernetes.io/managed-by": "sftjob-operator"}


def scene(**workspace: Any) -> Scene:
    found = Scene(sftjob(workspace={"claimName": None, "claimTemplate": TEMPLATE, **workspace}))
    found.missing = [CLAIM]
    return found


def created(world: Scene) -> list[Manifest]:
    return [effect.manifest for effect in world.last.effects if isinstance(effect, Create)]


def owned(uid: str) -> dict[str, Any]:
    return {"ownerReferences": [{"kind": "SFTJob", "name": "bot", "uid": uid, "controller": True}]}


def test_the_claim_is_made_before_the_pods_and_mounted_by_them():
    world = scene()
    world.take_pass()
    (claim,) = created(world)
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "500Gi"}},
        "storageClassName": "fast",
    }
    assert world.says("Running") == ("False", "Preparing")
    world.step()
    job = next(each for each in created(world) if each["kind"] == "Job")
    volume = job["spec"]["template"]["spec"]["volumes"][0]
    assert volume == {"name": "workspace", "persistentVolumeClaim": {"claimName": "bot-workspace"}}
    assert "PersistentVolumeClaim" not in [each["kind"] for each in created(world)]


@pytest.mark.parametrize(("policy", "owners"), [({}, 0), ({"retentionPolicy": {"whenDeleted": "Delete"}}, 1)])
def test_only_a_claim_that_is_to_go_with_the_job_is_owned_by_it(policy: dict[str, Any], owners: int):
    world = scene(**policy)
    world.take_pass()
    (claim,) = created(world)
    assert len(claim["metadata"].get("ownerReferences", [])) == owners
    assert "finalizers" not in claim["metadata"]


def test_a_claim_that_was_kept_from_a_job_of_this_name_is_used_again():
    world = scene()
    world.found = {CLAIM: {"metadata": {"labels": LABELS}, "status": {"phase": "Bound"}}}
    world.missing = []
    world.step()
    assert [each["kind"] for each in created(world)] == ["ConfigMap", "Job"]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "name it in spec.workspace.claimName to use it"),
        ({"labels": {**LABELS, "sftjob.dev/job-name": "other"}}, "name it in spec.workspace.claimName"),
        ({"labels": LABELS, **owned("an earlier one")}, "it is used once it is gone"),
    ],
    ids=["foreign", "of another job", "of an earlier job"],
)
def test_a_claim_that_was_not_made_for_this_job_is_not_taken_over(metadata: dict[str, Any], words: str):
    world = scene()
    world.missing = []
    world.found = {CLAIM: {"metadata": metadata, "status": {"phase": "Bound"}}}
    assert world.step().effects == ()
    assert world.says("Running") == ("False", "NameTaken")
    assert words in world.condition("Running")["message"]
    assert world.last.requeue_after


def test_our_own_claim_with_an_owner_is_ours():
    world = scene(retentionPolicy={"whenDeleted": "Delete"})
    world.missing = []
    uid = world.manifest["metadata"]["uid"]
    world.found = {CLAIM: {"metadata": {"labels": LABELS, **owned(uid)}}}
    world.step()
    assert [each["kind"] for each in created(world)] == ["ConfigMap", "Job"]


def test_a_claim_that_is_gone_later_is_not_replaced_by_an_empty_one():
    world = scene()
    world.missing = []
    world.found = {CLAIM: {"metadata": {"labels": LABELS}}}
    world.start()
    world.missing = [CLAIM]
    world.found = {}
    world.end(1, exited(70), [world.ended_pod(1, 70)])
    world.step(5)
    world.step(20)
    assert created(world) == []
    assert world.says("Running") == ("False", "VolumeMissing")
    assert world.condition("Running")["message"].startswith("spec.workspace.claimTemplate: waiting for")


def test_what_the_api_server_has_against_the_claim_is_said():
    world = scene()
    world.refusal = Refusal(CLAIM, 403, "Forbidden", "exceeded quota: storage")
    world.take_pass()
    assert world.says("Running") == ("False", "QuotaExceeded")
    world.refusal = Refusal(CLAIM, 422, "Invalid", "spec.storageClassName: no")
    world.take_pass()
    assert world.says("Accepted") == ("False", "ChildRejected")


def test_a_size_that_is_none_is_said_with_its_field():
    world = scene(claimTemplate={"spec": {"resources": {"requests": {"storage": "much"}}}})
    world.step()
    assert world.says("Accepted") == ("False", "InvalidQuantity")
    assert "claimTemplate.spec.resources.requests.storage" in world.condition("Accepted")["message"]


@pytest.mark.parametrize("workspace", [{}, {"claimName": "bot-workspace", "claimTemplate": None}])
def test_a_claim_without_its_volume_stops_everything_and_says_so(workspace: dict[str, Any]):
    world = scene(**workspace)
    world.missing = []
    lost = {"metadata": {"labels": LABELS}, "spec": {"volumeName": "pv-7"}, "status": {"phase": "Lost"}}
    world.found = {CLAIM: lost}
    assert world.step().effects == ()
    assert world.says("Running") == ("False", "VolumeLost")
    assert "bot-workspace has lost pv-7" in world.condition("Running")["message"]


def test_a_suspended_job_makes_no_claim():
    world = scene()
    world.manifest["spec"]["suspend"] = True
    assert world.step().effects == ()
