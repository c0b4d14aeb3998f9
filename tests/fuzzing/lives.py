"""One random SFTJob through admission and through a life under the real reconcile loop; AssertionError for what must
never be.

What admission refuses is reconciled as well: another version of the schema may have let it in. The operator may stumble
over such a one, if it says so there and leaves the queue to others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from random import Random
from typing import Any

from fuzzing.bodies import Bodies, Manifest
from fuzzing.jsonlike import WORDS
from sftjob_operator.cluster.base import Key, Ref, Rejected, ref_of
from sftjob_operator.cluster.local import schema
from sftjob_operator.cluster.local.admission import admit, sftjob_schema
from shell.operating import Operator, claim
from worlds import exited, failed_outcome, prepared_outcome, progress, trained_outcome

MOST_PASSES = 25  # after one event
MOST_CHILDREN = 12  # of three events
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def admitted(body: Manifest) -> Manifest | None:
    """As it would be stored; None where it is refused. Anything but a refusal is raised."""
    with contextlib.suppress(Rejected):
        return admit(body, None)
    return None


def is_json(value: Any) -> bool:
    """Whether a client can send it: no NaN, no integer of more than 64 bits."""
    if isinstance(value, dict):
        return all(is_json(item) for item in value.values())
    if isinstance(value, list):
        return all(is_json(item) for item in value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return not isinstance(value, float) or math.isfinite(value)


async def live(bodies: Bodies, seed: int) -> bool:
    """The whole life of the body with this seed; whether it was admitted."""
    body, random = bodies.body(seed), Random(seed)
    stored = admitted(body)
    if not is_json(body):
        stored = None
    operator = Operator()
    workers = asyncio.create_task(operator.workers.run())
    try:
        await _life(operator, stored or body, random, is_admitted=stored is not None)
    finally:
        workers.cancel()
        await asyncio.gather(workers, return_exceptions=True)
    return stored is not None


async def _life(operator: Operator, body: Manifest, random: Random, *, is_admitted: bool) -> None:
    ref = ref_of(body)
    for name in ("ws", "sftjob-demo", "sft-workspace", str(_claim_name(body))[:63]):
        operator.cluster.put(claim(name))
    operator.cluster.put(body)
    await _rest(operator, ref, is_admitted=is_admitted)
    for _ in range(random.randrange(4)):
        _event(operator, ref, random)
        await _rest(operator, ref, is_admitted=is_admitted)


async def _rest(operator: Operator, ref: Ref, *, is_admitted: bool) -> None:
    """Time passes, and then there is nothing to do, nothing broken, and something to read."""
    operator.results.clear()
    await asyncio.sleep(20.3)  # not at the very moment of a revisit
    stored = operator.cluster.objects.get(ref)
    key = Key(ref.namespace, ref.name)
    if "error" in operator.results or (not is_admitted and operator.queue.failures(key)):
        assert not is_admitted, f"the operator stumbled: {_accepted(stored)}"
        assert stored is None or _accepted(stored) is not None
        return
    assert len(operator.results) <= MOST_PASSES, f"{len(operator.results)} passes in 20 s"
    assert operator.queue.depth == 0, f"stuck in the queue: {_accepted(stored)}"
    assert operator.queue.failures(key) == 0, "stuck in its back-off"
    if stored is None:  # its time was over
        return
    if _managed_by(stored) == "sftjob.dev/operator":
        assert stored.get("status", {}).get("conditions"), "nothing was said of it"
    if is_admitted and "status" in stored:
        wrong = list(schema.validate(stored["status"], sftjob_schema()["properties"]["status"], "status"))
        assert not wrong, f"the API server would refuse this status: {wrong}"
    _children(operator, is_admitted=is_admitted)


def _children(operator: Operator, *, is_admitted: bool) -> None:
    found = [
        item for item in operator.cluster.objects.values() if item["kind"] in ("Job", "ConfigMap", "Service")
    ]
    assert len(found) <= MOST_CHILDREN, [item["metadata"]["name"] for item in found]
    for item in found:
        metadata = item["metadata"]
        assert len(metadata["name"]) <= 63
        assert NAME.fullmatch(metadata["name"])
        if is_admitted:
            json.dumps(item, allow_nan=False)


def _event(operator: Operator, ref: Ref, random: Random) -> None:
    """Something happens to the newest Job, or to the spec."""
    if (sftjob := operator.cluster.objects.get(ref)) is None:
        return
    if isinstance(sftjob["spec"], dict) and random.random() < 0.2:
        field = random.choice(("suspend", "ttlSecondsAfterFinished", "activeDeadlineSeconds"))
        changed = {**sftjob["spec"], field: random.choice((True, False, 0, 1, 10**9))}
        operator.cluster.update(ref, spec=changed, metadata={**sftjob["metadata"], "generation": 2})
        return
    jobs = operator.cluster.of_kind("Job")
    if not jobs:
        return
    job = ref_of(jobs[-1])
    said = random.choice((prepared_outcome(), trained_outcome(), failed_outcome("UserError"), *WORDS))
    match random.randrange(4):
        case 0:
            operator.ends(job, 0, prepared_outcome())
        case 1:
            operator.ends(job, 0, said)
        case 2:
            code = random.choice((1, 2, 64, 71, 137, 255))
            operator.ends(job, code, said, exited(code))
        case 3:
            operator.runs(job)
            operator.cluster.progress = _progress(random)


def _progress(random: Random) -> bytes | None:
    good = progress(step=random.randrange(500)).model_dump_json(by_alias=True).encode()
    return random.choice(
        (good, None, b"", b"{}", good[:50], good.replace(b"480", b"0"), good.replace(b"1.8342", b"1e999"))
    )


def _claim_name(body: Manifest) -> Any:
    try:
        return body["spec"]["workspace"]["claimName"]
    except (TypeError, KeyError, IndexError):
        return "ws"


def _accepted(stored: Manifest | None) -> Any:
    conditions = ((stored or {}).get("status") or {}).get("conditions", [])
    return next((item for item in conditions if item["type"] == "Accepted"), None)


def _managed_by(body: Manifest) -> Any:
    return (
        body["spec"].get("managedBy", "sftjob.dev/operator")
        if isinstance(body["spec"], dict)
        else "sftjob.dev/operator"
    )
