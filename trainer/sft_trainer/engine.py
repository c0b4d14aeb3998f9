"""The DeepSpeed engine: its configuration, built from ours, and the few calls that differ between stages."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import nn

from sft_trainer import parameters, tensor_parallel
from sft_trainer.config import Precision, TrainConfig
from sft_trainer.errors import UserError
from sft_trainer.lossscale import LossScaler
from sft_trainer.model import counts
from sft_trainer.optimizers import optimizer

logger = logging.getLogger(__name__)

Engine = Any  # deepspeed.DeepSpeedEngine publishes no types
_BUCKET_ELEMENTS = {"cpu": 10_000_000, "gpu": 200_000_000}  # the default of 5e8 would take 2 GB of a laptop
_NEVER = 2**31  # steps between DeepSpeed's own progress lines


def deepspeed_config(config: TrainConfig, precision: Precision) -> dict[str, Any]:
    """DeepSpeed's JSON: our defaults, over them the user's raw configuration, over that what we decided.

    The operator has refused raw keys that contradict typed fields. `"auto"` counts as unset.

    Raises:
        UserError: the raw configuration has an `optimizer` or `scheduler`, which are ours, from the typed fields.
    """
    raw = _without_auto(config.deepspeed.config)
    for section, typed in (("optimizer", "training.optimizer"), ("scheduler", "training.scheduler")):
        if section in raw:
            raise UserError(
                "DeepSpeedConfigUnsupported", f"deepspeed.config.{section}: remove it; set {typed} instead"
            )
    training, stage = config.training, config.deepspeed.zero_stage
    bucket = _BUCKET_ELEMENTS[config.topology.accelerator]
    on_gpu = config.topology.accelerator == "gpu"
    defaults: dict[str, Any] = {
        "steps_per_print": _NEVER,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU in every pass
    }
    if stage > 0:
        defaults["zero_optimization"] = {
            "overlap_comm": on_gpu,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        }
    if stage == 3:
        defaults["zero_optimization"] |= {
            "stage3_prefetch_bucket_size": bucket // 4,
            "stage3_param_persistence_threshold": 100_000,
        }
    if precision == "fp16":
        # A step that overflows is repeated at once: with the same scale it would overflow again.
        defaults["fp16"] = {"hysteresis": 1}
    offloaded = {
        "offload_optimizer": config.deepspeed.offload_optimizer,
        "offload_param": config.deepspeed.offload_parameters,
    }
    devices = {name: {"device": "cpu"} for name, where in offloaded.items() if where == "CPU"}
    for name in devices:
        defaults["zero_optimization"][name] = {"pin_memory": on_gpu}
    # Ranks that share sequences or layers count as if they had batches of their own: nothing follows from the number.
    size = config.topology.world_size
    decided: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "train_batch_size": size * training.micro_batch_size * training.gradient_accumulation_steps,
        "gradient_clipping": training.max_grad_norm,
        "zero_optimization": {"stage": stage, **devices},
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
    }
    if training.master_weights != "FP32":
        # DeepSpeed would leave the moments' type to the optimizer, which keeps fp32, were it not for its assertion.
        decided["bf16"] |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    if precision != "fp32" and stage > 0:  # stage 0 knows no other type than the model's
        decided["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.deepspeed.tensor_parallel_size > 1:
        decided["tensor_parallel"] = tensor_parallel.settings(config.deepspeed.tensor_parallel_size)
    return merged(merged(defaults, raw), decided)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, object by object; neither is changed."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def _without_auto(raw: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in raw.items() if value != "auto"}
    return {k: _without_auto(v) if isinstance(v, Mapping) else v for k, v in kept.items()}


def prepare(accelerator: str) -> None:
    """Set up torch and DeepSpeed, which finds our process group; before a model is loaded, as ZeRO-3 partitions it."""
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed decorates functions that we never call: each start would load torch's compiler, for a second.
    torch.compiler.set_default_backend("eager")
    if accelerator == "cpu":
        # Its shared-memory collectives would compile C++ for minutes at the first use.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        # cuDNN's attention would build a plan for every number of documents, longest one and number of tokens:
        # nearly every micro-batch has others. A plan takes a twentieth of a second and is never freed.
        torch.backends.cuda.enable_cudnn_sdp(False)
    deepspeed.init_distributed(verbose=False)


def initialize(model: nn.Module, config: TrainConfig, settings: dict[str, Any]) -> Engine:
    """The engine around `model`, with the optimizer that `config` asks for; after `prepare`."""
    settings = with_fitting_bucket(settings, model)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer(model, config), config=settings)
    _undo_first_step(engine)
    if config.deepspeed.tensor_parallel_size > 1:
        tensor_parallel.complete(engine)
    if engine.fp16_enabled():
        engine.optimizer.loss_scaler = LossScaler.like(engine.optimizer.loss_scaler)
    engine.train()  # from_pretrained leaves a model in evaluation mode, without dropout or recomputation
    return engine


def with_fitting_bucket(settings: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """`settings` with a gradient bucket of no more elements than are trained: DeepSpeed allocates all of it, twice."""
    size = settings["zero_optimization"].get("reduce_bucket_size")
    if not isinstance(size, int | float):  # stage 0 has none
        return dict(settings)
    _, trained = counts(model)
    return merged(settings, {"zero_optimization": {"reduce_bucket_size": min(int(size), trained)}})


def _undo_first_step(engine: Engine) -> None:
    """Where nothing is partitioned, DeepSpeed makes the optimizer's state by a step without gradients.

    It would count, and decay the weights.
    """
    if isinstance(engine.optimizer, FP16_UnfusedOptimizer):
        engine.optimizer.optimizer.state.clear()
        engine.optimizer.refresh_fp32_params()


def set_learning_rate(engine: Engine, rate: float) -> None:
    """Use `rate`, times the factor of each group, for the next optimizer step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group.get(parameters.LEARNING_RATE_FACTOR, 1.0)  # older checkpoints know none


def loss_scale(engine: Engine) -> float:
    """What losses are multiplied by before the backward pass; 1 unless gradients are in fp16."""
    return float(engine.optimizer.loss_scale) if engine.fp16_enabled() else 1.0


def step(engine: Engine) -> float | None:
    """Clip and apply the reduced gradients; the global gradient norm before clipping, NaN if not finite.

    None, on every rank, when they overflowed in fp16: nothing was changed but the loss scale, which is smaller.

    Raises:
        UserError: with reason Diverged, when they did so with the smallest loss scale.
    """
    norm: Any = None
    if not engine.zero_optimization() and not engine.bfloat16_enabled():
        norm = local_gradient_norm(engine.module)  # reduced gradients are whole on every rank here
    engine.step()
    if engine.fp16_enabled():
        if engine.optimizer.overflow:
            _forget_sums(engine)
            return None
        engine.optimizer.loss_scaler.grow()
    if norm is None:
        norm = engine.get_global_grad_norm()
    value = float("nan") if norm is None else float(norm)
    return value if math.isfinite(value) and value >= 0 else float("nan")


def _forget_sums(engine: Engine) -> None:
    """DeepSpeed (0.19.8, stage_1_and_2.py) keeps those that overflowed where the optimizer is offloaded, and adds to
    them: no smaller scale would ever do.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer.averaged_gradients.clear()


def local_gradient_norm(module: nn.Module) -> float:
    """2-norm of the gradients that lie in `module`'s parameters."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))
