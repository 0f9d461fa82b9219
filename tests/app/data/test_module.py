"""Batches by rank and step, resuming, and errors of the data group."""

from itertools import islice

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from app.data.module import TokenDataModule, build_data
from app.data.steps import evenly
from app.registry import UserError, find, knobs, names
from tests.support.toy_data import CONF, Toy


def as_rank(module, rank, ranks, monkeypatch):
    monkeypatch.setattr(type(module), "_rank", lambda self: (rank, ranks))
    return module


def steps(module, count=3):
    return list(islice(module.train_dataloader(), count))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_the_micro_batches_of_one_global_cut(toy, monkeypatch, ranks):
    whole = steps(toy())
    for step in range(3):
        parts = [
            steps(as_rank(toy(), rank, ranks, monkeypatch))[step]["tokens"].split(2)
            for rank in range(ranks)
        ]
        shared = [parts[g % ranks][g // ranks] for g in range(4)]
        assert torch.equal(torch.cat(shared), whole[step]["tokens"])


@pytest.mark.parametrize("then", [1, 2, 4])
@pytest.mark.parametrize("first", [1, 2, 4])
def test_a_run_that_goes_on_elsewhere_reads_each_row_of_the_order_once(
    toy, monkeypatch, first, then
):
    read = []
    for begin, ranks in ((0, first), (2, then)):
        monkeypatch.setattr(TokenDataModule, "_next_step", lambda self, begin=begin: begin)
        parts = [steps(as_rank(toy(), rank, ranks, monkeypatch), 2) for rank in range(ranks)]
        read += [
            sorted(row for part in parts for row in part[step]["tokens"].tolist())
            for step in range(2)
        ]
    monkeypatch.undo()
    assert read == [sorted(batch["tokens"].tolist()) for batch in steps(toy(), 4)]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(toy, workers):
    assert torch.equal(steps(toy(num_workers=workers))[2]["tokens"], steps(toy())[2]["tokens"])


def test_weights_of_the_source_are_kept(toy):
    batches = steps(toy(Toy(weights=[0.0, 0.75, 0.25])), 64)
    domains = torch.cat([batch["domain"][:, 0] for batch in batches])
    assert domains.bincount().tolist() == [0, 384, 128]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_validation_reads_every_target_once_and_equally_many_batches_on_all_ranks(
    toy, monkeypatch, ranks
):
    loaders = [as_rank(toy(), rank, ranks, monkeypatch).val_dataloader() for rank in range(ranks)]
    batches = [list(loader) for loader in loaders]
    assert len({len(part) for part in batches}) == 1
    read = sum(int(batch["valid"].sum()) for part in batches for batch in part)
    assert read == sum(stream.targets for stream in toy().prepare().streams["val"])


def test_limited_validation_takes_evenly_spaced_rows_of_each_domain(toy):
    batches = list(toy(val_rows=3).val_dataloader())
    real = torch.cat([batch["valid"][:, 0] for batch in batches])
    domains = torch.cat([batch["domain"][:, 0] for batch in batches])
    assert domains[real].bincount().tolist() == [3, 3, 3]
    whole = list(toy().val_dataloader())
    tokens, every = (torch.cat([batch["tokens"] for batch in part]) for part in (batches, whole))
    everywhere = torch.cat([batch["domain"][:, 0] for batch in whole])
    valid = torch.cat([batch["valid"][:, 0] for batch in whole])
    for domain in range(3):
        of_domain = every[(everywhere == domain) & valid]
        places = [i * len(of_domain) // 3 for i in range(3)]
        assert places[-1] > 2, "the text is longer than the rows that are read"
        assert torch.equal(tokens[(domains == domain) & real], of_domain[places])


@pytest.mark.parametrize(
    ("rows", "limit", "expected"),
    [
        ([10], 3, [(0, 0), (0, 3), (0, 6)]),
        ([10], 10, [(0, i) for i in range(10)]),
        ([2, 9], 3, [(0, 0), (0, 1), (1, 0), (1, 3), (1, 6)]),
        ([0, 2], None, [(1, 0), (1, 1)]),
    ],
)
def test_held_out_rows_are_spread_over_the_whole_of_a_domain(rows, limit, expected):
    assert evenly(rows, limit) == expected


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(toy):
    assert toy().micro_batches(2) == 2
    with pytest.raises(UserError, match=r"data.batch_size=8: .*micro_batch_size=2 times 3 ranks"):
        toy().micro_batches(3)


def test_a_row_longer_than_the_text_is_refused(toy):
    with pytest.raises(UserError, match=r"data.seq_len=100000: .*\d+ tokens"):
        toy(seq_len=100_000).require_enough()


def test_a_batch_can_be_repeated(toy):
    whole = steps(toy(), 5)
    repeated = steps(toy(overfit_batches=2), 5)
    for step, batch in enumerate(repeated):
        assert torch.equal(batch["tokens"], whole[step % 2]["tokens"])
    assert not torch.equal(whole[0]["tokens"], whole[2]["tokens"])


class Reader(LightningModule):
    """Remembers the tokens it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append(batch["tokens"])
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())


def test_lightning_resumes_exactly_with_prefetching_workers(toy, tmp_path):
    options = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    options |= {"use_distributed_sampler": False}
    whole = Reader()
    first = Reader()
    then = Reader()
    Trainer(max_steps=5, enable_checkpointing=False, **options).fit(whole, datamodule=toy())
    trainer = Trainer(max_steps=2, default_root_dir=tmp_path, **options)
    trainer.fit(first, datamodule=toy(num_workers=2))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    Trainer(max_steps=5, enable_checkpointing=False, **options).fit(
        then, datamodule=toy(num_workers=2), ckpt_path=tmp_path / "x.ckpt"
    )
    assert [t.tolist() for t in first.seen + then.seen] == [t.tolist() for t in whole.seen]


@pytest.mark.parametrize("source", [path.stem for path in CONF.glob("data/[!_]*.yaml")])
def test_every_data_yaml_builds_and_reads_nothing(config, source):
    module = build_data(**config(f"data={source}"))
    assert not module.cache_dir.exists()


def test_every_source_and_tokenizer_has_its_yaml():
    for kind in ("data", "tokenizer"):
        assert set(names(kind)) <= {path.stem for path in CONF.glob(f"{kind}/*.yaml")}


def test_enwik8_brings_its_tokenizer(config):
    assert config("data=enwik8")["tokenizer"] == {"name": "bytes"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+data.seqlen=3"], r"data.seqlen=3: unknown; did you mean 'seq_len'"),
        (["data.seq_len=long"], r"data.seq_len=long: must be int"),
        (["data.seq_len=0"], r"data.seq_len=0: must be at least 1"),
        (["data.overfit_batches=0"], r"data.overfit_batches=0: must be at least 1, or null"),
        (["data.source=offlin"], r"data.source=offlin: unknown; did you mean 'offline'"),
        (
            ["data.batch_size=12", "data.micro_batch_size=8"],
            r"data.batch_size=12: must be a multiple of data.micro_batch_size=8",
        ),
        (["+data.weights.pyton=1"], r"data.weights.pyton=1.*did you mean 'python'"),
        (["+data.weights.python=-1"], r"data.weights.python=-1.*must not be negative"),
        (["tokenizer.vocab_size=3"], r"tokenizer.vocab_size=3: must be at least 257"),
        (["tokenizer=file"], r"tokenizer.path=null"),
        (
            ["tokenizer=file", "tokenizer.path=nowhere.json"],
            r"tokenizer.path=nowhere.json: not a "
            r"readable",
        ),
        (["data=enwik8", "tokenizer=bpe"], r"tokenizer=bpe: .* set tokenizer=bytes"),
    ],
)
def test_config_errors_are_one_line_before_any_data_is_read(config, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        build_data(**config(*overrides))
    assert "\n" not in str(caught.value)


def test_the_yaml_of_each_source_names_its_knobs(config):
    for name in names("data"):
        assert set(config(f"data={name}")["data"]) == {
            "source",
            *knobs(find("data", name)),
            *knobs(TokenDataModule),
        }
