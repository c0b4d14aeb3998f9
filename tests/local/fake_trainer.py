"""Stands in the pods for `python -m sft_trainer`: counts to FAKE_STEPS instead of training, and obeys the contract.

Tests copy it to sft_trainer/__main__.py and put that on the pods' PYTHONPATH; it uses the standard library alone.
FAKE_FAIL=CODE makes the first run of index 1 leave with that code, FAKE_HOLD makes the count stop at a step.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

NOW = "2030-01-01T00:00:00Z"
CONFIG = Path(os.environ.get("SFTJOB_CONFIG", ""))
WORKSPACE = Path(os.environ["SFTJOB_WORKSPACE"])
MODEL = {
    "directory": "models/base", "resolved": "models/base@1", "architecture": "LlamaForCausalLM", "parameters": 1000,
    "embeddingParameters": 100, "loraParametersPerRank": 10, "hiddenSize": 8, "intermediateSize": 16, "layers": 1,
    "heads": 2, "vocabularySize": 50, "tiedEmbeddings": True,
}  # fmt: skip
DATA = {
    "cache": "cache", "hash": "c0ffee", "rows": 10, "evalRows": 0, "tokens": 100, "supervisedTokens": 50,
    "truncatedRows": 0, "droppedRows": 0, "skippedRows": 0, "longestRow": 10, "packs": 10, "fillPercent": 90,
}  # fmt: skip


def leave(code: int, reason: str, **more: object) -> None:
    outcome = "Succeeded" if code == 0 else "Failed"
    message = {"outcome": outcome, "reason": reason, "exitCode": code, **more}
    Path(os.environ["SFTJOB_TERMINATION_LOG"]).write_text(json.dumps(message))
    sys.stdout.flush()
    os._exit(code)


def prepare() -> None:
    print("preparing", os.environ.get("TOKEN", "without a token"), flush=True)
    broken = WORKSPACE / "broken"
    if broken.exists():
        leave(
            71, "InvalidRow", failureClass="UserError", message=f"a.jsonl line {broken.read_text()} is broken"
        )
    leave(0, "Succeeded", prepare={"model": MODEL, "data": DATA})


class Pages(BaseHTTPRequestHandler):
    progress: dict = {}

    def do_GET(self) -> None:
        body = json.dumps(self.progress).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def launch() -> None:
    train = json.loads((CONFIG / "train.json").read_text())
    index, attempt = int(os.environ["JOB_COMPLETION_INDEX"]), train["attempt"]
    folder = WORKSPACE / "jobs" / train["job"]["name"]
    folder.mkdir(parents=True, exist_ok=True)
    known = Path(os.environ["SFTJOB_HOSTS"]).read_text().split()
    names = [line.split()[0] for line in (CONFIG / "hostfile").read_text().splitlines()]
    steps, saved = int(os.environ.get("FAKE_STEPS", "5")), folder / "saved"
    step = start = int(saved.read_text()) if saved.exists() else 0
    seen = {"pid": os.getpid(), "hosts": [name in known for name in names], "start": start}
    (folder / f"seen-{attempt}-{index}").write_text(json.dumps({**seen, "cpus": os.environ["SFTJOB_CPUS"]}))

    def stop(*_: object) -> None:
        if index == 0:
            saved.write_text(str(step))
        leave(74, "Interrupted", failureClass="Interrupted", message="stopped by SIGTERM", lastStep=step)

    signal.signal(signal.SIGTERM, stop)
    if index == 0:
        server = HTTPServer((os.environ["SFTJOB_POD_IP"], 9400), Pages)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    hold = int(os.environ.get("FAKE_HOLD", "-1"))
    while step < steps:
        if "FAKE_FAIL" in os.environ and index == 1 and attempt == 1:
            print("the last words of rank 1", flush=True)
            leave(int(os.environ["FAKE_FAIL"]), "Crash", failureClass="Crash", message="rank 1: it broke")
        if step != hold or (folder / "go").exists():
            step += 1
        Pages.progress = {
            "attempt": attempt, "runId": "x", "state": "Training", "step": step, "totalSteps": steps, "loss": 1.5,
            "resumedFromStep": start or None, "time": NOW,
        }  # fmt: skip
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0.05")))
    (folder / "export").mkdir(exist_ok=True)
    result = {"steps": steps, "loss": 0.5, "exportDirectory": f"jobs/{folder.name}/export", "exportBytes": 1}
    leave(0, "Succeeded", train=result if index == 0 else None)


def volume() -> None:
    """No fake: what reads the volume is the real program."""
    os.environ["PYTHONPATH"] = os.environ["REAL_TRAINER"]
    os.execv(sys.executable, [sys.executable, "-m", "sft_trainer", "volume"])


if __name__ == "__main__":
    {"prepare": prepare, "launch": launch, "volume": volume}[sys.argv[1]]()
