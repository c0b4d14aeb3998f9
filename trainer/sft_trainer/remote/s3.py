"""s3://bucket/key: one object, a folder or a glob of a store that speaks S3's language.

Credentials are those of the field's secretRef, by the names every S3 client knows: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL. Without any, a pod's own identity (web
identity, pod identity) is used where the platform gives it one, never the node's; else the bucket has to be public.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

from sft_trainer.errors import Network, TrainerError, UserError
from sft_trainer.remote import listing
from sft_trainer.remote.listing import Listing, Remote, Wanted

SCHEME = "s3://"
_URI = re.compile(r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9])/(?P<key>[^\0-\x1f]*)")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_OWN_IDENTITY = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
_TIMEOUT = timedelta(minutes=5)  # of one request, with its body


class Access(NamedTuple):
    """How a bucket is reached; `prefix` is before the names of the Secret's keys in our environment."""

    bucket: str
    prefix: str

    def value(self, name: str) -> str | None:
        """A key of the Secret."""
        return os.environ.get(self.prefix + name) or None

    @property
    def is_anonymous(self) -> bool:
        """Whether there is nobody to sign as."""
        own = not self.prefix and any(map(os.environ.get, _OWN_IDENTITY))
        return self.value("AWS_ACCESS_KEY_ID") is None and not own

    @property
    def region(self) -> str:
        """Of the bucket."""
        return self.value("AWS_REGION") or self.value("AWS_DEFAULT_REGION") or "us-east-1"

    @property
    def stated_endpoint(self) -> str | None:
        """Of the Secret."""
        return self.value("AWS_ENDPOINT_URL_S3") or self.value("AWS_ENDPOINT_URL")

    @property
    def endpoint(self) -> str:
        """Where requests go: AWS unless the same Secret says otherwise, for keys must not reach another's store."""
        if self.stated_endpoint is not None:
            return self.stated_endpoint
        return f"https://s3.{self.region}.amazonaws.com{'.cn' if self.region.startswith('cn-') else ''}"


def find(uri: str, field: str, *, prefix: str = "", suffixes: tuple[str, ...] = ()) -> Listing:
    """The objects that `uri` names, of a folder those that end with one of `suffixes` (empty = all).

    UserError InvalidUri, SourceAccessDenied, SourceNotFound, SourceRefused, SourceTooLarge, UnsafeName; Network
    without an answer.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise UserError(
            "InvalidUri", f"{field}: {uri} is not of the form s3://<bucket>/<key, folder or glob>"
        )
    access, key = Access(match["bucket"], prefix), match["key"]
    try:
        bucket = store(access)
        objects = _found(bucket, key, suffixes, field, uri)
    except TrainerError:
        raise
    except Exception as exc:
        raise explained(exc, uri, field, access) from exc

    def read(one: Remote, start: int, end: int) -> bytes:
        try:
            return _read(bucket, one, start, end)
        except Exception as exc:
            raise explained(exc, SCHEME + f"{access.bucket}/{one.key}", field, access) from exc

    return Listing(uri, field, objects, read)


def _found(bucket: Any, key: str, suffixes: tuple[str, ...], field: str, uri: str) -> tuple[Remote, ...]:
    if listing.has_magic(key):
        return listing.checked(field, uri, _listed(bucket, listing.matching(key), field, uri))
    if key and not key.endswith("/"):
        one = _head(bucket, key)
        if one is not None:
            return (one._replace(name=key.rpartition("/")[2]),)
    below = _listed(bucket, listing.folder(key), field, uri)
    return listing.checked(
        field, uri, (one for one in below if not suffixes or one.name.lower().endswith(suffixes))
    )


def store(access: Access) -> Any:
    """The client of a bucket."""
    from obstore.store import S3Store

    more: dict[str, Any] = {"aws_endpoint_url_s3": access.endpoint}  # before all that the environment says
    if access.is_anonymous:
        more["skip_signature"] = True
    elif access.value("AWS_ACCESS_KEY_ID") is not None:
        stated = {
            "access_key_id": access.value("AWS_ACCESS_KEY_ID"),
            "secret_access_key": access.value("AWS_SECRET_ACCESS_KEY") or "",
            "token": access.value("AWS_SESSION_TOKEN"),
            "expires_at": None,
        }
        more["credential_provider"] = lambda: stated
    return S3Store(
        access.bucket,
        region=access.region,
        client_options={"timeout": _TIMEOUT, "allow_http": access.endpoint.startswith("http://")},
        retry_config={"max_retries": 4, "retry_timeout": timedelta(minutes=2)},
        **more,
    )


def _head(bucket: Any, key: str) -> Remote | None:
    """The object `key`, if it is one. By its first byte: the answer to HEAD has no words that say why not."""
    import obstore

    try:
        return _remote(obstore.get(bucket, key, options={"range": (0, 1)}).meta)
    except FileNotFoundError as exc:
        if "NoSuchBucket" in str(exc):
            raise
        return None
    except Exception as exc:
        if "InvalidRange" not in str(exc):
            raise
        return _remote(obstore.head(bucket, key))  # it is empty


def _listed(bucket: Any, wanted: Wanted, field: str, uri: str) -> Iterator[Remote]:
    import obstore

    chunks = obstore.list(bucket, prefix=wanted.prefix.rstrip("/") or None)
    return wanted.of(listing.bounded(field, uri, (_remote(meta) for chunk in chunks for meta in chunk)))


def _remote(meta: Any) -> Remote:
    return Remote(meta["path"], meta["path"], meta["size"], (meta.get("e_tag") or "").strip('"'))


def _read(bucket: Any, one: Remote, start: int, end: int) -> bytes:
    import obstore

    if one.etag:
        answer = obstore.get(bucket, one.key, options={"range": (start, end), "if_match": f'"{one.etag}"'})
    else:
        answer = obstore.get(bucket, one.key, options={"range": (start, end)})
    return bytes(answer.bytes())


def explained(exc: Exception, uri: str, field: str, access: Access) -> TrainerError:
    """The store's answer as a sentence; what may pass is Network."""
    words = str(exc).partition("\n\nDebug source")[0]
    code = (_CODE.search(words) or [None, ""])[1] or ""
    status = int((_STATUS.search(words) or [None, 0])[1] or 0)
    if "illegal character sequence" in words:
        return UserError(
            "UnsafeName", f"{field}: {uri}: a name in there has a .. or . in it: rename that object"
        )
    if code == "NoSuchBucket":
        return UserError("SourceNotFound", f"{field}: {uri}: there is no bucket {access.bucket}{_at(access)}")
    if "region" in words.lower() and status in (0, 301, 400):
        expected = re.search(r"expecting '([\w-]+)'", words)
        where = f"to {expected[1]}" if expected else "to the bucket's"
        return UserError(
            "SourceRefused",
            f"{field}: {uri}: the bucket is in another region: set AWS_REGION {where}{_in(field)}",
        )
    if status in (401, 403):
        return UserError(
            "SourceAccessDenied",
            f"{field}: {uri}: access is denied ({code or status}); {_advice(access, field, code)}",
        )
    if status == 404 or isinstance(exc, FileNotFoundError):
        return UserError("SourceNotFound", f"{field}: {uri} is not there{_at(access)}")
    if status == 412:
        return Network(f"{field}: {uri} changed while it was read; it will be tried again", "SourceChanged")
    if status and status < 500 and status != 429:
        return UserError("SourceRefused", f"{field}: {uri}: the store answered {status} {code}".rstrip())
    if status:
        return Network(
            f"{field}: {uri}: the store answered {status} {code}; it will be tried again", "SourceUnavailable"
        )
    reached = access.stated_endpoint or "AWS (no AWS_ENDPOINT_URL is set)"
    last = re.sub(r"\s+", " ", words)[-160:]
    return Network(
        f"{field}: {uri}: {reached} could not be reached: {last}; it will be tried again", "SourceUnavailable"
    )


def _advice(access: Access, field: str, code: str) -> str:
    if access.is_anonymous:
        return f"set {_secret(field)} to a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if code in (
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidToken",
        "TokenRefreshRequired",
    ):
        return f"correct AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN{_in(field)}"
    return f"allow s3:ListBucket and s3:GetObject to the keys{_in(field)}"


def _secret(field: str) -> str:
    return f"{field.rpartition('.')[0]}.secretRef"


def _in(field: str) -> str:
    return f" in the Secret of {_secret(field)}"


def _at(access: Access) -> str:
    return f" at {access.stated_endpoint}" if access.stated_endpoint else ""
