"""Downloads a model from the Hugging Face hub into the workspace: hf://organisation/name[@revision].

Only what a training reads is fetched: configuration, tokenizer, template and safetensors, never pickles.
The token is HF_TOKEN of the environment (spec.model.secretRef). A revision is resolved to its commit
first and the folder is named after it, so a branch that moves gives a new folder and a pinned commit
needs no network twice.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from sft_trainer import layout, uses
from sft_trainer.arrival import progress
from sft_trainer.checkpoint.files import size_of
from sft_trainer.data import cache
from sft_trainer.errors import Network, TrainerError, UserError

logger = logging.getLogger(__name__)

SCHEME = "hf://"
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*"]
_SKIPPED = ["*/*", "*.bin", "*.pth", "*.gguf", "consolidated*"]
_NAME = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_INSTEAD = "without a way to the hub, copy the model to the workspace and use model.path"


class Reference(NamedTuple):
    """A repository and the branch, tag or commit asked for."""

    repository: str
    revision: str | None

    def __str__(self) -> str:
        return SCHEME + self.repository + (f"@{self.revision}" if self.revision else "")


def parse(uri: str) -> Reference:
    """The parts of `uri`; UserError InvalidModelUri if it is not of the form hf://organisation/name[@revision]."""
    match = _NAME.fullmatch(uri)
    if match is None:
        raise UserError(
            "InvalidModelUri", f"model.uri: {uri} is not of the form hf://organisation/name[@revision]"
        )
    return Reference(match["repository"], match["revision"])


def fetch(uri: str, workspace: Path) -> tuple[Path, str]:
    """The model's folder in the workspace and its exact source, hf://organisation/name@commit.

    UserError HubAccessDenied, ModelNotFound or HubUnavailable (set offline); Network without an answer.
    """
    reference = parse(uri)
    commit = reference.revision or ""
    try:
        if not _COMMIT.fullmatch(commit):
            commit = _commit(reference)
        entry = layout.model_cache(workspace) / f"{reference.repository.replace('/', '--')}--{commit[:12]}"
        with cache.alone(entry):
            if not uses.touch(entry):
                _download(reference, commit, entry)
    except TrainerError:
        raise
    except Exception as exc:
        raise _explained(reference, exc) from exc
    return entry, f"{SCHEME}{reference.repository}@{commit}"


def _commit(reference: Reference) -> str:
    info = _api().model_info(reference.repository, revision=reference.revision, timeout=30)
    return str(info.sha)


def _download(reference: Reference, commit: str, entry: Path) -> None:
    """Into a folder that an interrupted download continues in, renamed when it is complete."""
    partial = entry.with_name(f".{entry.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s at %s ...", reference, commit[:12])
    with progress(partial):
        _api().snapshot_download(
            reference.repository,
            revision=commit,
            local_dir=partial,
            allow_patterns=PATTERNS,
            ignore_patterns=_SKIPPED,
            max_workers=4,
        )
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # what the download kept for its own continuation
    for path in partial.iterdir():
        cache.sync(path)
    cache.publish(partial, entry)
    logger.info("downloaded %s: %d MB", reference, size_of(entry) >> 20)


def _api() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub

    return huggingface_hub.HfApi(
        endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN") or False
    )


def _explained(reference: Reference, exc: Exception) -> Exception:
    """The hub's answer as a sentence; what may pass is Network, an error of our own volume unchanged."""
    from huggingface_hub import errors

    if isinstance(exc, errors.OfflineModeIsEnabled):
        return UserError(
            "HubUnavailable", f"{reference} cannot be fetched: HF_HUB_OFFLINE is set; {_INSTEAD}"
        )
    response = getattr(exc, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(exc, errors.GatedRepoError) or status in (401, 403):
        return UserError("HubAccessDenied", f"{reference}: access is denied; {_token_advice()}")
    if isinstance(exc, errors.RevisionNotFoundError):
        return UserError("ModelNotFound", f"{reference}: the hub knows no revision {reference.revision}")
    if isinstance(exc, errors.RepositoryNotFoundError) or status == 404:
        return UserError(
            "ModelNotFound", f"{reference}: the hub knows no such model, or it is private; {_token_advice()}"
        )
    ours = isinstance(exc, OSError) and not isinstance(
        exc, errors.HfHubHTTPError | ConnectionError | TimeoutError
    )
    if ours and getattr(exc, "errno", None) is not None:
        return exc
    if status is not None:
        return Network(f"{reference}: the hub answered {status}; it will be tried again", "HubUnavailable")
    words = str(exc).strip().splitlines()[0][:200] if str(exc).strip() else type(exc).__name__
    return Network(f"{reference} could not be reached: {words}; {_INSTEAD}", "HubUnavailable")


def _token_advice() -> str:
    if os.environ.get("HF_TOKEN"):
        return (
            "check that the token in model.secretRef (HF_TOKEN) may read it and that its terms are accepted"
        )
    return "set model.secretRef to a Secret with HF_TOKEN"
