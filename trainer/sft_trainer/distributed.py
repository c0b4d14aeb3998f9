"""The ranks as one group: rendezvous, the few collectives we call ourselves, and who is to blame.

We open rank 0's store on its own address instead of leaving that to torch, which listens on every interface:
several jobs can then share a machine and a port on different addresses, and nothing is open to the network
that need not be. DeepSpeed finds the process group initialised and uses it.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import psutil
import torch
import torch.distributed as dist

from sft_trainer import config, devices
from sft_trainer.errors import Crash, PeerLost, TrainerError, UserError, gpu_memory_words

logger = logging.getLogger(__name__)

T = TypeVar("T")
JOIN_SECONDS = 900  # how long ranks wait for each other at the start: a node may still be pulling the image
COMPUTING = timedelta(minutes=10)  # what is computed together takes no longer, or a rank is lost
# Rank 0 writes, reads back and hashes whole models alone, which takes an hour where the model is large and the
# volume slow. A rank that dies meanwhile is noticed all the same: its connection closes.
_HOST_WORK = timedelta(hours=24)
_LOG_EVERY_SECONDS = 15
_BACKLOG = 4096
_PEER_WORDS = (
    *(
        "ncclremoteerror",
        "remote process",
        "remote error",
        "gloo/transport",
        "connection closed",
        "peer closed",
    ),
    *(
        "connection reset",
        "connection refused",
        "broken pipe",
        "timed out",
        "timeout",
        "socket",
        "no route to host",
    ),
)


@dataclass(frozen=True)
class World:
    """This rank among the others, with the collectives that the loop needs.

    `sum` runs between computations, on the accelerators, and is quick or lost. Everything else goes over `host`,
    a group of its own on CPUs, whose members wait for hours while one of them works on files.
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    host: dist.ProcessGroup
    computing: timedelta = COMPUTING

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all ranks, in fp64."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return cast(list[float], tensor.tolist())

    def first(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0; its result, or its failure, is everybody's."""
        box: list[Any] = [None, None]
        cause: Exception | None = None
        if self.is_first:
            try:
                box[0] = action()
            except Exception as error:
                cause, box[1] = error, _portable(error)
        dist.broadcast_object_list(box, src=0, group=self.host)
        if box[1] is not None:
            raise _revived(*box[1]) from cause
        return cast(T, box[0])

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank, at every rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.host)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self.host)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Meanwhile a library may wait between computations, too, for a rank that works on files."""
        dist.set_timeout(_HOST_WORK)
        try:
            yield
        finally:
            dist.set_timeout(self.computing)


def _portable(error: Exception) -> tuple[type[TrainerError], str, str]:
    from sft_trainer.errors import classify

    known = classify(error)
    return type(known), known.message, known.reason


def _revived(kind: type[TrainerError], message: str, reason: str) -> TrainerError:
    return UserError(reason, message) if issubclass(kind, UserError) else kind(message, reason)


def prepare_environment(accelerator: str) -> None:
    """What has to stand in the environment before deepspeed and transformers are imported."""
    if accelerator == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything a rank needs lies on the volume
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The names the launchers of others set; the collectives below do not read them, libraries may.
    os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1"))


def connect(accelerator: str, timeout: timedelta = COMPUTING) -> World:
    """Join the process group described by RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Raises:
        PeerLost: a rank did not come in time.
        Crash: there is no GPU, or rank 0's address is not this machine's or is taken.
        UserError: the GPU is too old for torch.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    host, port = os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", str(config.MASTER_PORT)))
    device = devices.own(accelerator, local_rank)
    address = _listen(host, port) if rank == 0 else _wait_for(host, port)
    if interface := interface_towards(address[0], port):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if accelerator == "cpu":
        _use_cores()
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address[0],
        port,
        size,
        is_master=rank == 0,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=address[1],
    )
    _meet(store, rank, size)
    backend = "nccl" if accelerator == "gpu" else "gloo"
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=size,
        timeout=timeout,
        device_id=device if accelerator == "gpu" else None,
    )
    host_group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_HOST_WORK))
    world = World(rank, local_rank, size, device, host_group, timeout)
    world.barrier()
    return world


def _use_cores() -> None:
    """One share of the cores per rank of this pod, unless the environment already says how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(
            max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        )


def _listen(host: str, port: int) -> tuple[str, int | None]:
    """A listening socket on `host`'s own address: (address, file descriptor, which the store takes over)."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise Crash(
            f"rank 0 cannot listen on {address[0]}:{port} ({error.strerror})", "AddressUnavailable"
        ) from error
    return str(address[0]), listener.detach()


def _wait_for(host: str, port: int) -> tuple[str, int | None]:
    """Rank 0's address, once it answers: names of pods and their ports appear with a delay."""
    start = time.monotonic()
    logged = start
    while True:
        try:
            with socket.create_connection((host, port), timeout=5) as probe:
                return str(probe.getpeername()[0]), None
        except OSError as error:
            now = time.monotonic()
            if now - start > JOIN_SECONDS:
                raise PeerLost(
                    f"rank 0 did not answer at {host}:{port} for {JOIN_SECONDS} s ({error})"
                ) from error
            if now - logged > _LOG_EVERY_SECONDS:
                logger.info("waiting for rank 0 at %s:%d since %.0f s: %s", host, port, now - start, error)
                logged = now
            time.sleep(0.3)


def _meet(store: Any, rank: int, size: int) -> None:
    """Wait until every rank has come, as long for the last one as that one would wait for rank 0."""
    store.set(f"here/{rank}", "")
    try:
        store.wait([f"here/{other}" for other in range(size)], timedelta(seconds=JOIN_SECONDS))
    except dist.DistStoreError as error:
        missing = [str(other) for other in range(size) if not store.check([f"here/{other}"])]
        raise PeerLost(
            f"{len(missing)} of {size} ranks did not come within {JOIN_SECONDS} s: rank {', '.join(missing[:8])}"
        ) from error


def interface_towards(address: str, port: int) -> str | None:
    """The network interface through which `address` is reached; None when it cannot be told."""
    ip = ipaddress.ip_address(address)
    with socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))  # sends nothing
        except OSError:
            return None
        own = ipaddress.ip_address(probe.getsockname()[0])
    for name, entries in psutil.net_if_addrs().items():
        if own.is_loopback and name.startswith("lo"):
            return str(name)
        if any(entry.address.split("%")[0] == str(own) for entry in entries):
            return str(name)
    return None


def communication_failure(error: BaseException) -> TrainerError | None:
    """`error` as PeerLost when it says that another rank has gone, as Crash when it is the library's own trouble.

    None when it is not about communication, as where NCCL finds no memory on the GPU. NCCL raises one type for a
    peer's death and for what is wrong on this node (a bad driver, too little shared memory): only its words tell
    them apart.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, TrainerError) or gpu_memory_words(link) is not None:
            return None
        text = str(link).strip()
        if isinstance(link, dist.DistBackendError) and not _of_a_peer(text):
            return Crash(
                f"the communication library failed on this node: {_essence(text)}", "CommunicationFailed"
            )
        gloo = isinstance(link, RuntimeError) and (
            "gloo/transport" in text or "Connection closed by peer" in text
        )
        if isinstance(link, dist.DistError) or gloo:
            return PeerLost(f"another rank ended or cannot be reached: {_essence(text)}")
        link = link.__cause__ or link.__context__
    return None


def _of_a_peer(text: str) -> bool:
    """Whether NCCL (or gloo) speaks of the other side; the examples in NCCL's explanations do not count."""
    said = text.lower().replace("(e.g. socket, malloc)", "")
    return any(words in said for words in _PEER_WORDS)


def _essence(text: str) -> str:
    """The first line, and behind it what NCCL calls the last error: the first is only a place in its source."""
    first, _, rest = text.partition("\n")
    _, _, last = rest.partition("Last error:")
    return " ".join(f"{first[:300]} {last.strip()[:300]}".split())
