"""The one contract between the operator and the trainer.

The operator renders `PrepareConfig` and `TrainConfig` to JSON; the pods parse them. What the pods say back
(`Outcome` in the termination message, `Progress` over HTTP) is defined here too, and so are the exit codes.
This module imports neither torch nor anything of the operator. All paths in it are relative to the workspace
volume, so that the same JSON is valid wherever the volume is mounted.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

SCHEMA_VERSION = 1

# Environment of every container we start; the values are absolute paths or plain words.
ENV_WORKSPACE = "SFTJOB_WORKSPACE"  # where the shared volume is mounted
ENV_CONFIG = "SFTJOB_CONFIG"  # directory with prepare.json, or train.json and hostfile
ENV_RUN = "SFTJOB_RUN"  # scratch directory on a memory volume: metrics, progress, markers
ENV_TERMINATION_LOG = "SFTJOB_TERMINATION_LOG"  # file for the Outcome, at most 3 KiB
ENV_POD_IP = "SFTJOB_POD_IP"  # address the launcher binds to
ENV_NODE_NAME = "SFTJOB_NODE_NAME"  # label `node` of the metrics
ENV_NODE_INDEX = "JOB_COMPLETION_INDEX"  # set by the Job controller: this pod's index in the gang
ENV_HOSTS = "SFTJOB_HOSTS"  # optional file in /etc/hosts format which is asked before DNS
ENV_PEAK_FLOPS = "SFT_PEAK_FLOPS"  # set by users: FLOP/s of one rank's device, for MFU, where no table has it
ENV_CPUS = "SFTJOB_CPUS"  # optional number of CPUs this pod may use, where no cgroup says it (LocalCluster)

PREPARE_FILE = "prepare.json"
COLLECT_FILE = "collect.json"  # beside prepare.json where something is to be collected after it
TRAIN_FILE = "train.json"
HOSTFILE = "hostfile"
METRICS_PORT = 9400  # /metrics, /healthz and /progress of a training pod
MASTER_PORT = 29500
TERMINATION_MESSAGE_LIMIT = 3072  # bytes; kubelet truncates at 4096


class ExitCode(IntEnum):
    """How a container ends. The Job's podFailurePolicy and the restart policy key on these."""

    SUCCESS = 0
    CRASH = 70  # an uncaught exception; worth another attempt
    USER_ERROR = 71  # the data or the configuration is wrong, or ends the same way each time; never retried
    VOLUME_FULL = 72  # no space left on the workspace; never retried
    PEER_LOST = 73  # another rank or node died under this one; the cause is elsewhere
    INTERRUPTED = 74  # stopped by SIGTERM after saving; zero would count as success
    FENCED = 75  # a newer run of the job owns the volume
    GPU_OUT_OF_MEMORY = 76
    NETWORK = 77  # a download failed for a reason that may pass
    KILLED = 137  # SIGKILL: almost always the host's memory limit


class FailureClass(StrEnum):
    """Why a container, an attempt or a job failed: the `reason` in conditions and attempts."""

    CRASH = "Crash"
    USER_ERROR = "UserError"
    VOLUME_FULL = "VolumeFull"
    PEER_LOST = "PeerLost"
    INTERRUPTED = "Interrupted"
    FENCED = "Fenced"
    GPU_OUT_OF_MEMORY = "GPUOutOfMemory"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    NETWORK = "Network"
    DISRUPTED = "Disrupted"  # the cluster took the pod: eviction, drain, preemption, deletion


EXIT_CLASSES: dict[int, FailureClass] = {
    ExitCode.CRASH: FailureClass.CRASH,
    ExitCode.USER_ERROR: FailureClass.USER_ERROR,
    ExitCode.VOLUME_FULL: FailureClass.VOLUME_FULL,
    ExitCode.PEER_LOST: FailureClass.PEER_LOST,
    ExitCode.INTERRUPTED: FailureClass.INTERRUPTED,
    ExitCode.FENCED: FailureClass.FENCED,
    ExitCode.GPU_OUT_OF_MEMORY: FailureClass.GPU_OUT_OF_MEMORY,
    ExitCode.NETWORK: FailureClass.NETWORK,
    ExitCode.KILLED: FailureClass.HOST_OUT_OF_MEMORY,
}


UNPREPARED = "Unprepared"
"""Reason of an attempt that did not find what preparation had left: it is prepared again."""


class Contract(BaseModel):
    """JSON in camelCase, Python in snake_case, immutable, unknown keys refused."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, protected_namespaces=()
    )

    def to_json(self, indent: int | None = None) -> str:
        """This value as the JSON of the contract (camelCase, without what is unset)."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=indent)


class Report(Contract):
    """What a pod says or leaves on the volume: read leniently, because the writer may be newer than the reader."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, protected_namespaces=()
    )


class JobIdentity(Contract):
    """Which SFTJob a pod works for."""

    namespace: str
    name: str
    uid: str


# --------------------------------------------------------------------------- model and data


class ChatTemplate(Contract):
    """A chat template that replaces the tokenizer's own: a file in the workspace or one of ours."""

    path: str | None = None
    preset: Literal["ChatML"] | None = None


class ModelSource(Contract):
    """Where the base model comes from: exactly one of `path` and `uri`."""

    path: str | None = None
    uri: str | None = None
    chat_template: ChatTemplate | None = None
    add_tokens: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one(self) -> ModelSource:
        if (self.path is None) == (self.uri is None):
            raise ValueError("model: exactly one of path and uri")
        return self


DataFormat = Literal["Auto", "Messages", "ShareGPT", "Alpaca", "PromptCompletion", "PromptChosen"]


class DataSource(Contract):
    """One source of rows: a file, glob or folder in the workspace or in a store, or JSON lines given inline."""

    name: str
    path: str | None = None
    uri: str | None = None
    secret_prefix: str | None = None  # before the names of its Secret's keys in the environment
    inline: str | None = None
    format: DataFormat = "Auto"
    columns: dict[str, str] = Field(default_factory=dict)
    weight: Annotated[float, Field(gt=0)] = 1.0  # how often its rows are seen in an epoch
    max_rows: int | None = None  # the first so many

    @model_validator(mode="after")
    def _one(self) -> DataSource:
        if [self.path, self.uri, self.inline].count(None) != 2:
            raise ValueError(f"data source {self.name}: exactly one of path, uri and inline")
        return self


class EvalSplit(Contract):
    """Held-out rows: a percentage of the training rows, or sources of their own."""

    split_percent: Annotated[int, Field(ge=1, le=50)] | None = None
    sources: list[DataSource] = Field(default_factory=list)


class DataConfig(Contract):
    """Which rows are read and how they become tokens and labels."""

    train: list[DataSource]
    eval: EvalSplit | None = None
    max_length: int
    min_length: int | None = None  # tokens below which a row is left out
    packing: Literal["BestFit", "None"]
    loss_on: Literal["Assistant", "LastAssistant", "AllTokens"]
    on_too_long: Literal["Truncate", "Drop", "Fail"]
    on_invalid_row: Literal["Fail", "Skip"]
    deduplicate: Literal["None", "Exact"] = "None"


class ParameterGroup(Contract):
    """What happens to the parameters whose names match `pattern`, and no earlier pattern: exactly one of the two."""

    pattern: str
    learning_rate_factor: float | None = None
    freeze: bool = False


class PrepareConfig(Contract):
    """Input of the prepare pod (`prepare.json`)."""

    schema_version: int = SCHEMA_VERSION
    job: JobIdentity
    model: ModelSource
    data: DataConfig
    freezing: list[ParameterGroup] = Field(
        default_factory=list
    )  # what the planner needs of training.parameterGroups
    seed: int


class CollectConfig(Contract):
    """What may be removed from a volume (`collect.json`), and of what jobs that are not over need, nothing is."""

    unused_seconds: float | None = None  # since the last use; None = nothing goes by its age alone
    # Of all caches: beyond it also what was used later, the longest unused first.
    limit_bytes: int | None = None
    checkpoints: bool = False  # those of jobs that have exported, by age
    jobs: tuple[str, ...] = ()  # not over yet: neither their checkpoints
    directories: tuple[str, ...] = ()  # nor these
    listed_time: AwareDatetime | None = None  # of those two; None = just now


class TokenRange(Report):
    """Consecutive numbers of the vocabulary."""

    first: int
    count: int

    @property
    def end(self) -> int:
        """The number behind the last."""
        return self.first + self.count


class ModelFacts(Report):
    """What preparation found out about the model; input of the planner. Counts are of elements."""

    directory: str  # Hugging Face folder in the workspace which every rank can load
    resolved: str  # the exact source, with revision or file hash
    architecture: str
    parameters: int
    embedding_parameters: int  # the input embedding, plus the head where it is not tied
    expert_parameters: int = 0  # of the experts of a mixture
    lora_parameters_per_rank: int  # trainable parameters of LoRA at rank 1 on all linear layers
    trained_parameters: int | None = None  # of a full training that freezes some; None = all
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int | None = None  # None: not said, then as many as `heads`
    head_size: int | None = None  # of a query; None: not said, then hidden_size / heads
    normalised_queries: bool = False  # and keys: each head has a norm of them
    experts_per_token: int = 0  # that a token is sent to; 0: the model has none
    experts_intermediate_size: int = 0  # of those, and of the experts that all tokens share, together
    capped_logits: bool | None = None  # whether they go through tanh; None: as the architecture's usually do
    vocabulary_size: int
    max_positions: int | None = None
    tied_embeddings: bool
    added_tokens: TokenRange | None = None  # by model.addTokens; they are part of the counts above


class DataFacts(Report):
    """What preparation found out about the data. `cache` is a directory in the workspace."""

    cache: str
    hash: str
    rows: int
    eval_rows: int
    tokens: int
    supervised_tokens: int
    truncated_rows: int
    dropped_rows: int
    short_rows: int = 0
    skipped_rows: int
    duplicate_rows: int = 0
    longest_row: int  # tokens, before truncation
    packs: int  # sequences of at most maxLength tokens in one epoch
    fill_percent: int  # share of the packs that is not padding


class PrepareResult(Report):
    """Result of a successful preparation, carried in the termination message."""

    model: ModelFacts
    data: DataFacts


class Prepared(Report):
    """`jobs/<name>/prepared.json`: what a preparation was asked and what it found, without inline rows."""

    config: PrepareConfig
    result: PrepareResult


# --------------------------------------------------------------------------- training

Precision = Literal["bf16", "fp16", "fp32"]  # what a run computes in
Offload = Literal["None", "CPU"]
MasterWeights = Literal["FP32", "BF16", "BF16StochasticRounding"]
Recompute = Literal["None", "Selective", "Full"]  # activation checkpointing
Attention = Literal["FlashAttention", "SDPA", "Eager"]


class TrainModel(Contract):
    """The prepared model folder, where it came from, its attention, and what replaces its chat template."""

    directory: str
    resolved: str | None = None  # as in ModelFacts; an adapter names its base by it
    attention: Attention | None = None  # None: only the pod sees what there is
    chat_template: ChatTemplate | None = None
    added_tokens: TokenRange | None = None  # their embeddings are trained beside adapters


class TrainData(Contract):
    """The prepared token cache and how it is batched."""

    cache: str
    max_length: int
    packing: Literal["BestFit", "None"]


class LoRA(Contract):
    """Low-rank adapters (https://arxiv.org/abs/2106.09685); `AllLinear` = every linear layer but the head.

    RSLoRA (https://arxiv.org/abs/2312.03732) scales them by alpha / sqrt(rank) instead of alpha / rank; DoRA
    (https://arxiv.org/abs/2402.09353) trains the norms of the weights' rows apart from their directions.
    """

    rank: int
    alpha: int
    dropout: float
    target_modules: list[str]
    variant: Literal["LoRA", "RSLoRA", "DoRA"] = "LoRA"


class Scheduler(Contract):
    """Learning-rate schedule over optimizer steps, after a linear warm-up."""

    type: Literal["Cosine", "Linear", "Constant", "WSD"]
    warmup_steps: int
    decay_steps: int | None = None  # of WSD; None = a share of all steps, which only the pod counts
    min_learning_rate: float


class Optimizer(Contract):
    """AdamW (https://arxiv.org/abs/1711.05101), Adam, whose weight decay is part of the gradient, or sft_trainer.muon."""

    type: Literal["AdamW", "Adam", "Muon"]
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    momentum: float = 0.95  # of Muon


class EarlyStopping(Contract):
    """Stop after `patience` evaluations in a row whose loss was not lower than before by more than `min_delta`."""

    metric: Literal["eval_loss"]
    patience: int
    min_delta: float


class Loss(Contract):
    """What is minimised beside the cross entropy; see sft_trainer.softmax."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0


class Training(Contract):
    """Hyper-parameters with every choice made: nothing is left to decide in the pod."""

    method: Literal["Full", "LoRA", "QLoRA"]
    lora: LoRA | None = None
    epochs: int | None = None
    max_steps: int | None = None
    max_tokens: int | None = None  # real ones, of prompts too
    global_batch_size: int  # sequences (packs) per optimizer step, over all ranks
    micro_batch_size: int  # sequences per rank (or per ranks which share them) and forward pass
    gradient_accumulation_steps: int
    learning_rate: float
    scheduler: Scheduler
    optimizer: Optimizer
    parameter_groups: list[ParameterGroup] = Field(default_factory=list)
    loss: Loss | None = None
    neftune_alpha: float | None = None  # None = no noise
    max_grad_norm: float
    early_stopping: EarlyStopping | None = None
    precision: Precision | Literal["Auto"]  # Auto: only the pod sees the hardware
    master_weights: MasterWeights = (
        "FP32"  # what the optimizer updates; another than FP32 needs precision bf16
    )
    seed: int

    @property
    def adapts(self) -> bool:
        """Whether adapters are trained, and no other weights."""
        return self.method != "Full"

    @model_validator(mode="after")
    def _one(self) -> Training:
        if [self.epochs, self.max_steps, self.max_tokens].count(None) != 2:
            raise ValueError("training: exactly one of epochs, maxSteps and maxTokens")
        return self


class DeepSpeed(Contract):
    """The parallel strategy, decided, plus the user's raw DeepSpeed configuration to merge over ours."""

    zero_stage: Literal[0, 1, 2, 3]
    offload_optimizer: Offload = "None"
    offload_parameters: Offload = "None"
    activation_checkpointing: Recompute
    sequence_parallel_size: Annotated[int, Field(ge=1)] = 1  # consecutive ranks which share sequences
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1  # consecutive ranks which share every layer
    config: dict[str, Any] = Field(default_factory=dict)


class Topology(Contract):
    """The gang: `nodes` pods with `processes_per_node` ranks each."""

    nodes: int
    processes_per_node: int
    accelerator: Literal["gpu", "cpu"]

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.processes_per_node


class Checkpointing(Contract):
    """When to commit a checkpoint, how many to keep, and what to do with those of an earlier job."""

    period_steps: int | None = None
    period_seconds: int | None = None
    keep_last: int
    keep_best: int = 0  # those with the lowest evaluation loss, beside the newest
    on_existing: Literal["Resume", "Fail", "StartFresh"]


class Evaluation(Contract):
    """Evaluation loss on the held-out rows every so often (at most one is set), and at the end."""

    period_steps: int | None = None
    period_seconds: int | None = None
    period_epochs: float | None = None
    samples: int = 0  # held-out prompts that base and result answer for the report


class Planned(Contract):
    """What the planner expected of one rank, for the report to compare with the truth."""

    memory_bytes: int
    available_bytes: int | None = None  # None = not known
    decided: list[str] = Field(default_factory=list)  # fields that the spec left open


class Export(Contract):
    """What is written to jobs/<name>/export at the end."""

    format: Literal["Merged", "Adapter", "Both"]
    checkpoint: Literal["Last", "Best"] = "Last"


class TrainConfig(Contract):
    """Input of the launcher and of every rank (`train.json`)."""

    schema_version: int = SCHEMA_VERSION
    job: JobIdentity
    attempt: int
    identity: str  # digest of model, data and seed: a checkpoint of another identity is not ours
    model: TrainModel
    data: TrainData
    training: Training
    deepspeed: DeepSpeed
    topology: Topology
    checkpoint: Checkpointing
    evaluation: Evaluation
    export: Export
    planned: Planned | None = None
    keep_freed_memory: bool = (
        False  # CPU ranks: the allocator gives nothing back; faster, and a quarter larger
    )

    @model_validator(mode="after")
    def _whole_groups(self) -> TrainConfig:
        sizes = {
            "sequenceParallelSize": self.deepspeed.sequence_parallel_size,
            "tensorParallelSize": self.deepspeed.tensor_parallel_size,
        }
        for name, size in sizes.items():
            if self.topology.world_size % size:
                raise ValueError(f"deepspeed: {name} does not divide the number of ranks")
        return self


# --------------------------------------------------------------------------- what pods say


class CheckpointFact(Report):
    """A committed, verified checkpoint."""

    name: str
    step: int
    attempt: int
    bytes: int
    loss: float | None = None
    eval_loss: float | None = None  # where there was an evaluation at this step
    time: str  # RFC 3339


class TrainResult(Report):
    """Result of a finished training: only present when every rank ended and the export was reloaded."""

    steps: int
    planned_steps: int | None = None  # more than `steps` after an early stop
    exported_step: int | None = None
    loss: float | None = None  # of the last step
    eval_loss: float | None = None  # of what was exported
    perplexity: float | None = None
    export_directory: str
    export_bytes: int


class Outcome(Report):
    """The termination message: how a container ended and why, in at most 3 KiB of ASCII JSON."""

    schema_version: int = SCHEMA_VERSION
    outcome: Literal["Succeeded", "Failed"]
    reason: str  # Succeeded, or a FailureClass, or a finer word for a user error, e.g. InvalidRow
    failure_class: FailureClass | None = None
    message: str = ""
    exit_code: int = 0
    rank: int | None = None
    last_step: int | None = None
    last_verified_step: int | None = None
    resumed_from_step: int | None = None
    time: str | None = None  # RFC 3339
    prepare: PrepareResult | None = None
    train: TrainResult | None = None
    checkpoints: list[CheckpointFact] = Field(default_factory=list)


class Progress(Report):
    """GET /progress of the pod with index 0."""

    schema_version: int = SCHEMA_VERSION
    attempt: int
    run_id: str
    state: Literal["Starting", "Training", "Evaluating", "Saving", "Exporting", "Done"]
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    eval_loss: float | None = None
    perplexity: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None  # of rank 0 in the last step, 0 to 1
    peak_memory_bytes: int | None = None  # of rank 0's GPU, on a CPU of its process
    estimated_remaining_seconds: int | None = None
    resumed_from_step: int | None = None
    last_verified_step: int | None = None
    checkpoints: list[CheckpointFact] = Field(default_factory=list)  # the newest 10
    time: str  # RFC 3339
