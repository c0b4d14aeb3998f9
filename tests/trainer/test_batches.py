"""Every row is trained on once per epoch, by exactly one rank, whatever the shape of the gang."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_trainer.batches import Plan, balance, by_budget, one_row_each
from sft_trainer.data.packing import pack


def plan(lengths: list[int], **changes: Any) -> Plan:
    chosen: dict[str, Any] = {
        "lengths": np.array(lengths),
        "max_length": 64,
        "packer": pack,
        "global_batch": 8,
        "micro_batch": 2,
        "world_size": 2,
        "seed": 3,
        "epochs": 2,
    }
    return Plan(**(chosen | changes))


def rows_of(plan: Plan, steps: range) -> Counter[int]:
    return Counter(
        row
        for step in steps
        for rank in range(plan.world_size)
        for micro in plan.micro_batches(step, rank)
        for sequence in micro.packs
        for row in sequence
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=80),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from(["packed", "unpacked", "rows"]),
)
def test_every_row_comes_once_per_epoch(
    lengths: list[int], ranks: int, batch: int, micro: int, mode: str
) -> None:
    chosen = plan(
        lengths,
        world_size=ranks,
        global_batch=batch,
        micro_batch=micro,
        packed=mode == "packed",
        packer=one_row_each if mode == "rows" else pack,
    )
    for epoch in range(2):
        first = epoch * chosen.steps_per_epoch
        assert rows_of(chosen, range(first, first + chosen.steps_per_epoch)) == Counter(range(len(lengths)))
    assert chosen.total_steps == 2 * chosen.steps_per_epoch


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=80), st.integers(1, 5), st.booleans())
def test_all_ranks_have_equally_many_micro_batches(lengths: list[int], ranks: int, packed: bool) -> None:
    chosen = plan(lengths, world_size=ranks, packed=packed)
    for step in range(chosen.total_steps):
        assert len({len(chosen.micro_batches(step, rank)) for rank in range(ranks)}) == 1


def test_the_last_batch_of_an_epoch_is_a_step_with_fewer_sequences() -> None:
    chosen = plan([64] * 11, global_batch=4)
    assert [len(chosen.sequences(step)) for step in range(chosen.total_steps)] == [4, 4, 3, 4, 4, 3]
    assert [chosen.consumed(step) for step in range(7)] == [0, 4, 8, 11, 15, 19, 22]


def test_a_rank_with_nothing_to_do_gets_an_empty_micro_batch() -> None:
    chosen = plan([64] * 5, global_batch=4, world_size=2, micro_batch=2)
    assert [len(batch.packs) for batch in chosen.micro_batches(1, 1)] == [0]


def test_the_plan_depends_on_the_seed_and_the_step_only() -> None:
    lengths = list(range(1, 60))
    fresh, used = plan(lengths), plan(lengths)
    for step in reversed(range(used.total_steps)):
        used.micro_batches(step, 0)
    assert fresh.micro_batches(3, 1) == used.micro_batches(3, 1)
    assert fresh.sequences(0) != plan(lengths, seed=4).sequences(0)
    assert fresh.sequences(0) != fresh.sequences(fresh.steps_per_epoch)


def test_ranks_get_about_as_many_tokens() -> None:
    lengths = np.array([100, 90, 80, 10, 10, 10])
    shares = balance([[row] for row in range(6)], lengths, 2)
    loads = [sum(int(lengths[row]) for sequence in share for row in sequence) for share in shares]
    assert sorted(loads) == [120, 180] or max(loads) - min(loads) <= 100
    assert [len(share) for share in shares] == [3, 3]


def attention_and_all_else(sequence: list[int], lengths: np.ndarray, hidden: int) -> float:
    """Multiplications of a layer: 12 hidden^2 a token in its matrices, and half of 2 length^2 hidden in attention."""
    return sum(12 * hidden**2 * int(lengths[row]) + hidden * int(lengths[row]) ** 2 for row in sequence)


def test_long_documents_are_shared_among_the_ranks() -> None:
    """Full packs have as many tokens each, but one document of 8,192 takes more than eight of 1,024."""
    lengths = np.array([8192] * 2 + [1024] * 16)
    packs = [[0], list(range(2, 10)), [1], list(range(10, 18))]
    shares = balance(packs, lengths, 2)
    assert [sorted(map(len, share)) for share in shares] == [[1, 8], [1, 8]]


@pytest.mark.parametrize("hidden", [576, 2048, 8192])
def test_no_rank_of_eight_waits_long_for_another(hidden: int) -> None:
    """Chats with a long tail in packs of 8,192, four a rank: by tokens alone the last one had 19, 7 and 2 % more to do."""
    sizes = np.random.default_rng(0).lognormal(6.5, 1.2, 4000).clip(50, 8192).astype(int)
    chosen = plan(sizes.tolist(), max_length=8192, global_batch=32, micro_batch=1, world_size=8)
    excess = []
    for step in range(chosen.steps_per_epoch - 1):  # the last one has no even share
        shares = balance(chosen.sequences(step), sizes, 8)
        costs = [sum(attention_and_all_else(one, sizes, hidden) for one in share) for share in shares]
        excess.append(max(costs) / np.mean(costs) - 1)
    assert np.mean(excess) < 0.015


def test_groups_of_rows_stay_within_their_budget_with_padding() -> None:
    lengths = np.array([60, 5, 30, 8, 8, 64, 1])
    groups = by_budget(range(7), lengths, 64)
    assert all(len(group) * max(lengths[row] for row in group) <= 64 for group in groups)
    assert sorted(row for group in groups for row in group) == list(range(7))


def test_max_steps_go_on_over_as_many_epochs_as_it_takes() -> None:
    chosen = plan([64] * 4, global_batch=4, epochs=None, max_steps=5)
    assert (chosen.total_steps, chosen.steps_per_epoch) == (5, 1)
    assert len(chosen.sequences(4)) == 4


@pytest.mark.parametrize(
    ("tokens", "steps"),
    [(1, 1), (256, 1), (257, 2), (512, 2), (513, 3), (704, 3), (705, 4), (2 * 704, 6), (2 * 704 + 257, 8)],
)
def test_max_tokens_end_at_the_first_step_that_has_them(tokens: int, steps: int) -> None:
    """11 sequences of 64 tokens, 4 to a step: 256, 256 and 192 tokens an epoch."""
    chosen = plan([64] * 11, global_batch=4, epochs=None, max_tokens=tokens)
    assert chosen.total_steps == steps


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=60), st.integers(1, 5), st.data())
def test_max_tokens_count_what_the_steps_really_hold(
    lengths: list[int], batch: int, data: st.DataObject
) -> None:
    tokens = data.draw(st.integers(1, 3 * sum(lengths)))
    chosen = plan(lengths, global_batch=batch, epochs=None, max_tokens=tokens)
    total = chosen.total_steps
    held = [sum(lengths[row] for pack in chosen.sequences(step) for row in pack) for step in range(total)]
    assert sum(held) >= tokens > sum(held[:-1])


def test_a_packer_whose_epochs_differ_in_size_is_refused() -> None:
    def uneven(lengths: object, max_length: int, seed: int, epoch: int) -> list[list[int]]:
        return [[0]] * (epoch + 1)

    with pytest.raises(ValueError, match="epoch 1 has 2 sequences and epoch 0 1"):
        plan([1], packer=uneven, global_batch=1).sequences(1)
