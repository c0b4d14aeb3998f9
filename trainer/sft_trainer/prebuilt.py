"""DeepSpeed's compiled operations: used where the image has them, refused by name where it has not.

DeepSpeed would compile a missing one at its first use: for minutes, and with an nvcc that no pod has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft_trainer.errors import UserError

NEEDS = {
    "zero_quantized_weights": "quantizer",
    "zero_quantized_gradients": "quantizer",
    "zero_quantized_nontrainable_weights": "quantizer",
}
"""Keys of DeepSpeed's zero_optimization, and the operation that each needs."""


def installed(accelerator: str) -> set[str]:
    """The operations that were compiled with DeepSpeed for `accelerator` (its own name: cuda, cpu)."""
    from deepspeed import git_version_info as build

    built_for = getattr(build, "accelerator_name", "")
    return {name for name, is_there in build.installed_ops.items() if is_there and built_for == accelerator}


def require(settings: Mapping[str, Any], operations: set[str]) -> None:
    """Nothing when `operations` are all that DeepSpeed's configuration needs.

    Raises:
        UserError: one is missing.
    """
    zero = settings.get("zero_optimization", {})
    for key, operation in NEEDS.items():
        if zero.get(key) and operation not in operations:
            raise UserError(
                "OperationNotPrebuilt",
                f"deepspeed.config.zero_optimization.{key} needs DeepSpeed's {operation}, which this image was built "
                f"without: remove the key, or set spec.workers.image to one built with DS_BUILD_{operation.upper()}=1 "
                "in the build argument DEEPSPEED_OPS",
            )
