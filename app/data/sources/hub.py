"""Any text data set of the Hugging Face Hub, or a local folder that `datasets` can load."""

import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from app.data.notice import SlowNotice
from app.data.reading.column import TextColumn
from app.data.reading.packing import LARGEST
from app.data.reading.paths import home
from app.data.sources import BY_SIZE, SPLITS, Document, Once, Split, first_line, in_order, split_of
from app.registry import UserError, register, unknown

OWN: dict[str, Split] = {
    "train": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "test": "test",
}
# seconds for the Hub's first answer
PATIENCE = 4
# the text is the same for runs of any seed
SHUFFLE_SEED = 0
log = logging.getLogger(__name__)
AT_HOME = "use data=text data.path=FILE"


@register("data")
class Hub:
    """Reads a data set with its own splits; a missing one is taken out of its training split by
    hash.

    A run keeps the revision that it has read, and goes on with that one whatever becomes of the
    set.

    Args:
        name: OWNER/NAME on the Hub, or a folder.
        config: the set's configuration; null: its default.
        revision: git revision; null: the newest.
        splits: the set's split for each of train, val and test; null: those named so.
        text_key: the column that holds the text; a.b lies inside of a.
        join_rows: whether the rows are the lines of one running text.
        streaming: whether it is read over the network without a copy on disk.
        shuffle_buffer: rows out of which the next one is drawn, from shards in a random order; at
            least 1, or null: the rows as they come.
        max_bytes: of text taken from each split of the set; at least 1, or null: all.

    Raises:
        ValueError: a knob is out of its range.
    """

    raw = False
    phases = BY_SIZE

    def __init__(
        self,
        *,
        name: str | None,
        config: str | None,
        revision: str | None,
        splits: dict[str, str] | None,
        text_key: str,
        join_rows: bool,
        streaming: bool,
        shuffle_buffer: int | None,
        max_bytes: int | None,
    ) -> None:
        for knob, value in (("max_bytes", max_bytes), ("shuffle_buffer", shuffle_buffer)):
            if value is not None and value < 1:
                raise ValueError(f"{knob}={value}: must be at least 1, or null")
        for split in splits or ():
            if split not in SPLITS:
                raise ValueError(unknown(f"splits.{split}", split, SPLITS))
        if splits is not None and "train" not in splits:
            raise ValueError(f"splits={splits}: must name the split to train on, as train")
        if join_rows and shuffle_buffer:
            raise ValueError(
                f"shuffle_buffer={shuffle_buffer}: the rows are lines of one text; set it to null"
            )
        self._name = name
        self._config = config
        self._revision = revision
        self._splits = splits
        self._text_key = text_key
        self._join_rows = join_rows
        self._streaming = streaming
        self._shuffle_buffer = shuffle_buffer
        self._max_bytes = max_bytes
        self._tell = Once()

    @property
    def domains(self) -> Sequence[str]:
        return (Path(self._name or "hub").name,)

    @property
    def pinned(self) -> Mapping[str, object]:
        return {} if self._folder else {"revision": self._commit}

    def fingerprint(self) -> str:
        files = (
            [(str(p), p.stat().st_mtime_ns) for p in sorted(self._folder.rglob("*"))]
            if self._folder
            else None
        )
        what = [
            self._name,
            self._config,
            files or self._commit,
            self._splits,
            self._text_key,
            self._join_rows,
        ]
        return f"hub {[*what, self._streaming, self._shuffle_buffer, self._max_bytes]}"

    def documents(self) -> Iterator[Document]:
        splits = self._own(self._read())
        column = TextColumn(self._text_key, f"data.name={self._name}", blank_lines=self._join_rows)
        for split, rows in splits.items():
            texts = self._texts(split, rows, column)
            if self._join_rows:
                yield from self._joined(split, texts, alone=len(splits) == 1)
            else:
                yield from self._single(split, texts, own=set(splits))
        self._tell(column.finish())

    def _own(self, found: Mapping[str, object]) -> dict[Split, object]:
        """The rows of each of our splits that the set has."""
        if self._splits is None:
            splits = {OWN[name]: rows for name, rows in found.items() if name in OWN}
        else:
            for ours, theirs in self._splits.items():
                if theirs not in found:
                    raise UserError(unknown(f"data.splits.{ours}={theirs}", theirs, found))
            splits = {
                split: found[self._splits[split]] for split in SPLITS if split in self._splits
            }
        if "train" not in splits:
            raise UserError(
                f"data.splits=null: the set has no split 'train' but {', '.join(found)}; name them"
            )
        return splits

    def _single(self, split: Split, texts: Iterator[str], own: set[Split]) -> Iterator[Document]:
        for number, text in enumerate(texts):
            name = f"{split}/{number}"
            by_hash = split_of(name)
            held_out = split == "train" and by_hash not in own
            yield Document(name, text, self.domains[0], None, by_hash if held_out else split)

    def _joined(self, split: Split, texts: Iterator[str], alone: bool) -> Iterator[Document]:
        text = "".join(texts)
        parts = in_order(io.StringIO(text), len(text), LARGEST) if alone else [(split, text)]
        for number, (part, piece) in enumerate(parts):
            yield Document(f"{split}/{number}", piece, self.domains[0], None, part)

    def _texts(self, split: Split, rows: object, column: TextColumn) -> Iterator[str]:
        size = 0
        for number, row in enumerate(self._rows(rows), 1):
            text = column.text(split, number, row)
            if text is not None:
                yield text
                size += len(text.encode())
            if self._max_bytes and size >= self._max_bytes:
                return

    def _rows(self, rows: object) -> Iterator[dict[str, object]]:
        try:
            yield from self._shuffled(rows)
        # the network goes away, a shard is damaged: each has its own error
        except Exception as error:
            raise self._unreadable(error) from error

    def _shuffled(self, rows: Any) -> Any:
        if self._shuffle_buffer is None:
            return rows
        rows = rows if self._streaming else rows.to_iterable_dataset()
        return rows.shuffle(seed=SHUFFLE_SEED, buffer_size=self._shuffle_buffer)

    @cached_property
    def _folder(self) -> Path | None:
        if not self._name:
            raise UserError("data.name=null: data=hub needs a data set; set data.name=OWNER/NAME")
        folder = home(self._name, "data.name")
        return folder if folder.is_dir() else None

    @cached_property
    def _commit(self) -> str:
        """The full revision, which names the same text forever; asks the Hub unless it is given."""
        if self._revision and re.fullmatch("[0-9a-f]{40}", self._revision):
            return self._revision
        return self._ask()

    def _ask(self) -> str:
        """The full revision as the Hub says; whether it answers at all is known in seconds."""
        import huggingface_hub
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            api = huggingface_hub.HfApi()
            return str(
                api.dataset_info(str(self._name), revision=self._revision, timeout=PATIENCE).sha
            )
        except RevisionNotFoundError as error:
            raise UserError(
                f"data.revision={self._revision}: {self._name} has none such; null: the newest"
            ) from error
        except RepositoryNotFoundError as error:
            raise UserError(
                f"data.name={self._name}: no such data set, or not for you; check the name, set "
                f"HF_TOKEN, or {AT_HOME}"
            ) from error
        except Exception as error:
            raise UserError(
                f"data.name={self._name}: the Hub cannot be reached ({first_line(error)}); check "
                "the network, set data.revision to that in the config.yaml of an earlier run, "
                f"whose cache is used then, or {AT_HOME}"
            ) from error

    def _read(self) -> Mapping[str, Any]:
        """The rows of each of the set's splits."""
        import datasets
        import huggingface_hub

        datasets.disable_progress_bars()
        for library in ("datasets", "huggingface_hub"):
            logging.getLogger(library).setLevel(logging.CRITICAL)
        if self._folder is None and not huggingface_hub.constants.HF_HUB_OFFLINE:
            # the library itself tries for minutes
            self._ask()
        where, revision = (str(self._folder), None) if self._folder else (self._name, self._commit)
        try:
            builder = datasets.load_dataset_builder(where, self._config, revision=revision)
            columns = self._columns(builder)
            with SlowNotice(log.info, self._size(builder.info.download_size)):
                return datasets.load_dataset(
                    where, self._config, revision=revision, streaming=self._streaming, **columns
                )
        except UserError:
            raise
        # wrong config, gated, no space: each has its own error
        except Exception as error:
            raise self._unreadable(error) from error

    def _size(self, download: int | None) -> str:
        """Return a notice with the size of the download."""
        if self._folder is not None:
            return f"data.name={self._name}: reads the folder"
        if self._streaming:
            amount = (
                "all of it"
                if self._max_bytes is None
                else (f"{self._max_bytes / 1e6:,.0f} MB of text a split")
            )
        else:
            amount = (
                "all of it, of unknown size" if download is None else f"{download / 1e6:,.0f} MB"
            )
        return f"data.name={self._name}: reads {amount} from the Hub"

    def _columns(self, builder: Any) -> dict[str, list[str]]:
        """Out of Parquet only the column of the text is read,
        so the others may change from shard to shard.
        """
        if not hasattr(builder.config, "columns"):
            return {}
        names = next(iter(builder.as_streaming_dataset().values())).column_names or ()
        top = self._text_key if self._text_key in names else self._text_key.partition(".")[0]
        if top not in names:
            known = ", ".join(names)
            raise UserError(
                f"data.text_key={self._text_key}: no such column; set data.text_key to one of "
                f"{known}"
            )
        return {"columns": [top]}

    def _unreadable(self, error: Exception) -> UserError:
        cause: BaseException = error
        # "an error occurred" because of one that says which
        while cause.__cause__ is not None:
            cause = cause.__cause__
        why = " ".join(str(cause).split())[:200] or type(cause).__name__
        on_disk = isinstance(cause, OSError) and cause.filename is not None
        cure = "set HF_HOME to a folder that can be written" if on_disk else "set what it asks for"
        return UserError(f"data.name={self._name}: cannot be read ({why}); {cure}, or {AT_HOME}")
