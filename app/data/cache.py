"""Builds the token cache: written beside its place under a lock and renamed when complete,
so no half of it is used.
"""

import hashlib
import heapq
import json
import logging
import os
import shutil
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from app.data.corpus import Corpus
from app.data.notice import SlowNotice
from app.data.sources import Document, Source
from app.data.tokenizers import Tokenizer, pieces
from app.data.writer import CorpusWriter
from app.registry import NO_WRITE, UserError

log = logging.getLogger(__name__)
SUMS = "sums.json"  # of all other files
# increase it when the files, or how they are made, change
FORMAT = 3
# characters or bytes that are encoded at once
BATCH = 1 << 22
# characters that a tokenizer learns from, the same share out of every domain
SAMPLE = 1 << 23


def open_corpus(source: Source, tokenizer: Tokenizer, cache_dir: Path) -> Corpus:
    """The corpus of these two, out of the cache, or built into it first; loads what the tokenizer
    learned.

    Raises:
        UserError: the text cannot be read, or the cache cannot be written.
    """
    what = json.dumps([FORMAT, source.fingerprint(), tokenizer.fingerprint()])
    folder = cache_dir / hashlib.sha256(what.encode()).hexdigest()[:16]
    if not _complete(folder):
        with _writing(cache_dir), FileLock(f"{folder}.lock"):
            # another process may have built it meanwhile
            if not _complete(folder):
                _build(source, tokenizer, folder)
    tokenizer.read(folder)
    return Corpus(folder)


def _complete(folder: Path) -> bool:
    """Whether all files are there with their sums: reads them, which a run will do in any case."""
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        return all(_sum(folder / name) == known for name, known in sums.items())
    except (OSError, ValueError, AttributeError):  # whatever stands there instead
        return False


def _sum(path: Path) -> int:
    """CRC-32 of a file: against damage, not against people."""
    with path.open("rb") as file:
        return reduce(
            lambda known, block: zlib.crc32(block, known), iter(lambda: file.read(1 << 20), b""), 0
        )


@contextmanager
def _writing(cache_dir: Path) -> Iterator[None]:
    """Makes the folder; turns a full disk or a folder that cannot
    be written into the user's line.
    """
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in NO_WRITE:
            raise
        raise UserError(
            f"data.cache_dir={cache_dir}: cannot be written ({error.strerror}); make room, or set "
            "data.cache_dir=FOLDER"
        ) from error


def _build(source: Source, tokenizer: Tokenizer, folder: Path) -> None:
    if folder.exists():
        log.warning(f"data.cache_dir: {folder} is damaged and built anew")
        shutil.rmtree(folder)
    unfinished = folder.with_suffix(".tmp")
    # of a process that was killed; the lock is ours
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        started = time.monotonic()
        learned = " and learns a tokenizer from it" if tokenizer.learns else ""
        line = (
            f"data: reads the text{learned}, which may take minutes; {folder} keeps the tokens for "
            "later runs"
        )
        with SlowNotice(log.info, line) as notice:
            size, tokens = _fill(source, tokenizer, unfinished)
        if notice.is_printed:
            log.info(
                f"data: {size / 1e6:.1f} MB of text are {tokens:,} tokens, "
                f"{time.monotonic() - started:.0f} s"
            )
        sums = {path.name: _sum(path) for path in unfinished.iterdir()}
        (unfinished / SUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _fill(source: Source, tokenizer: Tokenizer, folder: Path) -> tuple[int, int]:
    """Write the files of a corpus; return the number of text bytes and of tokens."""
    with _progress() as progress:
        if tokenizer.learns:
            limit = SAMPLE // len(source.domains)
            sample = _sample(_watch(source.documents(), progress, "reading text"), limit)
            learning = progress.add_task("learning the tokenizer", total=None)
            tokenizer.fit(sample, folder)
            progress.remove_task(learning)
        with ExitStack() as files:
            writer = CorpusWriter(folder, source, tokenizer, files)
            for batch in _batches(_watch(source.documents(), progress, "tokenising")):
                for document, encoded in zip(
                    batch, tokenizer.encode([d.text for d in batch]), strict=True
                ):
                    writer.add(document, encoded)
            writer.finish()
        writer.describe()
    return writer.size


def _progress() -> Progress:
    size = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    bar = (TextColumn("{task.description}"), BarColumn(), *size)
    return Progress(*bar, console=console, disable=not console.is_terminal)


def _watch(documents: Iterable[Document], progress: Progress, what: str) -> Iterator[Document]:
    # the second pass knows how far it goes
    known = progress.tasks[0].completed if progress.tasks else None
    task = progress.add_task(what, total=known)
    done = 0
    for document in documents:
        yield document
        done += len(document.text if isinstance(document.text, bytes) else document.text.encode())
        progress.update(task, completed=done)
    progress.update(task, total=done)


def _sample(documents: Iterable[Document], limit: int) -> list[str]:
    """At most `limit` characters of the training split of each domain:
    the pieces of the lowest hash.
    """
    # the highest hash on top
    heaps: dict[str, list[tuple[int, str]]] = defaultdict(list)
    sizes: dict[str, int] = defaultdict(int)
    for document in documents:
        heap = heaps[document.domain]
        for number, piece in enumerate(
            pieces(str(document.text)) if document.split == "train" else ()
        ):
            place = int.from_bytes(
                hashlib.sha256(os.fsencode(f"{document.id} {number}")).digest()[:8]
            )
            heapq.heappush(heap, (-place, piece))
            sizes[document.domain] += len(piece)
            while sizes[document.domain] > limit:
                sizes[document.domain] -= len(heapq.heappop(heap)[1])
    return [piece for heap in heaps.values() for _, piece in sorted(heap)]


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH:
            yield batch
            batch = []
            size = 0
    yield batch
