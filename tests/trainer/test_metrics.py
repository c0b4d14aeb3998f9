"""The ranks' metrics as the launcher shows them."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sft_trainer import metrics, series
from sft_trainer.config import CheckpointFact
from sft_trainer.launcher import scrape

RANK = """
from sft_trainer.metrics import Metrics
import sys
metrics = Metrics(sftjob="bot", attempt=2, rank=int(sys.argv[1]), node="gpu-14")
from sft_trainer.config import CheckpointFact
metrics.started(
    total_steps=10, resumed_from_step=4, precision="bf16", version="0.1.0", attention="SDPA", peak_flops=1e12,
    checkpoint=CheckpointFact(name="step-4", step=4, attempt=1, bytes=77, time="2026-01-01T00:00:00Z"),
)
for step in (5, 6):
    metrics.step(
        step=step, loss=2.0 / step, learning_rate=1e-4, gradient_norm=None,
        tokens=100, supervised_tokens=60, padded_tokens=20,
        step_seconds=0.5, phase_seconds={"forward": 0.1, "backward": 0.3}, loss_scale=2.0**step, flops=2e11,
    )
metrics.skipped()
metrics.start({"imports": 9.5, "first step": 1.5})
metrics.checkpoint(step=6, seconds=1.5, size_bytes=1000)
"""


ROOT = Path(__file__).resolve().parents[2]


def run_rank(directory: Path, rank: int, *wrapper: str) -> str:
    """What the rank says on stderr; its end is checked."""
    environment = {**os.environ, "PYTHONPATH": "trainer", "PROMETHEUS_MULTIPROC_DIR": str(directory)}
    command = [*wrapper, sys.executable, "-c", RANK, str(rank)]
    done = subprocess.run(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def can_mount() -> bool:
    """Whether a file system of our own can be mounted, in a namespace of our own."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def samples(directory: Path, up: dict[int, bool] | None = None) -> dict[tuple[str, str], float]:
    """Values by name and rank."""
    labels = {"sftjob": "bot", "attempt": "2", "node": "gpu-14"}
    text = generate_latest(scrape.registry(directory, labels, lambda: up or {})).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = {name: value for name, value in sample.labels.items() if name != "rank"}
            assert own.items() >= labels.items()
            assert "pid" not in own
            extra = "".join(f"/{own[name]}" for name in ("phase", "kind") if name in own)
            found[sample.name + extra, sample.labels["rank"]] = sample.value
    return found


def test_each_rank_has_its_own_series_with_the_newest_values(tmp_path: Path) -> None:
    for index in (0, 3):
        run_rank(tmp_path, index)
    found = samples(tmp_path, {0: True, 3: False})
    for rank in ("0", "3"):
        assert found["sft_trainer_step", rank] == 6
        assert found["sft_trainer_total_steps", rank] == 10
        assert found["sft_trainer_loss", rank] == pytest.approx(1 / 3)
        assert found["sft_trainer_tokens_total", rank] == 200
        assert found["sft_trainer_supervised_tokens_total", rank] == 120
        assert found["sft_trainer_padded_tokens_total", rank] == 40
        assert found["sft_trainer_tokens_per_second", rank] == 200
        assert found["sft_trainer_phase_seconds/backward", rank] == 0.3
        assert found["sft_trainer_start_seconds/imports", rank] == 9.5
        assert found["sft_trainer_start_seconds/first step", rank] == 1.5
        assert found["sft_trainer_last_checkpoint_step", rank] == 6
        assert found["sft_trainer_resumed_from_step", rank] == 4
        assert found["sft_trainer_model_flops_total", rank] == 4e11
        assert found["sft_trainer_mfu_ratio", rank] == pytest.approx(0.4)
        assert found["sft_trainer_memory_bytes/host", rank] > 1e6
    assert found["sft_trainer_rank_up", "0"] == 1
    assert found["sft_trainer_rank_up", "3"] == 0


def test_what_was_not_measured_is_absent_rather_than_zero(tmp_path: Path) -> None:
    run_rank(tmp_path, 0)
    names = {name for name, _ in samples(tmp_path)}
    assert "sft_trainer_gradient_norm" not in names
    assert "sft_trainer_eval_loss" not in names


def test_a_resumed_run_knows_the_checkpoint_that_lies_there() -> None:
    labels = {"sftjob": "resumed", "attempt": "2", "rank": "0", "node": "n"}
    fact = CheckpointFact(name="step-4", step=4, attempt=1, bytes=77, time="2026-01-01T00:00:00Z")
    rank = metrics.Metrics(sftjob="resumed", attempt=2, rank=0, node="n")
    rank.started(
        total_steps=9, resumed_from_step=4, precision="fp32", version="0", attention="SDPA", checkpoint=fact
    )

    def value(name: str) -> float | None:
        return series.REGISTRY.get_sample_value(f"sft_trainer_{name}", labels)

    assert (value("last_checkpoint_step"), value("checkpoint_bytes")) == (4, 77)
    assert value("last_checkpoint_timestamp_seconds") == 1767225600
    assert value("peak_flops") is None, "unknown is absent"
    rank.step(
        step=5,
        loss=1.0,
        learning_rate=0.1,
        gradient_norm=1.0,
        tokens=1,
        supervised_tokens=1,
        padded_tokens=0,
        step_seconds=1.0,
        phase_seconds={},
        flops=10.0,
    )
    assert value("mfu_ratio") is None


def test_a_broken_file_hides_no_other_rank(tmp_path: Path) -> None:
    run_rank(tmp_path, 0)
    (tmp_path / "gauge_mostrecent_77.db").touch()
    (tmp_path / "counter_78.db").write_bytes(b"\xff" * 4096)
    (tmp_path / "counter_79.db").write_bytes(
        b"\x40\0\0\0\0\0\0\0\x10\0\0\0notjsonnotjson.........................."
    )
    assert samples(tmp_path)["sft_trainer_step", "0"] == 6


def test_metrics_never_raise_and_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    rank = metrics.Metrics(sftjob="bot", attempt=1, rank=0)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            rank.evaluation(loss="not a number", seconds=1.0)  # type: ignore[arg-type]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "training goes on" in caplog.text


@pytest.mark.parametrize(
    "folder", ["/proc/self", "/proc/nowhere", __file__], ids=["read-only", "missing", "a-file"]
)
def test_a_folder_that_takes_no_metrics_ends_no_rank(folder: str) -> None:
    assert run_rank(Path(folder), 0).count("training goes on") == 1


@pytest.mark.skipif(not can_mount(), reason="no user namespaces here: a full file system cannot be made")
def test_a_full_folder_ends_no_rank_although_its_files_are_mapped(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=16k none "$0" && head -c 16384 /dev/zero > "$0/full" && exec "$@"'
    said = run_rank(tmp_path, 0, "unshare", "-rm", "sh", "-c", script, str(tmp_path))
    assert said.count("training goes on") == 1
    assert "No space left on device" in said


def test_the_documentation_lists_every_metric_and_no_other() -> None:
    listed = re.findall(
        r"^\| `(sft_trainer_\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE
    )
    ours = [
        family.name + "_total" * (family.type == "counter")
        for family in (*series.REGISTRY.collect(), *scrape.RanksUp({}, dict).collect())
    ]
    assert sorted(listed) == sorted(ours)


def test_several_metrics_objects_may_live_in_one_process() -> None:
    for attempt in (1, 2):
        metrics.Metrics(sftjob="several", attempt=attempt, rank=0, node="n").evaluation(
            loss=attempt, seconds=1
        )
    labels = {"sftjob": "several", "rank": "0", "node": "n"}
    values = [
        series.REGISTRY.get_sample_value("sft_trainer_eval_loss", {**labels, "attempt": attempt})
        for attempt in ("1", "2")
    ]
    assert values == [1, 2]


def test_names_carry_the_products_prefix_and_base_units() -> None:
    for family in series.REGISTRY.collect():
        assert family.name.startswith("sft_trainer_")
        assert not family.name.endswith(("_ms", "_minutes", "_kb", "_mb", "_gb"))
        assert family.documentation.endswith(".")
