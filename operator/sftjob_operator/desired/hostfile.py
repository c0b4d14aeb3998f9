"""DeepSpeed's hostfile of an attempt; also valid for `deepspeed --hostfile F --no_ssh`."""

from __future__ import annotations

from sftjob_operator.api import names


def hostfile(job_name: str, number: int, nodes: int, slots: int) -> str:
    """One line per node, in the order of the ranks."""
    return "".join(f"{names.host(job_name, number, index)} slots={slots}\n" for index in range(nodes))
