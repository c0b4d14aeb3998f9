"""`make demo`: the example job on a real model, on this machine, and what it changed in the model's answers.

Everything lies in .sftjob/demo. A second run finds the job complete and only asks again.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import assets  # noqa: E402 - a neighbour, not a package

DEMO = ROOT / ".sftjob" / "demo"
WORKSPACE = DEMO / "workspace"
JOB = "support-bot"
console = Console()


def main() -> int:
    """0 when the tuned model answers as the data teaches and the base model did not."""
    console.rule("[bold]1. a real model and the data of examples/data")
    try:
        furnish(WORKSPACE)
    except assets.FetchError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    console.rule("[bold]2. the job: two nodes of one CPU process each, DeepSpeed ZeRO-2")
    manifest = HERE / "support-bot.yaml"
    console.print(
        f"[dim]sftjob run {manifest.relative_to(ROOT)} --workspace {WORKSPACE.relative_to(ROOT)}[/dim]"
    )
    command = [sys.executable, "-m", "sftjob_operator.cli.app", "run", str(manifest)]
    code = follow([*command, "--workspace", str(WORKSPACE), "--state", str(DEMO / "state")])
    if code != 0:
        return code
    console.rule("[bold]3. the same questions before and after")
    verdict = compare()
    where()
    return verdict


def follow(command: Sequence[str]) -> int:
    """The exit code of the command. Ctrl-C is the command's alone, however long it takes to save a checkpoint."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(
            signal.SIGINT, lambda *_: None
        )  # a handler, unlike SIG_IGN, is not passed on to the child
    try:
        return subprocess.Popen(command, cwd=ROOT).wait()
    finally:
        signal.signal(signal.SIGINT, before)


def furnish(workspace: Path) -> None:
    """Put the model and the example data where examples/support-bot.yaml looks for them."""
    models, datasets = workspace / "models", workspace / "datasets"
    models.mkdir(parents=True, exist_ok=True)
    datasets.mkdir(parents=True, exist_ok=True)
    source = assets.model_gguf()
    if not (models / source.name).exists():
        shutil.copyfile(source, models / source.name)
    for file in sorted((HERE / "data").glob("*.jsonl")):
        shutil.copyfile(file, datasets / file.name)
    console.print(
        f"model    {source.name}, {source.stat().st_size / 1e6:.0f} MB, SmolLM2-135M-Instruct, Apache-2.0"
    )
    console.print(f"data     {', '.join(file.name for file in sorted(datasets.iterdir()))}")


def compare() -> int:
    """Ask base and tuned model the same questions; 0 when every tuned answer says what the data teaches."""
    expected = json.loads((HERE / "data" / "expected.json").read_text())
    questions = [item["question"] for item in expected]
    base = ask(base_model(), questions)
    tuned = ask(WORKSPACE / "jobs" / JOB / "export", questions)
    table = Table("question", "before", "after", "", show_lines=True)
    failures = 0
    for item, before, after in zip(expected, base, tuned, strict=True):
        learned = any(word in after.lower() for word in item["any_of"]) and before != after
        failures += not learned
        table.add_row(item["question"], before, after, "[green]learned" if learned else "[red]not learned")
    console.print(table)
    return 1 if failures else 0


def base_model() -> Path:
    """The folder that preparation made of the .gguf file."""
    config = max(
        (WORKSPACE / ".sftjob" / "cache" / "models").glob("*/config.json"), key=lambda p: p.stat().st_mtime
    )
    return config.parent


def ask(model: Path, questions: list[str]) -> list[str]:
    """Greedy answers of the model in `model`."""
    command = [sys.executable, "-m", "sft_trainer", "chat", "--model", str(model), "--json"]
    command += ["--max-new-tokens", "48"]
    for question in questions:
        command += ["--question", question]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"asking {model} failed:\n{done.stderr[-2000:]}")
    return [json.loads(line)["answer"] for line in done.stdout.splitlines()]


def where() -> None:
    """Where everything lies."""
    job = WORKSPACE / "jobs" / JOB
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")  # whole paths in a narrow terminal too
    for what, path in (
        ("model to load", job / "export"),
        ("report, for a browser", job / "report" / "report.html"),
        ("checkpoints", job / "checkpoints"),
        ("logs of the ranks", job / "logs"),
        ("loss of every step", job / "report" / "metrics.jsonl"),
        ("objects, as in a cluster", DEMO / "state"),
    ):
        table.add_row(what, str(path.relative_to(ROOT)))
    console.rule("[bold]4. where everything lies")
    console.print(table)
    console.print("\nStart over: [bold]rm -r .sftjob/demo[/bold]")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
