"""The operator's rights are enough, and people have theirs: asked of the API server, not of the chart."""

from __future__ import annotations

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


def test_what_an_interrupted_pass_left_and_what_is_over_is_put_away(room: Room):
    """The rare requests: each is a right that would be missed long after the installation."""
    name, kubectl = "repaired", room.kube.kubectl
    nowhere = {"image": "sftjob.local/none:0", "imagePullPolicy": "Never"}
    room.apply(name, {**spec(), "model": {"path": "models/base"}, "workers": nowhere})
    first = until("a prepare Job", lambda: prepare_jobs(room, name), 30)
    kubectl("delete", f"job/{first[0]}", "-n", room.namespace, check=True)  # as if it had never been made
    until("it is made again with the ConfigMap that is there", lambda: prepare_jobs(room, name) == first, 30)
    without_a_program = {"env": [{"name": "PATH", "value": "/nowhere"}]}
    policy = {"maxRestarts": 0}
    again = {
        **spec(),
        "model": {"path": "models/base"},
        "prepare": without_a_program,
        "failurePolicy": policy,
    }
    room.apply(name, {**again, "ttlSecondsAfterFinished": 0})
    until("the Job of the old spec is gone", lambda: first[0] not in prepare_jobs(room, name), 30)
    gone = ("get", "sftjob", name, "-n", room.namespace)
    until(
        "the job is deleted at its end",
        lambda: kubectl(*gone).returncode != 0,
        60,
        diagnose=lambda: room.diagnose(name),
    )


def prepare_jobs(room: Room, name: str) -> list[str]:
    found = room.kube.list("jobs", room.namespace, f"sftjob.dev/job-name={name},sftjob.dev/role=prepare")
    return [job["metadata"]["name"] for job in found if not job["metadata"].get("deletionTimestamp")]


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
