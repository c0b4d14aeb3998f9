"""Which sequences every rank sees at every step: a pure function of lengths, seed and step.

Because nothing here has state, a resumed run needs only the step number, and all ranks agree without talking.
A *sequence* is what one unit of the global batch size means: a pack of rows, or one row without packing. The
last global batch of an epoch is a step of its own with fewer sequences. Ranks with nothing left to do get
empty micro-batches, so that the collectives of all ranks match.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

# Tokens of a document of which attention takes as much as all else, at a hidden size of 2,048: length x hidden
# multiplications a token and layer (half of the square is masked) against 12 x hidden^2 in its matrices.
_EVEN = 12 * 2048

Pack = list[int]  # row numbers which share one sequence
Packer = Callable[[NDArray[np.int64], int, int, int], list[Pack]]  # lengths, max_length, seed, epoch


def one_row_each(lengths: NDArray[np.int64], max_length: int, seed: int, epoch: int) -> list[Pack]:
    """The plan without packing: every row is a sequence, in an order shuffled by seed and epoch."""
    order = np.random.default_rng((seed, epoch)).permutation(len(lengths))
    return [[int(row)] for row in order]


@dataclass(frozen=True)
class MicroBatch:
    """The sequences of one forward pass; none at all = a pass that only keeps the collectives matched.

    Of their positions a rank computes the part with this number, where several share them (sequence_parallel.py).
    """

    packs: list[Pack]
    part: int = 0
    parts: int = 1


@dataclass
class Plan:
    """The batches of a whole training.

    `packed`: the rows of a pack share one sequence. Where the packing self-check has failed it is False: the
    same rows still belong to the same step, but each is a sequence of its own, and micro-batches are cut so
    that none has more tokens, padding included, than `micro_batch` full sequences.

    `sequence_ranks` consecutive ranks have the same micro-batches, each a part of their positions; `tensor_ranks`
    consecutive ranks all of them, and each a part of the layers.
    """

    lengths: NDArray[np.int64]
    max_length: int
    packer: Packer
    global_batch: int
    micro_batch: int
    world_size: int
    seed: int
    epochs: int | None = None
    max_steps: int | None = None
    max_tokens: int | None = None
    packed: bool = True
    sequence_ranks: int = 1
    tensor_ranks: int = 1
    _packs: dict[int, list[Pack]] = field(default_factory=dict, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; packing makes the same number of sequences in every epoch."""
        return -(-len(self._epoch(0)) // self.global_batch)

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        if self.max_steps is not None:
            return self.max_steps
        if self.max_tokens is not None:
            return self._steps_for(self.max_tokens)
        assert self.epochs is not None
        return self.epochs * self.steps_per_epoch

    def _steps_for(self, tokens: int) -> int:
        """The first number of steps after which `tokens` real tokens have been trained on.

        Every epoch has the same tokens, so only the packs of the last one are looked at.
        """
        epochs, left = divmod(tokens - 1, int(self.lengths.sum()))
        sizes = [int(self.lengths[pack].sum()) for pack in self._epoch(epochs)]
        steps = np.add.reduceat(sizes, range(0, len(sizes), self.global_batch))
        return epochs * self.steps_per_epoch + 1 + int(np.searchsorted(np.cumsum(steps), left, side="right"))

    @property
    def digest(self) -> str:
        """Equal for plans which agree on the rows of every step, however many steps they have."""
        what = [self.packer.__name__, self.max_length, self.global_batch, self.seed]
        lengths = np.ascontiguousarray(self.lengths, np.int64)
        return hashlib.sha256(repr(what).encode() + lengths.tobytes()).hexdigest()[:16]

    def consumed(self, finished: int) -> int:
        """Sequences behind us after `finished` steps."""
        epochs, index = divmod(finished, self.steps_per_epoch)
        size = len(self._epoch(0))
        return epochs * size + min(index * self.global_batch, size)

    def sequences(self, step: int) -> list[Pack]:
        """The global batch of `step`: at most `global_batch` packs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[index * self.global_batch : (index + 1) * self.global_batch]

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """What `rank` computes in `step`: as many micro-batches as every other rank."""
        group, part = divmod(rank // self.tensor_ranks, self.sequence_ranks)
        groups = self.world_size // (self.sequence_ranks * self.tensor_ranks)
        shares = balance(self.sequences(step), self.lengths, groups)
        cut = [self._cut(share) for share in shares]
        longest = max(len(batches) for batches in cut)
        mine = cut[group] + [MicroBatch([])] * (longest - len(cut[group]))
        return [replace(micro, part=part, parts=self.sequence_ranks) for micro in mine]

    def counts(self, rank: int) -> bool:
        """Whether `rank` is the one that counts what it reads, of those that read the same."""
        return rank % self.tensor_ranks == 0

    def _cut(self, packs: list[Pack]) -> list[MicroBatch]:
        if self.packed or self.packer is one_row_each:
            size = self.micro_batch
            return [MicroBatch(packs[i : i + size]) for i in range(0, len(packs), size)]
        rows = [row for pack in packs for row in pack]
        budget = self.micro_batch * self.max_length
        return [MicroBatch([[row] for row in group]) for group in by_budget(rows, self.lengths, budget)]

    def _epoch(self, epoch: int) -> list[Pack]:
        if epoch not in self._packs:
            packs = self.packer(self.lengths, self.max_length, self.seed, epoch)
            first = self._packs.setdefault(0, packs)
            if len(packs) != len(first):
                raise ValueError(f"epoch {epoch} has {len(packs)} sequences and epoch 0 {len(first)}")
            for old in [known for known in self._packs if known not in (0, epoch)]:
                del self._packs[old]
            self._packs[epoch] = packs
        return self._packs[epoch]


def balance(packs: Sequence[Pack], lengths: NDArray[np.int64], ranks: int) -> list[list[Pack]]:
    """Deal `packs` to `ranks` so that they cost about the same and their counts differ by at most one.

    Greedy, dearest first: each pack goes to the rank with the least to do which still has room. A share is
    in descending cost, so that micro-batches which run at the same time cost about the same. Who computes a
    pack changes no gradient, so it is no part of a plan's digest.
    """
    costs = [_cost(pack, lengths) for pack in packs]
    order = sorted(range(len(packs)), key=lambda i: (-costs[i], i))
    room = [len(packs) // ranks + (rank < len(packs) % ranks) for rank in range(ranks)]
    load = [0] * ranks
    shares: list[list[Pack]] = [[] for _ in range(ranks)]
    for i in order:
        rank = min((r for r in range(ranks) if len(shares[r]) < room[r]), key=lambda r: (load[r], r))
        shares[rank].append(packs[i])
        load[rank] += costs[i]
    return shares


def _cost(pack: Pack, lengths: NDArray[np.int64]) -> int:
    """What a pack takes to compute: its tokens, and for attention the square of each of its documents.

    Full packs have equal tokens and differ in attention alone, so the balance hardly depends on the ratio.
    """
    sizes = lengths[pack]
    return int((sizes * (_EVEN + sizes)).sum())


def by_budget(rows: Sequence[int], lengths: NDArray[np.int64], budget: int) -> list[list[int]]:
    """Group rows, longest first, so that (rows x longest row) of each group stays within `budget` tokens."""
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda r: (-int(lengths[r]), r)):
        group = groups[-1] if groups else []
        if group and (len(group) + 1) * int(lengths[group[0]]) <= budget:
            group.append(row)
        else:
            groups.append([row])
    return groups
