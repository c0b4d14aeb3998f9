"""The alerts: valid, explained, and tried with promtool, firing and silent."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.prometheus import program

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "charts" / "sftjob" / "files" / "rules" / "sftjob.yaml"
CASES = Path(__file__).with_name("rules_test.yaml")


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def promtool(tmp_path: Path, *words: str) -> None:
    (tmp_path / "rules.yaml").write_text(RULES.read_text())
    (tmp_path / CASES.name).write_text(CASES.read_text())
    done = subprocess.run([program("promtool"), *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_rules_as_they_are(tmp_path: Path):
    promtool(tmp_path, "check", "rules", "rules.yaml")


@pytest.mark.slow
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path):
    promtool(tmp_path, "test", "rules", CASES.name)


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_is_explained_and_has_a_case_in_which_it_stays_silent(alert: dict[str, Any]):
    name, words = alert["alert"], alert["annotations"]
    assert words["summary"]
    assert words["description"].endswith(".")
    assert words["runbook_url"] == f"RUNBOOKS/{name}.md"
    runbook = (ROOT / "docs" / "runbooks" / f"{name}.md").read_text()
    assert runbook.startswith(f"# {name}\n")
    for heading in ("## What it means", "## How to look", "## What to do"):
        assert heading in runbook
    tried = [
        expression["exp_samples"] != []
        for case in yaml.safe_load(CASES.read_text())["tests"]
        for expression in case["promql_expr_test"]
        if f'alertname="{name}"' in expression["expr"]
    ]
    assert set(tried) == {True, False}


def test_every_metric_of_an_alert_or_a_panel_is_documented():
    documented = set(
        re.findall(r"`(sft(?:job_operator|_trainer)_\w+)`", (ROOT / "docs" / "metrics.md").read_text())
    )
    text = RULES.read_text() + "".join(
        path.read_text() for path in (ROOT / "charts/sftjob/files/dashboards").glob("*.json")
    )
    used = set(re.findall(r"\b(sft(?:job_operator|_trainer)_[a-z_]+)", text))
    assert len(used) > 30
    assert {re.sub(r"_bucket$", "", one) for one in used} <= documented
