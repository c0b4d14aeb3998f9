"""Every query of every panel, asked of a real Prometheus that scraped a real training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from dashboards.__main__ import FOLDER, files
from monitoring.observed import observed
from monitoring.prometheus import Prometheus

EMPTY_HERE = {
    "Memory of the GPU": "ranks on CPUs",
    "fp16: loss scale and repeated steps": "CPUs do not compute in fp16",
}
"""Panels that have no data on this machine, and why. All others must."""
VALUES = {"$namespace": "default", "$sftjob": ".*", "$__rate_interval": "10s", "$__interval": "5s"}


def boards() -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def panels() -> list[tuple[str, str, str]]:
    """Board, panel, query."""
    return [
        (name, panel["title"], target["expr"])
        for name, board in boards().items()
        for panel in board["panels"]
        for target in panel.get("targets", [])
    ]


def test_the_chart_holds_what_the_generator_makes():
    assert {name: json.loads(text) for name, text in files().items()} == boards()


@pytest.mark.parametrize("name", boards())
def test_a_dashboard_keeps_its_address_and_asks_the_source_that_was_chosen(name: str):
    board = boards()[name]
    assert board["uid"] == f"sftjob-{name.removesuffix('.json')}"
    variables = [variable["name"] for variable in board["templating"]["list"]]
    assert variables == (["datasource"] if name == "operator.json" else ["datasource", "namespace", "sftjob"])
    shown = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in shown} == {"${datasource}"}
    assert all(panel["options"] for panel in shown)
    identifiers = [panel["id"] for panel in board["panels"]]
    assert len(identifiers) == len(set(identifiers))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in shown]
    assert len(places) == len(set(places)), "panels cover each other"
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in shown)


def test_a_number_is_of_now_and_a_history_has_fewer_cells_than_pixels():
    shown = [panel for board in boards().values() for panel in board["panels"]]
    numbers = [target for panel in shown if panel["type"] == "stat" for target in panel["targets"]]
    histories = [panel for panel in shown if panel["type"] == "status-history"]
    assert numbers
    assert histories
    assert all(target["instant"] and not target.get("range") for target in numbers)
    assert all(panel["maxDataPoints"] <= 200 for panel in histories)


def test_a_panel_without_data_is_one_of_the_list():
    titles = {title for _, title, _ in panels()}
    assert EMPTY_HERE.keys() <= titles


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, float, float]]:
    with observed(tmp_path_factory.mktemp("observed")) as found:
        yield found


@pytest.mark.processes
def test_every_query_of_every_panel_has_data(run: tuple[Prometheus, float, float]):
    prometheus, start, end = run
    empty, surplus = [], []
    for board, title, expression in panels():
        for variable, value in VALUES.items():
            expression = expression.replace(variable, value)
        assert "$" not in expression, f"{board}, {title}: {expression} has a variable that is not known here"
        series = prometheus.range(expression, start, end)
        numbers = [float(value) for one in series for _, value in one["values"]]
        has_data = any(math.isfinite(number) for number in numbers)
        if not has_data and title not in EMPTY_HERE:
            empty.append(f"{board}, {title}: {expression}")
        if has_data and title in EMPTY_HERE:
            surplus.append(title)
    assert not empty, "\n".join(empty)
    assert not surplus


@pytest.mark.processes
def test_annotations_and_variables_are_queries_that_work(run: tuple[Prometheus, float, float]):
    prometheus, start, end = run
    for name, board in boards().items():
        for annotation in board["annotations"].get("list") or []:
            expression = annotation["expr"]
            for variable, value in VALUES.items():
                expression = expression.replace(variable, value)
            assert prometheus.range(expression, start, end), f"{name}: {annotation['name']}"
    found = prometheus.range("sftjob_operator_job_info", start, end)
    assert {one["metric"]["namespace"] for one in found} == {"default"}, "honoured, not the operator's own"
    assert {one["metric"]["sftjob"] for one in found} == {"bot", "earlier"}


@pytest.mark.processes
def test_ranks_and_operator_agree(run: tuple[Prometheus, float, float]):
    prometheus, start, end = run

    def highest(expression: str, until: float = end) -> float:
        return max(
            float(value) for one in prometheus.range(expression, start, until) for _, value in one["values"]
        )

    ranks = {one["metric"]["rank"] for one in prometheus.range("sft_trainer_step", start, end)}
    assert ranks == {"0", "1"}
    # The operator asks between two scrapes of the ranks; what it knew before the last one, rank 0 tells there.
    (rank0,) = prometheus.query('sft_trainer_step{rank="0"}[10m]')
    scraped, step = rank0["values"][-1]
    assert 0 < highest('sftjob_operator_job_step{sftjob="bot"}', until=scraped) <= float(step)
    assert 0 < highest("sft_trainer_mfu_ratio") < 1
    assert highest('sftjob_operator_job_seconds_total{sftjob="bot",kind="productive"}') > 0
    assert highest('sftjob_operator_job_loss{sftjob="earlier"}') == 1.5, "a finished job is still shown"
