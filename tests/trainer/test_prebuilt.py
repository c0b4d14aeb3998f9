"""What DeepSpeed would compile at its first use is refused at the start, unless the image has it."""

import pytest

from sft_trainer import prebuilt
from sft_trainer.errors import UserError


@pytest.mark.parametrize("key", prebuilt.NEEDS)
def test_an_operation_that_the_image_lacks_is_refused_by_name(key: str) -> None:
    settings = {"zero_optimization": {"stage": 3, key: True}}
    with pytest.raises(UserError) as caught:
        prebuilt.require(settings, {"fused_adam"})
    assert caught.value.reason == "OperationNotPrebuilt"
    assert f"zero_optimization.{key} needs DeepSpeed's quantizer" in caught.value.message
    assert "DS_BUILD_QUANTIZER=1" in caught.value.message
    prebuilt.require(settings, {"quantizer"})
    prebuilt.require({"zero_optimization": {"stage": 3, key: False}}, set())


def test_a_wheel_from_the_registry_has_none() -> None:
    assert prebuilt.installed("cuda") == set()
    assert prebuilt.installed("cpu") == set()
