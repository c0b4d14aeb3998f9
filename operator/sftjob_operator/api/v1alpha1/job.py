"""The object itself: its spec, with the rules across fields, and what cannot change once it has started."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from sftjob_operator.api.base import ApiModel, rules
from sftjob_operator.api.status import Status
from sftjob_operator.api.v1alpha1.data import Data, DataSource
from sftjob_operator.api.v1alpha1.deepspeed import DeepSpeed
from sftjob_operator.api.v1alpha1.model import Model
from sftjob_operator.api.v1alpha1.policies import Checkpoint, Evaluation, Export, FailurePolicy
from sftjob_operator.api.v1alpha1.training import Training
from sftjob_operator.api.v1alpha1.workers import Prepare, Workers
from sftjob_operator.api.v1alpha1.workspace import Workspace

_EVALUATES = (
    "has(self.evaluation) && (has(self.evaluation.periodSteps) || has(self.evaluation.periodSeconds) || "
    "has(self.evaluation.periodEpochs))"
)
_STOPS_EARLY = "has(self.training) && has(self.training.earlyStopping)"
_EXPORTS_BEST = (  # as Spec.exports_best
    f"has(self.export) && has(self.export.checkpoint) ? self.export.checkpoint == 'Best' : ({_STOPS_EARLY})"
)


def _needs_evaluations(condition: str, field: str) -> tuple[str, str]:
    return (
        f"!({condition}) || ({_EVALUATES})",
        f"{field} needs evaluations: set one of spec.evaluation.periodSteps, periodSeconds, periodEpochs",
    )


class Spec(ApiModel):
    """What is wanted: model, data and workspace have to be named, everything else has a default."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.export) || !has(self.export.format) || self.export.format == 'Merged' || "
                "(has(self.training) && has(self.training.method) && self.training.method != 'Full')",
                "spec.export.format Adapter and Both need spec.training.method: LoRA or QLoRA",
            ),
            (
                f"!({_EVALUATES}) || has(self.data.eval)",
                "spec.evaluation.periodSteps, periodSeconds and periodEpochs need held-out rows: set spec.data.eval",
            ),
            (
                "!has(self.training) || !has(self.training.lora) || !has(self.training.lora.variant) || "
                "self.training.lora.variant != 'DoRA' || !has(self.deepspeed) || "
                "!has(self.deepspeed.zeroStage) || self.deepspeed.zeroStage != 3",
                "spec.training.lora.variant: DoRA takes norms of whole weights, which ZeRO stage 3 partitions: set "
                "spec.deepspeed.zeroStage to 2 or lower, or use RSLoRA",
            ),
            (
                "!has(self.evaluation) || !has(self.evaluation.samples) || self.evaluation.samples == 0 || "
                "has(self.data.eval)",
                "spec.evaluation.samples are prompts of held-out rows: set spec.data.eval",
            ),
            (
                "!has(self.workspace.claimTemplate) || !has(self.workspace.claimTemplate.spec.accessModes) || "
                "'ReadWriteMany' in self.workspace.claimTemplate.spec.accessModes || !has(self.workers) || "
                "!has(self.workers.nodes) || self.workers.nodes <= 1",
                "spec.workspace.claimTemplate.spec.accessModes must have ReadWriteMany when spec.workers.nodes is above "
                "1: the pods of all nodes share the volume",
            ),
            _needs_evaluations(_STOPS_EARLY, "spec.training.earlyStopping"),
            _needs_evaluations(
                "has(self.export) && has(self.export.checkpoint) && self.export.checkpoint == 'Best'",
                "spec.export.checkpoint: Best",
            ),
            _needs_evaluations(
                "has(self.checkpoint) && has(self.checkpoint.retain) && has(self.checkpoint.retain.best) && "
                "self.checkpoint.retain.best > 0",
                "spec.checkpoint.retain.best",
            ),
            (
                "!has(self.checkpoint) || !has(self.checkpoint.retain) || !has(self.checkpoint.retain.best) || "
                f"self.checkpoint.retain.best > 0 || !({_EXPORTS_BEST})",
                "spec.checkpoint.retain.best: 0 keeps no best checkpoint to export: remove it, or set "
                "spec.export.checkpoint: Last",
            ),
        )
    )
    suspend: bool = Field(False, description="true = save a checkpoint and release the pods; false goes on.")
    managed_by: (
        Annotated[str, Field(min_length=3, max_length=63, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._/-]+$")] | None
    ) = Field(
        None,
        description="The controller that takes care of this job; fixed once it has started. Absent or "
        "sftjob.dev/operator: this one. Any other value: this operator leaves the job alone.",
    )
    active_deadline_seconds: Annotated[int, Field(ge=1, le=315360000)] | None = Field(
        None,
        description="The job fails once it has been active for so long, counted from status.startTime, or from the end "
        "of its last suspension; its pods stop with a checkpoint. Absent = no limit.",
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=315360000)] | None = Field(
        None,
        description="The SFTJob is deleted, with its pods and their logs, so long after it completed or failed; what "
        "lies on the volume stays. Absent = it stays.",
    )
    model: Model = Field(description="The base model, and its tokenizer.")
    data: Data = Field(description="What it learns, and how that becomes tokens.")
    training: Training = Field(
        default_factory=Training, description="Method and hyper-parameters; every one has a default."
    )
    deepspeed: DeepSpeed = Field(
        default_factory=DeepSpeed,
        description="The parallel strategy. What is absent is chosen for the hardware; see status.plan.",
    )
    workers: Workers = Field(
        default_factory=Workers, description="The pods that train: how many, with what, from which image."
    )
    prepare: Prepare = Field(
        default_factory=Prepare,
        description="The pod that fetches the model and tokenises the data, before any GPU is taken.",
    )
    workspace: Workspace = Field(
        description="The volume of all pods, with models, datasets, caches, checkpoints and exports. Paths in the "
        "spec are relative to it."
    )
    checkpoint: Checkpoint = Field(
        default_factory=Checkpoint, description="How often the state is saved, and what is kept of it."
    )
    failure_policy: FailurePolicy = Field(
        default_factory=FailurePolicy, description="What happens after a failed attempt."
    )
    evaluation: Evaluation = Field(
        default_factory=Evaluation,
        description="How often the loss is measured on the rows of spec.data.eval.",
    )
    export: Export = Field(
        default_factory=Export, description="The trained model, as it is left in jobs/<name>/export."
    )

    @property
    def data_sources(self) -> dict[str, DataSource]:
        """All sources of rows, by their fields."""
        held_out = (self.data.eval.sources or ()) if self.data.eval else ()
        return {
            **{f"spec.data.train[{index}]": source for index, source in enumerate(self.data.train)},
            **{f"spec.data.eval.sources[{index}]": source for index, source in enumerate(held_out)},
        }

    @property
    def exports_best(self) -> bool:
        """Whether the state with the lowest evaluation loss is exported, and not the last."""
        if self.export.checkpoint is None:
            return self.training.early_stopping is not None
        return self.export.checkpoint == "Best"


def _unchanged_once_started(field: str) -> tuple[str, str]:
    new, old = f"self.spec.{field}", f"oldSelf.spec.{field}"
    return (
        "!has(oldSelf.status) || !has(oldSelf.status.startTime) || "
        f"(has({new}) == has({old}) && (!has({new}) || {new} == {old}))",
        f"spec.{field} cannot change once the job has started: create a new job under another name",
    )


class SFTJob(ApiModel):
    """Supervised fine-tuning of a chat model."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.metadata.name.size() <= 45 && "
                "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                "metadata.name: at most 45 characters, lower-case letters, digits and -, starting with a "
                "letter (it becomes part of host names)",
            ),
            *[
                _unchanged_once_started(field)
                for field in (
                    "model",
                    "data",
                    "training",
                    "deepspeed",
                    "prepare",
                    "workspace",
                    "evaluation",
                    "export",
                    "managedBy",
                )
            ],
        )
    )
    api_version: Literal["sftjob.dev/v1alpha1"] = "sftjob.dev/v1alpha1"
    kind: Literal["SFTJob"] = "SFTJob"
    metadata: dict[str, Any]
    spec: Spec
    status: Status = Field(default_factory=Status)

    @model_validator(mode="before")
    @classmethod
    def _empty_status(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("status") is None:
            return {key: item for key, item in value.items() if key != "status"}
        return value

    @property
    def name(self) -> str:
        """metadata.name."""
        return str(self.metadata["name"])

    @property
    def namespace(self) -> str:
        """metadata.namespace."""
        return str(self.metadata.get("namespace", "default"))

    @property
    def uid(self) -> str:
        """metadata.uid; empty for an object that was never stored."""
        return str(self.metadata.get("uid", ""))

    @property
    def generation(self) -> int:
        """metadata.generation."""
        return int(self.metadata.get("generation", 1))
