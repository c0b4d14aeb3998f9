"""The operator's rights are enough, and people have theirs: asked of the API server, not of the chart."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rooms import SYSTEM, Room, until

pytestmark = pytest.mark.cluster
ACCOUNT = f"system:serviceaccount:{SYSTEM}:sftjob"


def spec() -> dict[str, Any]:
    return {
        "model": {"uri": "hf://acme/base", "secretRef": {"name": "missing"}},
        "data": {"train": [{"path": "datasets/a.jsonl"}]},
    }


def can(room: Room, user: str, verb: str, resource: str, *words: str) -> bool:
    done = room.kube.kubectl("auth", "can-i", verb, resource, "-n", room.namespace, f"--as={user}", *words)
    return done.stdout.strip() == "yes"


def test_a_secret_is_looked_for_without_a_denial(room: Room):
    room.apply("waits", spec())
    running = until(
        "SecretMissing",
        lambda: (found := room.condition("waits", "Running")).get("reason") == "SecretMissing" and found,
        30,
    )
    assert "missing" in running["message"]


def test_the_operator_was_denied_nothing_so_far(room: Room):
    from devcluster import controlplane

    log = controlplane.audit_log()
    if not log.exists():
        pytest.skip("this cluster is not ours: its audit log cannot be read")
    deployment = room.kube.get("deployment", "sftjob", SYSTEM)
    assert deployment is not None
    installed = deployment["metadata"]["creationTimestamp"]  # an earlier release lost its rights as it went
    denied = set()
    for line in log.read_text().splitlines():
        if ACCOUNT not in line or '"code":403' not in line or "is being terminated" in line:
            continue
        event = json.loads(line)
        if event["requestReceivedTimestamp"] > installed:
            where = event.get("objectRef", {}).get("resource", event["requestURI"])
            denied.add((event["verb"], where, event["responseStatus"].get("message")))
    assert denied == set()


def test_the_operator_may_not_do_what_it_does_not_do(room: Room):
    for verb, resource in [
        ("list", "secrets"), ("create", "pods"), ("create", "sftjobs"), ("update", "sftjobs"), ("create", "pods/exec"),
        ("delete", "persistentvolumeclaims"), ("create", "rolebindings"), ("get", "nodes"),
    ]:  # fmt: skip
        assert not can(room, ACCOUNT, verb, resource), f"{verb} {resource}"


def test_people_have_sftjobs_with_the_roles_they_have(room: Room):
    for role, user in (("edit", "jane"), ("view", "joe")):
        words = ("rolebinding", user, f"--clusterrole={role}", f"--user={user}", "-n", room.namespace)
        room.kube.kubectl("create", *words, check=True)
    until("aggregation", lambda: can(room, "jane", "create", "sftjobs.sftjob.dev"), 30)
    assert can(room, "joe", "get", "sftjobs.sftjob.dev")
    assert not can(room, "joe", "create", "sftjobs.sftjob.dev")
    assert not can(room, "jane", "patch", "sftjobs.sftjob.dev", "--subresource=status")
