"""SFTJob status: what the operator says. Written by the operator only, whole, once per pass."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from sftjob_operator.api.base import ApiModel

CONDITION_TYPES = ("Accepted", "Prepared", "Planned", "Running", "Suspended", "Complete", "Failed")


class StatusModel(ApiModel):
    """Unknown fields are kept: an older operator, put back for a while, does not wipe what a newer one has written."""

    model_config = ConfigDict(extra="allow")


AttemptState = Annotated[
    str,
    WithJsonSchema({"type": "string", "enum": ["Pending", "Running", "Suspended", "Succeeded", "Failed"]}),
]
"""Read as any word: one that only a newer operator knows is that of an attempt which is not over."""


class Condition(StatusModel):
    """metav1.Condition."""

    type: Annotated[str, Field(max_length=63)] = Field(description="Which question is answered.")
    status: Literal["True", "False", "Unknown"] = Field(description="The answer.")
    reason: Annotated[str, Field(max_length=1024)] = Field(description="The answer's reason in one word.")
    message: Annotated[str, Field(max_length=32768)] = Field(
        "", description="The reason in a sentence, with the fix."
    )
    last_transition_time: str = Field(description="When status last changed.")
    observed_generation: int | None = Field(None, description="The metadata.generation this speaks of.")


class ProgressStatus(StatusModel):
    """How far training is."""

    step: int = Field(0, description="Optimizer steps done.")
    total_steps: int = Field(0, description="Optimizer steps in all.")
    display: str = Field("", description="step/totalSteps, for the column.")
    progress_percentage: int = Field(0, description="0 to 100.")
    estimated_remaining_seconds: int | None = Field(None, description="At the present speed.")
    eta: str | None = Field(
        None, description="The same for the column, e.g. 1h52m; absent while nothing runs."
    )
    loss: str | None = Field(None, description="Mean loss of the last step over all supervised tokens.")
    eval_loss: str | None = Field(None, description="The last evaluation loss.")
    perplexity: str | None = Field(None, description="exp(evalLoss).")
    tokens_per_second: int | None = Field(None, description="Real tokens over all ranks.")
    mfu_percent: int | None = Field(
        None,
        description="Model FLOP/s of rank 0 in the last step as a share of its device's peak, where that is known.",
    )
    last_updated_time: str | None = Field(None, description="When the trainer said so.")


class PlanMemory(StatusModel):
    """The estimate that the choice rests on."""

    per_gpu: str = Field(alias="perGPU", description="Estimated need of one GPU (or one CPU process).")
    available: str | None = Field(None, description="What it has, where known.")
    assumed: bool = Field(False, description="Whether that is assumed: neither a setting nor a node says it.")
    host: str | None = Field(
        None, description="Estimated need of the pod's own memory per GPU, where something is offloaded."
    )


class PlanStatus(StatusModel):
    """The chosen parallel strategy."""

    display: str = Field("", description="The strategy in one word, for the column, e.g. ZeRO-3+offload.")
    zero_stage: int = Field(description="ZeRO stage.")
    offload_optimizer: str = Field("None", description="None or CPU.")
    offload_parameters: str = Field("None", description="None or CPU.")
    micro_batch_size: int = Field(description="Sequences per rank and forward pass.")
    gradient_accumulation_steps: int = Field(description="Forward passes per optimizer step.")
    activation_checkpointing: str = Field(description="None, Selective or Full.")
    sequence_parallel_size: int = Field(1, description="Ranks that share sequences.")
    tensor_parallel_size: int = Field(1, description="Ranks that share layers.")
    world_size: int = Field(description="Ranks.")
    tokens_per_step: int = Field(description="globalBatchSize times maxLength.")
    memory: PlanMemory = Field(description="Memory estimate.")
    hash: str = Field(description="Digest of this plan.")
    decided: list[str] = Field(default_factory=list, max_length=16, description="Fields the planner chose.")


class ModelStatus(StatusModel):
    """The model that was found."""

    resolved: str = Field(description="Exact source with revision or digest.")
    parameters: int = Field(description="Number of parameters.")


class DataStatus(StatusModel):
    """The data that was found."""

    rows: int = Field(description="Rows of an epoch; one that is seen twice, for a weight, is two.")
    eval_rows: int = Field(0, description="Rows held out.")
    tokens: int = Field(description="Tokens of the training rows.")
    supervised_tokens: int = Field(description="Tokens that are learned.")
    truncated_rows: int = Field(0, description="Rows cut at maxLength.")
    dropped_rows: int = Field(
        0, description="Rows dropped as too long, or without a supervised token after the cut."
    )
    short_rows: int = Field(0, description="Rows left out as shorter than minLength.")
    skipped_rows: int = Field(0, description="Rows that could not be read.")
    duplicate_rows: int = Field(0, description="Rows left out by deduplicate.")
    fill_percent: int = Field(0, description="Share of the packed sequences that is not padding.")
    cache_hash: str = Field("", description="Content hash of the prepared data.")


class CheckpointStatus(StatusModel):
    """A committed checkpoint."""

    name: str = Field(description="Folder below jobs/<name>/checkpoints.")
    step: int = Field(description="Optimizer steps it holds.")
    attempt: int = Field(description="Attempt that wrote it.")
    verified: bool = Field(description="Every byte was hashed after writing.")
    size: str = Field(description="Size as a quantity.")
    loss: str | None = Field(None, description="Loss at that step.")
    eval_loss: str | None = Field(None, description="Evaluation loss, where there was one at that step.")
    time: str = Field(description="When it was committed.")


class AttemptStatus(StatusModel):
    """One gang of pods from start to end."""

    number: int = Field(description="Counts from 1.")
    state: AttemptState = Field(description="How it stands.")
    reason: str | None = Field(None, description="Class of the failure.")
    message: str | None = Field(None, description="Words of the pod that failed.")
    charged: bool | None = Field(None, description="Whether it counts towards failurePolicy.maxRestarts.")
    exit_code: int | None = Field(None, description="Exit code of the pod that failed.")
    node: str | None = Field(None, description="Node of the pod that failed.")
    job_name: str = Field(description="The batch/v1 Job.")
    plan_hash: str | None = Field(None, description="Digest of the plan it was made of (plan.hash).")
    runs: int = Field(
        1, description="Starts of this attempt: 0 before its Job is made, more than 1 after suspensions."
    )
    start_time: str | None = Field(None, description="When its pods were first let go, by a queue too.")
    resumed_from_step: int | None = Field(None, description="Step of the checkpoint it went on from.")
    last_step: int | None = Field(None, description="Last step it reported.")
    finished_time: str | None = Field(None, description="When it ended.")


class ResultStatus(StatusModel):
    """What a finished job leaves."""

    export: str = Field(description="Folder in the workspace.")
    steps: int = Field(description="Optimizer steps.")
    exported_step: int | None = Field(
        None, description="Step whose state was exported: the last, or that of the best evaluation."
    )
    loss: str | None = Field(None, description="Last training loss.")
    eval_loss: str | None = Field(None, description="Evaluation loss of what was exported.")
    perplexity: str | None = Field(None, description="exp(evalLoss).")


class GoodputStatus(StatusModel):
    """What the job's time was spent on, in seconds up to accountedTime."""

    percent: int | None = Field(
        None, description="productiveSeconds as a share of all seconds with pods (the first four)."
    )
    productive_seconds: int = Field(0, description="Steps made for the first time, evaluations, the export.")
    checkpoint_seconds: int = Field(0, description="Training stood still for a checkpoint.")
    lost_seconds: int = Field(0, description="Steps made again, because they were lost with an attempt.")
    restart_seconds: int = Field(
        0, description="From the creation of pods to the first step, at every start, and pauses before one."
    )
    preparing_seconds: int = Field(0, description="Preparation of model and data.")
    queued_seconds: int = Field(
        0, description="Waiting for capacity, quota, a claim, a Secret, or for a spec that can be worked on."
    )
    suspended_seconds: int = Field(0, description="Suspended by its owner.")
    accounted_time: str = Field(description="Until when this is counted; later time is not yet.")


class Status(StatusModel):
    """How the job stands, as the operator last saw it. The conditions are what programs should read."""

    observed_generation: int | None = Field(None, description="The metadata.generation this speaks of.")
    phase: str | None = Field(None, description="One word for the column, derived from the conditions.")
    start_time: str | None = Field(
        None, description="When the first attempt was decided on; from then on most is immutable."
    )
    completion_time: str | None = Field(None, description="When Complete or Failed became True.")
    nodes: int | None = Field(None, description="Pods of the present attempt.")
    gpus: int | None = Field(None, description="GPUs of the present attempt, of all its pods together.")
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(
        default_factory=list,
        description="Accepted, Prepared, Planned, Running, Suspended, Complete, Failed.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    progress: ProgressStatus | None = Field(None, description="How far training is.")
    plan: PlanStatus | None = Field(None, description="The chosen strategy.")
    model: ModelStatus | None = Field(None, description="The base model, as preparation found it.")
    data: DataStatus | None = Field(None, description="The data, as preparation found it.")
    prepared: Annotated[
        dict[str, Any] | None,
        Field(json_schema_extra={"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
    ] = Field(
        None,
        description="Facts for the planner as the prepare pod reported them, with the hash of its input.",
    )
    last_verified_step: int | None = Field(None, description="Step of the newest verified checkpoint.")
    checkpoints: Annotated[list[CheckpointStatus], Field(max_length=10)] = Field(
        default_factory=list,
        description="The newest ten.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    restarts: int = Field(0, description="Failed attempts charged to failurePolicy.maxRestarts.")
    disruptions: int = Field(
        0, description="Failed attempts that the cluster or a user ended: not charged, and at most 100."
    )
    attempts: Annotated[list[AttemptStatus], Field(max_length=10)] = Field(
        default_factory=list,
        description="The newest ten.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
    )
    result: ResultStatus | None = Field(None, description="What a finished job leaves.")
    goodput: GoodputStatus | None = Field(None, description="What the job's time was spent on.")
