"""The objects of a local cluster: JSON files, one per object, which a person may read with any editor.

Everything is in memory as well; a write goes to the disk first, whole or not at all. One process at a time has the
store open for writing (see lock.py). It knows nothing of what the objects mean.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from sftjob_operator.cluster.base import Manifest, Ref, ref_of
from sftjob_operator.cluster.local import names
from sftjob_operator.cluster.local.errors import StateError
from sftjob_operator.cluster.local.objects import has_labels

OnChange = Callable[[Manifest], None]


class Store:
    """Objects by address. What is handed out are copies."""

    def __init__(self, directory: Path) -> None:
        """Load what is there, or StateError; the directory is made at the first write."""
        self._directory = directory
        self._objects: dict[Ref, Manifest] = {}
        self._listeners: list[OnChange] = []
        self._version = 0
        self.reload()

    def reload(self) -> None:
        """Take up what another process, which has the store open for writing, has made of it."""
        found = [_load(file) for file in sorted(self._directory.glob("*/*/*.json"))]
        there = [item for item in found if item is not None]
        self._objects = {ref: manifest for ref, _, manifest in there}
        self._version = max((version for _, version, _ in there), default=0)

    def on_change(self, listener: OnChange) -> None:
        """Tell `listener` of every object that is written or removed."""
        self._listeners.append(listener)

    @property
    def version(self) -> int:
        """Grows with every write."""
        return self._version

    def get(self, ref: Ref) -> Manifest | None:
        """The object there."""
        return copy.deepcopy(self._objects.get(ref))

    def select(
        self, api: str, kind: str, namespace: str = "", labels: dict[str, str] | None = None
    ) -> list[Manifest]:
        """The objects of a kind, by name; an empty namespace means all."""
        return [copy.deepcopy(item) for item in self._iterate(api, kind, namespace, labels or {})]

    def everything(self) -> list[Manifest]:
        """All objects."""
        return [copy.deepcopy(item) for item in self._objects.values()]

    def put(self, manifest: Manifest) -> Manifest:
        """Write it, under the next resourceVersion; unchanged objects keep theirs."""
        ref, item = ref_of(manifest), copy.deepcopy(manifest)
        if item == self._objects.get(ref):
            return item
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        self._write(ref, item)
        self._objects[ref] = item
        self._tell(item)
        return copy.deepcopy(item)

    def remove(self, ref: Ref) -> None:
        """Forget it; not there is fine."""
        item = self._objects.pop(ref, None)
        if item is not None:
            self._version += 1
            self._path(ref).unlink(missing_ok=True)
            self._tell(item)

    def _iterate(self, api: str, kind: str, namespace: str, labels: dict[str, str]) -> Iterator[Manifest]:
        for ref in sorted(self._objects):
            if ref.api == api and ref.kind == kind and namespace in ("", ref.namespace):
                item = self._objects[ref]
                if has_labels(item, labels):
                    yield item

    def _path(self, ref: Ref) -> Path:
        if not names.is_safe(ref):
            raise ValueError(f"{ref} does not name a file of {self._directory}")
        return self._directory / ref.kind.lower() / ref.namespace / f"{ref.name}.json"

    def _write(self, ref: Ref, item: Manifest) -> None:
        path = self._path(ref)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        with open(
            os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
        ) as file:
            json.dump(item, file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())  # or the machine's end could leave an empty file under the right name
        draft.replace(path)

    def _tell(self, item: Manifest) -> None:
        for listener in self._listeners:
            listener(copy.deepcopy(item))


def _load(file: Path) -> tuple[Ref, int, Manifest] | None:
    """None: removed meanwhile."""
    try:
        manifest: Manifest = json.loads(file.read_text(encoding="utf-8"))
        return ref_of(manifest), int(manifest["metadata"]["resourceVersion"]), manifest
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(
            f"{file} cannot be read: {error.strerror}: repair its rights, or take another --state"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise StateError(
            f"{file} does not hold a stored object ({error}): remove it, or take another --state"
        ) from error
