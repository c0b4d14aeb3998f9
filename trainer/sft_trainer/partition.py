"""Cuts a loaded model into ZeRO-3's partitions, parameter by parameter, so that no rank ever has a copy of it all.

transformers maps safetensors files: what it has "loaded" takes no memory before it is read, and translated names, tied
weights and buffers are its own business. Each rank then reads a parameter, keeps its share and lets go of the rest.
(Under ZeRO-3 transformers itself lets rank 0 read and broadcast the model, after DeepSpeed has broadcast the empty one.)
"""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from torch import nn


def partition(model: nn.Module, settings: dict[str, Any], dtype: torch.dtype) -> None:
    """Make every parameter of `model` one of ZeRO-3's, in `dtype`. Every rank has to hold the same values.

    `settings` is DeepSpeed's configuration. It is what DeepSpeed does with a model that is there already, but for the
    broadcast of every parameter.
    """
    context = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=settings, dtype=dtype)
    parameters: list[Any] = list(model.parameters())  # tied ones once
    for parameter in parameters:
        # On a CPU, in the file's own type, this is the mapped file itself: only the share is ever copied.
        parameter.data = parameter.data.to(context.local_device, dtype)
        context._convert_to_deepspeed_param(parameter)
        parameter.partition()
    for buffer in model.buffers():  # the engine takes them to be where zero.Init would have made them
        buffer.data = buffer.data.to(context.local_device)
