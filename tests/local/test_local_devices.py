"""GPUs of one machine are handed out to pods like a device plugin does, one pod each."""

from __future__ import annotations

from typing import Any

import pytest

from sftjob_operator.cluster.local.devices import assigned, visible
from sftjob_operator.cluster.local.volumes import NotYetError

Pod = dict[str, Any]


def pod(name: str, gpus: int, phase: str = "Running") -> Pod:
    limits = {"nvidia.com/gpu": gpus} if gpus else {}
    return {
        "metadata": {"name": name, "uid": name},
        "spec": {"containers": [{"resources": {"limits": limits}}], "nodeName": "here"},
        "status": {"phase": phase},
    }


def test_pods_of_one_machine_never_share_a_gpu() -> None:
    first = assigned(pod("a", 2), [], 4)
    second = assigned(pod("b", 1), [first], 4)
    third = assigned(pod("c", 1), [first, second], 4)
    assert [visible(one) for one in (first, second, third)] == ["0,1", "2", "3"]


def test_a_pod_that_asks_for_no_gpu_sees_none() -> None:
    assert visible(assigned(pod("a", 0), [], 4)) == ""


def test_gpus_come_back_when_a_pod_has_ended() -> None:
    first = assigned(pod("a", 1), [], 2)
    second = assigned(pod("b", 1), [first], 2)
    ended = {**first, "status": {"phase": "Failed"}}
    assert visible(assigned(pod("c", 1), [ended, second], 2)) == "0"


def test_a_pod_keeps_its_gpus_when_it_is_placed_again() -> None:
    first = assigned(pod("a", 1), [], 2)
    assert visible(assigned(first, [first], 2)) == "0"


def test_a_pod_waits_while_too_few_are_free() -> None:
    with pytest.raises(NotYetError, match=r"Insufficient nvidia.com/gpu. This machine has 2, 1 in use"):
        assigned(pod("b", 2), [assigned(pod("a", 1), [], 2)], 2)
