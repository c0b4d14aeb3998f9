"""spec.data: what is learned, and how it becomes tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sftjob_operator.api.base import ApiModel, DataUri, RelativePath, exactly_one_of, rules
from sftjob_operator.api.v1alpha1.references import SecretRef


class DataSource(ApiModel):
    """Rows of chat: exactly one of `path`, `uri` and `inline`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            exactly_one_of("spec.data source", "path", "uri", "inline"),
            (
                "!has(self.secretRef) || (has(self.uri) && self.uri.startsWith('s3://'))",
                "spec.data source: secretRef holds the keys of an s3:// uri: remove it, or set uri",
            ),
        )
    )
    name: Annotated[str, Field(min_length=1, max_length=63)] | None = Field(
        None, description="Label of this source in messages; absent = its position."
    )
    path: RelativePath | None = Field(
        None,
        description="A .json, .jsonl or .parquet file in the workspace, a glob of such, or a folder with all of them.",
    )
    uri: DataUri | None = Field(
        None,
        description="s3://<bucket>/<key> of such a file, a folder or a glob, or https:// of one file; copied into the "
        "workspace, and again when it has changed.",
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="The keys to an s3:// uri (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, "
        "AWS_ENDPOINT_URL), seen by the prepare pod alone. Absent = those of spec.model.secretRef.",
    )
    inline: Annotated[str, Field(min_length=1, max_length=65536)] | None = Field(
        None, description="JSON lines, for a quick try."
    )
    format: Literal["Auto", "Messages", "ShareGPT", "Alpaca", "PromptCompletion", "PromptChosen"] = Field(
        "Auto", description="Shape of a row. Default Auto: recognised by its columns."
    )
    columns: dict[str, Annotated[str, Field(max_length=253)]] = Field(
        default_factory=dict,
        max_length=16,
        description="Our column: theirs, for example messages: conversation.",
    )
    weight: Annotated[float, Field(gt=0, le=100)] = Field(
        1.0,
        description="How often the rows are seen in an epoch: all of them as often as its whole part says, and a "
        "sample of them, chosen by their content, once more for its fraction. Default 1.",
    )
    max_rows: Annotated[int, Field(ge=1, le=1000000000)] | None = Field(
        None, description="Only the first so many rows are read; absent = all."
    )


class EvalData(ApiModel):
    """Held-out rows: exactly one of `splitPercent` and `sources`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            exactly_one_of("spec.data.eval", "splitPercent", "sources"),
            (
                "!has(self.sources) || self.sources.all(source, !has(source.weight))",
                "spec.data.eval.sources: remove weight, every held-out row is evaluated once",
            ),
        )
    )
    split_percent: Annotated[int, Field(ge=1, le=50)] | None = Field(
        None, description="Percentage of the training rows that is held out, chosen by the rows' content."
    )
    sources: Annotated[list[DataSource], Field(min_length=1, max_length=8)] | None = Field(
        None, description="Sources of their own."
    )


class Data(ApiModel):
    """What is learned and how it becomes tokens."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.minLength) || self.minLength <= (has(self.maxLength) ? self.maxLength : 2048)",
                "spec.data.minLength must not exceed spec.data.maxLength, or no row is left",
            )
        )
    )
    train: Annotated[list[DataSource], Field(min_length=1, max_length=32)] = Field(
        description="Sources of training rows, read one after another."
    )
    eval: EvalData | None = Field(None, description="Rows for the evaluation loss; absent = no evaluation.")
    max_length: Annotated[int, Field(ge=16, le=1048576)] = Field(
        2048, description="Tokens of a sequence. Default 2048."
    )
    min_length: Annotated[int, Field(ge=1, le=1048576)] | None = Field(
        None,
        description="Tokens below which a row, template included, is left out and counted in status; absent = none is.",
    )
    packing: Literal["BestFit", "None"] = Field(
        "BestFit", description="BestFit fills each sequence with whole rows; None pads. Default BestFit."
    )
    loss_on: Literal["Assistant", "LastAssistant", "AllTokens"] = Field(
        "Assistant", description="Which tokens are learned. Default Assistant: every answer, no question."
    )
    on_too_long: Literal["Truncate", "Drop", "Fail"] = Field(
        "Truncate",
        description="What happens to a row longer than maxLength; counted in status. Default Truncate.",
    )
    on_invalid_row: Literal["Fail", "Skip"] = Field(
        "Fail",
        description="What happens to a row that cannot be read; Skip counts it in status. Default Fail.",
    )
    deduplicate: Literal["None", "Exact"] = Field(
        "None",
        description="Exact keeps the first of equal conversations, over all sources, those of eval last; the others "
        "are counted in status. Default None.",
    )
