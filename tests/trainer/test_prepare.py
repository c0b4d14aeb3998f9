"""Preparation as the pod runs it: facts, cache, and one clear sentence for everything that can be wrong."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import chat_templates as T
from preparing import CHAT, Room, chat
from sft_trainer import prepare
from sft_trainer.config import DataFacts, Outcome, Prepared
from sft_trainer.data import cache, template


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(tmp_path, monkeypatch)


def facts(outcome: Outcome) -> DataFacts:
    assert outcome.prepare is not None, outcome.message
    return outcome.prepare.data


def left_in_cache(room: Room) -> list[Path]:
    return [path for path in room.workspace.glob(".sftjob/cache/data/*") if path.suffix != ".lock"]


def refused(outcome: Outcome, reason: str, *words: str) -> None:
    assert (outcome.outcome, outcome.reason, outcome.exit_code) == ("Failed", reason, 71), outcome.message
    for word in words:
        assert word in outcome.message
    assert "Traceback" not in outcome.message


# ------------------------------------------------------------------ what is right


def test_rows_become_tokens_of_which_the_answers_are_supervised(room: Room) -> None:
    room.write("datasets/chats.jsonl", chat("hi", "hello", "你是谁", "小助手"), CHAT)
    outcome = room.run()
    texts = room.texts(room.cache(outcome).train)
    assert [supervised for _, supervised in texts] == ["hello<|im_end|>小助手<|im_end|>", "hello<|im_end|>"]
    assert texts[1][0] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
    found = facts(outcome)
    assert (found.rows, found.eval_rows, found.packs) == (2, 0, 1)
    assert found.supervised_tokens == 6 + 10 + 6  # one token per byte, one for each end
    assert outcome.message == "2 rows, 22 supervised tokens"


def test_the_models_facts_are_reported(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    outcome = room.run()
    assert outcome.prepare is not None
    model = outcome.prepare.model
    assert (model.directory, model.architecture, model.layers) == ("models/tiny", "LlamaForCausalLM", 2)
    assert model.resolved.startswith("models/tiny@")


def test_what_is_frozen_is_counted_by_the_names_in_the_files(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    room.settings()
    path = room.config / "prepare.json"
    freezing = [{"pattern": "model.layers.*", "freeze": True}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "freezing": freezing}))
    outcome = room.main()
    assert outcome.prepare is not None
    assert outcome.prepare.model.trained_parameters == 258 * 32 + 32  # embeddings and the last norm


def test_every_file_format_gives_the_same_tokens(room: Room) -> None:
    rows = [CHAT, chat("a", "b")]
    room.write("datasets/a.jsonl", *rows, "")
    (room.workspace / "datasets" / "b.json").write_text(json.dumps(rows, indent=2))
    (room.workspace / "datasets" / "c.json").write_text(json.dumps({"version": 1, "data": rows}))
    (room.workspace / "datasets" / "d.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), room.workspace / "datasets" / "e.parquet")
    (room.workspace / "datasets" / "f.jsonl").write_bytes(
        b"\xef\xbb\xbf" + (room.workspace / "datasets" / "a.jsonl").read_bytes()
    )
    outcome = room.run(train=[{"name": "all", "path": "datasets/*"}])
    texts = room.texts(room.cache(outcome).train)
    assert len(texts) == 12
    assert len(set(texts)) == 2


def test_rows_may_be_inline(room: Room) -> None:
    lines = f"{json.dumps(CHAT)}\n\n{json.dumps(CHAT)}"
    assert facts(room.run(train=[{"name": "0", "inline": lines}])).rows == 2


def test_the_report_will_know_where_rows_came_from_but_not_what_was_inline(room: Room) -> None:
    outcome = room.run(train=[{"name": "quick", "inline": json.dumps(CHAT)}])
    left = Prepared.model_validate_json((room.workspace / "jobs" / "job" / "prepared.json").read_bytes())
    assert left.config.data.train[0].name == "quick"
    assert left.config.data.train[0].inline == ""
    assert left.result == outcome.prepare


def test_long_rows_are_cut_at_the_end_and_counted(room: Room) -> None:
    question = "q" * 200
    room.write("datasets/chats.jsonl", chat("hi", "x" * 300), chat(question, "never seen"), CHAT)
    outcome = room.run()
    found = facts(outcome)
    assert (found.rows, found.truncated_rows, found.dropped_rows) == (2, 1, 1)
    assert found.longest_row == len("user\n" + "assistant\n" + "\n\n") + 4 + 2 + 300
    (text, supervised), _ = room.texts(room.cache(outcome).train)
    assert text.endswith(supervised)
    assert set(supervised) == {"x"}


def test_short_rows_are_left_out_and_counted(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT, chat("hi", "hello " * 9), CHAT, chat("hi", "hello " * 50))
    room.write("datasets/eval.jsonl", CHAT, chat("hi", "hello " * 9))
    whole = facts(room.run())
    held_out = {"sources": [{"name": "e", "path": "datasets/eval.jsonl"}]}
    outcome = room.run(minLength=29, eval=held_out)
    found, train = facts(outcome), room.cache(outcome).train
    assert (found.rows, found.eval_rows, found.short_rows, found.dropped_rows) == (2, 1, 3, 0)
    assert found.truncated_rows == whole.truncated_rows == 1
    assert found.tokens == train.lengths.sum() == whole.tokens - 2 * 28
    assert facts(room.run(minLength=28)).short_rows == 0
    room.write("datasets/chats.jsonl", CHAT, CHAT)
    refused(room.run(minLength=29), "EmptyData", "2 of 2 are shorter than data.minLength 29", "row 28 tokens")


def test_long_rows_can_be_dropped(room: Room) -> None:
    room.write("datasets/chats.jsonl", chat("hi", "x" * 300), CHAT)
    found = facts(room.run(onTooLong="Drop"))
    assert (found.rows, found.truncated_rows, found.dropped_rows) == (1, 0, 1)


def test_invalid_rows_can_be_skipped_and_are_counted(room: Room) -> None:
    room.write("datasets/chats.jsonl", "{oops", {"messages": []}, chat("only a question"), CHAT, "[1]")
    found = facts(room.run(onInvalidRow="Skip"))
    assert (found.rows, found.skipped_rows) == (1, 4)


def test_the_loss_may_be_on_the_last_answer_or_on_everything(room: Room) -> None:
    room.write("datasets/chats.jsonl", chat("a", "b", "c", "d"))
    last = room.run(lossOn="LastAssistant")
    assert room.texts(room.cache(last).train)[0][1] == "d<|im_end|>"
    everything = room.run(lossOn="AllTokens")
    assert facts(everything).supervised_tokens == facts(everything).tokens - 1  # nothing predicts the first


@pytest.mark.parametrize(
    ("source", "words"),
    [(T.ENDLESS, "behind no answer"), (T.END_ONLY_ONCE, "behind the last answer only"), (T.PHI, "")],
    ids=["no-end", "end-of-conversation", "end-of-turn"],
)
def test_a_template_that_does_not_teach_to_stop_is_told_at_every_run(
    room: Room, caplog: pytest.LogCaptureFixture, source: str, words: str
) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    (room.workspace / "mine.jinja").write_text(source.replace("<|end|>", "<|im_end|>"))
    for _ in range(2):
        caplog.clear()
        room.run({"path": "models/tiny", "chatTemplate": {"path": "mine.jinja"}})
        assert ("a model learns to stop" in caplog.text) == bool(words)
        assert words in caplog.text


def test_held_out_rows_keep_their_side_when_data_grows(room: Room) -> None:
    def held_out(count: int) -> set[str]:
        room.write("datasets/chats.jsonl", *[chat(f"question {i}", f"answer {i}") for i in range(count)])
        outcome = room.run(eval={"splitPercent": 20})
        found = facts(outcome)
        assert found.rows + found.eval_rows == count
        return {text for text, _ in room.texts(room.cache(outcome).eval)}

    few, many = held_out(100), held_out(200)
    assert 5 < len(few) < 40
    assert few < many
    assert len(many - few) < 40


def test_a_small_percentage_of_few_rows_holds_out_one(room: Room) -> None:
    room.write("datasets/chats.jsonl", *[chat(f"question {i}", f"answer {i}") for i in range(5)])
    outcome = room.run(eval={"splitPercent": 1})
    found = facts(outcome)
    assert (found.rows, found.eval_rows) == (4, 1)
    train = room.cache(outcome).train
    assert found.tokens == train.lengths.sum()
    assert found.supervised_tokens == sum(np.count_nonzero(train.row(i)[1]) for i in range(4))
    (held_out,) = room.texts(room.cache(outcome).eval)
    assert held_out not in room.texts(train)


def test_held_out_rows_may_have_sources_of_their_own(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    room.write("datasets/eval.jsonl", chat("a", "b"), chat("c", "d"))
    found = facts(room.run(eval={"sources": [{"name": "e", "path": "datasets/eval.jsonl"}]}))
    assert (found.rows, found.eval_rows) == (1, 2)


def test_without_packing_every_row_is_a_sequence(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT, CHAT, chat("hi", "hello" * 4))
    found = facts(room.run(packing="None"))
    assert found.packs == 3
    assert found.fill_percent == 100 * found.tokens // (3 * found.longest_row)


def test_a_folder_means_the_files_below_it_in_the_order_of_their_names(room: Room) -> None:
    room.write("datasets/b/2.jsonl", chat("q", "third"))
    room.write("datasets/b/1.JSONL", chat("q", "second"))
    room.write("datasets/a.json", [chat("q", "first")])
    for other in ("notes.txt", ".hidden.jsonl", ".git/x.jsonl"):
        room.write(f"datasets/{other}", "no row")
    outcome = room.run(train=[{"name": "0", "path": "datasets"}])
    answers = [supervised for _, supervised in room.texts(room.cache(outcome).train)]
    assert answers == ["first<|im_end|>", "second<|im_end|>", "third<|im_end|>"]


def test_only_the_first_rows_of_a_source_are_read_where_it_says_so(room: Room) -> None:
    room.write("datasets/chats.jsonl", chat("a", "b"), chat("c", "d"), "broken")
    found = facts(room.run(train=[{"name": "0", "path": "datasets/chats.jsonl", "maxRows": 2}]))
    assert found.rows == 2


def test_a_weight_repeats_rows_and_its_fraction_a_sample_of_them(room: Room) -> None:
    room.write("datasets/chats.jsonl", *[chat(f"question {i}", f"answer {i}") for i in range(100)])
    room.write("datasets/more.jsonl", CHAT)
    source, more = {"name": "0", "path": "datasets/chats.jsonl"}, {"name": "1", "path": "datasets/more.jsonl"}

    def seen(weight: float, **settings: Any) -> Counter[str]:
        outcome = room.run(train=[{**source, "weight": weight}, more], **settings)
        train, found = room.cache(outcome).train, facts(outcome)
        assert (found.rows, found.tokens) == (len(train), train.lengths.sum())
        assert found.supervised_tokens == sum(np.count_nonzero(train.row(i)[1]) for i in range(len(train)))
        return Counter(text for text, _ in room.texts(train))

    assert sorted(seen(3).values()) == [1, *[3] * 100]
    sample, larger = seen(0.25), seen(2.5)
    assert 10 < len(sample) < 45
    assert all(larger[text] == 3 or text.find("hi") > 0 for text in sample)
    assert set(larger.values()) == {1, 2, 3}
    assert sorted(seen(2, eval={"splitPercent": 1}).values()).count(2) >= 98


def test_equal_rows_are_kept_once_and_the_others_counted(room: Room) -> None:
    call = {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    other = {"messages": [CHAT["messages"][0], {**CHAT["messages"][1], **call}]}
    room.write("mine.jinja", T.TOOLS)
    room.write("datasets/chats.jsonl", CHAT, {"prompt": 1}, chat("a", "b"), CHAT, other, other)
    room.write(
        "datasets/eval.jsonl", {"prompt": "hi", "completion": "hello"}, {"prompt": "c", "completion": "d"}
    )
    outcome = room.run(
        {"path": "models/tiny", "chatTemplate": {"path": "mine.jinja"}},
        deduplicate="Exact",
        onInvalidRow="Skip",
        eval={"sources": [{"name": "e", "path": "datasets/eval.jsonl"}]},
    )
    found = facts(outcome)
    assert (found.rows, found.eval_rows, found.duplicate_rows, found.skipped_rows) == (3, 1, 3, 1)


def test_equal_rows_are_on_one_side_where_one_is_held_out_of_a_few(room: Room) -> None:
    room.write("datasets/chats.jsonl", *[chat(f"question {i % 3}", "x") for i in range(9)])
    outcome = room.run(
        eval={"splitPercent": 1}, train=[{"name": "0", "path": "datasets/chats.jsonl", "weight": 2}]
    )
    train, held_out = (room.texts(split) for split in (room.cache(outcome).train, room.cache(outcome).eval))
    assert (len(train), len(held_out), facts(outcome).rows) == (12, 3, 12)
    assert not set(train) & set(held_out)
    room.write("datasets/chats.jsonl", CHAT, CHAT)
    assert facts(room.run(eval={"splitPercent": 1})).eval_rows == 0


# ------------------------------------------------------------------ the cache


def test_the_second_run_is_a_hit_and_changes_nothing(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    first = room.run()
    entry = room.workspace / facts(first).cache
    before = {path: path.stat().st_mtime_ns for path in entry.iterdir()}
    assert facts(room.run()) == facts(first)
    assert {path: path.stat().st_mtime_ns for path in entry.iterdir()} == before


def test_jobs_that_start_together_prepare_the_same_data_once(
    room: Room, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    room.settings()
    monkeypatch.setattr(cache, "_POLL_SECONDS", 0.01)
    settings = prepare.read_config(room.config / "prepare.json")
    with ThreadPoolExecutor(4) as jobs:
        results = [jobs.submit(prepare.prepare, settings, room.workspace) for _ in range(4)]
        assert len({result.result().data.hash for result in results}) == 1
    assert caplog.text.count("the data is prepared already") == 3
    assert [path.name for path in left_in_cache(room)] == [results[0].result().data.hash]


def test_a_damaged_entry_is_made_again(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    first = room.run()
    arrow = room.workspace / facts(first).cache / "train.arrow"
    arrow.write_bytes(arrow.read_bytes()[:-7])
    assert facts(room.run()) == facts(first)
    assert room.texts(room.cache(first).train)


@pytest.mark.parametrize(
    "change",
    [
        {"maxLength": 64},
        {"lossOn": "LastAssistant"},
        {"eval": {"splitPercent": 50}},
        {"packing": "None"},
        {"deduplicate": "Exact"},
        {"train": [{"name": "0", "path": "datasets/chats.jsonl", "weight": 2}]},
        {"train": [{"name": "0", "path": "datasets/chats.jsonl", "maxRows": 2}]},
    ],
    ids=str,
)
def test_other_settings_are_another_entry(room: Room, change: dict[str, Any]) -> None:
    room.write("datasets/chats.jsonl", *[chat(f"{i}", "x") for i in range(20)])
    assert facts(room.run()).hash != facts(room.run(**change)).hash


def test_a_template_that_writes_the_date_gives_another_entry_on_another_day(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    room.write("dated.jinja", "{{ strftime_now('%d %H') }}{% for m in messages %}{{ m.content }}{% endfor %}")
    undated, dated = (
        {"path": "models/tiny"} | more for more in ({}, {"chatTemplate": {"path": "dated.jinja"}})
    )
    hashes = []
    for day in (1, 1, 2):
        monkeypatch.setattr(template, "_today", lambda day=day: datetime(2026, 1, day))
        hashes.append([facts(room.run(model=model)).hash for model in (undated, dated)])
    assert hashes[0] == hashes[1]
    assert hashes[1][0] == hashes[2][0]
    assert hashes[1][1] != hashes[2][1]
    assert room.texts(room.cache(room.main()).train)[0][0].startswith("02 00hi")


def test_other_content_template_or_tokenizer_is_another_entry(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    hashes = {facts(room.run()).hash}
    room.write("mine.jinja", "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    hashes.add(facts(room.run(model={"path": "models/tiny", "chatTemplate": {"path": "mine.jinja"}})).hash)
    room.write("datasets/chats.jsonl", CHAT, CHAT)
    hashes.add(facts(room.run()).hash)
    words = room.workspace / "models" / "tiny" / "tokenizer.json"
    words.write_text(words.read_text() + " ")
    hashes.add(facts(room.run()).hash)
    assert len(hashes) == 4


def test_the_same_content_under_another_name_is_the_same_entry(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    first = facts(room.run())
    room.write("other/copy.jsonl", CHAT)
    assert facts(room.run(train=[{"name": "copy", "path": "other/*.jsonl"}])) == first


# ------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("rows", "settings", "reason", "words"),
    [
        (
            [CHAT, '{"messages": [}'],
            {},
            "InvalidRow",
            [
                "train[0] datasets/chats.jsonl line 2: not valid JSON (",
                "column 15)",
                "fix the line or set data.onInvalidRow: Skip",
            ],
        ),
        ([CHAT, {"messages": 7}], {}, "InvalidRow", ["line 2: expected a list of messages, found a number"]),
        ([chat("hi")], {}, "NoAssistantTurn", ["train[0] datasets/chats.jsonl line 1: no assistant turn"]),
        ([], {}, "EmptyData", ["data.train[0]: datasets/chats.jsonl holds no rows"]),
        (["", ""], {}, "EmptyData", ["holds no rows"]),
        (
            ["{", "["],
            {"onInvalidRow": "Skip"},
            "EmptyData",
            ["all 2 rows are invalid", "line 1: not valid JSON"],
        ),
        (
            [{"text": "x"}],
            {},
            "UnknownFormat",
            ["data.train[0]: train[0] datasets/chats.jsonl line 1", "(text)", "prompt + chosen"],
        ),
        (
            [chat("q" * 90, "a")],
            {"maxLength": 64},
            "NoSupervisedTokens",
            ["of 1 rows 1 were dropped", "data.maxLength 64"],
        ),
        (
            [chat("hi", "x" * 200)],
            {"onTooLong": "Fail"},
            "RowTooLong",
            ["line 1: 223 tokens, data.maxLength is 128", "onTooLong"],
        ),
        ([CHAT], {"maxLength": 8192}, "MaxLengthTooLong", ["data.maxLength is 8192", "4096 positions"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_rows_end_with_a_sentence(
    room: Room, rows: list[Any], settings: dict[str, Any], reason: str, words: list[str]
) -> None:
    room.write("datasets/chats.jsonl", *rows)
    refused(room.run(**settings), reason, *words)
    assert not left_in_cache(room)


def test_of_two_wrong_rows_the_first_in_the_file_is_named(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT, chat("hi", "x" * 200), "{")
    refused(room.run(onTooLong="Fail"), "RowTooLong", "train[0] datasets/chats.jsonl line 2: 223 tokens")
    room.write("datasets/chats.jsonl", CHAT, "{", chat("hi", "x" * 200))
    refused(room.run(onTooLong="Fail"), "InvalidRow", "train[0] datasets/chats.jsonl line 2: not valid JSON")


SOAK_BYTES = 2 * 2**30


def peak_bytes() -> int:
    """Peak resident memory of a process that prepares what the room's prepare.json says."""
    script = (  # getrusage would tell the highest of the parent too: it is kept over exec
        "import pathlib, sys; from sft_trainer import prepare; code = prepare.main(); "
        "status = pathlib.Path('/proc/self/status').read_text(); "
        "print(status.split('VmHWM:')[1].split()[0]); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    return int(done.stdout) * 1024


@pytest.mark.processes
def test_memory_does_not_grow_with_the_rows(room: Room) -> None:
    """Tokens cost the tokenizer some hundred bytes each while they are made: six million do not fit in this."""

    def peak(rows: int) -> int:
        room.write("datasets/chats.jsonl", *[chat(f"{i}", "words " * 2000) for i in range(rows)])
        room.settings(maxLength=4096, eval={"splitPercent": 5})
        return peak_bytes()

    few, many = peak(100), peak(500)
    assert many - few < 80 * 2**20


HOSTILE = {
    "half-a-character": (chat("hi \ud83d", "a"), "a lone surrogate"),
    "endless-number": ('{"messages": 1' + "0" * 5000 + "}", "more digits than can be read"),
    "endless-nesting": ('{"messages": ' + "[" * 100_000, "nested too deeply"),
    "nested-tools": ({**CHAT, "tools": "[" * 100_000}, "tools: lists or objects are nested"),
    "history-of-a-number": ({"instruction": "a", "output": "b", "history": 3}, "history: expected a list"),
}


@pytest.mark.parametrize(("row", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_row_is_named_and_can_be_skipped(room: Room, row: Any, words: str) -> None:
    good = {"instruction": "a", "output": "b"} if "history" in row else CHAT
    room.write("datasets/chats.jsonl", good, row)
    refused(room.run(), "InvalidRow", "train[0] datasets/chats.jsonl line 2: ", words)
    assert facts(room.run(onInvalidRow="Skip")).skipped_rows == 1


def test_a_hostile_json_array_names_its_file(room: Room) -> None:
    for text in ("[" * 100_000, f"[1{'0' * 5000}]"):
        (room.workspace / "datasets" / "a.json").write_text(text)
        refused(
            room.run(train=[{"name": "0", "path": "datasets/a.json"}]),
            "InvalidRow",
            "train[0] datasets/a.json: ",
            "one row per line (.jsonl)",
        )


def test_wrong_columns_are_refused_by_name(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    source = {"name": "0", "path": "datasets/chats.jsonl", "columns": {"message": "messages"}}
    refused(
        room.run(train=[source]), "UnknownFormat", "data.train[0]: columns maps 'message'", "messages, tools"
    )


def test_bytes_that_are_no_text_are_named_by_line(room: Room) -> None:
    path = room.write("datasets/chats.jsonl", CHAT)
    path.write_bytes(path.read_bytes() + b'{"messages": "\xff"}\n')
    refused(room.run(), "InvalidRow", "line 2: not valid UTF-8 (byte 15 of the line)")


def test_a_broken_json_file_names_its_line(room: Room) -> None:
    (room.workspace / "datasets" / "a.json").write_text('[\n{"messages": []},\n oops]')
    refused(
        room.run(train=[{"name": "0", "path": "datasets/a.json"}]), "InvalidRow", "datasets/a.json line 3"
    )


def test_a_broken_parquet_file_is_named(room: Room) -> None:
    (room.workspace / "datasets" / "a.parquet").write_bytes(b"PAR1 not really")
    refused(
        room.run(train=[{"name": "0", "path": "datasets/a.parquet"}]),
        "InvalidRow",
        "not a readable Parquet file",
    )


def test_a_parquet_file_with_damaged_pages_is_named_with_the_last_good_row(room: Room) -> None:
    path = room.workspace / "datasets" / "a.parquet"
    rows = [chat(f"{number} and {number % 7}?", "yes") for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1500, compression="snappy")
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    content[start + 40 : start + 2000] = b"\xff" * 1960
    path.write_bytes(content)
    refused(
        room.run(train=[{"name": "0", "path": "datasets/a.parquet"}]),
        "InvalidRow",
        "train[0] datasets/a.parquet after row 1",
        "not a readable Parquet file",
    )


def test_a_parquet_value_that_is_no_text_is_named_by_row(room: Room) -> None:
    path = room.workspace / "datasets" / "a.parquet"
    texts = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": texts, "completion": ["x", "y", "z"]}), path)
    source = [{"name": "0", "path": "datasets/a.parquet"}]
    refused(room.run(train=source), "InvalidRow", "train[0] datasets/a.parquet row 2: a value cannot be read")
    assert facts(room.run(train=source, onInvalidRow="Skip")).rows == 2


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "datasets/nowhere.jsonl",
            ["datasets/nowhere.jsonl was not found", "datasets/ holds chats.jsonl, notes.txt"],
        ),
        ("datasets/*.parquet", ["datasets/*.parquet matches no file", "datasets/ holds"]),
        (
            "other/deep/x.jsonl",
            ["other/deep/x.jsonl was not found", "the workspace holds datasets/, models/"],
        ),
        ("datasets/papers", ["the folder datasets/papers holds no .jsonl, .json or .parquet file"]),
        ("../outside.jsonl", ["'../outside.jsonl' leaves the workspace"]),
        ("/etc/*.conf", ["'/etc/*.conf' leaves the workspace"]),
        ("link.jsonl", ["'link.jsonl' leaves the workspace"]),
    ],
)
def test_missing_data_is_named_with_what_is_there(room: Room, path: str, words: list[str]) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    room.write("datasets/notes.txt", "x")
    room.write("datasets/papers/notes.txt", "x")
    if path == "link.jsonl":
        (room.workspace / path).symlink_to("/etc/passwd")
    refused(room.run(train=[{"name": "0", "path": path}]), "DataNotFound", "data.train[0].path", *words)


def test_a_file_of_another_kind_is_refused(room: Room) -> None:
    room.write("datasets/table.csv", "a,b")
    refused(
        room.run(train=[{"name": "0", "path": "datasets/*.csv"}]),
        "UnknownFormat",
        "table.csv is not a .jsonl",
    )


@pytest.mark.parametrize(
    ("lost", "reason", "words"),
    [
        ("tokenizer.json", "TokenizerMissing", "models/tiny has no tokenizer"),
        ("config.json", "ModelNotFound", "models/tiny holds no config.json"),
        ("model.safetensors", "WeightsMissing", "models/tiny has no weights"),
    ],
)
def test_an_incomplete_model_folder_is_refused(room: Room, lost: str, reason: str, words: str) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    (room.workspace / "models" / "tiny" / lost).unlink()
    refused(room.run(), reason, words)


def test_a_missing_model_is_named_with_what_is_there(room: Room) -> None:
    refused(
        room.run(model={"path": "models/nowhere"}),
        "ModelNotFound",
        "models/nowhere was not found",
        "holds tiny",
    )
    refused(room.run(model={"path": "../models"}), "ModelNotFound", "leaves the workspace")
    room.write("models/notes.txt", "x")
    refused(
        room.run(model={"path": "models/notes.txt"}), "ModelNotFound", "neither a folder nor a .gguf file"
    )
    room.write("models/fake.gguf", "x")
    refused(room.run(model={"path": "models/fake.gguf"}), "InvalidModel", "fake.gguf is not a GGUF file")


def test_a_tokenizer_of_another_model_is_refused(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    config = room.workspace / "models" / "tiny" / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 258', '"vocab_size": 200'))
    refused(room.run(), "TokenizerMismatch", "outside the model's vocabulary of 200")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schemaVersion": 2}', "schemaVersion 2, this trainer knows 1"),
        ('{"schemaVersion": 1}', "prepare.json: job: Field required"),
        ("{", "prepare.json cannot be read"),
        ("[]", "schemaVersion None"),
    ],
)
def test_a_configuration_of_another_version_says_so(room: Room, text: str, words: str) -> None:
    (room.config / "prepare.json").write_text(text)
    refused(room.main(), "InvalidConfig", words)


def test_a_full_volume_has_its_own_exit_code(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is made full where our code touches it last: the system call."""
    room.write("datasets/chats.jsonl", CHAT)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    outcome = room.run()
    assert (outcome.reason, outcome.exit_code) == ("VolumeFull", 72)
    assert "free space or enlarge the claim" in outcome.message
    assert not left_in_cache(room)


def test_sigterm_ends_as_interrupted_and_leaves_no_half_entry(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    fsync = os.fsync

    def interrupted(handle: int) -> None:
        signal.raise_signal(signal.SIGTERM)
        fsync(handle)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(os, "fsync", interrupted)
    outcome = room.run()
    assert (outcome.reason, outcome.exit_code) == ("Interrupted", 74)
    assert not [path for path in left_in_cache(room) if path.name.startswith(".")]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_prepared_folder_is_prepared_without_torch(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    room.run()
    script = (
        "import sys; from sft_trainer import prepare; code = prepare.main(); "
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'transformers', 'huggingface_hub')))"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_two_preparations_of_the_same_data_may_run_at_once(room: Room) -> None:
    room.write("datasets/chats.jsonl", CHAT)
    room.run()
    config = prepare.read_config(room.config / "prepare.json")
    room.write("datasets/chats.jsonl", CHAT, CHAT)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: prepare.prepare(config, room.workspace), range(3)))
    assert len(results) == 3
    assert len({result.data.hash for result in results}) == 1


@pytest.mark.soak
@pytest.mark.processes
@pytest.mark.timeout(7200)
def test_two_gigabytes_are_prepared_in_less_than_one(room: Room) -> None:
    """Beside this process's memory only what lies on the volume grows with the rows."""
    path, size = room.workspace / "datasets" / "chats.jsonl", 0
    with path.open("w") as stream:
        for number in itertools.count():
            line = json.dumps(chat(f"question {number}", "words and more words " * 400)) + "\n"
            size += stream.write(line)
            if size > SOAK_BYTES:
                break
    room.settings(maxLength=4096, eval={"splitPercent": 1}, deduplicate="Exact")
    assert peak_bytes() < 2**30
