"""Quotas of namespaces, as the platform sets them: how many SFTJobs may have a training gang at a time, and how
many GPUs these may have together. Who holds and who waits is policy.quota's.
"""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Limit = Annotated[int, Field(ge=0, strict=True)] | None
"""None = no limit."""


class Quota(BaseModel):
    """Of one namespace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: Limit = None
    gpus: Limit = None

    @property
    def is_set(self) -> bool:
        """Whether it limits anything."""
        return self.jobs is not None or self.gpus is not None


class Quotas(Quota):
    """That of every namespace; one that is named has its own instead, also where that names fewer limits."""

    namespaces: dict[str, Quota] = {}

    def of(self, namespace: str) -> Quota:
        """The quota of this namespace."""
        return self.namespaces.get(namespace, self)

    @classmethod
    def from_json(cls, text: str) -> Quotas:
        """Parse the setting; ValueError says which part is wrong."""
        try:
            return cls.model_validate(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"no JSON: {error}") from None
        except ValidationError as error:
            raise ValueError(
                "; ".join(_words(*item["loc"], text=item["msg"]) for item in error.errors())
            ) from None


def _words(*path: int | str, text: str) -> str:
    return f"{'.'.join(map(str, path)) or 'the whole'}: {text}"
