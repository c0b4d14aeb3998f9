"""Sources to token cache, once per content: the entry that is there, else a new one."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from sft_trainer import layout
from sft_trainer.config import DataConfig, DataFacts, DataSource
from sft_trainer.data import cache, finding, packing
from sft_trainer.data.counts import Counts
from sft_trainer.data.ingest import Ingest, Recipe
from sft_trainer.data.sources import Opened

logger = logging.getLogger(__name__)


def build(recipe: Recipe, workspace: Path) -> DataFacts:
    """The facts of the token cache for this data: of the entry that is there, else of a new one."""
    opened = _open_sources(recipe.data, workspace)
    entry = layout.data_cache(workspace) / cache.key(_identity(recipe, opened))
    known = _known(entry)
    if known is None:
        with cache.alone(entry):  # another job may have made it by then
            known = _known(entry) or _made(recipe, opened, entry, entry.relative_to(workspace).as_posix())
    return known


def _made(recipe: Recipe, opened: Sequence[Opened], entry: Path, path: str) -> DataFacts:
    """The facts of a new entry."""
    with cache.staging(entry) as directory:
        counts, lengths = Ingest(recipe, directory).run(opened)
        facts = _facts(recipe.data, counts, lengths, entry.name, path)
        document = {"data": facts.model_dump(by_alias=True), "sources": counts.by_source}
        cache.commit(directory, entry, document, [f"{split}.arrow" for split in cache.SPLITS])
    return facts


def _known(entry: Path) -> DataFacts | None:
    """The facts of an entry that is there."""
    found = cache.lookup(entry)
    if found is None:
        return None
    facts = DataFacts.model_validate(found["data"])
    logger.info("the data is prepared already: %s rows in %s", f"{facts.rows:,}", facts.cache)
    return facts


def _open_sources(data: DataConfig, workspace: Path) -> list[Opened]:
    opened = [_open("train", i, source, workspace) for i, source in enumerate(data.train)]
    held_out = data.eval.sources if data.eval else []
    return opened + [_open("eval", i, source, workspace) for i, source in enumerate(held_out)]


def _open(split: str, index: int, source: DataSource, workspace: Path) -> Opened:
    return finding.find(f"{split}[{index}]", source, workspace)


def _identity(recipe: Recipe, opened: Sequence[Opened]) -> Iterator[bytes]:
    """Contents and settings, but no names: data that was moved or renamed is not prepared again."""
    for one in opened:
        yield f"{one.label} {one.digest()} {one.source.format} {sorted(one.source.columns.items())}".encode()
        yield f"{one.source.weight} {one.source.max_rows}".encode()
    data = recipe.data
    yield f"{data.max_length} {data.packing} {data.loss_on} {data.on_too_long} {data.on_invalid_row}".encode()
    yield f"{data.deduplicate} {data.min_length}".encode()
    yield f"{data.eval.split_percent if data.eval else None}".encode()
    yield hashlib.sha256(recipe.tokenizer.content).digest()
    yield recipe.template.source.encode()
    yield f"{recipe.template.today if recipe.template.uses('strftime_now') else None}".encode()
    yield repr(sorted(recipe.tokenizer.special_tokens.items())).encode()


def _facts(data: DataConfig, counts: Counts, lengths: array[int], digest: str, path: str) -> DataFacts:
    if data.packing == "BestFit":
        packs, width = packing.count(lengths, data.max_length), data.max_length
    else:
        packs, width = len(lengths), max(lengths)
    return DataFacts(
        cache=path,
        hash=digest,
        rows=len(lengths),
        eval_rows=counts.eval_rows,
        tokens=counts.tokens,
        supervised_tokens=counts.supervised,
        truncated_rows=counts.truncated,
        dropped_rows=counts.dropped,
        short_rows=counts.short,
        skipped_rows=counts.skipped,
        duplicate_rows=counts.duplicates,
        longest_row=counts.longest,
        packs=packs,
        fill_percent=packing.fill_percent(lengths, packs, width),
    )
