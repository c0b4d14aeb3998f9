"""`python -m sft_trainer volume`: answers questions about the workspace, one JSON object per line, from stdin to stdout.

A person's terminal starts it in a short-lived pod that has the volume mounted read-only, or beside it on a laptop:
it is how logs, reports and models come out of a volume that the person's machine cannot see. Every answer ends with
{"end": true}, or with {"error": ...}; it ends with its stdin. Only `collect` writes, in a pod that may.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sft_trainer import collect, layout
from sft_trainer.checkpoint import manifest
from sft_trainer.config import CollectConfig

Request = Mapping[str, Any]
Answer = dict[str, Any]

# Of a folder that is no model, transformers and peft raise many things.
_CHUNK = 48 * 1024
_TAIL_BYTES = 4 * 2**20
_LOADED = 2  # models that are kept: the base and the tuned one


def main() -> int:
    """Until stdin ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    desk = Desk(layout.workspace())
    for line in sys.stdin:
        if line.strip():
            for answer in desk.answers(line):
                out.write(json.dumps(answer) + "\n")
                out.flush()
    return 0


class Desk:
    """Answers for one workspace."""

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._kinds: dict[str, Callable[[Request], Iterator[Answer]]] = {
            "logs": self._logs,
            "file": self._file,
            "report": self._report,
            "verify": self._verify,
            "ask": self._ask,
            "collect": self._collect,
        }
        self._talker = functools.lru_cache(maxsize=_LOADED)(_talker)

    def answers(self, line: str) -> Iterator[Answer]:
        """To one request; nothing that goes wrong with it ends the program."""
        try:
            request = json.loads(line)
            what = request.get("do") if isinstance(request, dict) else request
            kind = self._kinds.get(str(what))
            if kind is None:
                raise ValueError(f"this trainer does not know the request {what}: take a newer image")
            yield from kind(request)
        except Exception as error:  # a template, a model, a damaged file: the person is told
            words = str(error) or type(error).__name__
            yield {"error": words, "missing": isinstance(error, FileNotFoundError)}
        else:
            yield {"end": True}

    def _path(self, relative: str) -> Path:
        return layout.within(self._workspace, relative)

    def _logs(self, request: Request) -> Iterator[Answer]:
        """{job, attempt, rank?, tail?}: lines of the ranks' logs that the launchers have copied here."""
        folder = layout.JobFolder.of(self._workspace, str(request["job"])).logs(int(request["attempt"]))
        self._path(folder.relative_to(self._workspace).as_posix())
        found = sorted(
            folder.glob("rank-*.log"), key=lambda file: (_rank(file), ".previous" not in file.name)
        )
        if request.get("rank") is not None:
            found = [file for file in found if _rank(file) == request["rank"]]
        if not found:
            raise FileNotFoundError(f"there are no logs in {layout.shown(folder)} of the volume")
        for file in found:
            for line in _tail(file, request.get("tail")):
                yield {"rank": _rank(file), "line": line}

    def _file(self, request: Request) -> Iterator[Answer]:
        """{path}: its size, then its bytes in base64."""
        path = self._path(str(request["path"]))
        with path.open("rb") as file:
            yield from _pieces(file, os.fstat(file.fileno()).st_size)

    def _report(self, request: Request) -> Iterator[Answer]:
        """{job}: the page about it as it stands now, as `file` would answer; nothing is written."""
        from sft_trainer.report import page
        from sft_trainer.report.collect import collect as material_of

        folder = layout.JobFolder.of(self._workspace, str(request["job"]))
        self._path(folder.root.relative_to(self._workspace).as_posix())
        material = material_of(folder.root)
        if not material.events:
            raise FileNotFoundError(f"no training has begun in jobs/{folder.root.name} of the volume")
        data = page.render(material, time.time()).encode()
        yield from _pieces(io.BytesIO(data), len(data))

    def _verify(self, request: Request) -> Iterator[Answer]:
        """{job}: every checkpoint on the volume, each byte compared with its manifest."""
        folder = layout.JobFolder.of(self._workspace, str(request["job"])).checkpoints
        self._path(folder.relative_to(self._workspace).as_posix())
        for directory in sorted(
            (one for one in folder.glob("step-*") if one.is_dir()), key=lambda one: one.name
        ):
            known = manifest.read(directory)
            problem = manifest.problem(directory, every_byte=True)  # also that there is no manifest
            yield {"name": directory.name, "bytes": known.size if known else 0, "problem": problem}

    def _collect(self, request: Request) -> Iterator[Answer]:
        """{remove, and a CollectConfig}: what nobody needs, and its end."""
        policy = CollectConfig.model_validate({k: v for k, v in request.items() if k not in ("do", "remove")})
        found = collect.collect if request.get("remove") else collect.find
        for item in found(self._workspace, policy):
            yield {"path": item.path, "bytes": item.size, "unusedSeconds": int(item.unused_seconds)}

    def _ask(self, request: Request) -> Iterator[Answer]:
        """{model, messages, maxNewTokens}: the answer in pieces, as they are made."""
        talk = self._talker(self._path(str(request["model"])))
        for piece in talk(request["messages"], int(request["maxNewTokens"])):
            yield {"piece": piece}


def _pieces(stream: BinaryIO, size: int) -> Iterator[Answer]:
    yield {"size": size}
    while data := stream.read(_CHUNK):
        yield {"data": base64.b64encode(data).decode()}


def _talker(model: Path) -> Callable[[list[dict[str, str]], int], Iterator[str]]:
    from sft_trainer.chat import talker

    return talker(model)


def _rank(file: Path) -> int:
    text = file.stem.removeprefix("rank-").partition(".")[0]
    return int(text) if text.isdigit() else -1


def _tail(file: Path, lines: int | None) -> list[str]:
    with file.open("rb") as stream:
        if lines is not None:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL_BYTES))
        found = stream.read().decode(errors="replace").splitlines()
    return found if lines is None else found[-lines:]
