"""What a pass wants done, as data: the core lists effects, the shell carries them out in order."""

from __future__ import annotations

from dataclasses import dataclass

from sftjob_operator.api.objects import Manifest, Ref


@dataclass(frozen=True)
class Create:
    """Create once; never applied again.

    A name that is taken is fine when the object there has the same controller (ownerReferences uid); one of
    another owner is a Refusal (NameTaken). A ConfigMap of ours whose Job was never made is replaced.
    """

    manifest: Manifest


@dataclass(frozen=True)
class Check:
    """Ask the API server whether it would take this manifest (a dry run), and make nothing."""

    manifest: Manifest


@dataclass(frozen=True)
class Apply:
    """Server-side apply; what is not ours is left alone, as with Create."""

    manifest: Manifest


@dataclass(frozen=True)
class Patch:
    """JSON merge patch; an object that is gone meanwhile is fine, the next pass sees it."""

    ref: Ref
    patch: Manifest


@dataclass(frozen=True)
class Delete:
    """Delete with its dependents; `uid` None = whatever has this name."""

    ref: Ref
    uid: str | None = None
    foreground: bool = False
    """It stays, being deleted, until its dependents are gone; else they follow it."""


Effect = Create | Check | Apply | Patch | Delete
