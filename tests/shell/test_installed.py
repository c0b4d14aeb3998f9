"""What `helm test` asks an installation, against pages that a real operator serves."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sftjob_operator.installed import Replica, ask, main, objection
from sftjob_operator.metrics import Metrics

LEADER = Replica("10.0.0.1", None, leads=True, watches=True)
STANDBY = Replica("10.0.0.2", None)


@contextlib.contextmanager
def replica(metrics: Metrics, trouble: str = "") -> Iterator[int]:
    """A port that answers like an operator's; with trouble it is not healthy."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = metrics.exposition() if self.path == "/metrics" else (trouble or "ok").encode()
            self.send_response(503 if trouble and self.path == "/healthz" else 200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def working() -> Metrics:
    metrics = Metrics()
    metrics.watch_leader(lambda: True)
    metrics.on_watch()
    return metrics


def test_one_that_leads_and_watches_is_well_with_and_without_a_standby():
    assert objection([LEADER]) is None
    assert objection([STANDBY, LEADER]) is None


@pytest.mark.parametrize(
    ("replicas", "words"),
    [
        ([], "no pod of the operator is there"),
        ([LEADER, Replica("10.0.0.2", "reconcile of a/b stands")], "10.0.0.2 is not healthy: reconcile of a/b stands"),
        ([STANDBY, STANDBY], "0 of 2 replicas lead, and one should"),
        ([LEADER, LEADER], "2 of 2 replicas lead, and one should"),
        ([Replica("10.0.0.1", None, leads=True)], "is the CustomResourceDefinition installed"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_where_to_look(replicas: list[Replica], words: str):
    assert words in (objection(replicas) or "")


def test_a_working_operator_is_recognised_by_its_own_metrics(capsys: pytest.CaptureFixture[str]):
    with replica(working()) as port:
        assert ask("127.0.0.1", port) == Replica("127.0.0.1", None, leads=True, watches=True)
        assert main(["127.0.0.1", str(port)]) == 0
    assert capsys.readouterr().out == "1 healthy; 127.0.0.1 leads and watches SFTJobs\n"


def test_one_that_only_stands_by_leads_and_watches_nothing():
    with replica(Metrics()) as port:
        assert ask("127.0.0.1", port) == Replica("127.0.0.1", None)


def test_trouble_is_the_operators_own_words():
    with replica(working(), trouble="no worker has moved for 300 s") as port:
        assert ask("127.0.0.1", port).trouble == "no worker has moved for 300 s"


def test_it_waits_for_an_installation_that_is_not_yet_there(capsys: pytest.CaptureFixture[str]):
    metrics, waited = working(), []
    metrics.watch_leader(lambda: bool(waited))
    with replica(metrics) as port:
        assert main(["127.0.0.1", str(port)], sleep=waited.append) == 0
    assert waited == [1.0]
    assert main(["127.0.0.1", "1"], seconds=0) == 1
    assert "127.0.0.1 is not healthy" in capsys.readouterr().err


def test_a_name_that_does_not_resolve_is_nobody(capsys: pytest.CaptureFixture[str]):
    assert main(["no-such-host.invalid", "8080"], seconds=0) == 1
    assert "no pod of the operator is there" in capsys.readouterr().err


def test_wrong_words_are_refused():
    assert main(["host"]) == 2
