"""A claim of the job's own on the real cluster: made with the chart's rights, explained, bound, and collected."""

from __future__ import annotations

import pytest

from devcluster import volumes
from rooms import Room, make_room, until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def room(operator, tmp_path_factory):
    yield from make_room(operator, "claims", tmp_path_factory.mktemp("claims"))


def test_a_claim_is_made_waited_for_used_and_goes_with_its_job(room: Room):
    template = {"spec": {"storageClassName": "by-hand", "resources": {"requests": {"storage": "1Gi"}}}}
    workspace = {"claimTemplate": template, "retentionPolicy": {"whenDeleted": "Delete"}}
    spec = {"model": {"path": "nowhere"}, "data": {"train": [{"path": "a.jsonl"}]}, "workspace": workspace}
    room.apply("own", spec)
    waiting = room.waits_for("own", "VolumePending", 90)
    assert "unbound immediate PersistentVolumeClaims" in waiting["message"]
    claim = room.kube.get("pvc", "own-workspace", room.namespace)
    assert claim is not None
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["metadata"]["ownerReferences"][0]["kind"] == "SFTJob"

    persistent, _ = volumes.volume("own-workspace", volumes.workspace(room.workspace / "own"), room.namespace)
    persistent["spec"]["storageClassName"] = "by-hand"
    room.kube.apply(persistent)
    try:
        failed = room.wait("own", "Failed", seconds=180)
        assert (failed["reason"], "nowhere" in failed["message"]) == ("ModelNotFound", True)
        words = ("delete", "sftjob", "own", "-n", room.namespace, "--timeout=60s")
        room.kube.kubectl(*words, check=True)
        until("the claim is gone", lambda: room.kube.get("pvc", "own-workspace", room.namespace) is None, 90)
    finally:
        name = persistent["metadata"]["name"]
        room.kube.kubectl("delete", "pv", name, "--ignore-not-found", "--wait=false")
