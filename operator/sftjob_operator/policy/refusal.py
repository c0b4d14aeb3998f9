"""A child that the cluster refuses: a condition with the API server's own words, not a retry loop."""

from __future__ import annotations

from sftjob_operator.api.status import Status
from sftjob_operator.planning.batch import SpecError
from sftjob_operator.policy.decision import Decision, age, not_accepted, not_running, revisit
from sftjob_operator.reports import sentence
from sftjob_operator.world import NAME_TAKEN, Refusal, World

_AGAIN_SECONDS = 60.0
_UNNOTICED_SECONDS = 5.0
_LONGEST = 1500


def refused(world: World, status: Status, refusal: Refusal) -> Decision:
    """The decision in place of the one whose child was refused; `status` as it was before that."""
    ref, words = refusal.ref, sentence(refusal.message, _LONGEST)
    what = f"{ref.kind} {ref.name}"
    if refusal.reason == NAME_TAKEN:
        message = f"{words}: delete it if it does not go by itself, or create this job under another name"
        return Decision(status, not_running(NAME_TAKEN, message), requeue=revisit(age(world)))
    if refusal.code == 403 and "exceeded quota" in words:
        return Decision(status, not_running("QuotaExceeded", f"{what}: {words}"), requeue=_AGAIN_SECONDS)
    if refusal.code == 403 and "cannot find RESTMapping" in words:
        return Decision(
            status, not_running("KindUnnoticed", _unnoticed(what, words)), requeue=_UNNOTICED_SECONDS
        )
    if refusal.code in (401, 403):
        return Decision(status, not_running("Forbidden", f"{what}: {words}"), requeue=_AGAIN_SECONDS)
    reason = "PodTemplateRejected" if ref.kind == "Job" else "ChildRejected"
    message = f"the API server refuses {what}: {words}"
    return not_accepted(status, SpecError(reason, message))


def _unnoticed(what: str, words: str) -> str:
    """No right is missing: OwnerReferencesPermissionEnforcement reads what kinds there are every half minute only."""
    return f"{what}: {words}: the API server's admission notices SFTJob within a minute of its installation"
