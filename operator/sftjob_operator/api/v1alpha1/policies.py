"""What happens while a job trains and at its end: spec.checkpoint, failurePolicy, evaluation and export."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sftjob_operator.api.base import ApiModel, at_most_one_of, rules


class Retain(ApiModel):
    """How many checkpoints stay."""

    last: Annotated[int, Field(ge=1, le=100)] = Field(
        3, description="The newest so many; the newest verified one is never removed. Default 3."
    )
    best: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None,
        description="Beside them those with the lowest evaluation loss: with 1 or more, each evaluation that is "
        "the best so far is followed by a checkpoint. Default 1 where the best is exported, else 0.",
    )


class Checkpoint(ApiModel):
    """When the state of training is committed to the workspace."""

    period_seconds: Annotated[int, Field(ge=1, le=604800)] | None = Field(
        None, description="Commit after so much time. Default 900 where periodSteps is absent too."
    )
    period_steps: Annotated[int, Field(ge=1, le=1000000)] | None = Field(
        None, description="Commit every so many steps."
    )
    retain: Retain = Field(default_factory=Retain, description="What is kept.")
    on_existing: Literal["Resume", "Fail", "StartFresh"] = Field(
        "Resume",
        description="When jobs/<name> already holds checkpoints: Resume goes on where model, data and seed "
        "are the same and refuses otherwise; StartFresh puts them aside. Default Resume.",
    )


class FailurePolicy(ApiModel):
    """What happens after a failed attempt."""

    max_restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        3, description="Further attempts, each from the last verified checkpoint. Default 3."
    )
    backoff_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        10, description="Wait before the first restart; doubles each time, at most 10 minutes. Default 10."
    )


class Evaluation(ApiModel):
    """Evaluation loss and perplexity on spec.data.eval: every so often, and always at the end."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            at_most_one_of("spec.evaluation", "periodSteps", "periodSeconds", "periodEpochs")
        )
    )
    period_steps: Annotated[int, Field(ge=1, le=1000000)] | None = Field(
        None, description="Every so many steps."
    )
    period_seconds: Annotated[int, Field(ge=1, le=604800)] | None = Field(
        None, description="After so much time, at the next step."
    )
    period_epochs: Annotated[float, Field(gt=0, le=10000)] | None = Field(
        None, description="Every so many passes over the data; 0.5 = twice in each."
    )
    samples: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None,
        description="Held-out prompts to which the report shows the answers of the base model and of the "
        "result; 0 = none, for data that must not leave the volume. Default 3 with spec.data.eval.",
    )


class Export(ApiModel):
    """The result in jobs/<name>/export."""

    format: Literal["Merged", "Adapter", "Both"] = Field(
        "Merged", description="With LoRA: the merged model, the adapter alone, or both. Default Merged."
    )
    checkpoint: Literal["Last", "Best"] | None = Field(
        None,
        description="Which state is exported: the last, or the one with the lowest evaluation loss. "
        "Default Best with spec.training.earlyStopping, else Last.",
    )
