"""Muon for hidden matrices, AdamW for everything else: `training.optimizer.type: Muon`.

Muon (https://kellerjordan.github.io/posts/muon/) takes the momentum of a matrix to the nearest orthogonal one: it has to see
whole matrices, which no ZeRO stage above 0 leaves an optimizer. Its step is scaled to the size of an AdamW step
(https://arxiv.org/abs/2502.16982, section 2.2), so that both go by one learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

Groups = Sequence[dict[str, Any]]
_IS_HIDDEN = "hidden"  # key of a group: Muon's


class Muon(torch.optim.Optimizer):
    """torch's Muon and AdamW as one optimizer: with one list of groups, one state, one step."""

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        *,
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        mine = _split(groups, _hidden_matrices(model))
        both: list[torch.optim.Optimizer] = []
        if hidden := [group for group in mine if group[_IS_HIDDEN]]:
            both.append(
                torch.optim.Muon(
                    hidden,
                    lr=lr,
                    momentum=momentum,
                    weight_decay=weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if other := [group for group in mine if not group[_IS_HIDDEN]]:
            both.append(
                torch.optim.AdamW(other, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
            )
        super().__init__([group for each in both for group in each.param_groups], {})
        self._both = both

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of each."""
        for each in self._both:
            # DeepSpeed replaces a group's parameters, and loading a state all groups.
            is_muon = isinstance(each, torch.optim.Muon)
            each.param_groups = [group for group in self.param_groups if group[_IS_HIDDEN] is is_muon]
            each.state = self.state
            each.step()


def _hidden_matrices(model: nn.Module) -> set[int]:
    """Ids of the matrices between the embeddings and the head."""
    outer = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    known = {id(p) for module in (*outer, *([head] if head is not None else [])) for p in module.parameters()}
    return {id(p) for p in model.parameters() if p.ndim == 2 and id(p) not in known}


def _split(groups: Groups, hidden: set[int]) -> list[dict[str, Any]]:
    """Every group as up to two: of hidden matrices, and of the rest."""
    made = []
    for group in groups:
        for is_hidden in (True, False):
            members = [p for p in group["params"] if (id(p) in hidden) is is_hidden]
            if members:
                made.append({**group, "params": members, _IS_HIDDEN: is_hidden})
    return made
