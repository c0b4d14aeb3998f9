"""spec.training: method and hyper-parameters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sftjob_operator.api.base import ApiModel, at_most_one_of, rules


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
