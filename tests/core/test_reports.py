"""What pods say is read with care: bounded, checked, and never believed beyond its schema."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftjob_operator.policy.running import duration
from sftjob_operator.reports import (
    decimal,
    parse_time,
    read_facts,
    read_outcome,
    read_progress,
    reason_word,
    sentence,
    timestamp,
)
from worlds import FACTS, prepared_outcome, progress, trained_outcome

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_message_of_the_contract_is_read():
    assert read_outcome(trained_outcome()).train.steps == 480
    assert read_outcome(prepared_outcome()).prepare.data.rows == 1000
    assert read_progress(progress().to_json().encode()).step == 120


def test_a_newer_trainer_may_say_more():
    assert read_outcome(trained_outcome()[:-1] + ',"future":1}').train.steps == 480


@pytest.mark.parametrize(
    "message", [None, "", "x", "null", "1", "[]", "{}", "{" * 100, '{"outcome":"Maybe"}']
)
def test_anything_else_is_no_message(message):
    assert read_outcome(message) is None


def test_what_is_longer_than_the_kubelet_allows_is_not_read():
    assert read_outcome(trained_outcome(message="x" * 5000)) is None
    assert read_progress(b" " * 70000 + progress().to_json().encode()) is None


@pytest.mark.parametrize("number", [-1, 2**53, 10**30])
def test_numbers_that_the_api_server_would_refuse_are_not_taken_over(number):
    assert read_outcome(trained_outcome().replace('"steps":480', f'"steps":{number}')) is None
    assert read_progress(progress().to_json().replace('"step":120', f'"step":{number}').encode()) is None


@pytest.mark.parametrize("path", ["", "/etc", "../x", "a/../../b", "x" * 2000])
def test_facts_that_leave_the_workspace_are_no_facts(path):
    assert read_facts({**FACTS, "model": {**FACTS["model"], "directory": path}}) is None
    assert read_facts({**FACTS, "data": {**FACTS["data"], "cache": path}}) is None


@pytest.mark.parametrize("name", ["parameters", "layers", "hidden_size", "vocabulary_size"])
def test_a_model_of_nothing_is_no_model(name):
    assert read_facts({**FACTS, "model": {**FACTS["model"], name: 0}}) is None


@given(st.binary(max_size=300))
def test_no_bytes_whatsoever_raise(body):
    read_progress(body)
    read_outcome(body.decode("utf-8", "replace"))


@given(st.text(max_size=100), st.integers(min_value=1, max_value=80))
def test_a_sentence_is_one_bounded_printable_line(text, limit):
    found = sentence(text, limit)
    assert len(found) <= limit
    assert found.isprintable() or found == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
        (1.83424, "1.8342"),
        (0.0, "0.0000"),
        (1e300, "1e+300"),
    ],
)
def test_numbers_become_short_strings(value, text):
    assert decimal(value) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-01T13:00:00+01:00", "2026-01-01T12:00:00Z"),
        ("2026-01-01T12:00:00.123456Z", "2026-01-01T12:00:00Z"),
        ("2026-01-01T12:00:00", "2026-01-01T12:00:00Z"),
        ("yesterday", "2026-01-01T00:00:00Z"),
        ("0001-01-01T00:00:00+23:00", "2026-01-01T00:00:00Z"),
        ("9" * 100, "2026-01-01T00:00:00Z"),
        (None, "2026-01-01T00:00:00Z"),
    ],
)
def test_times_are_normalised(text, expected):
    assert timestamp(text, NOW) == expected


@pytest.mark.parametrize("value", [None, 7, "", "soon", ["2026-01-01"]])
def test_what_is_no_time_is_none(value):
    assert parse_time(value) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("InvalidRow", "InvalidRow"),
        ("", "Crash"),
        (None, "Crash"),
        ("two words", "Crash"),
        ("x" * 65, "Crash"),
    ],
)
def test_a_reason_is_one_word(text, expected):
    assert reason_word(text, "Crash") == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h0m"), (6720, "1h52m"), (90000, "1d1h")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text
