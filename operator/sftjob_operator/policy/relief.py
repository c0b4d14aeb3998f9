"""After a GPU ran out of memory: a plan that needs less, in what the planner chose itself.

The global batch stays, so every step reads the rows it would have read, and a checkpoint is gone on from.
"""

from __future__ import annotations

from typing import Any

from sft_trainer.config import FailureClass, ModelFacts
from sftjob_operator.api.status import PlanStatus, Status
from sftjob_operator.api.v1alpha1 import Spec
from sftjob_operator.planning.candidates import candidates, expected_precision
from sftjob_operator.planning.hardware import Hardware, mebibytes
from sftjob_operator.planning.intent import intent

WAY_OUT = (
    "delete the job and apply it again under the same name with a smaller spec.deepspeed.microBatchSize or with "
    "activationCheckpointing: Full; it goes on from its checkpoints"
)
"""For whoever has chosen both: most of a spec is immutable once the job has started."""


def relieved(status: Status) -> PlanStatus | None:
    """The plan to go on with where an attempt ran out of memory with the present one; None where none did, or where
    the planner has nothing left to change.
    """
    plan = status.plan
    if plan is None:
        return None
    ran_out = {each.plan_hash for each in status.attempts if each.reason == FailureClass.GPU_OUT_OF_MEMORY}
    return _lighter(plan) if plan.hash in ran_out else None


def relief_words(status: Status) -> str:
    """What will be different, for the end of a sentence; empty where nothing is."""
    plan, lighter = status.plan, relieved(status)
    if plan is None or lighter is None:
        return ""
    if lighter.micro_batch_size != plan.micro_batch_size:
        return f" with a micro-batch of {lighter.micro_batch_size} instead of {plan.micro_batch_size}"
    return f" with {lighter.activation_checkpointing.lower()} activation checkpointing"


def estimated(plan: PlanStatus, spec: Spec, model: ModelFacts, hardware: Hardware) -> PlanStatus:
    """`plan` with the memory that it is estimated to need; as it is where the planner would make no such one."""
    wanted = intent(spec)
    precision = expected_precision(wanted, hardware)
    for each in candidates(spec, wanted, model, precision, known=True, host_known=True):
        choice = (each.stage, each.micro, each.checkpointing, each.offload_optimizer, each.offload_parameters)
        if choice == _choice(plan):
            need = {"per_gpu": mebibytes(each.memory.total)}
            if each.memory.host:
                need["host"] = mebibytes(each.memory.host)
            return plan.model_copy(update={"memory": plan.memory.model_copy(update=need)})
    return plan


def _lighter(plan: PlanStatus) -> PlanStatus | None:
    """Half the micro-batch (a power of two) in twice as many passes costs the least time; then recomputing."""
    update: dict[str, Any]
    if "microBatchSize" in plan.decided and plan.micro_batch_size > 1:
        update = {
            "micro_batch_size": plan.micro_batch_size // 2,
            "gradient_accumulation_steps": plan.gradient_accumulation_steps * 2,
        }
    elif "activationCheckpointing" in plan.decided and plan.activation_checkpointing != "Full":
        # Layers that are shared cannot be recomputed in part (planning.plan).
        is_first = plan.activation_checkpointing == "None" and plan.tensor_parallel_size == 1
        update = {"activation_checkpointing": "Selective" if is_first else "Full"}
    else:
        return None
    return plan.model_copy(update=update)


def _choice(plan: PlanStatus) -> tuple[object, ...]:
    return (
        plan.zero_stage,
        plan.micro_batch_size,
        plan.activation_checkpointing,
        plan.offload_optimizer,
        plan.offload_parameters,
    )
