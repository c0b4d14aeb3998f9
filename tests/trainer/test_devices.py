"""A GPU that torch has no kernels for is named at the start; no GPU is here."""

from __future__ import annotations

import pytest
import torch

from sft_trainer import devices
from sft_trainer.errors import Crash, UserError

BUILT_FOR = ["sm_75", "sm_80", "sm_86", "sm_90a", "sm_100", "sm_120"]


def gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built_for: list[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-32GB")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def test_an_older_gpu_than_torch_was_built_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (7, 0), BUILT_FOR)
    with pytest.raises(
        UserError, match=r"Tesla V100-SXM2-32GB of compute capability 7\.0.* below 7\.5"
    ) as caught:
        devices.own("gpu", 1)
    assert caught.value.reason == "GPUUnsupported"


@pytest.mark.parametrize(
    ("capability", "built_for"),
    [((7, 5), BUILT_FOR), ((8, 9), BUILT_FOR), ((13, 0), BUILT_FOR), ((9, 4), ["gfx90a", "gfx942"])],
    ids=["oldest", "between", "newer", "of-AMD"],
)
def test_others_are_used(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built_for: list[str]
) -> None:
    gpu(monkeypatch, capability, built_for)
    assert devices.own("gpu", 1) == torch.device("cuda", 1)


def test_a_pod_without_gpu_is_worth_another_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Crash, match="no usable GPU"):
        devices.own("gpu", 0)
    assert devices.own("cpu", 0) == torch.device("cpu")
