"""Which of several failures is the pod's, as a table."""

from __future__ import annotations

import itertools
import mmap
from pathlib import Path

import pytest
import torch

from sft_trainer.config import EXIT_CLASSES, ExitCode, FailureClass, Outcome, Progress
from sft_trainer.launcher.verdict import COLLECTIVE_FAILURES, EXIT_CODES, PRECEDENCE, RankEnd, judge

DONE = Outcome(outcome="Succeeded", reason="Succeeded")


def failed(failure: FailureClass, message: str = "why", **more: object) -> Outcome:
    return Outcome.model_validate(
        {"outcome": "Failed", "reason": str(failure), "failure_class": failure, "message": message, **more}
    )


def end(status: int, outcome: Outcome | None = None, *, rank: int = 0, **more: object) -> RankEnd:
    return RankEnd(rank=rank, status=status, outcome=outcome, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "told", "oom_kills", "failure", "words"),
    [
        pytest.param(0, False, 0, FailureClass.CRASH, "before the training was finished", id="no marker"),
        pytest.param(1, False, 0, FailureClass.CRASH, "exit code 1", id="exit 1"),
        pytest.param(-9, False, 0, FailureClass.CRASH, "SIGKILL", id="killed, memory was not the reason"),
        pytest.param(-9, False, 1, FailureClass.HOST_OUT_OF_MEMORY, "memory", id="killed for memory"),
        pytest.param(-9, False, None, FailureClass.HOST_OUT_OF_MEMORY, "memory", id="killed, no counter"),
        pytest.param(137, False, 0, FailureClass.HOST_OUT_OF_MEMORY, "memory", id="bare 137"),
        pytest.param(-11, False, 0, FailureClass.CRASH, "SIGSEGV", id="segmentation fault"),
        pytest.param(-15, False, 0, FailureClass.CRASH, "SIGTERM", id="SIGTERM from elsewhere"),
        pytest.param(-15, True, 0, FailureClass.PEER_LOST, "another rank", id="SIGTERM from us"),
        pytest.param(-9, True, 0, FailureClass.PEER_LOST, "another rank", id="SIGKILL from us"),
        *(
            pytest.param(int(code), False, 0, EXIT_CLASSES[code], "", id=f"exit {int(code)}")
            for code in ExitCode
            if code not in (ExitCode.SUCCESS, ExitCode.KILLED)
        ),
    ],
)
def test_a_rank_without_words_is_classified_by_its_status(
    status: int, told: bool, oom_kills: int | None, failure: FailureClass, words: str
) -> None:
    verdict = judge([end(status, told=told)], interrupted=False, oom_kills=oom_kills)
    assert (verdict.outcome, verdict.failure_class, verdict.rank) == ("Failed", failure, 0)
    assert verdict.exit_code == EXIT_CODES[failure] != 0
    assert words in verdict.message


def test_a_ranks_own_words_beat_its_exit_status() -> None:
    own = failed(FailureClass.USER_ERROR, "row 7 has no answer").model_copy(update={"reason": "InvalidRow"})
    verdict = judge([end(-9, own, rank=3)], interrupted=False, oom_kills=1)
    assert (verdict.reason, verdict.message, verdict.exit_code) == ("InvalidRow", "row 7 has no answer", 71)
    assert verdict.rank == 3


@pytest.mark.parametrize(
    ("winner", "loser"), list(itertools.combinations(PRECEDENCE, 2)), ids=lambda failure: str(failure)
)
def test_the_more_specific_class_wins_whichever_came_first(winner: FailureClass, loser: FailureClass) -> None:
    ends = [end(70, failed(loser), rank=0), end(70, failed(winner), rank=1)]
    for order in (ends, ends[::-1]):
        assert judge(order, interrupted=False, oom_kills=0).failure_class is winner


TIMEOUT = (
    "[rank1]:[E1125 04:00:00.1 ProcessGroupNCCL.cpp:616] [Rank 1] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=808, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600020 milliseconds before timing out."
)
ABORT = (
    "terminate called after throwing an instance of 'c10::DistBackendError'",
    "Fatal Python error: Aborted",
)
REMOTE = "NCCL error: remote process exited or there was a network error, NCCL version 2.27.3"


DUMP = (
    "[rank1]:[E1125 04:00:00.1 ProcessGroupNCCL.cpp:1890] [PG ID 0 PG GUID 0 Rank 1] Received a dump signal due to a "
    "collective timeout from rank 0 and we will try our best to dump the debug info."
)
STUCK = (
    "[rank1]:[F1125 04:00:00.1 ProcessGroupNCCL.cpp:1557] [PG ID 0 PG GUID 0 Rank 1] [PG ID 0 PG GUID 0 Rank 1] "
    "ProcessGroupNCCL's watchdog got stuck for 480 seconds without making progress in monitoring enqueued collectives."
)


@pytest.mark.parametrize(
    "words", [TIMEOUT, REMOTE, DUMP, STUCK], ids=["timeout", "remote", "other's-timeout", "hang"]
)
def test_a_rank_that_nccls_watchdog_aborts_has_lost_a_peer(words: str) -> None:
    verdict = judge([end(-6, rank=1, stderr=(words, *ABORT))], interrupted=False, oom_kills=0)
    assert (verdict.failure_class, verdict.exit_code) == (FailureClass.PEER_LOST, 73)
    assert verdict.message.startswith("rank 1 gave up waiting for the others: ")


def test_nccl_and_torch_still_say_it_so() -> None:
    site = Path(torch.__file__).parents[1]
    libraries = [site / "torch" / "lib" / "libtorch_cuda.so", *site.glob("nvidia/nccl/lib/libnccl.so.2")]
    if not libraries[0].exists():
        pytest.skip("this torch is one for CPUs")
    unsaid = set(COLLECTIVE_FAILURES)
    for library in libraries:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            unsaid = {words for words in unsaid if text.find(words.encode()) < 0}
    assert not unsaid


def test_the_cause_outranks_the_ranks_that_the_watchdog_aborted() -> None:
    ends = [end(-6, rank=1, stderr=(TIMEOUT, *ABORT)), end(-11, rank=2)]
    assert judge(ends, interrupted=False, oom_kills=0).rank == 2


@pytest.mark.parametrize(
    "stderr",
    [
        ABORT,
        (
            "[Rank 0] Process group watchdog thread terminated with exception: CUDA error: illegal access",
            TIMEOUT,
        ),
    ],
    ids=["any-abort", "own-gpu"],
)
def test_an_abort_for_another_reason_stays_a_crash(stderr: tuple[str, ...]) -> None:
    verdict = judge([end(-6, stderr=stderr)], interrupted=False, oom_kills=0)
    assert verdict.failure_class is FailureClass.CRASH


def test_a_rank_stopped_because_a_peer_was_lost_was_not_interrupted() -> None:
    for saved in (end(74, failed(FailureClass.INTERRUPTED), rank=1, told=True), end(74, rank=1, told=True)):
        verdict = judge([end(73), saved], interrupted=False, oom_kills=0)
        assert (verdict.failure_class, verdict.exit_code) == (FailureClass.PEER_LOST, 73)


def test_every_class_a_pod_can_report_has_a_place_and_an_exit_code() -> None:
    assert set(PRECEDENCE) == set(EXIT_CODES) == set(FailureClass) - {FailureClass.DISRUPTED}


def test_among_equals_the_first_in_time_is_the_cause() -> None:
    ends = [end(1, rank=2, stderr=("ValueError: cause",)), end(1, rank=0, stderr=("ValueError: effect",))]
    verdict = judge(ends, interrupted=False, oom_kills=0)
    assert verdict.rank == 2
    assert "cause" in verdict.message


def test_success_needs_all_ranks_and_carries_rank_0s_result() -> None:
    result = DONE.model_copy(update={"last_step": 40})
    assert judge([end(0, DONE, rank=1), end(0, result)], interrupted=False, oom_kills=0).last_step == 40
    one_left_early = judge([end(0, DONE, rank=1), end(0, None)], interrupted=False, oom_kills=0)
    assert one_left_early.failure_class is FailureClass.CRASH


def test_a_rank_that_says_done_and_then_dies_has_failed() -> None:
    assert judge([end(-11, DONE)], interrupted=False, oom_kills=0).failure_class is FailureClass.CRASH


@pytest.mark.parametrize(
    "ends",
    [
        pytest.param([end(74)], id="saved"),
        pytest.param([end(-9, told=True)], id="killed before it had saved"),
        pytest.param([end(74), end(70, failed(FailureClass.CRASH), rank=1)], id="crashed on the way out"),
        pytest.param([end(0, DONE), end(74, rank=1)], id="one had finished"),
    ],
)
def test_a_requested_stop_is_an_interruption(ends: list[RankEnd]) -> None:
    verdict = judge(ends, interrupted=True, oom_kills=0)
    assert (verdict.failure_class, verdict.exit_code) == (FailureClass.INTERRUPTED, 74)


def test_a_stop_that_came_too_late_is_a_success() -> None:
    assert judge([end(0, DONE)], interrupted=True, oom_kills=0).exit_code == 0


def test_what_went_wrong_while_stopping_stays_in_the_message() -> None:
    ends = [end(72, failed(FailureClass.VOLUME_FULL, "no space left"))]
    assert "VolumeFull: no space left" in judge(ends, interrupted=True, oom_kills=0).message


def test_a_crash_is_told_exception_first_and_short() -> None:
    stderr = (
        "loading",
        "[rank3]: Traceback (most recent call last):",
        '[rank3]:   File "x.py", line 1, in <module>',
        "[rank3]: ValueError: boom",
        "bye " * 2000,
    )
    message = judge([end(1, rank=3, stderr=stderr)], interrupted=False, oom_kills=0).message
    assert message.startswith("rank 3 ended with exit code 1: ValueError: boom | last lines: loading / ")
    assert len(message) < 1600


def test_progress_says_how_far_a_killed_training_had_come() -> None:
    progress = Progress(attempt=1, run_id="r", state="Training", step=12, last_verified_step=10, time="t")
    verdict = judge([end(-9)], interrupted=False, oom_kills=1, progress=progress)
    assert (verdict.last_step, verdict.last_verified_step) == (12, 10)
    own = failed(FailureClass.CRASH, last_step=11)
    assert judge([end(70, own)], interrupted=False, oom_kills=0, progress=progress).last_step == 11
