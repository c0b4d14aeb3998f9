"""Tensors of a micro-batch: targets never cross documents, padding is told by length."""

import numpy as np
import torch

from sft_trainer.batches import MicroBatch
from sft_trainer.collate import IGNORED, Batch, collate


class Rows:
    """Three rows; token 9 is also what padding could be."""

    data = (([1, 2, 9], [0, 1, 1]), ([4, 9, 9, 5], [1, 0, 1, 1]), ([9], [1]), ([7, 8, 9], [0, 0.5, 2]))

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(ids) for ids, _ in self.data])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        ids, weights = self.data[index]
        return np.array(ids, np.int32), np.array(weights, np.float32)


def batch(packs: list[list[int]], *, packed: bool) -> Batch:
    return collate(MicroBatch(packs), Rows(), torch.device("cpu"), packed=packed)


def test_documents_of_a_pack_restart_their_positions_and_have_no_mask() -> None:
    made = batch([[0, 1]], packed=True)
    assert made.input_ids.tolist() == [[1, 2, 9, 4, 9, 9, 5]]
    assert made.position_ids is not None
    assert made.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert "attention_mask" not in made.inputs()


def test_the_first_token_of_a_document_is_never_a_target() -> None:
    made = batch([[0, 1]], packed=True)
    assert made.targets.tolist() == [[2, 9, IGNORED, IGNORED, 9, 5, IGNORED]]
    assert made.supervised == 4


def test_a_supervised_token_that_equals_the_padding_token_keeps_its_loss() -> None:
    made = batch([[0], [1]], packed=False)
    assert made.targets.tolist() == [[2, 9, IGNORED, IGNORED], [IGNORED, 9, 5, IGNORED]]
    assert made.attention_mask is not None
    assert made.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_padding_behind_a_pack_is_a_document_of_its_own() -> None:
    made = batch([[0, 1], [1]], packed=True)
    assert made.position_ids is not None
    assert made.position_ids.tolist()[1] == [0, 1, 2, 3, 0, 1, 2]
    assert (made.tokens, made.padding) == (11, 3)


def test_a_document_of_one_token_has_no_target() -> None:
    assert batch([[2]], packed=True).supervised == 0


def test_an_empty_micro_batch_has_positions_but_no_tokens() -> None:
    made = batch([], packed=True)
    assert (made.tokens, made.supervised, tuple(made.input_ids.shape)) == (0, 0, (1, 2))


def test_weights_are_those_of_the_targets_and_none_where_all_count_alike() -> None:
    assert batch([[0, 1]], packed=True).weights is None
    assert batch([[0, 1]], packed=True).weight == 4
    made = batch([[3, 0]], packed=True)
    assert made.weights is not None
    assert made.weights.tolist() == [[0.5, 2, 0, 1, 1, 0]]
    assert (made.supervised, made.weight) == (4, 4.5)
