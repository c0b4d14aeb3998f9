"""Which parameters are trained, and at which share of the learning rate: `training.parameterGroups`.

Patterns are those of a shell over whole names, as `model.named_parameters()` gives them (of an adapter: without
what peft puts around them); `*` also stands for dots. The first pattern that matches a name decides.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from sft_trainer.config import ParameterGroup
from sft_trainer.errors import UserError
from sft_trainer.patterns import first_match

LEARNING_RATE_FACTOR = "learning_rate_factor"  # key of an optimizer's group
_NEAR = 5  # names in a message


def freeze(model: nn.Module, wanted: Sequence[ParameterGroup]) -> None:
    """Take what is to be frozen out of the training.

    Raises:
        UserError: a pattern decides for no parameter, or nothing would be left to train.
    """
    named = _trained(model)
    chosen = decided(list(named), wanted)
    for name, group in chosen.items():
        if group is not None and group.freeze:
            named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise UserError(
            "NothingToTrain",
            "training.parameterGroups freezes every parameter that would be trained; leave some",
        )


def groups(model: nn.Module, wanted: Sequence[ParameterGroup], weight_decay: float) -> list[dict[str, Any]]:
    """The groups of a torch optimizer: one for each learning-rate factor, and one each for what decays and not.

    Weight decay applies to matrices only, as usual: not to norms and biases.
    """
    named = _trained(model)
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, group in _first(named, wanted):
        factor = (group.learning_rate_factor if group else None) or 1.0
        is_vector = len(getattr(named[name], "ds_shape", named[name].shape)) <= 1
        members.setdefault((factor, is_vector), []).append(named[name])
    return [
        {
            "params": members[factor, is_vector],
            "weight_decay": 0.0 if is_vector else weight_decay,
            LEARNING_RATE_FACTOR: factor,
        }
        for factor, is_vector in sorted(members)
    ]


def decided(names: Sequence[str], wanted: Sequence[ParameterGroup]) -> dict[str, ParameterGroup | None]:
    """The group that decides for each name; None = as the rest.

    Raises:
        UserError: a pattern decides for no name.
    """
    chosen = dict(_first(names, wanted))
    for group in wanted:
        if not any(group is one for one in chosen.values()):
            raise UserError("UnknownParameters", _nothing(group.pattern, names))
    return chosen


def _first(
    names: Iterable[str], wanted: Sequence[ParameterGroup]
) -> Iterable[tuple[str, ParameterGroup | None]]:
    for name in names:
        yield name, first_match(name, wanted)


def _nothing(pattern: str, names: Sequence[str]) -> str:
    where = f"training.parameterGroups: {pattern}"
    if any(fnmatchcase(name, pattern) for name in names):
        return f"{where} matches only what earlier patterns match; the first that matches decides: move it up"
    near = difflib.get_close_matches(pattern, names, _NEAR, cutoff=0.0)
    return (
        f"{where} matches no parameter that is trained; the nearest names are {', '.join(near)}; a pattern is "
        "compared with the whole name, and * stands for anything"
    )


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by name; shared ones (tied embeddings) once."""
    return {_plain(name): p for name, p in model.named_parameters() if p.requires_grad}


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").removesuffix(".default").replace(".default.", ".")
