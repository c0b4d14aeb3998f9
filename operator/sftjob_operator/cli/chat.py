"""The command `sftjob chat`: talks to the exported model, and with --base to the base model beside it.

The model is where the volume is, in a pod or beside us; only words travel. The loop that waits for them runs in a
thread, so that the prompt can be the terminal's own, with its history and Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console

from sftjob_operator.api.objects import is_true
from sftjob_operator.cli import jobs, table, volume
from sftjob_operator.cli.errors import UNKNOWN, CliError
from sftjob_operator.cli.place import Where, opened
from sftjob_operator.cli.volume import Volume
from sftjob_operator.cluster.base import Manifest

T = TypeVar("T")
TUNED, BASE = "tuned", "base"
_TIDY_SECONDS = 20.0
_LOAD_MEMORY = 1.2  # bytes of memory per byte of weights in 32 bits, and
_LOAD_ROOM = 2**31  # what the libraries take


@dataclass(frozen=True)
class Options:
    """What the person said."""

    name: str
    questions: Sequence[str]
    base: bool = False
    max_new_tokens: int = 256
    gpus: int = 0
    as_json: bool = False


class Talk:
    """A conversation with one model or two, each with its own history."""

    def __init__(self, there: Volume, models: dict[str, str], max_new_tokens: int) -> None:
        """`models` are folders of the workspace by what they are called."""
        self._there, self._models, self._limit = there, models, max_new_tokens
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._messages: dict[str, list[dict[str, str]]] = {who: [] for who in self._models}

    async def ask(self, question: str, console: Console | None) -> dict[str, str]:
        """The answers, printed as they come where there is a console."""
        answers = {}
        for who, model in self._models.items():
            messages = self._messages[who]
            messages.append({"role": "user", "content": question})
            if console is not None and len(self._models) > 1:
                console.print(f"{who}: ", end="", style="bold", highlight=False)
            parts: list[str] = []
            request = {"model": model, "messages": messages, "maxNewTokens": self._limit}
            async for answer in self._there.ask(do="ask", **request):
                parts.append(answer["piece"])
                if console is not None:
                    shown = str(answer["piece"]).replace("\x1b", "")  # a model must not steer the terminal
                    console.print(shown, end="", markup=False, highlight=False, soft_wrap=True)
            if console is not None:
                console.print()
            answers[who] = "".join(parts).strip()
            messages.append({"role": "assistant", "content": answers[who]})
        return answers


def chat(where: Where, options: Options, console: Console) -> None:
    """Until the questions are answered, or the person leaves with Ctrl-D."""
    with _Background() as background, background.entered(_session(where, options)) as talk:
        for question in _questions(options, console):
            if question == "/new":
                talk.forget()
                continue
            shown = None if options.as_json else console
            answers = background.run(talk.ask(question, shown))
            if options.as_json:
                line = json.dumps({"question": question, **answers}, ensure_ascii=False)
                console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.asynccontextmanager
async def _session(where: Where, options: Options) -> Any:
    async with opened(where) as place:
        job = await jobs.find(place, options.name)
        folders = models(job, base=options.base)
        async with volume.opened(place, job, resources(job, options, len(folders))) as there:
            yield Talk(there, folders, options.max_new_tokens)


def models(job: Manifest, *, base: bool) -> dict[str, str]:
    """The folders to talk to; CliError while there is no export."""
    status, name = job.get("status", {}), job["metadata"]["name"]
    if not is_true(job, "Complete"):
        raise CliError(f"{name} has no model to talk to yet: {table.sentence(job)}", UNKNOWN)
    tuned = {TUNED: str(status.get("result", {}).get("export") or volume.folder(job, "export"))}
    if not base:
        return tuned
    directory = status.get("prepared", {}).get("facts", {}).get("model", {}).get("directory")
    if not directory:
        raise CliError(
            f"the status of {name} does not say where its base model is: leave --base out", UNKNOWN
        )
    return {BASE: str(directory), **tuned}


def resources(job: Manifest, options: Options, models: int) -> Manifest:
    """What the pod asks for: memory for the weights in 32 bits, or a GPU."""
    parameters = int(job.get("status", {}).get("model", {}).get("parameters") or 0)
    need = int(models * parameters * 4 * _LOAD_MEMORY) + _LOAD_ROOM
    asked: Manifest = {"requests": {"cpu": "1", "memory": f"{-(-need // 2**20)}Mi"}}
    if options.gpus:
        kind = job["spec"].get("workers", {}).get("gpuResourceName", "nvidia.com/gpu")
        asked["limits"] = {kind: str(options.gpus)}
    return asked


def _questions(options: Options, console: Console) -> Iterator[str]:
    if options.questions:
        for question in options.questions:
            if not options.as_json:
                console.print(f"> {question}", style="dim", markup=False, highlight=False, soft_wrap=True)
            yield question
        return
    is_person = sys.stdin.isatty()
    if is_person:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - arrow keys at the prompt
        console.print("/new begins anew, Ctrl-D ends", style="dim")
    while True:
        try:
            line = (input("> ") if is_person else input()).strip()
        except EOFError:
            return
        if line:
            yield line


class _Background:
    """An event loop in a thread."""

    def __enter__(self) -> _Background:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(_settled(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """To its end; Ctrl-C cancels it, and waits until it has tidied up."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    @contextlib.contextmanager
    def entered(self, manager: contextlib.AbstractAsyncContextManager[T]) -> Iterator[T]:
        """An asynchronous context of that loop, held open from here."""
        hold = _Hold(manager)
        value = self.run(hold.enter())
        try:
            yield value
        finally:
            self.run(hold.leave())


async def _settled() -> None:
    """What was cancelled still has a pod to remove."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=_TIDY_SECONDS)


class _Hold:
    """Enters and leaves a context in one task, as its cancel scopes and generators need it."""

    def __init__(self, manager: contextlib.AbstractAsyncContextManager[Any]) -> None:
        self._manager = manager

    async def enter(self) -> Any:
        self._leaving = asyncio.Event()
        self._entered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live())
        try:
            return await self._entered
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            raise

    async def leave(self) -> None:
        self._leaving.set()
        await self._task

    async def _live(self) -> None:
        try:
            async with self._manager as value:
                self._entered.set_result(value)
                await self._leaving.wait()
        except BaseException as error:
            if self._entered.done():
                raise
            self._entered.set_exception(error)
