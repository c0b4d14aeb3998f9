"""https://host/file: one file of a web server that says how long it is, what identifies it, and serves pieces of it.

Redirects are followed to https only, and nothing of a Secret is sent: what needs a password belongs into a store.
"""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from email.message import Message
from typing import IO
from urllib.parse import unquote, urlsplit

from sft_trainer.errors import Network, TrainerError, UserError
from sft_trainer.remote import listing
from sft_trainer.remote.listing import Listing, Remote

SCHEME = "https://"
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_TIMEOUT = 60.0


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith(SCHEME):
            fp.close()
            raise _Elsewhere(urlsplit(newurl).scheme)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


class _Elsewhere(Exception):
    """A redirect to another scheme."""


def find(uri: str, field: str) -> Listing:
    """The file; UserError InvalidUri, SourceAccessDenied, SourceNotFound, SourceRefused; Network without an answer."""
    parts = urlsplit(uri)
    name = unquote(parts.path.rpartition("/")[2])
    if not parts.hostname or parts.username is not None or not name:
        raise UserError("InvalidUri", f"{field}: {uri} is not of the form https://<host>/<path of a file>")
    _, headers = _piece(uri, field, 0, 1)
    whole = int((_RANGE.fullmatch(headers.get("Content-Range", "")) or [0, 0, 0, 0])[3])
    tag = headers.get("ETag") or headers.get("Last-Modified")
    if not whole or not tag:
        missing = "ETag nor Last-Modified" if whole else "parts of it nor its length"
        raise UserError(
            "SourceRefused",
            f"{field}: {uri}: the server gives neither {missing}: copy the file to the workspace and use path",
        )
    objects = listing.checked(
        field, uri, [Remote(name, uri, whole, hashlib.sha256(tag.encode()).hexdigest())]
    )

    def read(one: Remote, start: int, end: int) -> bytes:
        body, said = _piece(uri, field, start, end)
        if (said.get("ETag") or said.get("Last-Modified")) != tag:
            raise Network(
                f"{field}: {uri} changed while it was read; it will be tried again", "SourceChanged"
            )
        return body

    return Listing(uri, field, objects, read)


def _piece(uri: str, field: str, start: int, end: int) -> tuple[bytes, Message]:
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity", "User-Agent": "sftjob"}
    request = urllib.request.Request(uri, headers=headers)
    try:
        with urllib.request.build_opener(_HttpsOnly).open(request, timeout=_TIMEOUT) as answer:
            if answer.status != 206:
                raise UserError(
                    "SourceRefused",
                    f"{field}: {uri}: the server does not serve parts of a file: copy it to the workspace and use path",
                )
            return answer.read(end - start + 1), answer.headers
    except (TrainerError, _Elsewhere, OSError, ValueError) as exc:
        if isinstance(exc, urllib.error.HTTPError):
            exc.close()
        raise _explained(exc, uri, field) from exc


def _explained(exc: Exception, uri: str, field: str) -> TrainerError:
    if isinstance(exc, TrainerError):
        return exc
    if isinstance(exc, _Elsewhere):
        return UserError(
            "SourceRefused", f"{field}: {uri} redirects to {exc}://, and only https:// is followed"
        )
    status = exc.code if isinstance(exc, urllib.error.HTTPError) else None
    if status in (401, 403):
        return UserError(
            "SourceAccessDenied", f"{field}: {uri}: access is denied ({status}); only public files are read"
        )
    if status in (404, 410):
        return UserError("SourceNotFound", f"{field}: {uri} is not there")
    if status is not None and status < 500 and status != 429:
        return UserError("SourceRefused", f"{field}: {uri}: the server answered {status}")
    words = f"answered {status}" if status else f"could not be reached: {getattr(exc, 'reason', exc)}"
    return Network(f"{field}: {uri}: the server {words}; it will be tried again", "SourceUnavailable")
