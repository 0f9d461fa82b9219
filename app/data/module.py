"""The LightningDataModule: one training batch is what this rank does in one optimizer step."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from app.data.cache import open_corpus
from app.data.corpus import Batch, Corpus
from app.data.order import Order
from app.data.reading.paths import home
from app.data.sources import SPLITS, Source, Split
from app.data.steps import Endless, HeldOut, TrainSteps, evenly
from app.data.tokenizers import Tokenizer
from app.registry import UserError, check, find, knobs, make, require, unknown

log = logging.getLogger(__name__)
# Largest number of rows of a forward pass where the config leaves it open.
MAX_ROWS_OF_FORWARD = 8


def build_data(
    data: Mapping[str, Any], tokenizer: Mapping[str, Any], seed: int, ranks: int = 1
) -> "TokenDataModule":
    """The data module of the config groups `data` and `tokenizer` on so many processes; reads no
    text yet.

    Raises:
        UserError: a name or a knob is wrong, or the batch cannot be shared evenly.
    """
    values = dict(data)
    cls = find("data", values.pop("source", None), key="data.source")
    schema = knobs(cls) | knobs(TokenDataModule)
    for name in values:
        if name not in schema:
            raise UserError(unknown(f"data.{name}={values[name]}", name, schema))
    values["micro_batch_size"] = micro_batch_size(data, ranks)
    source_values = check(cls, _known_to(cls, values), "data")
    module_values = check(TokenDataModule, _known_to(TokenDataModule, values), "data")
    try:
        source = cls(**source_values)
        module = TokenDataModule(
            source, make("tokenizer", tokenizer, key="tokenizer"), seed, **module_values
        )
    except ValueError as error:
        raise UserError(f"data.{error}") from error
    module.micro_batches(ranks)
    if module.source.raw and not module.tokenizer.raw:
        raise UserError(
            f"tokenizer={tokenizer['name']}: data={data['source']} is counted in bytes; set "
            "tokenizer=bytes"
        )
    return module


def _known_to(cls: type, values: Mapping[str, Any]) -> dict[str, object]:
    """Return the values that the constructor of a class takes."""
    return {name: value for name, value in values.items() if name in knobs(cls)}


def micro_batch_size(data: Mapping[str, object], ranks: int) -> object:
    """`data.micro_batch_size`; where it is null, a rank's share of the batch in equal parts of at
    most 8 rows.

    Raises:
        UserError: the batch cannot be shared evenly.
    """
    if data["micro_batch_size"] is not None:
        return data["micro_batch_size"]
    size = data["batch_size"]
    if type(size) is not int or size < 1:
        # Any value will do: the data module reports the batch size.
        return 1
    if size % ranks:
        raise UserError(
            f"data.batch_size={size}: must be a multiple of {ranks}, the number of processes"
        )
    rows_of_rank = size // ranks
    rows = min(MAX_ROWS_OF_FORWARD, rows_of_rank)
    while rows_of_rank % rows:
        rows -= 1
    return rows


class TokenDataModule(LightningDataModule):
    """Rows of a corpus in batches.

    A training batch holds all rows of this rank in one optimizer step, micro-batch after
    micro-batch. The step's rows are cut into micro-batches before these are shared among the ranks,
    so the cut is the same on any number of ranks.

    Training goes on at the trainer's `global_step`, so there is no state of its own to save. The
    Trainer needs `use_distributed_sampler=False`.
    """

    _corpus: Corpus | None = None

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        seed: int,
        *,
        seq_len: int,
        batch_size: int,
        micro_batch_size: int,
        val_rows: int | None,
        overfit_batches: int | None,
        max_epochs: float | None,
        num_workers: int,
        cache_dir: str,
    ) -> None:
        super().__init__()
        for name, value in (
            ("seq_len", seq_len),
            ("batch_size", batch_size),
            ("micro_batch_size", micro_batch_size),
        ):
            require(name, value, value >= 1, "must be at least 1")
        for name, limit in (
            ("val_rows", val_rows),
            ("overfit_batches", overfit_batches),
            ("max_epochs", max_epochs),
        ):
            require(name, limit, limit is None or limit >= 1, "must be at least 1, or null")
        require("num_workers", num_workers, num_workers >= 0, "must be at least 0")
        multiple = f"must be a multiple of data.micro_batch_size={micro_batch_size}"
        require("batch_size", batch_size, batch_size % micro_batch_size == 0, multiple)
        self.source = source
        self.tokenizer = tokenizer
        self.seed = seed
        self.num_workers = num_workers
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.val_rows = val_rows
        self.overfit_batches = overfit_batches
        self.max_epochs = max_epochs
        self.cache_dir = home(cache_dir, "data.cache_dir")

    def prepare(self) -> Corpus:
        """Opens the token cache, building it first if need be; afterwards the vocabulary and the
        domains are known.

        Raises:
            UserError: the text or the cache folder is unusable.
        """
        if self._corpus is None:
            self._corpus = open_corpus(self.source, self.tokenizer, self.cache_dir)
        return self._corpus

    def require_enough(self) -> None:
        """Checks that the text can be trained on.

        Raises:
            UserError: it is shorter than one row, or nothing of it is held out.
        """
        corpus = self.prepare()
        longest = max(stream.targets for stream in corpus.streams["train"])
        if longest < self.seq_len:
            raise UserError(
                f"data.seq_len={self.seq_len}: a row is longer than the training split ({longest} "
                "tokens); shorten the row or give more text"
            )
        for split in SPLITS:
            if not any(corpus.rows(split, self.seq_len)):
                raise UserError(
                    f"data: too few documents, none is held out for {split}; give more of them, or "
                    "one long .txt, which is split in order"
                )

    def prepare_data(self) -> None:
        self.prepare()

    @property
    def vocab_size(self) -> int:
        self.prepare()
        return self.tokenizer.vocab_size

    @property
    def domains(self) -> list[str]:
        return self.prepare().domains

    @property
    def topics(self) -> list[str]:
        return self.prepare().topics

    @property
    def corpus_fingerprint(self) -> str:
        return self.prepare().fingerprint

    def micro_batches(self, ranks: int) -> int:
        """Micro-batches of one rank in one optimizer step.

        Raises:
            UserError: the batch cannot be shared evenly.
        """
        if self.batch_size % (self.micro_batch_size * ranks):
            raise UserError(
                f"data.batch_size={self.batch_size}: must be a multiple of "
                f"data.micro_batch_size={self.micro_batch_size} times {ranks} ranks; change one of "
                "them"
            )
        return self.batch_size // (self.micro_batch_size * ranks)

    def train_dataloader(self) -> DataLoader[Batch]:
        corpus = self.prepare()
        rank, ranks = self._rank()
        self.micro_batches(ranks)
        # The ranks take micro-batches in turns, so that the cut does not depend on their number.
        micro_batches = np.arange(self.batch_size).reshape(-1, self.micro_batch_size)
        places = micro_batches[rank::ranks].flatten().tolist()
        steps = TrainSteps(corpus, self._order(corpus), self.seq_len, self.batch_size, places)
        return self._loader(steps, Endless(self._next_step, self.overfit_batches))

    def _order(self, corpus: Corpus) -> Order:
        """Return the order of the training rows."""
        # Lightning says -1 for a run without an end.
        steps = max(0, self.trainer.max_steps) if self.trainer else 0
        rows = corpus.rows("train", self.seq_len)
        phases = []
        start = 0
        for phase in self.source.phases:
            phases.append((start, phase.weights))
            start = round(phase.until * steps) * self.batch_size
        order = Order.of(rows, phases, self.seed)
        if self.max_epochs is not None and self.overfit_batches is None:
            self._tell_repeated(
                corpus.domains, rows, order.taken(steps * self.batch_size), self.max_epochs
            )
        return order

    def _tell_repeated(
        self, domains: Iterable[str], rows: Iterable[int], read: Iterable[int], most: float
    ) -> None:
        """Which domains are read too often, of so many rows each
        and so many that are read of them.
        """
        for domain, number, count in zip(domains, rows, read, strict=True):
            if count > most * number:
                rank_zero_only(log.warning)(
                    f"data.max_epochs={most}: this run reads {domain} {count / number:.1f} times; "
                    "give more of it or less weight to it, take fewer steps, or set null for no "
                    "limit"
                )

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._held_out("val", self.val_rows)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._held_out("test", None)

    def held_out(self, splits: Iterable[Split], rows: int | None = None) -> Iterator[Batch]:
        """All rows of the splits in batches, or `rows` evenly spaced ones of every domain;
        on this process alone.
        """
        corpus = self.prepare()
        for split in splits:
            chosen = evenly(corpus.rows(split, self.seq_len), rows)
            batches = HeldOut(corpus, split, chosen, self.seq_len, self.micro_batch_size, 0, 1)
            yield from (batches[i] for i in range(len(batches)))

    def _next_step(self) -> int:
        return self.trainer.global_step if self.trainer else 0

    def _rank(self) -> tuple[int, int]:
        """This rank's number among those with different data, and how many these are."""
        if self.trainer is None:
            return 0, 1
        kwargs = getattr(self.trainer.strategy, "distributed_sampler_kwargs", None)
        if not kwargs:
            return 0, 1
        return kwargs["rank"], kwargs["num_replicas"]

    def _held_out(self, split: Split, limit: int | None) -> DataLoader[Batch]:
        corpus = self.prepare()
        rows = evenly(corpus.rows(split, self.seq_len), limit)
        return self._loader(
            HeldOut(corpus, split, rows, self.seq_len, self.micro_batch_size, *self._rank())
        )

    def _loader(
        self, dataset: Dataset[Batch], sampler: Sampler[int] | None = None
    ) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
