"""What the launcher shows at /metrics: the ranks' metric files, and whether each rank is up.

A rank killed at the wrong moment leaves a file that cannot be read; it must not hide those of the others.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)


class RankFiles(Collector):
    """The metrics in the files of a directory, unreadable files left out."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        """Merged over all files."""
        files = [str(path) for path in sorted(self._directory.glob("*.db")) if _is_readable(path)]
        return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]


class RanksUp(Collector):
    """1 or 0 for each rank of this node, as the launcher sees its process."""

    def __init__(self, labels: Mapping[str, str], up: Callable[[], Mapping[int, bool]]) -> None:
        """`labels` are those of the ranks' own metrics, without `rank`; `up` says which ranks live."""
        self._labels = labels
        self._up = up

    def collect(self) -> Iterable[Metric]:
        """One sample per rank."""
        family = GaugeMetricFamily(
            "sft_trainer_rank_up", "Whether the process of the rank is alive.", labels=[*self._labels, "rank"]
        )
        for rank, is_up in self._up().items():
            family.add_metric([*self._labels.values(), str(rank)], float(is_up))
        return [family]


def registry(
    directory: Path, labels: Mapping[str, str], up: Callable[[], Mapping[int, bool]]
) -> CollectorRegistry:
    """All that is shown at /metrics."""
    result = CollectorRegistry()
    result.register(RankFiles(directory))
    result.register(RanksUp(labels, up))
    return result


def _is_readable(path: Path) -> bool:
    try:
        for _ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
            pass
    except (OSError, RuntimeError, ValueError, struct.error) as error:
        logger.debug("metric file %s left out: %r", path.name, error)
        return False
    return True
