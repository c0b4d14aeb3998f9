"""A real S3 server on loopback (moto's, which checks signatures and rights), and its buckets.

It lives in an environment of its own: what it requires cannot be installed beside the project.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments

BUCKET = "chats"
_SERVER = """
import json, sys
import boto3
from moto.core import set_initial_no_auth_action_count
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
url = f"http://{host}:{port}"
def client(kind, key="x", secret="y"):
    return boto3.client(kind, endpoint_url=url, region_name="us-east-1", aws_access_key_id=key, aws_secret_access_key=secret)
iam, s3, names = client("iam"), client("s3"), {}
for bucket in ("chats", "hostile", "closed"):
    s3.create_bucket(Bucket=bucket)
s3.put_bucket_versioning(Bucket="chats", VersioningConfiguration={"Status": "Enabled"})
s3.put_object(Bucket="hostile", Key="up/../../evil.jsonl", Body=b"{}")
for user, buckets in (("reader", ["chats", "hostile"]), ("other", ["closed"])):
    iam.create_user(UserName=user)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    names[user] = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    allowed = [f"arn:aws:s3:::{bucket}{rest}" for bucket in buckets for rest in ("", "/*")]
    statement = [{"Effect": "Allow", "Action": "s3:*", "Resource": allowed}]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statement})
    iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=policy)
@set_initial_no_auth_action_count(0)
def serve():
    print(json.dumps({"url": url, "keys": names}), flush=True)
    sys.stdin.read()
serve()
"""


@dataclass(frozen=True)
class Store:
    """`keys` of two users: `reader` of the buckets chats and hostile, `other` of the bucket closed."""

    url: str
    keys: dict[str, dict[str, str]]

    def environment(self, user: str = "reader") -> dict[str, str]:
        """What a Secret for this user holds."""
        return {**self.keys[user], "AWS_ENDPOINT_URL": self.url}

    def put(self, key: str, content: bytes | Path, *, bucket: str = BUCKET, user: str = "reader") -> None:
        """Store an object."""
        import obstore

        data: Any = content.read_bytes() if isinstance(content, Path) else content
        obstore.put(self._store(bucket, user), key, data)

    def put_folder(self, folder: Path, below: str) -> None:
        """All files of a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{below}/{path.relative_to(folder).as_posix()}", path)

    def _store(self, bucket: str, user: str) -> Any:
        from obstore.store import S3Store

        stated = {
            "access_key_id": self.keys[user]["AWS_ACCESS_KEY_ID"],
            "secret_access_key": self.keys[user]["AWS_SECRET_ACCESS_KEY"],
            "token": None,
            "expires_at": None,
        }
        return S3Store(
            bucket,
            endpoint=self.url,
            region="us-east-1",
            client_options={"allow_http": True},
            credential_provider=lambda: stated,  # type: ignore[arg-type,return-value]
        )


@contextmanager
def serving() -> Iterator[Store]:
    """The server, until the block ends."""
    command = [environments.python("s3"), "-c", _SERVER]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield Store(**json.loads(line))
                break
        else:
            raise AssertionError("the S3 server did not start")
    finally:
        process.kill()
        process.communicate()
