"""What an SFTJob names in its own namespace."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sftjob_operator.api.base import ApiModel, ObjectName


class SecretRef(ApiModel):
    """A Secret in the job's namespace."""

    name: ObjectName = Field(description="Name of the Secret. While it is missing the job waits.")


class ConfigMapKeyRef(ApiModel):
    """One key of a ConfigMap in the job's namespace."""

    name: ObjectName = Field(description="Name of the ConfigMap.")
    key: Annotated[str, Field(min_length=1, max_length=253)] = Field(description="Key in its data.")
