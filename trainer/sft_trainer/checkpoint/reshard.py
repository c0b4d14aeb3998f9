"""Loads a checkpoint into another number of ranks, or another ZeRO stage, than wrote it.

DeepSpeed can only load a partition into the rank that wrote it; its way around that rewrites the whole
checkpoint on the volume first. Nothing needs rewriting: which elements of which parameter lie where is known of
the saved partitions (`Fragment`) and of the engine's, so every rank maps the saved files into its memory and
copies what is its own.

Source of the saved layouts: deepspeed/runtime/zero/stage_1_and_2.py and stage3.py, `state_dict`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

from sft_trainer.engine import Engine

WEIGHTS = "fp32"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """`numel` consecutive elements of one parameter, saved from `start` on in flat fp32 tensors."""

    flat: Mapping[str, torch.Tensor]  # WEIGHTS and MOMENTS, each [elements of the partition]
    start: int
    numel: int


Fragments = Mapping[str, Sequence[Fragment]]  # by parameter, in the order of its elements


@dataclass(frozen=True)
class Saved:
    """The optimizer of a whole gang, as its ranks saved it."""

    fragments: Fragments
    step: float
    loss_scaler: Any


def read(directory: Path, ranks: int, stage: int, share: int = 0) -> Saved:
    """What `ranks` ranks saved in `directory` with ZeRO `stage` 1, 2 or 3. The files are mapped, not read.

    Where layers were shared, those ranks that had this `share` of them.
    """
    own = f"mp_rank_{share:02d}_optim_states.pt"
    shards = [_load(directory, f"*zero_pp_rank_{rank}_{own}") for rank in range(ranks)]
    states = [shard["optimizer_state_dict"] for shard in shards]
    fragments: dict[str, list[Fragment]] = defaultdict(list)
    if stage == 3:
        shapes = _load(directory, "zero_pp_rank_0_mp_rank_00_model_states.pt")["param_shapes"]
        for rank, state in enumerate(states):
            for name, fragment in _of_stage3(state, shapes, rank, ranks):
                fragments[name].append(fragment)
        moments = states[0]["optimizer_state_dict"]["state"]
    else:
        for state in states:
            for name, fragment in _of_stage_1_and_2(state):
                fragments[name].append(fragment)
        moments = states[0]["base_optimizer_state"]["state"]
    step = next(iter(moments.values()))["step"]
    return Saved(fragments, float(step), states[0].get("loss_scaler"))


def _load(directory: Path, pattern: str) -> Any:
    (path,) = directory.glob(pattern)
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)


def _of_stage_1_and_2(state: Any) -> Iterator[tuple[str, Fragment]]:
    """All parameters of a group end to end, cut into as many equal parts as there are ranks."""
    base = state["base_optimizer_state"]
    groups = zip(
        state["single_partition_of_fp32_groups"],
        state["param_slice_mappings"],
        base["param_groups"],
        strict=True,
    )
    for weights, addresses, group in groups:
        flat = {WEIGHTS: weights, **_moments(base["state"][group["params"][0]])}
        for name, address in addresses.items():
            yield name, Fragment(flat, address.start, address.numel)


def _of_stage3(
    state: Any, shapes: Sequence[Mapping[str, torch.Size]], rank: int, ranks: int
) -> Iterator[tuple[str, Fragment]]:
    """Every parameter cut into as many equal parts as there are ranks, the last one padded."""
    for index, (weights, group) in enumerate(zip(state["fp32_flat_groups"], shapes, strict=True)):
        flat = {WEIGHTS: weights, **_moments(state["optimizer_state_dict"]["state"][index])}
        start = 0
        for name, shape in group.items():
            part = -(-shape.numel() // ranks)
            yield name, Fragment(flat, start, max(0, min(part, shape.numel() - rank * part)))
            start += part


def _moments(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: state[key] for key in MOMENTS}


def extract(fragments: Sequence[Fragment], key: str, start: int, numel: int) -> torch.Tensor:
    """Elements `start` to `start + numel` of a parameter, fp32 [numel]; zeros behind its end."""
    found = torch.zeros(numel, dtype=torch.float32)
    position = 0  # in the parameter, of the fragment
    for fragment in fragments:
        first, last = max(start, position), min(start + numel, position + fragment.numel)
        if first < last:
            offset = fragment.start + first - position
            found[first - start : last - start] = fragment.flat[key][offset : offset + last - first]
        position += fragment.numel
    return found


def load(engine: Engine, saved: Saved, rank: int) -> None:
    """Put weights and optimizer where `saved` left them. Collective.

    Raises:
        KeyError: a trainable parameter is not in the checkpoint.
    """
    optimizer = engine.optimizer
    partitioned = engine.zero_optimization_partition_weights()
    if partitioned:
        optimizer.checkpoint_event_prologue()  # small parameters, which every rank holds, are parted too
        flats = optimizer.fp32_partitioned_groups_flat
    else:
        flats = [group["params"][0] for group in optimizer.param_groups]
    _begin_state(optimizer.optimizer, flats, saved.step)
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if partitioned:
            _fill_stage3(parameter, saved.fragments[name], rank)
        else:
            _fill_stage_1_and_2(parameter, saved.fragments[name], optimizer.optimizer.state, flats)
    if saved.loss_scaler is not None:
        optimizer.loss_scaler = saved.loss_scaler
    if partitioned:
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()


def _begin_state(inner: torch.optim.Optimizer, flats: Sequence[torch.Tensor], step: float) -> None:
    """As after `step` steps, with moments of zero: before its first step an optimizer has no state."""
    for flat in flats:
        # bf16adam.py counts in Python, torch's fused one on the device.
        fused = isinstance(inner, torch.optim.Adam)  # AdamW is one
        count = torch.tensor(step, dtype=torch.float32, device=flat.device) if fused else int(step)
        moments = {key: torch.zeros_like(flat, dtype=torch.float32) for key in MOMENTS}
        inner.state[flat] = {"step": count, **moments}


def _fill_stage3(parameter: Any, fragments: Sequence[Fragment], rank: int) -> None:
    part = parameter.ds_tensor.numel()
    weights = extract(fragments, WEIGHTS, rank * part, part)
    safe_set_local_fp32_param(parameter, weights)
    parameter.ds_tensor.data.copy_(weights)
    for key in MOMENTS:
        safe_set_local_optimizer_state(parameter, extract(fragments, key, rank * part, part), key)


def _fill_stage_1_and_2(
    parameter: Any,
    fragments: Sequence[Fragment],
    state: Mapping[torch.Tensor, Mapping[str, torch.Tensor]],
    flats: Sequence[torch.Tensor],
) -> None:
    mine = parameter._hp_mapping  # which part of it this rank updates; None where that is none of it
    if mine is None:
        return
    flat, source, target = flats[mine.param_group_index], mine.lp_fragment_address, mine.hp_fragment_address
    for key in (WEIGHTS, *MOMENTS):
        whole = flat.data if key == WEIGHTS else state[flat][key]
        whole[target.start : target.start + target.numel] = extract(
            fragments, key, source.start, source.numel
        )
