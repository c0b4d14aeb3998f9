"""`sftjob run` with data in a store: the keys of --secret reach preparation, and nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import s3_store
import tiny
from sftjob_operator.cli.errors import FAILED
from sftjob_operator.cli.run import Options, run

pytestmark = pytest.mark.processes


def test_a_store_is_read_with_the_keys_of_the_named_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    workspace, file = tmp_path / "workspace", tmp_path / "bot.yaml"
    workspace.mkdir()
    tiny.model(tmp_path / "m")
    spec = {
        "model": {"uri": "s3://chats/m", "secretRef": {"name": "models"}},
        "data": {"train": [{"uri": "s3://closed/*.jsonl", "secretRef": {"name": "data"}}]},
        "workers": {"gpusPerNode": 0},
        "workspace": {"claimName": "w"},
    }
    head = {"apiVersion": "sftjob.dev/v1alpha1", "kind": "SFTJob", "metadata": {"name": "bot"}}
    file.write_text(json.dumps({**head, "spec": spec}))
    with s3_store.serving() as store:
        store.put_folder(tmp_path / "m", "m")
        store.put("a.jsonl", b"no row", bucket="closed", user="other")
        secrets = []
        for name, user in (("models", "reader"), ("data", "other")):
            keys = tmp_path / f"{name}.env"
            keys.write_text("".join(f"{key}={value}\n" for key, value in store.environment(user).items()))
            secrets.append(f"{name}={keys}")
        out = io.StringIO()
        options = Options(file, workspace, tmp_path / "state", None, secrets)
        assert run(options, Console(file=out, width=200)) == FAILED
    assert "train[0] s3://closed/*.jsonl: a.jsonl line 1" in out.getvalue()
    password = store.keys["other"]["AWS_SECRET_ACCESS_KEY"].encode()
    assert not [path for path in workspace.rglob("*") if path.is_file() and password in path.read_bytes()]
    assert password.decode() not in out.getvalue()
