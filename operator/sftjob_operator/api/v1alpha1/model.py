"""spec.model: the base model, and its tokenizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sftjob_operator.api.base import ApiModel, ModelUri, NewToken, RelativePath, exactly_one_of, rules
from sftjob_operator.api.v1alpha1.references import SecretRef


class ChatTemplate(ApiModel):
    """A Jinja chat template that replaces the tokenizer's own."""

    model_config = ConfigDict(
        json_schema_extra=rules(exactly_one_of("spec.model.chatTemplate", "path", "preset"))
    )
    path: RelativePath | None = Field(None, description="A Jinja file in the workspace.")
    preset: Literal["ChatML"] | None = Field(None, description="A template that comes with the trainer.")


class Model(ApiModel):
    """The base model: exactly one of `uri` and `path`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            exactly_one_of("spec.model", "uri", "path"),
            (
                "!has(self.addTokens) || self.addTokens.all(token, "
                "self.addTokens.exists_one(other, other == token))",
                "spec.model.addTokens: a token is there twice, remove one of them",
            ),
        )
    )
    uri: ModelUri | None = Field(
        None,
        description="hf://<organisation>/<name>[@<revision>], or s3://<bucket>/<folder> (or a .gguf file there): "
        "downloaded once into the workspace.",
    )
    path: RelativePath | None = Field(
        None, description="A Hugging Face folder or a .gguf file in the workspace."
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="All its keys (HF_TOKEN; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, "
        "AWS_ENDPOINT_URL) become environment of the prepare pod, and of no other.",
    )
    attention: Literal["FlashAttention", "SDPA", "Eager"] | None = Field(
        None,
        description="How attention is computed. Absent = FlashAttention on GPUs that can, in bf16 and fp16; else SDPA, "
        "each document on its own; Eager where the architecture has no other.",
    )
    chat_template: ChatTemplate | None = Field(
        None, description="Replaces the tokenizer's template, also in the export; absent = the tokenizer's."
    )
    add_tokens: Annotated[list[NewToken], Field(min_length=1, max_length=64)] | None = Field(
        None,
        description="Special tokens that the model is to learn, such as <|tool|>: one token each wherever they stand. "
        "Their embeddings begin as the mean of all others, and are trained with LoRA, too.",
    )
