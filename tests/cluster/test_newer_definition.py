"""The definition in the cluster is newer than the operator, as after a rollback of the operator alone."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

import audit
import tiny
from rooms import SYSTEM, Kube, Room, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
CRD = "sftjobs.sftjob.dev"
LARGEST_SEED = 1000
POWER = {"kilowattHours": 3}


def of_a_newer_release(properties: dict[str, Any]) -> None:
    """It takes fields of which this operator knows nothing, and one of its rules is tighter."""
    for part in ("spec", "status"):
        properties[part]["x-kubernetes-preserve-unknown-fields"] = True
    properties["spec"]["properties"]["training"]["properties"]["seed"]["maximum"] = LARGEST_SEED


def without_the_operators_words(properties: dict[str, Any]) -> None:
    """No phase that this operator writes is short enough."""
    properties["status"]["properties"]["phase"]["maxLength"] = 1


@contextlib.contextmanager
def definition(kube: Kube, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Another definition for a while."""
    stored = json.loads(kube.kubectl("get", "crd", CRD, "-o", "json", check=True).stdout)
    other = json.loads(json.dumps(stored))
    change(other["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"])
    replace(kube, other)
    try:
        yield
    finally:
        replace(kube, stored)


def replace(kube: Kube, definition: dict[str, Any]) -> None:
    for key in ("resourceVersion", "managedFields"):
        definition["metadata"].pop(key, None)
    kube.kubectl("replace", "-f", "-", stdin=json.dumps(definition), check=True)


def patch(room: Room, change: dict[str, Any], *words: str, check: bool = True) -> str:
    """What kubectl says to it; `change` is merged."""
    command = (
        "patch",
        "sftjob",
        "old",
        "-n",
        room.namespace,
        "--type=merge",
        "-p",
        json.dumps(change),
        *words,
    )
    return room.kube.kubectl(*command, check=check).stderr


def test_an_older_operator_neither_wipes_nor_ignores_what_it_does_not_know(room: Room):
    spec = tiny.spec(seed=7 * LARGEST_SEED)
    spec["model"]["secretRef"] = {"name": "first"}
    room.apply("old", spec)
    room.waits_for("old", "SecretMissing", 30)
    secrets = (f"missing-{number}" for number in itertools.count())
    with definition(room.kube, of_a_newer_release):
        until(
            "a status of another spec, and what was there beside it", lambda: keeps(room, next(secrets)), 60
        )
        patch(room, {"spec": {"curriculum": "ByLength"}})
        accepted = room.wait("old", "Accepted", "False", seconds=30)
        assert accepted["reason"] == "InvalidSpec"
        assert "spec.curriculum: this operator does not know the field" in accepted["message"]
        patch(room, {"spec": {"curriculum": None}})
        room.wait("old", "Accepted", "True", seconds=30)
        assert room.job("old")["status"]["power"] == POWER
        refused = patch(room, {"spec": {"training": {"seed": 5 * LARGEST_SEED}}}, check=False)
        assert "spec.training.seed" in refused, (
            "the tighter rule holds for what is new, and not for what was stored"
        )
    assert restarts(room.kube) == 0


def test_a_status_that_the_definition_refuses_is_tried_again(room: Room):
    began, secrets = datetime.now(UTC), (f"missing-{number}" for number in itertools.count())
    asked = ""

    def is_refused() -> bool:
        """The API server takes a moment to use another definition: until then, another spec and so another status."""
        nonlocal asked
        asked = next(secrets)
        model = {"path": "models/none", "secretRef": {"name": asked}}
        room.apply("refused", {**tiny.spec(), "model": model})
        return any(call.resource == "sftjobs/status" for call in audit.calls(began, '"code":422'))

    with definition(room.kube, without_the_operators_words):
        until("a refusal", is_refused, 30)
    until(
        "the status in the end", lambda: asked in room.condition("refused", "Running").get("message", ""), 60
    )
    assert restarts(room.kube) == 0


def restarts(kube: Kube) -> int:
    pods = kube.list("pods", SYSTEM, "app.kubernetes.io/name=sftjob")
    return sum(pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods)


def keeps(room: Room, secret: str) -> bool:
    """The operator writes the next status, and the newer field is still there. Not at once: the API server prunes it
    from what it shows in a watch that is older than the definition.
    """
    patch(room, {"status": {"power": POWER}}, "--subresource=status")
    patch(room, {"spec": {"model": {"secretRef": {"name": secret}}}})
    until("the next status", lambda: secret in room.condition("old", "Running")["message"], 30)
    return room.job("old")["status"].get("power") == POWER
