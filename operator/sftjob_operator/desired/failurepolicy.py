"""podFailurePolicy: one rule per class of failure: the class then survives in the Job's own Failed condition.

The fall-back for when pods and their messages are gone, or the operator was down. Every rule fails the whole
Job: a gang that has lost a member is over.
"""

from __future__ import annotations

from sft_trainer.config import EXIT_CLASSES
from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest


def pod_failure_policy() -> Manifest:
    """A disruption first, then a rule per exit code of the contract, then everything else but 0."""
    disrupted: Manifest = {
        "action": "FailJob",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    known = [_exit_rule("In", int(code)) for code in sorted(EXIT_CLASSES)]
    return {"rules": [disrupted, *known, _exit_rule("NotIn", 0)]}


def _exit_rule(operator: str, code: int) -> Manifest:
    return {
        "action": "FailJob",
        "onExitCodes": {"containerName": names.CONTAINER, "operator": operator, "values": [code]},
    }
