"""Suspension: by the user (spec.suspend), who is obeyed, and by a queue, which is only reported."""

from __future__ import annotations

from collections.abc import Sequence

from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest
from sftjob_operator.api.status import Status
from sftjob_operator.batchjob import BatchJob
from sftjob_operator.effects import Delete, Effect, Patch
from sftjob_operator.pods import lost_pods, named, of_job, pod_end
from sftjob_operator.policy.decision import STOPPING_SECONDS, Decision, Say
from sftjob_operator.world import World


def hold(world: World, status: Status, live: BatchJob | None) -> Decision:
    """The user wants nothing to run. `live` is the Job that could."""
    pods = [] if live is None else of_job(world.pods or (), live)
    lost = lost_pods(pods, world.now)
    if live is None or _is_down(live, pods, len(lost)):
        message = f"spec.suspend is true; set it to false to go on{_left_behind(lost)}"
        return Decision(
            status,
            {
                "Suspended": Say("True", "SuspendedByUser", message),
                "Running": Say("False", "Suspended", message),
            },
        )
    message = f"the pods of {live.name} save a checkpoint and stop"
    return Decision(
        status,
        {"Suspended": Say("False", "Suspending", message), "Running": Say("False", "Suspending", message)},
        stop(live),
        STOPPING_SECONDS,
    )


def stop(live: BatchJob) -> tuple[Effect, ...]:
    """Its pods save a checkpoint and stop, if they have not been told to yet.

    Kueue lets go of a suspended Job as long as its Workload is admitted. So one in a queue is deleted, which gives the
    quota back; what goes on is another attempt.
    """
    if live.queue is not None:
        return () if live.deleting else (Delete(live.ref, live.uid, foreground=True),)
    return () if live.suspended or live.deleting else (Patch(live.ref, suspension(True)),)


def _is_down(live: BatchJob, pods: Sequence[Manifest], lost: int) -> bool:
    """No pod of it is left but for those that are lost."""
    if live.deleting:
        return 0 < lost == sum(pod_end(pod) is None for pod in pods)
    return live.suspended and live.queue is None and live.active + live.terminating <= lost


def _left_behind(lost: Sequence[Manifest]) -> str:
    """On a node that does not answer nobody can stop a pod; the fence keeps it from committing anything."""
    if not lost:
        return ""
    return f"; left behind, because the node does not answer: {named(lost)}"


def paused(status: Status, live: BatchJob) -> Decision:
    """A Job stands still though the user wants it to run: we let go of it, or a queue holds it."""
    if live.suspended_by_us:
        message = f"{live.name} goes on"
        running = {"Running": Say("False", "Resuming", message)}
        return Decision(status, running, (Patch(live.ref, suspension(False)),), STOPPING_SECONDS)
    where = f"in queue {live.queue}" if live.queue else "by whoever suspended its Job"
    return Decision(status, {"Running": Say("False", "Queued", f"{live.name} is held {where}")})


def suspension(suspend: bool) -> Manifest:
    """The patch that stops a Job's pods, or lets go of it again."""
    mark = "user" if suspend else None
    return {
        "metadata": {"annotations": {names.ANNOTATION_SUSPENDED_BY: mark}},
        "spec": {"suspend": suspend},
    }
