"""Ranks that share sequences compute what one rank computes on whole ones; test_gradients.py has all of training's."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gang
import gradient_cells
import split_cells
import tiny
from sft_trainer import neftune, sequence_parallel
from sft_trainer.batches import Plan
from sft_trainer.collate import collate
from sft_trainer.config import TrainConfig
from sft_trainer.data.cache import TokenCache
from sft_trainer.data.packing import pack
from sft_trainer.errors import UserError
from token_rows import Tokens

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gradient_cells.workspace(tmp_path_factory.mktemp("split"))


def plan_of(rows: Any, ranks: int, shared: int) -> Plan:
    return Plan(rows.lengths, 64, pack, 4, 2, ranks, seed=3, epochs=1, sequence_ranks=shared)


@pytest.mark.parametrize(("ranks", "shared"), [(2, 2), (6, 3), (8, 4)])
def test_parts_put_together_are_the_batches_of_as_many_ranks_as_there_are_groups(
    ranks: int, shared: int, volume: Path
) -> None:
    rows = TokenCache(volume / "cache").train
    split, whole = plan_of(rows, ranks, shared), plan_of(rows, ranks // shared, 1)
    assert split.digest == whole.digest
    for group in range(ranks // shared):
        micros = [split.micro_batches(1, group * shared + part) for part in range(shared)]
        for *parts, one in zip(*micros, whole.micro_batches(1, group), strict=True):
            own = [collate(part, rows, CPU, packed=True) for part in parts]
            expected = collate(one, rows, CPU, packed=True)
            width = expected.input_ids.shape[1]
            for name in ("input_ids", "targets", "position_ids"):
                joined = torch.cat([getattr(batch, name) for batch in own], dim=1)
                assert torch.equal(joined[:, :width], getattr(expected, name)), name
                assert joined.shape[1] - width < shared
            assert sum(batch.tokens for batch in own) == expected.tokens
            assert sum(batch.supervised for batch in own) == expected.supervised
            assert sum(batch.weight for batch in own) == pytest.approx(expected.weight)


ROTATED = {"rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 24}
TOGETHER = {"num_key_value_heads": 4, "together": True, "max_position_embeddings": 24}
MOVING: dict[str, dict[str, Any]] = {  # angles that depend on whether a document is longer than 24
    "longrope": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 4.0]},
    "dynamic": {"rope_type": "dynamic"},
}
GEMMA = {"head_dim": 8, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    **{
        f"llama-{kv}-of-8-over-{n}": ("llama", {"num_key_value_heads": kv}, n)
        for kv in (1, 4, 8)
        for n in (2, 4)
    },
    "recomputed": ("llama", {"num_key_value_heads": 4, "checkpointing": True}, 4),
    "mistral": ("mistral", {"num_key_value_heads": 2, "sliding_window": 7}, 4),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 16}, 2),
    "gemma3": ("gemma3_text", {"num_key_value_heads": 2, **GEMMA}, 4),
    "phi": ("phi", {}, 4),
    "gpt_neox": ("gpt_neox", {}, 2),
    **{name: ("llama", {**TOGETHER, "rope_parameters": ROTATED | more}, 4) for name, more in MOVING.items()},
}


@pytest.mark.processes
def test_logits_and_gradients_equal_those_of_documents_alone_whatever_the_heads() -> None:
    found = gang.call(split_cells.differences, 4, cases=CASES)
    assert set(found) == set(CASES)
    assert {name: off for name, off in found.items() if max(off) > 1e-5} == {}


@pytest.mark.processes
def test_what_is_kept_for_the_backward_pass_is_a_part_and_no_more_than_planned() -> None:
    length = 512
    whole, shared = gang.call(split_cells.kept_bytes, 2, length=length)
    assert shared < 0.58 * whole, "the attention output is kept twice, all else is a half"
    layer = 4 * (9 * 256 + 4 * 512) + 8 * 256  # bytes of a token in fp32, as in planning/activations.py
    planned = length // 2 * (2 * layer + 4 * 2 * 256)  # and those of the last norm
    assert 0.8 * planned < shared < 1.02 * planned


@pytest.mark.processes
@pytest.mark.parametrize(
    "documents", [pytest.param(1, id="one-document", marks=pytest.mark.soak), pytest.param(3, id="packed")]
)
def test_16384_tokens_on_two_ranks_are_those_of_one(documents: int, tmp_path: Path) -> None:
    volume, length = tmp_path / "volume", 16_384
    tiny.model(volume / "models" / "tiny", hidden=64, heads=8)
    ids = np.random.default_rng(0).integers(0, 256, length).astype(np.int32)
    cuts = [length * 3 // 5, length * 4 // 5][: documents - 1]
    rows = [Tokens(part, ((len(part) // 2, len(part)),)) for part in np.split(ids, cuts)]
    gang.write_cache(volume / "cache", rows, [])
    one, two = (gang.call(split_cells.long_step, n, volume=str(volume), length=length) for n in (1, 2))
    assert one["tokens"] == two["tokens"] == length
    assert two == pytest.approx(one, rel=1e-5)


def test_a_model_whose_sequences_cannot_be_split_is_refused_by_name() -> None:
    group: Any = None
    why = "neither FlashAttention nor SDPA"
    with pytest.raises(UserError, match=rf"deepspeed.sequenceParallelSize: .*{why}") as raised:
        sequence_parallel.use(split_cells.network("llama"), group)
    assert raised.value.reason == "SequenceParallelUnsupported"


@pytest.mark.parametrize(
    ("queries", "found", "size", "sent"),
    [(8, 8, 2, 8), (8, 4, 2, 4), (8, 2, 4, 4), (8, 1, 8, 8), (9, 9, 2, None), (12, 2, 3, None)],
)
def test_keys_are_repeated_up_to_the_ranks_or_cannot_be_shared(
    queries: int, found: int, size: int, sent: int | None
) -> None:
    keys = torch.arange(found).reshape(1, found, 1, 1)
    if sent is None:
        with pytest.raises(
            UserError, match=f"is {size}, but this model has {queries} attention heads and {found}"
        ):
            sequence_parallel._enough_heads(keys, queries, size)
        return
    repeated = sequence_parallel._enough_heads(keys, queries, size).flatten()
    assert len(repeated) == sent
    for rank in range(size):  # the i-th query of a rank has the key of that query of the model
        own, groups = repeated.chunk(size)[rank], queries // size // (sent // size)
        for i in range(queries // size):
            assert own[i // groups] == (rank * queries // size + i) // (queries // found)


def test_ranks_that_would_be_left_over_are_refused(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume", 2).config()
    job["deepspeed"]["sequenceParallelSize"] = 4
    with pytest.raises(ValueError, match="sequenceParallelSize does not divide the number of ranks"):
        TrainConfig.model_validate(job)


def test_noise_is_that_of_the_documents_whole_length(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    group: Any = "of two"
    monkeypatch.setattr(sequence_parallel, "whole", lambda own, of: positions)
    monkeypatch.setattr(sequence_parallel, "own_part", lambda whole, of: whole.chunk(2, dim=1)[1])
    own = positions[:, 4:]
    assert neftune.lengths_of_documents(own, own, group=group).tolist() == [[5, 5, 5, 5]]


def changes(shared: int, stage: int, accumulation: int) -> dict[str, Any]:
    return {
        "training__maxSteps": 6,
        "training__gradientAccumulationSteps": accumulation,
        "training__neftuneAlpha": None,
        "deepspeed__zeroStage": stage,
        "deepspeed__sequenceParallelSize": shared,
        "checkpoint__periodSteps": None,
        "evaluation__periodSteps": 2,
    }


@pytest.mark.processes
def test_a_training_goes_on_with_whole_sequences_on_one_rank_and_exports(tmp_path: Path) -> None:
    whole = gang.Job(tmp_path / "whole", 1, changes(1, 2, 4))
    assert whole.run().codes == [0]
    first = gang.Job(tmp_path / "split", 2, changes(2, 2, 4))
    with first.start() as run:
        run.ranks.until("step 2/6")
        run.ranks.send(signal.SIGTERM)
        stopped = run.end()
    assert stopped.codes == [74, 74], stopped.output
    assert "sequences split over 2 ranks passed" in stopped.output
    then = gang.Job(tmp_path / "split", 1, changes(1, 3, 4))
    assert then.run(attempt=2).codes == [0]
    assert then.curve() == pytest.approx(whole.curve(), rel=1e-4)
    assert then.curve("eval_loss") == pytest.approx(whole.curve("eval_loss"), rel=1e-4)


@pytest.mark.processes
@pytest.mark.soak
def test_a_split_training_without_packing_ends_as_a_whole_one_and_exports(tmp_path: Path) -> None:
    jobs = [
        gang.Job(tmp_path / str(shared), 2, {**changes(shared, 3, 2 * shared), "data__packing": "None"})
        for shared in (1, 2)
    ]
    for job in jobs:
        ended = job.run()
        assert ended.codes == [0, 0], ended.output
    one, other = jobs
    assert other.curve() == pytest.approx(one.curve(), rel=1e-4)
    assert other.curve("eval_loss") == pytest.approx(one.curve("eval_loss"), rel=1e-4)
    assert (other.folder / "export" / "model.safetensors").exists()


@pytest.mark.processes
@pytest.mark.soak
def test_heads_that_ranks_cannot_share_end_the_job_with_the_reason(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume", 3, {**changes(3, 2, 4), "training__globalBatchSize": 4})
    ended = job.run()
    assert ended.codes == [71, 71, 71], ended.output
    assert ended.outcomes[0] is not None
    assert ended.outcomes[0].reason == "SequenceParallelUnsupported"
    assert "this model has 2 attention heads and 2 of keys and values" in ended.outcomes[0].message
