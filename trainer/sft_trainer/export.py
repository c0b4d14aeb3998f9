"""Writes the finished model as a Hugging Face folder, and believes in it only after reading it back.

Staged, reloaded from disk, compared with the model in memory, then renamed: jobs/<name>/export is always a
whole, checked model. All ranks take part, because under ZeRO-3 each holds a part of every tensor.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from sft_trainer import companions, foreign, precision, quantise, tensor_parallel
from sft_trainer.checkpoint import fence
from sft_trainer.checkpoint.commit import require_space
from sft_trainer.checkpoint.files import size_of, sync_directory
from sft_trainer.config import Precision
from sft_trainer.distributed import World
from sft_trainer.engine import Engine
from sft_trainer.errors import UserError
from sft_trainer.layout import within
from sft_trainer.loop import Parts
from sft_trainer.model import counts

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"  # beside the merged model, when both are asked for
_PROBE_TOKENS = 64
# Largest allowed difference of logits, relative to the largest: rounding only.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}
_WAY_OUT = (
    "the last checkpoint is whole and nothing was published; use another model or training.precision fp32"
)

State = dict[str, torch.Tensor]


def export(parts: Parts, volume: Path) -> int:
    """Write jobs/<name>/export; its size in bytes. Collective.

    Raises:
        UserError: with reason ExportCheckFailed, when what was read back is not what was trained.
        VolumeFull, Fenced: as for a checkpoint.
    """
    ids = np.asarray(parts.rows.row(0)[0][:_PROBE_TOKENS], np.int64)
    expected = _probe(parts.engine, ids, parts.world.device)
    shared = parts.plan.tensor_ranks > 1
    state = gathered(parts.engine, parts.world, partial=parts.config.training.adapts, shared=shared)
    size = parts.world.first(lambda: _write(parts, volume, state or {}, ids, expected))
    if parts.world.is_first:
        logger.info("export %s: %.1f MB, reloaded and checked", parts.store.folder.export.name, size / 1e6)
    return size


def gathered(engine: Engine, world: World, *, partial: bool, shared: bool = False) -> State | None:
    """The tensors of the model on the CPU of rank 0; `partial`: only those that are trained. Collective.

    `shared`: ranks have layers between them.

    None on the other ranks: the host may have room for one copy of the model and not for one per rank.
    """
    if engine.zero_optimization_stage() == 3:
        state: State | None = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=partial)
        return state
    if shared:
        return tensor_parallel.whole_state(engine.module, keep=world.is_first)
    if not world.is_first:
        return None
    names = {name for name, p in engine.module.named_parameters() if p.requires_grad}
    whole = engine.module.state_dict()
    return on_host({name: tensor for name, tensor in whole.items() if not partial or name in names})


def on_host(state: State) -> State:
    """Copies on the CPU; a tensor under two names (tied embeddings) stays one, or it would be stored twice."""
    copies: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in state.values():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in copies:
            copies[place] = tensor.detach().cpu()
    return {name: copies[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()}


def _probe(model: Any, ids: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.from_numpy(ids)[None].to(device), use_cache=False).logits
    return logits[0].float().cpu()


def _write(
    parts: Parts, volume: Path, state: State, ids: np.ndarray[Any, Any], expected: torch.Tensor
) -> int:
    folder = parts.store.folder
    fence.check(folder.fence, parts.store.fence)  # first: what lies there may be a newer run's
    for stale in folder.root.glob(".export-*"):
        shutil.rmtree(stale, ignore_errors=True)
    base = within(volume, parts.config.model.directory)
    dtype = export_dtype(base, parts.precision, full=parts.config.training.method == "Full")
    require_space(folder.root, written_bytes(parts, state, dtype), "the export")
    staging = folder.root / f".export-{parts.store.fence.run_id}"
    staging.mkdir()
    try:
        _fill(staging, parts, volume, state, dtype)
        _check(staging, base, parts, ids, expected, dtype)
        _publish(staging, parts)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return size_of(folder.export)


def written_bytes(parts: Parts, state: State, dtype: torch.dtype) -> int:
    """Size of the weights that an export writes: the model, its fp32 adapters, or both."""
    if parts.config.training.method == "Full":
        # Of the state, not the model: a rank may have a share of the layers only. What is tied counts once.
        tensors = {tensor.data_ptr(): tensor for tensor in state.values()}
        return sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize
    every, trainable = counts(parts.engine.module)
    choice = parts.config.export.format
    merged = 0 if choice == "Adapter" else (every - trainable) * dtype.itemsize
    return merged + (0 if choice == "Merged" else trainable * 4)


def _fill(staging: Path, parts: Parts, volume: Path, state: State, dtype: torch.dtype) -> None:
    config, base = parts.config, within(volume, parts.config.model.directory)
    if config.training.method == "Full":
        _write_full(parts.engine.module, state, staging, dtype)
    else:
        _write_adapters(parts, state, volume, staging, dtype)
    companions.copy(base, staging, config, volume)


def _publish(staging: Path, parts: Parts) -> None:
    folder = parts.store.folder
    for path in staging.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_directory(staging)
    fence.check(folder.fence, parts.store.fence)
    if folder.export.exists():
        folder.export.rename(folder.root / f".export-old-{parts.store.fence.run_id}")
    staging.rename(folder.export)
    sync_directory(folder.root)
    shutil.rmtree(folder.root / f".export-old-{parts.store.fence.run_id}", ignore_errors=True)


def export_dtype(base: Path, trained: Precision, *, full: bool) -> torch.dtype:
    """The base model's own type; bf16 or fp16 where all weights were trained in it: they no longer exceed it."""
    if full and trained != "fp32":
        return precision.dtype(trained)
    settings = json.loads((base / "config.json").read_text(encoding="utf-8"))
    name = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)


def _write_full(module: Any, state: State, staging: Path, dtype: torch.dtype) -> None:
    tied: dict[int, torch.Tensor] = {}  # a tensor under two names stays one, or it would be stored twice

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        return tied.setdefault(tensor.data_ptr(), tensor.to(dtype))

    with _inference_settings(module):
        module.save_pretrained(str(staging), state_dict={name: cast(t) for name, t in state.items()})
    path = staging / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _write_adapters(parts: Parts, state: State, volume: Path, staging: Path, dtype: torch.dtype) -> None:
    """Put the trained adapters on a fresh copy of the base, so that frozen weights are exactly the base's."""
    import peft  # seconds of a start, for LoRA only

    trained = parts.engine.module
    settings = trained.peft_config["default"]
    base = _load(within(volume, parts.config.model.directory), dtype)
    quantise.replace(base, quantise.dequantised(trained))
    fresh = peft.get_peft_model(base, settings)
    peft.set_peft_model_state_dict(fresh, peft.get_peft_model_state_dict(trained, state_dict=state))
    choice = parts.config.export.format
    if choice != "Merged":
        beneath = ADAPTER_FOLDER if choice == "Both" else "."
        written = fresh.peft_config["default"]
        written.base_model_name_or_path, written.revision = companions.base_of_adapter(
            parts.config, parts.store.folder.export / beneath, volume
        )
        # The embeddings are the base's; "auto" would ask the hub whether they are.
        fresh.save_pretrained(str(staging / beneath), save_embedding_layers=False)
    if choice != "Adapter":
        merged = fresh.merge_and_unload()
        with _inference_settings(merged):
            merged.save_pretrained(str(staging))


@contextlib.contextmanager
def _inference_settings(model: Any) -> Iterator[None]:
    """Training turned the key-value cache off; the written config must not."""
    before = model.config.use_cache
    model.config.use_cache = True
    try:
        yield
    finally:
        model.config.use_cache = before


def _load(directory: Path, dtype: torch.dtype | str) -> Any:
    options = {"dtype": dtype, "local_files_only": True, **foreign.NO_CODE_NO_PICKLES}
    return transformers.AutoModelForCausalLM.from_pretrained(str(directory), **options)


def _check(
    staging: Path,
    base: Path,
    parts: Parts,
    ids: np.ndarray[Any, Any],
    expected: torch.Tensor,
    dtype: torch.dtype,
) -> None:
    """Load what was written and compare it with what was trained.

    Raises:
        UserError: a tensor is empty or not finite, or the model does not say what the trained one says.
    """
    adapter_only = parts.config.training.adapts and parts.config.export.format == "Adapter"
    model = _load(base if adapter_only else staging, dtype)
    if adapter_only:
        quantise.replace(model, quantise.dequantised(parts.engine.module))
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(staging))
    for name, tensor in model.state_dict().items():
        if tensor.numel() == 0 or (tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())):
            raise UserError(
                "ExportCheckFailed", f"the exported tensor {name} is empty or not finite; {_WAY_OUT}"
            )
    logits = _probe(model, ids, torch.device("cpu"))
    difference = float((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    tolerance = max(_TOLERANCE[dtype], _TOLERANCE[precision.dtype(parts.precision)])
    if logits.shape != expected.shape or not difference <= tolerance:
        raise UserError(
            "ExportCheckFailed",
            "the exported model does not answer as the trained one "
            f"(logits differ by {difference:.1e}); {_WAY_OUT}",
        )
