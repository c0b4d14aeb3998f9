"""SFTJob v1alpha1: the single source of the CRD, of the API reference and of parsing.

Defaults live in these models and not in the schema, so that what is unset stays visible as unset. `None`
means "decide for me" where the description says so. Cross-field rules are CEL, refused at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from sftjob_operator.api.base import (
    ApiModel,
    DataUri,
    ModelUri,
    NewToken,
    ObjectName,
    Passthrough,
    Quantity,
    RawConfig,
    RelativePath,
    at_most_one_of,
    exactly_one_of,
    rules,
)
from sftjob_operator.api.status import Status

GROUP = "sftjob.dev"
VERSION = "v1alpha1"
KIND = "SFTJob"
PLURAL = "sftjobs"
API_VERSION = f"{GROUP}/{VERSION}"


class SecretRef(ApiModel):
    """A Secret in the job's namespace."""

    name: ObjectName = Field(description="Name of the Secret. While it is missing the job waits.")


class ConfigMapKeyRef(ApiModel):
    """One key of a ConfigMap in the job's namespace."""

    name: ObjectName = Field(description="Name of the ConfigMap.")
    key: Annotated[str, Field(min_length=1, max_length=253)] = Field(description="Key in its data.")


# --------------------------------------------------------------------------- model


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


# --------------------------------------------------------------------------- data


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


# --------------------------------------------------------------------------- training


class LoRA(ApiModel):
    """Low-rank adapters instead of all weights."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.targetModules) || size(self.targetModules) == 1 || "
                "!('AllLinear' in self.targetModules)",
                "spec.training.lora.targetModules is either [AllLinear] or names of layers, not both",
            )
        )
    )
    rank: Annotated[int, Field(ge=1, le=1024)] = Field(16, description="Rank of the update. Default 16.")
    alpha: Annotated[int, Field(ge=1, le=4096)] = Field(
        32, description="The update is scaled by alpha / rank. Default 32."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout before the adapter. Default 0."
    )
    target_modules: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=253)]], Field(min_length=1, max_length=64)
    ] = Field(
        default_factory=lambda: ["AllLinear"],
        description="Names of the layers that get adapters. "
        "Default [AllLinear]: every linear layer but the head.",
    )
    variant: Literal["LoRA", "RSLoRA", "DoRA"] = Field(
        "LoRA",
        description="RSLoRA scales the update by alpha / sqrt(rank), so that a high rank learns as fast; DoRA also "
        "trains the norms of the weights' rows: slower, often better at a low rank. Default LoRA.",
    )


class Scheduler(ApiModel):
    """Learning rate over the steps, after a linear warm-up."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.decaySteps) || (has(self.type) && self.type == 'WSD')",
                "spec.training.scheduler.decaySteps needs spec.training.scheduler.type: WSD",
            )
        )
    )
    type: Literal["Cosine", "Linear", "Constant", "WSD"] = Field(
        "Cosine", description="WSD stays at the peak and decays at the end (1 - sqrt). Default Cosine."
    )
    warmup_steps: Annotated[int, Field(ge=0, le=1000000)] = Field(
        0, description="Steps of linear warm-up. Default 0."
    )
    decay_steps: Annotated[int, Field(ge=1, le=100000000)] | None = Field(
        None, description="Steps of WSD's decay, the last ones. Default a fifth of all."
    )
    min_learning_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Where Cosine, Linear and WSD end. Default 0."
    )


class Optimizer(ApiModel):
    """The optimizer."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.momentum) || (has(self.type) && self.type == 'Muon')",
                "spec.training.optimizer.momentum needs spec.training.optimizer.type: Muon",
            )
        )
    )
    type: Literal["AdamW", "Adam", "Muon"] = Field(
        "AdamW",
        description="AdamW and Adam differ in how weights decay. Muon steps along the nearest orthogonal matrix, at AdamW's "
        "rates (ZeRO stage 0); embeddings, head, norms and biases go by AdamW. Default AdamW.",
    )
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.9, 0.999], description="Decay of the two moments. Default [0.9, 0.999]."
    )
    eps: Annotated[float, Field(gt=0, le=1)] = Field(1e-8, description="Default 1e-8.")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Decay of matrices: of the weights themselves with AdamW, added to their gradients with "
        "Adam. Default 0.",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.95, description="Of Muon. Default 0.95.")


class ParameterGroup(ApiModel):
    """Parameters, by name, that learn at another rate or not at all."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(has(self.freeze) && self.freeze) != has(self.learningRateFactor)",
                "spec.training.parameterGroups: set either learningRateFactor or freeze: true",
            )
        )
    )
    pattern: Annotated[str, Field(min_length=1, max_length=253)] = Field(
        description="Shell pattern for whole names, such as model.embed_tokens.* or model.layers.[0-3].*; * also "
        "matches dots. Of several that match a name the first decides."
    )
    learning_rate_factor: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="They learn at so many times the scheduled rate."
    )
    freeze: bool = Field(False, description="true = they stay as they are in the base model.")


class EarlyStopping(ApiModel):
    """End before the planned end, when the evaluation loss no longer falls."""

    metric: Literal["eval_loss"] = Field("eval_loss", description="What has to fall. Default eval_loss.")
    patience: Annotated[int, Field(ge=1, le=1000)] = Field(
        3, description="Evaluations in a row without an improvement. Default 3."
    )
    min_delta: Annotated[float, Field(ge=0, le=1000000)] = Field(
        0.0, description="An improvement is lower than the last one by more than this. Default 0."
    )


class Loss(ApiModel):
    """What is minimised beside the cross entropy. Reported losses are without it."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the target that is spread over all tokens. Default 0."
    )
    z_loss: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Factor of log(Z)^2, which keeps logits from drifting; PaLM used 1e-4. Default 0.",
    )


class Training(ApiModel):
    """Hyper-parameters."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            at_most_one_of("spec.training", "epochs", "maxSteps", "maxTokens"),
            (
                "!has(self.lora) || (has(self.method) && self.method != 'Full')",
                "spec.training.lora needs spec.training.method: LoRA or QLoRA",
            ),
            (
                "!has(self.masterWeights) || self.masterWeights == 'FP32' || !has(self.precision) || "
                "self.precision == 'bf16'",
                "spec.training.masterWeights: BF16 and BF16StochasticRounding need spec.training.precision: bf16",
            ),
            (
                "!has(self.scheduler) || !has(self.scheduler.minLearningRate) || "
                "double(self.scheduler.minLearningRate) <= "
                "double(has(self.learningRate) ? self.learningRate : 0.00002)",
                "spec.training.scheduler.minLearningRate must not exceed "
                "spec.training.learningRate (default 2e-5)",
            ),
        )
    )
    method: Literal["Full", "LoRA", "QLoRA"] = Field(
        "Full",
        description="Which weights are trained: all, or adapters; of QLoRA the frozen ones are kept in four bits. Default "
        "Full.",
    )
    lora: LoRA | None = Field(None, description="Settings of methods LoRA and QLoRA.")
    epochs: Annotated[int, Field(ge=1, le=10000)] | None = Field(
        None, description="Passes over the data; or maxSteps, or maxTokens. Default 1 where none is set."
    )
    max_steps: Annotated[int, Field(ge=1, le=100000000)] | None = Field(
        None, description="Optimizer steps; the data is repeated as often as needed."
    )
    max_tokens: Annotated[int, Field(ge=1, le=1000000000000000)] | None = Field(
        None,
        description="Ends with the first optimizer step after which so many tokens (of prompts too, without "
        "padding) have been trained on; the data is repeated as often as needed.",
    )
    global_batch_size: Annotated[int, Field(ge=1, le=1048576)] = Field(
        16,
        description="Sequences of maxLength per optimizer step over all ranks, whatever their number. "
        "Default 16.",
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(2e-5, description="Peak. Default 2e-5.")
    scheduler: Scheduler = Field(default_factory=Scheduler, description="Learning-rate schedule.")
    optimizer: Optimizer = Field(default_factory=Optimizer, description="Optimizer and its constants.")
    loss: Loss | None = Field(None, description="What is minimised beside the cross entropy.")
    neftune_alpha: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None,
        description="Noise on the input embeddings while training (NEFTune); 5 to 15 is usual. Absent = none.",
    )
    max_grad_norm: Annotated[float, Field(gt=0, le=1000000)] = Field(
        1.0, description="Gradients are scaled down to this global norm. Default 1."
    )
    parameter_groups: Annotated[list[ParameterGroup], Field(max_length=32)] = Field(
        default_factory=list,
        description="Parameters that learn at another rate or not at all; a pattern that matches none is refused.",
    )
    early_stopping: EarlyStopping | None = Field(
        None, description="Absent = train to the end. Needs an evaluation period."
    )
    precision: Literal["bf16", "fp16", "fp32"] | None = Field(
        None,
        description="Absent = bf16 where the hardware has it, else fp16 on a GPU (fp32 with ZeRO stage 0) and fp32 "
        "on a CPU. fp16 scales losses dynamically. The optimizer computes in fp32.",
    )
    master_weights: Literal["FP32", "BF16", "BF16StochasticRounding"] = Field(
        "FP32",
        description="What the optimizer updates. BF16 keeps no fp32 copy of the weights (precision bf16, ZeRO stage 2 or "
        "3), 2 to 4 bytes less for each, and loses small updates; BF16StochasticRounding keeps them on average. Default "
        "FP32.",
    )
    seed: Annotated[int, Field(ge=0, le=2147483647)] = Field(
        42, description="Same seed, data and size: same result. Default 42."
    )


class DeepSpeed(ApiModel):
    """The parallel strategy. What is absent is chosen by the planner; the choice is in status.plan."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.offloadOptimizer) || self.offloadOptimizer == 'None' || !has(self.zeroStage) || "
                "self.zeroStage > 0",
                "spec.deepspeed.offloadOptimizer needs spec.deepspeed.zeroStage: 1 or 3 (2 only in fp32)",
            ),
            (
                "!has(self.offloadParameters) || self.offloadParameters == 'None' || !has(self.zeroStage) || "
                "self.zeroStage == 3",
                "spec.deepspeed.offloadParameters needs spec.deepspeed.zeroStage: 3",
            ),
        )
    )
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None, description="What is partitioned: 1 optimizer state, 2 and gradients, 3 and parameters."
    )
    offload_optimizer: Literal["None", "CPU"] | None = Field(
        None,
        description="CPU keeps optimizer state and gradients in the pod's memory and updates weights there. Absent = "
        "only where nothing else fits and spec.workers.resources says that there is memory.",
    )
    offload_parameters: Literal["None", "CPU"] | None = Field(
        None,
        description="CPU keeps the weights in the pod's memory as well, and fetches each layer when it is needed.",
    )
    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None,
        description="Sequences per GPU and forward pass (with sequenceParallelSize or tensorParallelSize, per group "
        "of GPUs that share them).",
    )
    sequence_parallel_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="So many consecutive GPUs share sequences, each a part of their tokens, and exchange heads for tokens "
        "around attention (Ulysses): for long contexts. It divides the number of GPUs and of attention heads. Default 1.",
    )
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="So many consecutive GPUs have every layer between them (AutoTP): a share of the heads, of the MLP and "
        "of the vocabulary each. It divides the GPUs of a node, and the attention heads. Default 1.",
    )
    activation_checkpointing: Literal["None", "Selective", "Full"] | None = Field(
        None,
        description="Full recomputes activations in the backward pass: least memory, a third more time. Selective keeps "
        "the results of linear layers and attention: in between.",
    )
    config: RawConfig | None = Field(
        None,
        description="Raw DeepSpeed configuration in DeepSpeed's own names, merged over ours; a disagreement "
        "with a typed field is refused (DeepSpeedConfigConflict).",
    )


# --------------------------------------------------------------------------- where it runs


class Resources(ApiModel):
    """core/v1 ResourceRequirements of the main container."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict, description="What is reserved."
    )
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict, description="What must not be exceeded."
    )


class EnvVar(ApiModel):
    """One variable of the main container."""

    name: Annotated[str, Field(min_length=1, max_length=253)] = Field(description="Name; SFTJOB_* are ours.")
    value: Annotated[str, Field(max_length=32768)] = Field("", description="Value, as it is.")


class PodMetadata(ApiModel):
    """Labels and annotations of the pods, beside ours."""

    labels: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)] = Field(
        default_factory=dict, description="Labels; sftjob.dev/* are ours."
    )
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] = Field(
        default_factory=dict, description="Annotations."
    )


class ContainerOverride(ApiModel):
    """What may be added to our container."""

    name: Literal["trainer"] = Field("trainer", description="Always trainer.")
    volume_mounts: Annotated[list[Passthrough], Field(max_length=16)] = Field(
        default_factory=list, description="core/v1 VolumeMounts of the volumes below."
    )
    security_context: Passthrough | None = Field(None, description="Replaces our securityContext key by key.")


class PodSpecOverride(ApiModel):
    """The part of core/v1 PodSpec that may be set."""

    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=253)]], Field(max_length=16)] = Field(
        default_factory=dict, description="Labels the nodes must have."
    )
    tolerations: Annotated[list[Passthrough], Field(max_length=16)] = Field(
        default_factory=list, description="core/v1 Tolerations."
    )
    affinity: Passthrough | None = Field(None, description="core/v1 Affinity.")
    volumes: Annotated[list[Passthrough], Field(max_length=16)] = Field(
        default_factory=list, description="core/v1 Volumes, beside ours."
    )
    containers: Annotated[list[ContainerOverride], Field(max_length=1)] = Field(
        default_factory=list, description="Additions to our container."
    )
    security_context: Passthrough | None = Field(
        None, description="Replaces our pod securityContext key by key, e.g. fsGroup or runAsUser."
    )
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=86400)] | None = Field(
        None, description="Time to save a checkpoint when the pods are asked to stop. Default 120."
    )


class PodTemplate(ApiModel):
    """A curated subset of core/v1 PodTemplateSpec, merged over ours."""

    metadata: PodMetadata = Field(default_factory=PodMetadata, description="Labels and annotations.")
    spec: PodSpecOverride = Field(default_factory=PodSpecOverride, description="The pod.")


class ImagePullSecret(ApiModel):
    """A Secret with registry credentials."""

    name: ObjectName = Field(description="Name of the Secret.")


class Workers(ApiModel):
    """The gang: one pod per node, one rank per GPU."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.processesPerNode) || (has(self.gpusPerNode) && self.gpusPerNode == 0)",
                "spec.workers.processesPerNode is only for CPU training: set spec.workers.gpusPerNode: 0",
            )
        )
    )
    nodes: Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="Pods, one per node. Default 1. Changed while the job runs (kubectl scale): it saves a "
        "checkpoint and goes on from it in the new size.",
    )
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = Field(
        1, description="GPUs, and so ranks, per pod; 0 = train on the CPU. Default 1."
    )
    gpu_resource_name: Annotated[str, Field(min_length=1, max_length=253)] = Field(
        "nvidia.com/gpu", description="Resource that is requested gpusPerNode times. Default nvidia.com/gpu."
    )
    processes_per_node: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Ranks per pod of CPU training. Default 1."
    )
    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        None, description="Trainer image; absent = the one installed with the operator."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        None, description="As in core/v1; absent = Kubernetes' choice."
    )
    image_pull_secrets: Annotated[list[ImagePullSecret], Field(max_length=8)] = Field(
        default_factory=list, description="Registry credentials, for prepare too."
    )
    resources: Resources = Field(default_factory=Resources, description="Beside the GPUs.")
    shared_memory: Quantity | None = Field(
        None, description="Size of /dev/shm. Default 1Gi per rank; it counts as memory of the pod."
    )
    env: Annotated[list[EnvVar], Field(max_length=64)] = Field(
        default_factory=list, description="Environment of launcher and ranks, for example NCCL_DEBUG."
    )
    pod_template: PodTemplate = Field(default_factory=PodTemplate, description="Merged over our pods.")


class Prepare(ApiModel):
    """The pod that fetches the model and tokenises the data before any GPU is taken."""

    resources: Resources = Field(default_factory=Resources, description="CPU and memory.")
    env: Annotated[list[EnvVar], Field(max_length=64)] = Field(
        default_factory=list, description="Environment, for example a proxy."
    )
    pod_template: PodTemplate = Field(default_factory=PodTemplate, description="Merged over our pod.")


AccessMode = Literal["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]


class ClaimRequests(ApiModel):
    """What the volume must have."""

    storage: Quantity = Field(description="Its size, such as 500Gi.")


class ClaimResources(ApiModel):
    """As in core/v1."""

    requests: ClaimRequests = Field(description="What the volume must have.")


class ClaimSpec(ApiModel):
    """A curated subset of core/v1 PersistentVolumeClaimSpec: a file system, never a block device."""

    access_modes: Annotated[list[AccessMode], Field(min_length=1, max_length=3)] = Field(
        default_factory=lambda: list[AccessMode](["ReadWriteMany"]),
        description="Default [ReadWriteMany], which more than one node needs.",
    )
    resources: ClaimResources = Field(description="Its size.")
    storage_class_name: Annotated[str, Field(max_length=253)] | None = Field(
        None, description="Absent = the cluster's default class."
    )


class ClaimTemplate(ApiModel):
    """A PersistentVolumeClaim to be made."""

    spec: ClaimSpec = Field(description="The claim.")


class RetentionPolicy(ApiModel):
    """What becomes of the claim."""

    when_deleted: Literal["Retain", "Delete"] = Field(
        "Retain",
        description="With the SFTJob, and never before: Retain keeps the claim, and a job of the same name finds it again; "
        "Delete removes it, the volume and all that lies on it. Default Retain.",
    )


class Workspace(ApiModel):
    """The shared volume with models, datasets, caches, checkpoints and exports: exactly one of the two claims."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            exactly_one_of("spec.workspace", "claimName", "claimTemplate"),
            (
                "!has(self.retentionPolicy) || has(self.claimTemplate)",
                "spec.workspace.retentionPolicy is for a claim of the job's own: set claimTemplate, or remove it",
            ),
        )
    )
    claim_name: ObjectName | None = Field(
        None,
        description="PersistentVolumeClaim, ReadWriteMany unless nodes is 1. "
        "While it is missing the job waits.",
    )
    claim_template: ClaimTemplate | None = Field(
        None, description="A claim of the job's own, <name>-workspace, made before preparation."
    )
    retention_policy: RetentionPolicy = Field(
        default_factory=RetentionPolicy, description="Of the claim made from claimTemplate."
    )
    sub_path: RelativePath | None = Field(None, description="Folder of the volume to use as workspace.")


# --------------------------------------------------------------------------- policies


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


# --------------------------------------------------------------------------- the object


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
