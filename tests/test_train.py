"""`python train.py` as a user runs it:
every part trains, every run can be gone on with, every mistake is one line.
"""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.support.mistakes import Train, mistake

KEYS = {
    "val_nats",
    "val_ppl",
    "val_bpb",
    "val_bpb_by_domain",
    "total_params",
    "active_params",
    "flops_per_token_train",
    "tokens_seen",
    "tokens_per_s",
    "wall_s",
    "peak_memory_bytes",
    "maxvio_by_layer",
    "dead_experts_by_layer",
    "corpus_fingerprint",
    "versions",
    "git_commit",
    "seed",
}


def test_a_run_leaves_config_checkpoint_events_and_summary(train: Train) -> None:
    folder = train()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() == KEYS
    assert summary["tokens_seen"] == 2 * 4 * 32
    assert math.isclose(summary["val_ppl"], math.exp(summary["val_nats"]), rel_tol=1e-5)
    assert (folder / "config.yaml").exists()
    assert [p.name for p in (folder / "checkpoints").glob("*.ckpt")] == ["step_2.ckpt"]
    assert list((folder / "tb").glob("events.out.tfevents.*"))


ROUTERS = ("topk", "switch", "gshard", "gru")
BALANCES = ("[aux,z_loss]", "loss_free", "none")
LAYOUTS = ("coarse", "fine_grained", "deepseek", "dense")


# every router with every layout, and both with every balance
PAIRS = [
    (router, BALANCES[(i + j) % 3], layout)
    for i, router in enumerate(ROUTERS)
    for j, layout in enumerate(LAYOUTS)
]


@pytest.mark.parametrize(("router", "balance", "experts"), PAIRS)
def test_founding_parts_train_in_every_pair(
    train: Train, router: str, balance: str, experts: str
) -> None:
    folder = train(
        f"router={router}", f"balance={balance}", f"experts={experts}", "trainer.max_steps=1"
    )
    assert math.isfinite(json.loads((folder / "summary.json").read_text())["val_bpb"])


@pytest.mark.parametrize(
    "parts", ["router=topk balance=loss_free", "router=gru", "router=noisy_topk", "optimizer=muon"]
)
def test_a_resumed_run_equals_a_straight_one_bit_for_bit(train: Train, parts: str) -> None:
    parts = (*parts.split(), "schedule.total_steps=4", "schedule.warmup_steps=1")
    straight = train(*parts, "trainer.max_steps=4", name="straight")
    train(*parts, "trainer.max_steps=2", name="resumed")
    resumed = train(*parts, "trainer.max_steps=4", "resume=true", name="resumed")
    one, two = (
        torch.load(run / "checkpoints/step_4.ckpt", weights_only=True)
        for run in (straight, resumed)
    )
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert all(
        torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items()
    )
    assert one["tokens_seen"] == two["tokens_seen"]


def test_resuming_keeps_the_saved_config_and_names_what_was_asked(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train("optimizer.lr=0.001")
    train("optimizer.lr=0.5", "trainer.max_steps=3", "resume=true")
    assert "keeping optimizer.lr=0.001" in capsys.readouterr().err


def test_resuming_skips_a_damaged_checkpoint(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train("trainer.checkpoint_every=1")
    newest = folder / "checkpoints/step_2.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    train("trainer.max_steps=3", "resume=true")
    said = capsys.readouterr().err
    assert "step_2.ckpt is damaged" in said


def test_a_checkpoint_of_another_architecture_names_the_parameter(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train()
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("hidden_dim: 32", "hidden_dim: 64"))
    assert "experts.routed.w_in is (" in mistake(
        train, capsys, "resume=true", "trainer.max_steps=3"
    )


MISTAKES = {
    "router=topq": ("router=topq", "'topk'"),
    "experts=deepsek": ("experts=deepsek", "'deepseek'"),
    "balance=[aux,zloss]": ("balance=zloss", "'z_loss'"),
    "routr=topk": ("routr", "'router'"),
    "router.select.kk=3": ("router.select.kk", "'k'"),
    "router.select.k=abc": ("router.select.k=abc", "int"),
    "router.select.k=999": ("router.select.k=999", "must be in 1.."),
    "experts.top_k=99": ("experts.top_k=99", "must be in 1.."),
    "model.dim=33": ("model.dim=33", "divisible"),
    "model.dim=abc": ("model.dim=abc", "int"),
    "trainer.max_steps=abc": ("trainer.max_steps=abc", "int"),
    "trainer.precision=fp8": ("trainer.precision=fp8", "bf16-mixed"),
    "seed=-1": ("seed=-1", "4294967295"),
    "seed=0.5": ("seed=0.5", "whole"),
    "callbacks=brief callbacks.warnings.spike_deviations=-1": (
        "callbacks.warnings.spike_deviations=-1",
        "positive",
    ),
    "callbacks=brief callbacks.warnings.dead_steps=0": (
        "callbacks.warnings.dead_steps=0",
        "at least 1",
    ),
    "trainer.precision=bf16-true": ("trainer.precision=bf16-true", "bf16-mixed"),
    "trainer=ep experts=deepseek experts.num_shared=1": ("trainer.ep_size=2", "must divide 17"),
    "trainer=ep experts=dense": ("trainer.ep_size=2", "no stacked experts"),
    "trainer=ep trainer.ep_size=3": ("trainer.ep_size=3", "must divide 2"),
    "trainer=ddp trainer.ep_size=2": ("trainer.ep_size=2", "needs trainer=ep"),
    "init=upcycle init.checkpoint=none.ckpt": ("init.checkpoint=none.ckpt", "no such file"),
    "init=upcycle init.how=copy": ("init.how=copy", "copied"),
    "init=upcycle init.drop_share=abc": ("init.drop_share=abc", "float"),
    "init=upcycle init.checkpoint=x init.drop_share=2": ("init.drop_share=2", "0..1"),
    "trainer=ddp trainer.num_nodes=2": ("trainer.num_nodes=2", "torchrun or Slurm"),
    "trainer.devices=2": ("trainer.devices=2", "trainer=ddp"),
    "trainer.devices=all": ("trainer.devices=all", "a whole number, or auto"),
    "data.batch_size=3": ("data.batch_size=3", "micro_batch_size"),
    "data.path=/no/such/file": ("data.path=/no/such/file", "no such file"),
    "data.path=/tmp/a(b).txt": ("data.path=/tmp/a(b).txt", "'data.path=\"/tmp/a(b).txt\"'"),
    "tokenizer=file tokenizer.path=/no/such.json": ("tokenizer.path=/no/such.json", ""),
    "data.seq_len=10000000": ("data.seq_len=10000000", "longer than"),
    "resume=true run=null": ("resume=true", "run=NAME"),
    "router=switch router.weigh.normalize=true": ("router.select.k=1", "constant"),
    "router=top_p router.select.max_k=1 router.weigh.normalize=true": (
        "router.select.max_k=1",
        "constant",
    ),
    "router=relu balance=aux": ("balance=['aux']", "add relu_lambda or threshold"),
    "router/select=expert_threshold": ("balance=['aux', 'z_loss']", "add relu_lambda or threshold"),
    "balance=threshold": ("balance.threshold.select=TopK", "set router/select=expert_threshold"),
    "balance=relu_lambda": ("balance.relu_lambda.select=TopK", "set router/select=positive"),
    "router=noisy_topk router/score=linear": (
        "balance.smooth_load.score=Linear",
        "set router/score=noisy",
    ),
    "optimizer=adamw optimizer._target_=os.system": ("optimizer._target_=os.system", "torch"),
    "router.drop.name=1e-9": ("router.drop=1e-09", "capacity"),
    "data.source=[[1]]": ("data.source=[[1]]", "offline"),
    "trainer.accelerator=off": ("trainer.accelerator=off", "trainer=cpu"),
    "trainer.devices=9223372036854775808": ("trainer.devices=9223372036854775808", "64 bits"),
    "+foo=1": ("foo: unknown", "router"),
    "+match.x=1": ("match.x=1", "reference"),
    "+router.foo=1": ("router.foo: unknown", "select"),
    "router=null": ("router=null", "topk"),
    "~experts": ("experts=null", "deepseek"),
    "router.drop=none": ("router.drop=none", "router/drop=NAME"),
    "optimizer.betas=[0.9]": ("optimizer.betas=[0.9]", "two numbers"),
    "optimizer.lr=abc": ("optimizer.lr=abc", "float"),
    "optimizer=adamw optimizer.betas=[0.9]": ("optimizer.betas=[0.9]", "(0.9, 0.999)"),
    "optimizer=adamw optimizer.lr=abc": ("optimizer.lr=abc", "0.001"),
    "balance.aux.weight=inf": ("balance.aux.weight=inf", "finite"),
    "resume=abc": ("resume=abc", "true or false"),
    "logger=mlflow": ("logger=mlflow", "pip install mlflow"),
    "router=expert_choice": ("router.select.name=expert_choice", "allow_non_causal=true"),
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_ends_with_one_line_and_status_2(
    train: Train, capsys: pytest.CaptureFixture[str], overrides: str
) -> None:
    line = mistake(train, capsys, *overrides.split())
    assert all(part in line for part in MISTAKES[overrides])


@pytest.mark.parametrize(
    "nothing",
    [
        "balance=null",
        "~balance",
        "callbacks=null",
        "~callbacks",
        "logger=null",
        "experiment=null",
        "debug=null",
    ],
)
def test_a_group_that_a_run_can_do_without_may_be_taken_away(train: Train, nothing: str) -> None:
    assert (train(nothing, "trainer.max_steps=1") / "summary.json").exists()


def test_a_run_without_callbacks_says_nothing_of_its_steps(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train("callbacks=null")
    said = capsys.readouterr()
    assert "loss" not in said.out + said.err


def test_a_taken_run_name_is_refused_and_nothing_is_overwritten(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert "resume=true" in mistake(train, capsys)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_unusable_text_leaves_the_name_of_the_run_free(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("")
    mistake(train, capsys, f"data.path={tmp_path / 'empty.txt'}")
    assert not (tmp_path / "runs").exists()
    train()


def test_a_dense_model_that_does_not_fit_is_refused_before_the_text_is_read(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = train("experts=dense", "experts.hidden_dim=32", name="dense")
    begun = ("init=upcycle", f"init.checkpoint={dense}", "experts=coarse", "run=moe")
    line = mistake(train, capsys, *begun, "experts.hidden_dim=64", "data.path=/no/such/file")
    assert "experts of width 64" in line
    assert "embedding.weight is" in mistake(
        train, capsys, *begun, "experts.hidden_dim=32", "tokenizer=bpe"
    )
    assert not (dense.parent / "moe").exists()
