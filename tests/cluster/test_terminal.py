"""`kubectl sftjob` against the real cluster, with the rights of an ordinary person of the namespace."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tiny
from rooms import ROOT, Kube, Room, make_room, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
STEPS = 60


@dataclass(frozen=True)
class Person:
    """Somebody with the role `edit` in one namespace, whose kubeconfig has that namespace in its context."""

    room: Room
    kubeconfig: Path

    def environment(self) -> dict[str, str]:
        path = f"{ROOT / '.venv' / 'bin'}:{self.room.kube.tools}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "KUBECONFIG": str(self.kubeconfig), "COLUMNS": "200"}

    def says(self, *words: str, code: int = 0) -> str:
        """`kubectl sftjob WORDS`, to its end."""
        done = subprocess.run(
            ["kubectl", "sftjob", *words], env=self.environment(), capture_output=True, text=True, timeout=600
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def starts(self, *words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            ["kubectl", "sftjob", *words],
            env=self.environment(),
            stdout=pipe,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def readers(self) -> list[str]:
        """The pods on the volume that are left."""
        return [pod["metadata"]["name"] for pod in self.room.pods("sftjob.dev/reader-of")]


@pytest.fixture(scope="module")
def person(operator: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    folder = tmp_path_factory.mktemp("terminal")
    rooms = make_room(operator, "terminal", folder)
    room = next(rooms)
    kubectl = operator.kubectl
    kubectl("create", "serviceaccount", "jane", "-n", room.namespace, check=True)
    account = f"--serviceaccount={room.namespace}:jane"
    kubectl("create", "rolebinding", "jane", "--clusterrole=edit", account, "-n", room.namespace, check=True)
    token = kubectl(
        "create", "token", "jane", "-n", room.namespace, "--duration=2h", check=True
    ).stdout.strip()
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json", check=True).stdout)
    config["users"] = [{"name": "jane", "user": {"token": token}}]
    config["contexts"] = [
        {
            "name": "room",
            "context": {
                "cluster": config["clusters"][0]["name"],
                "user": "jane",
                "namespace": room.namespace,
            },
        }
    ]
    config["current-context"] = "room"
    path = folder / "jane.kubeconfig"
    path.write_text(json.dumps(config))
    yield Person(room, path)
    rooms.close()


def test_the_doctor_finds_the_operator_at_work_and_says_what_a_person_may(person: Person):
    as_jane = {each["name"]: each for each in json.loads(person.says("doctor", "-o", "json"))}
    assert as_jane["SFTJob CRD"]["state"] == as_jane["your rights"]["state"] == "ok", as_jane
    assert as_jane["operator"]["state"] == "unknown", "jane may not list deployments elsewhere"
    assert "ReadWriteMany" in as_jane["shared volume"]["found"]
    as_admin = Person(person.room, person.room.kube.kubeconfig)
    found = json.loads(as_admin.says("doctor", "-o", "json", "-n", person.room.namespace))
    operator = next(each for each in found if each["name"] == "operator")
    assert operator["state"] == "ok", operator
    assert "leads" in operator["found"]


def test_errors_are_a_sentence_with_the_way_out(person: Person):
    assert "there is no job nothing in namespace" in person.says("watch", "nothing", code=2)
    said = person.says("get", "-n", "kube-system", code=3)
    assert "you may not do that" in said
    assert "kubectl sftjob doctor -n kube-system lists your rights" in said
    assert "context nowhere" in person.says("get", "--context", "nowhere", code=2)


def test_a_job_from_run_to_an_answer_of_its_model(person: Person, tmp_path: Path):
    room = person.room
    tiny.model(room.workspace / "models" / "tiny", hidden=64)
    tiny.chats(room.workspace / "datasets" / "chats.jsonl", count=20)
    spec = tiny.spec(maxSteps=STEPS, globalBatchSize=4)
    spec["checkpoint"] = {"periodSteps": 20, "retain": {"last": 2}}
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(room.sftjob("told", spec)))
    running = person.starts("run", str(file))
    until("the job", lambda: room.kube.get("sftjob", "told", room.namespace), 30)
    logs = person.starts("logs", "told", "-f")
    room.wait("told", "Running", seconds=300)
    assert "told is running" in person.says("explain", "told")
    said = person.says("suspend", "told")
    assert room.condition("told", "Suspended")["status"] == "True"
    assert "Suspend" in said
    assert "kubectl sftjob resume told" in person.says("explain", "told")
    person.says("resume", "told", "--no-wait")
    out, _ = running.communicate(timeout=600)
    assert running.returncode == 0, out
    assert "told is complete" in out
    lines, _ = logs.communicate(timeout=60)
    assert logs.returncode == 0, lines
    assert "[prepare] " in person.says("logs", "told", "--attempt", "0")
    # Whether a suspension ends the attempt depends on how far its pods have come.
    assert re.search(r"^\[told-\d-1\] \[launcher\] ", lines, re.MULTILINE)
    assert re.search(r"^\[told-\d-0\] \[rank 0\] ", lines, re.MULTILINE)
    listed = json.loads(person.says("checkpoints", "told", "-o", "json"))
    assert listed[0]["verified"]
    assert "resumes here" in person.says("checkpoints", "told", "--verify")
    answer = json.loads(
        person.says("chat", "told", "-q", "hello", "--max-new-tokens", "4", "--base", "-o", "json")
    )
    assert set(answer) == {"question", "base", "tuned"}
    until("the pods on the volume are gone", lambda: not person.readers(), 60)


def test_what_is_on_the_volume_outlives_the_pods(person: Person, tmp_path: Path):
    room = person.room
    room.kube.kubectl(
        "delete", "pods", "-n", room.namespace, "-l", "sftjob.dev/role=train", "--wait=true", check=True
    )
    number = room.job("told")["status"]["attempts"][-1]["number"]
    assert f"[told-{number}] [rank 0] " in person.says("logs", "told", "--rank", "0")
    target = tmp_path / "report.html"
    person.says("report", "told", "-o", str(target))
    assert b"Content-Security-Policy" in target.read_bytes()
    report = room.workspace / "jobs" / "told" / "report" / "report.html"
    assert not report.exists() or target.read_bytes() == report.read_bytes(), (
        "made now where the pods were too early"
    )
    until("the pods on the volume are gone", lambda: not person.readers(), 60)
    person.says("delete", "told")
    assert room.kube.get("sftjob", "told", room.namespace) is None
