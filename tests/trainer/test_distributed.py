"""How ranks find each other, and what is said when one has gone."""

import os
import socket
import time
from contextlib import closing
from datetime import timedelta

import pytest
import torch.distributed as dist

import gang
from sft_trainer import distributed
from sft_trainer.errors import Crash, Fenced, PeerLost, UserError


def test_rank_0_listens_on_its_own_address_only_so_that_jobs_can_share_a_port() -> None:
    one, other = gang.fresh_address(), gang.fresh_address()
    _, first = distributed._listen(one, 29511)
    _, second = distributed._listen(other, 29511)
    assert first is not None
    assert second is not None
    with closing(socket.socket(fileno=first)) as a, closing(socket.socket(fileno=second)) as b:
        assert (a.getsockname()[0], b.getsockname()[0]) == (one, other)
        assert distributed._wait_for(one, 29511) == (one, None)


def test_an_address_that_is_taken_is_named() -> None:
    address = gang.fresh_address()
    with (
        closing(socket.create_server((address, 29512))),
        pytest.raises(Crash, match=f"{address}:29512") as caught,
    ):
        distributed._listen(address, 29512)
    assert caught.value.reason == "AddressUnavailable"


def test_a_rank_that_waits_in_vain_blames_its_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "JOIN_SECONDS", -1)
    with pytest.raises(PeerLost, match="rank 0 did not answer"):
        distributed._wait_for(gang.fresh_address(), 29513)


def _rank_0_works_longer_than_a_collective_may_take() -> int:
    world = distributed.connect("cpu", timedelta(seconds=2))
    answer = world.first(lambda: (time.sleep(5), "written")[1])
    world.barrier()
    with world.patient():
        if world.is_first:
            time.sleep(5)
        dist.barrier()  # a library's
    return 0 if world.gather(answer) == ["written"] * world.size else 1


@pytest.mark.processes
def test_ranks_wait_for_work_on_files_longer_than_for_a_computation() -> None:
    with gang.started(_rank_0_works_longer_than_a_collective_may_take, (), 2, {}) as ranks:
        ends = ranks.end()
    assert [code for code, _ in ends] == [0, 0], ends


def _rank_1_never_comes() -> int:
    if os.environ["RANK"] == "1":
        return 0
    distributed.JOIN_SECONDS = 1
    with pytest.raises(PeerLost, match="1 of 2 ranks did not come within 1 s: rank 1"):
        distributed.connect("cpu")
    return 0


@pytest.mark.processes
def test_rank_0_says_which_rank_did_not_come() -> None:
    with gang.started(_rank_1_never_comes, (), 2, {}) as ranks:
        ends = ranks.end()
    assert [code for code, _ in ends] == [0, 0], ends


def test_loopback_addresses_are_reached_through_the_loopback_interface() -> None:
    assert distributed.interface_towards("127.3.2.1", 29500) == "lo"


def nccl(kind: str, explanation: str) -> str:
    """An error as torch words it: place and kind, NCCL's general explanation, what really happened."""
    return f"NCCL error in: /pytorch/torch/csrc/NCCLUtils.cpp:77, {kind}, NCCL version 2.27.5\n{explanation}"


REMOTE = (
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\n"
    "Last error:\nsocketPollConnect: connect returned, retrying"
)
SYSTEM = (
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. \n"
    "Last error:\n{}"
)
CUDA = (
    "ncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\nCuda failure 'system not yet initialized'"
)

NO_MEMORY = CUDA.replace("'system not yet initialized'", "2 'out of memory'")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (dist.DistBackendError(nccl("remote process exited or there was a network error", REMOTE)), PeerLost),
        (
            dist.DistBackendError(nccl("unhandled system error", SYSTEM.format("Connection reset by peer"))),
            PeerLost,
        ),
        (
            dist.DistBackendError(nccl("unhandled system error", SYSTEM.format("/dev/shm is too small"))),
            Crash,
        ),
        (dist.DistBackendError(nccl("unhandled cuda error", CUDA)), Crash),
        (dist.DistBackendError(nccl("unhandled cuda error", NO_MEMORY)), type(None)),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), PeerLost),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), PeerLost),
        (RuntimeError("shapes cannot be multiplied"), type(None)),
        (Fenced("another run"), type(None)),
    ],
)
def test_the_end_of_a_peer_is_told_apart_from_our_own_failures(error: Exception, expected: type) -> None:
    assert type(distributed.communication_failure(error)) is expected


def test_what_nccl_finds_wrong_on_this_node_is_said_in_its_own_words() -> None:
    error = dist.DistBackendError(nccl("unhandled cuda error", CUDA))
    failure = distributed.communication_failure(error)
    assert failure is not None
    assert failure.reason == "CommunicationFailed"
    assert failure.message.endswith("Cuda failure 'system not yet initialized'")


def test_a_failure_of_rank_0_reaches_the_others_as_what_it_was() -> None:
    error = distributed._revived(*distributed._portable(UserError("BadRow", "row 3 is broken")))
    assert isinstance(error, UserError)
    assert (error.reason, error.message) == ("BadRow", "row 3 is broken")
    fenced = distributed._revived(*distributed._portable(Fenced("newer run")))
    assert (type(fenced), fenced.reason) == (Fenced, "Fenced")
