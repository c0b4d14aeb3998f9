"""What the conditions say where no policy says otherwise: derived from spec and status alone."""

from __future__ import annotations

from sftjob_operator.api.status import Status
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.observe import holds
from sftjob_operator.planning.advice import fits_message
from sftjob_operator.policy.accept import objection
from sftjob_operator.policy.decision import Say
from sftjob_operator.prepared import data_message
from sftjob_operator.settings import Settings


def baseline(job: SFTJob, status: Status, settings: Settings) -> dict[str, Say]:
    """One answer per condition type."""
    wrong = objection(job, settings, has_share=holds(job.status))
    accepted = (
        Say("True", "Valid", "the spec is consistent")
        if wrong is None
        else Say("False", wrong.reason, wrong.message)
    )
    prepared = Say("Unknown", "NotStarted", "preparation has not started")
    if status.data is not None and (status.prepared or {}).get("facts"):
        prepared = Say("True", "DataReady", data_message(status.data))
    planned = Say("Unknown", "NotPrepared", "the plan needs the facts of preparation")
    if status.plan is not None:
        planned = Say("True", "Fits", fits_message(job.spec, status.plan))
    return {
        "Accepted": accepted,
        "Prepared": prepared,
        "Planned": planned,
        "Running": Say("False", "Pending"),
        "Suspended": Say("False", "NotSuspended"),
        "Complete": Say("False", "InProgress"),
        "Failed": Say("False", "InProgress"),
    }
