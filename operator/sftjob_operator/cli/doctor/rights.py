"""What a person must be allowed to do for the commands, and for which of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Right:
    """What a person must be allowed to do, and for what."""

    verb: str
    group: str
    resource: str
    subresource: str
    use: str
    is_needed: bool


RIGHTS = (
    *(Right(verb, "sftjob.dev", "sftjobs", "", "see jobs", True) for verb in ("get", "list")),
    *(
        Right(verb, "sftjob.dev", "sftjobs", "", "run, change and delete jobs", True)
        for verb in ("create", "patch", "delete")
    ),
    Right("list", "", "pods", "", "watch, logs, explain", True),
    Right("get", "", "pods", "log", "logs", True),
    Right("list", "", "events", "", "watch, explain", False),
    Right("list", "batch", "jobs", "", "explain, and the pod on the volume", False),
    Right("get", "", "pods", "", "chat, report, logs of pods that are gone", False),
    Right("create", "", "pods", "", "chat, report, logs of pods that are gone", False),
    Right("create", "", "pods", "attach", "chat, report, logs of pods that are gone", False),
    Right("get", "", "pods", "attach", "chat, report, logs of pods that are gone", False),
    Right("delete", "", "pods", "", "removing that pod", False),
    Right("get", "", "pods", "proxy", "progress that is newer than half a minute in watch", False),
)
