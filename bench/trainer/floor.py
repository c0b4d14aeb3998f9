"""The floor: the shortest plain PyTorch loop that does the same work, without DeepSpeed and without comfort.

Packed sequences, every document's attention computed on its own, weights as views of one flat tensor (for bf16
with a flat fp32 master beside it), one all-reduce of the flat gradient, the head at supervised positions only. No
sharding, no checkpoint, no resume, no metrics, no check: what a general trainer costs is the distance to this.
One rank, started by torchrun; imports nothing of ours.
"""

from __future__ import annotations

import json
import random
import sys

import torch
import torch.distributed as dist
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> None:
    settings = json.loads(sys.argv[1])
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    AttentionInterface.register("per_document", per_document)
    AttentionMaskInterface.register("per_document", lambda *_, **__: None)
    model = AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=DTYPES[settings["precision"]], attn_implementation="per_document"
    ).train()
    weights, gradients, master = flat(model)
    optimizer = torch.optim.AdamW([master], lr=settings["learning_rate"], weight_decay=0.0, fused=True)
    with open(settings["rows"]) as file:
        rows = json.load(file)
    packs = packed([len(row["ids"]) for row in rows], settings["max_length"])
    for step in range(settings["steps"]):
        pack = [rows[index] for index in packs[(step * ranks + rank) % len(packs)]]
        tokens, own = sum(len(row["ids"]) for row in pack), sum(sum(row["supervised"][1:]) for row in pack)
        counts = torch.tensor([float(own)])
        dist.all_reduce(counts)
        gradients.zero_()
        loss = loss_sum(model, pack) / counts
        loss.backward()
        dist.all_reduce(gradients)
        master.grad = gradients.float()
        torch.nn.utils.clip_grad_norm_([master], 1.0)
        optimizer.step()
        if master.dtype != weights.dtype:
            with torch.no_grad():
                weights.copy_(master)
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        said = {"step": step + 1, "tokens": tokens, "supervised": own, "loss": mean.item()}
        sys.stdout.write(json.dumps({"rank": rank, **said}) + "\n")  # at once: both ranks share the pipe
        sys.stdout.flush()


def flat(model) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Parameter]:
    """All weights and all gradients as views of one tensor each; the weights in fp32, a copy unless they are."""
    parameters = list(model.parameters())
    weights = torch.cat([p.data.reshape(-1) for p in parameters])
    gradients, start = torch.zeros_like(weights), 0
    for p in parameters:
        end = start + p.numel()
        p.data, p.grad = weights[start:end].view_as(p), gradients[start:end].view_as(p)
        start = end
    return weights, gradients, torch.nn.Parameter(weights.float())


def loss_sum(model, pack: list[dict]) -> torch.Tensor:
    """Sum of the cross entropies at the supervised positions of a pack."""
    lengths = [len(row["ids"]) for row in pack]
    ids = torch.tensor([token for row in pack for token in row["ids"]])
    positions = torch.cat([torch.arange(length) for length in lengths])
    wanted = torch.tensor([bit for row in pack for bit in [*row["supervised"][1:], 0]], dtype=torch.bool)
    hidden = model.model(
        input_ids=ids[None], position_ids=positions[None], use_cache=False, document_lengths=lengths
    ).last_hidden_state[0]
    logits = model.lm_head(hidden[wanted]).float()
    return F.cross_entropy(logits, ids.roll(-1)[wanted], reduction="sum")


def per_document(module, query, key, value, attention_mask, *, document_lengths, scaling=None, **_):
    """Causal attention of each document alone; query [1, heads, T, d] -> [1, T, heads, d]."""
    groups = module.num_key_value_groups
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    parts = zip(*(x.split(document_lengths, dim=2) for x in (query, key, value)), strict=True)
    out = [F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling) for q, k, v in parts]
    return torch.cat(out, dim=2).transpose(1, 2), None


def packed(lengths: list[int], room: int) -> list[list[int]]:
    """Rows in sequences of at most `room` tokens: first fit, longest first."""
    packs: list[tuple[int, list[int]]] = []
    for row in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        for index, (free, members) in enumerate(packs):
            if lengths[row] <= free:
                packs[index] = (free - lengths[row], [*members, row])
                break
        else:
            packs.append((room - lengths[row], [row]))
    shuffled = [members for _, members in packs]
    random.Random(0).shuffle(shuffled)
    return shuffled


if __name__ == "__main__":
    main()
