"""Finds the files of a data source: in the workspace, or in a store from which they are copied to it."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sft_trainer import layout
from sft_trainer.config import DataSource
from sft_trainer.data.sources import SUFFIXES, Opened, relative
from sft_trainer.errors import UserError
from sft_trainer.remote import sources as remote


def find(label: str, source: DataSource, workspace: Path) -> Opened:
    """The source with its files; UserError names the path and what lies in its directory."""
    if source.uri is not None:
        return _from_store(Opened(label, source, (), workspace))
    if source.path is None:
        return Opened(label, source, (), workspace)
    opened = Opened(label, source, tuple(_matches(label, source.path, workspace)), workspace)
    if not opened.files:
        raise UserError("DataNotFound", _not_found(opened.field, source.path, workspace))
    _refuse_other_formats(f"{opened.field}.path", [relative(path, workspace) for path in opened.files])
    return opened


def _from_store(one: Opened) -> Opened:
    uri = one.source.uri or ""
    folder = remote.data(
        uri, f"{one.field}.uri", one.source.secret_prefix or "", tuple(SUFFIXES), one.workspace
    )
    files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
    _refuse_other_formats(f"{one.field}.uri", [path.name for path in files])
    return replace(one, files=files, copied=folder)


def _refuse_other_formats(field: str, names: Iterable[str]) -> None:
    for name in names:
        if Path(name).suffix.lower() not in SUFFIXES:
            raise UserError("UnknownFormat", f"{field}: {name} is not a .jsonl, .json or .parquet file")


def _matches(label: str, path: str, workspace: Path) -> list[Path]:
    try:
        if (workspace / path).is_dir():
            found = [
                layout.within(workspace, name)
                for name in _readable(layout.within(workspace, path), workspace)
            ]
        elif not glob.has_magic(path):
            found = [layout.within(workspace, path)]
        else:
            if path.startswith("/") or ".." in Path(path).parts:
                raise ValueError(f"{path!r} leaves the workspace")
            names = sorted(glob.glob(path, root_dir=workspace, recursive=True))
            found = [layout.within(workspace, name) for name in names]
    except ValueError as exc:
        raise UserError("DataNotFound", f"data.{label}.path: {exc}; paths are relative to it") from exc
    return [candidate for candidate in found if candidate.is_file()]


def _readable(folder: Path, workspace: Path) -> list[str]:
    """All files below a folder that can hold rows, hidden ones left out, by their names in the workspace."""
    names = sorted(
        path.relative_to(workspace) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES
    )
    below = len(folder.relative_to(workspace).parts)
    return [str(name) for name in names if not any(part[0] == "." for part in name.parts[below:])]


def _not_found(field: str, path: str, workspace: Path) -> str:
    """One sentence: the path, and what lies in the nearest directory that exists."""
    if (workspace / path).is_dir():
        return f"{field}.path: the folder {path} holds no .jsonl, .json or .parquet file"
    folder = (workspace / path).parent
    while not folder.is_dir() and folder != workspace:
        folder = folder.parent
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir() if entry.name[0] != ".")
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    place = "the workspace" if folder == workspace else relative(folder, workspace) + "/"
    verb = "matches no file" if glob.has_magic(path) else "was not found"
    return f"{field}.path: {path} {verb} in the workspace; {place} holds {shown or 'nothing'}"
