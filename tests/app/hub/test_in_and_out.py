"""Out and in as a user types it, each command in a process of its own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.hub.write import difference, write_folder
from app.model.assemble import build_model
from app.registry import UserError
from app.runs.read import read_run
from app.training.checkpoints import read_checkpoint
from tests.conftest import ROOT
from tests.support.hub_models import CASES, config_of, model_of, written
from tests.support.shell import SMALL, command, environment, mistake, write_text

pytestmark = pytest.mark.nightly

pytest.importorskip("transformers", minversion="5.0")
THEIRS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
assert not any("router_zoo" in name or name == "app" for name in sys.modules)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("the people", return_tensors="pt").input_ids
out = model.generate(ids, max_new_tokens=64, do_sample=False, attention_mask=torch.ones_like(ids))
print(tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True))
strange = "naïve 日本 <|separator|> \\t two  spaces\\n"
print(tokenizer(strange, add_special_tokens=False).input_ids)
"""


SAME = f"{SMALL} tokenizer.vocab_size=300 router=deepseek_v3 experts=deepseek".replace(
    "tokenizer=bytes", "tokenizer=bpe"
)


def run(folder: Path, line: str, *words: str) -> "subprocess.CompletedProcess[str]":
    env = environment() | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command(line), *words], cwd=folder, env=env, capture_output=True, text=True, timeout=200
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run and its export lie."""
    folder = tmp_path_factory.mktemp("out")
    write_text(folder)
    (folder / "u.txt").write_text((folder / "t.txt").read_text().swapcase())
    longer = SAME.replace("trainer.max_steps=4", "trainer.max_steps=30")
    done = run(folder, f"train {longer} run=one trainer.export_weights=last optimizer.lr=0.02")
    assert done.returncode == 0, done.stderr
    done = run(folder, "-m app.export runs/one --to hf out --license apache-2.0")
    assert done.returncode == 0 and "Glm4MoeForCausalLM, logits equal" in done.stdout, done.stderr
    return folder


def test_transformers_writes_what_we_write_and_cuts_text_as_we_do(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", THEIRS, "out"],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *written_there, ids = done.stdout.splitlines()
    ours = run(
        place, "-m app.generate runs/one --temperature 0 --max-tokens 64 --prompt", "the people"
    )
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout == "the people" + "\n".join(written_there) + "\n"
    tokenizer = read_run(place / "runs/one").text.tokenizer
    assert (
        json.loads(ids)
        == tokenizer.encode(["naïve 日本 <|separator|> \t two  spaces\n"])[0].ids.tolist()
    )
    assert "license: apache-2.0" in (place / "out/README.md").read_text()


def test_a_model_comes_in_is_evaluated_and_trained_on(place: Path) -> None:
    made = run(
        place,
        "-m app.import_hf out run=back data=text data.path=t.txt data.val_rows=4 callbacks=off",
    )
    assert made.returncode == 0 and "runs/back: logits equal to" in made.stdout, made.stderr
    figures = [
        json.loads(run(place, f"-m app.evaluate runs/{name} --json").stdout)["bpb"]
        for name in ("one", "back")
    ]
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)
    done = run(place, "train run=back resume=true trainer.max_steps=2 optimizer.lr=0.02")
    assert done.returncode == 0 and (place / "runs/back/checkpoints/step_2.ckpt").exists(), (
        done.stderr
    )
    again = run(place, "-m app.import_hf out run=back data=text data.path=t.txt")
    assert again.returncode == 2 and "runs/back exists" in mistake(again)


def test_a_run_begins_with_the_weights_of_another(place: Path) -> None:
    few = SAME.replace("trainer.max_steps=4", "trainer.max_steps=1") + " optimizer.lr=1e-9"
    for name, begin in (("of_run", "runs/one"), ("of_weights", "runs/one/weights.safetensors")):
        assert (
            run(place, f"train {few} run={name} init=run init.checkpoint={begin}").returncode == 0
        )
    summaries = [place / f"runs/{name}/summary.json" for name in ("one", "of_run", "of_weights")]
    one, *others = (json.loads(path.read_text())["val_nats"] for path in summaries)
    assert others == pytest.approx([one, one], rel=1e-3)
    frozen = run(
        place,
        f"train {SAME} run=frozen init=run init.checkpoint=runs/one "
        "init.freeze=[attention,embedding] optimizer.lr=0.1",
    )
    assert frozen.returncode == 0, frozen.stderr
    before, after = (
        read_checkpoint(place / f"runs/{path}.ckpt")["state_dict"]
        for path in ("one/checkpoints/step_30", "frozen/checkpoints/step_4")
    )
    moved = {
        name
        for name in before
        if "blocks" in name and not bool((before[name] == after[name]).all())
    }
    assert moved and not any(".attention." in name for name in moved)


def test_a_run_takes_model_router_experts_and_tokenizer_of_the_one_it_begins_with(
    place: Path,
) -> None:
    """On other text, which another tokenizer would be learned from; what is typed is as typed."""
    few = (
        "data=text data.path=u.txt data.seq_len=32 data.batch_size=4 data.val_rows=4 callbacks=off "
        "trainer.max_steps=1"
    )
    done = run(
        place,
        f"train {few} run=taken init=run init.checkpoint=runs/one router.select.limit=2 "
        "optimizer.lr=1e-9",
    )
    assert done.returncode == 0, done.stderr
    assert (
        "init.checkpoint=runs/one: uses its model, router, experts, balance and tokenizer"
    ) in done.stderr
    one, taken = (read_run(place / "runs" / name) for name in ("one", "taken"))
    for group in ("model", "experts", "balance"):
        assert taken.config[group] == one.config[group]
    select = one.config["router"]["select"] | {"limit": 2}
    assert taken.config["router"] == one.config["router"] | {"select": select}
    assert (
        taken.text.tokenizer.encode(["the people"])[0].ids.tolist()
        == one.text.tokenizer.encode(["the people"])[0].ids.tolist()
    )
    for name, weights in one.model.state_dict().items():
        torch.testing.assert_close(
            taken.model.state_dict()[name], weights, rtol=1e-4, atol=1e-4, msg=name
        )
    again = run(
        place, f"train {few} run=again init=run init.checkpoint=runs/one/checkpoints/step_30.ckpt"
    )
    assert again.returncode == 0, again.stderr


def test_experts_start_from_a_dense_model_that_came_in(place: Path) -> None:
    config = config_of(*CASES["llama"])
    torch.manual_seed(0)
    written(place / "llama", config, build_model(config, 257))
    text = "tokenizer=bytes data=text data.path=t.txt data.val_rows=4 data.seq_len=32 callbacks=off"
    made = run(place, f"-m app.import_hf llama run=dense {text} data.batch_size=4")
    assert made.returncode == 0, made.stderr
    same = "model.num_layers=3 model.num_kv_heads=1 model.head_dim=12"
    words = (
        f"{SMALL} {same} router=mixtral experts=coarse run=moe init=upcycle "
        "init.checkpoint=runs/dense optimizer.lr=1e-9"
    )
    done = run(place, f"train {words} trainer.max_steps=1 trainer.val_every=1")
    assert done.returncode == 0, done.stderr
    dense, moe = (
        json.loads(run(place, f"-m app.evaluate runs/{name} --json").stdout)
        for name in ("dense", "moe")
    )
    assert dense["nats"] == pytest.approx(moe["nats"], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "init=run init.checkpoint=runs/nowhere",
            "init.checkpoint=runs/nowhere: no such file or folder",
        ),
        (
            "init=run init.checkpoint=runs/one experts=coarse model.num_layers=3",
            r"^error: init\.checkpoint=runs/one: .*model\.num_layers=2, experts\.name=deepseek, ",
        ),
        (
            "init=run init.checkpoint=runs/one data.path=u.txt",
            "init.checkpoint=runs/one: cuts text by another tokenizer",
        ),
        ("init=run", "init.checkpoint=null: must be a run or a checkpoint"),
        (
            "init=run init.checkpoint=runs/one init.freeze=[atention]",
            "init.freeze=atention: unknown; did you mean 'attention'",
        ),
        ("init.checkpoint=runs/one", "set init=run or init=upcycle, too"),
    ],
)
def test_a_mistake_in_the_beginning_is_told_in_one_line(place: Path, words: str, said: str) -> None:
    done = run(place, f"train {SAME} run=wrong {words}")
    assert done.returncode == 2 and not (place / "runs/wrong").exists()
    assert re.search(said, mistake(done))


def test_a_folder_that_is_not_empty_and_a_model_that_fits_nowhere_are_refused(place: Path) -> None:
    full = run(place, "-m app.export runs/one --to hf out")
    assert full.returncode == 2 and "out: is there and not empty" in mistake(full)
    assert run(place, f"train {SMALL} run=gru router=gru experts=coarse").returncode == 0
    done = run(place, "-m app.export runs/gru --to hf")
    assert done.returncode == 2 and "router/score=gru (linear there)" in mistake(done)
    assert not (place / "runs/gru/hf").exists()


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.hub.write.save_torch_state_dict", full)
    with pytest.raises(
        UserError,
        match=r"cannot be written .No space left on device.; what is "
        r"there is not whole",
    ):
        write_folder(tmp_path / "out", {}, {})


def test_other_logits_are_no_success_and_nothing_is_deleted(tmp_path: Path) -> None:
    config = config_of(*CASES["mixtral"])
    model = model_of(config)
    written(tmp_path / "out", config, model)
    tokens = torch.arange(20).view(2, 10)
    assert difference(model, tokens, tmp_path / "out") < 1e-4
    with torch.no_grad():
        model.norm.weight[0] += 0.01
    with pytest.raises(UserError, match=r"logits differ by 0\.0.* it stays for you to look at"):
        difference(model, tokens, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").exists()
