"""What the API server's audit log of the tests' cluster tells: who asked for what, when, and how it was answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rooms import SYSTEM

OPERATOR = f"system:serviceaccount:{SYSTEM}:sftjob"
WRITES = ("create", "patch", "update", "delete")
BINDINGS = {("clusterrolebindings", "sftjob"), ("rolebindings", "sftjob-leader-election")}
_POD = "authentication.kubernetes.io/pod-name"


@dataclass(frozen=True)
class Call:
    """One answered request for a resource."""

    at: datetime
    """When it was answered."""
    user: str
    pod: str
    """Whose token it carried; empty where it is not a pod's."""
    verb: str
    group: str
    resource: str
    """With its subresource: sftjobs/status."""
    namespace: str
    name: str
    code: int
    message: str
    annotations: dict[str, str]


def calls(since: datetime, *words: str) -> Iterator[Call]:
    """Requests answered since then, whose line in the log holds all these words, in the order of the log.

    Requests that name no resource (discovery) are left out.
    """
    from devcluster import controlplane

    for line in controlplane.audit_log().read_text().splitlines():
        if not all(word in line for word in words):
            continue
        event = json.loads(line)
        if event["stage"] == "ResponseComplete" and "objectRef" in event and _time(event) >= since:
            yield _call(event)


def operator(since: datetime) -> list[Call]:
    """What the operator asked for, while its roles were bound to it: helm takes them away before the pods are gone."""
    found: list[Call] = []
    unbound: set[str] = set()
    for call in calls(since):
        if (call.resource, call.name) in BINDINGS and call.code < 300:
            (unbound.add if call.verb == "delete" else unbound.discard)(call.resource)
        elif call.user == OPERATOR and not unbound:
            found.append(call)
    return found


@dataclass(frozen=True)
class Term:
    """One replica's time as the leader, by its writes of the Lease; the last one gives it up."""

    pod: str
    began: datetime
    at_work: datetime | None
    """When it had begun to watch SFTJobs; None = never."""
    ended: datetime


def terms(found: list[Call]) -> list[Term]:
    """The leaders in their order; `found` is what `operator` returned."""
    result = []
    for pod in dict.fromkeys(call.pod for call in found if _is_lease(call)):
        own = [call for call in found if call.pod == pod]
        held = [call.at for call in own if _is_lease(call)]
        watching = [call.at for call in own if (call.resource, call.verb) == ("sftjobs", "watch")]
        listing = [call.at for call in own if (call.resource, call.verb) == ("sftjobs", "list")]
        result.append(Term(pod, held[0], min(listing + watching, default=None), held[-1]))
    return result


def written_by_others(found: list[Call], leaders: list[Term]) -> list[Call]:
    """Writes of a replica that was not, or no longer, the last to have taken the Lease."""

    def leader(at: datetime) -> str | None:
        return next((term.pod for term in reversed(leaders) if term.began <= at), None)

    return [call for call in found if call.verb in WRITES and call.code < 300 and call.pod != leader(call.at)]


def _is_lease(call: Call) -> bool:
    return call.resource == "leases" and call.verb in WRITES and call.code < 300


def _call(event: dict[str, Any]) -> Call:
    about, status, user = event["objectRef"], event.get("responseStatus", {}), event["user"]
    below = about.get("subresource")
    return Call(
        at=_time(event),
        user=user["username"],
        pod=next(iter(user.get("extra", {}).get(_POD, ())), ""),
        verb=event["verb"],
        group=about.get("apiGroup", ""),
        resource=about["resource"] + (f"/{below}" if below else ""),
        namespace=about.get("namespace", ""),
        name=about.get("name", ""),
        code=status.get("code", 0),
        message=status.get("message", ""),
        annotations=event.get("annotations", {}),
    )


def _time(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["stageTimestamp"].replace("Z", "+00:00"))
