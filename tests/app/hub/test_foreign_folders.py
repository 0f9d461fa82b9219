"""A Hugging Face folder from somebody else is data:
no code of it runs, and no text of it is read as an override.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from app.hub.read import import_run
from app.hub.weight_files import plain_copy
from app.hub.write import export
from app.registry import UserError
from app.runs.read import read_run
from tests.support.hub_models import (
    BEGIN,
    CASES,
    END,
    OVERRIDES,
    add_tokenizer,
    config_of,
    model_of,
    written,
)

pytestmark = pytest.mark.nightly


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Mixtral; the working directory is where its run will be made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text(
        "the people of the town say to each other what they have seen at night\n" * 200
    )
    config = config_of(*CASES["mixtral"])
    written(tmp_path / "theirs", config, model_of(config))
    return tmp_path / "theirs"


transformers = pytest.importorskip("transformers", minversion="5.0")


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_an_error_of_the_comparison_names_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.hub.write.CLOSE", -1)
    add_tokenizer(folder)
    with pytest.raises(UserError, match=f"^{folder}: computes something else in transformers"):
        import_run(str(folder), "in", OVERRIDES)


def test_code_beside_the_weights_is_not_executed(folder: Path, tmp_path: Path) -> None:
    proof = tmp_path / "it-ran"
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass\n")
    classes = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Evil")
    change(folder, auto_map=classes, custom_pipelines={"text-generation": {"impl": "evil.Evil"}})
    add_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": END, "auto_map": {"AutoTokenizer": "evil.Evil"}})
    )
    _, difference = import_run(str(folder), "in", OVERRIDES)
    assert difference is not None and difference < 1e-4
    assert not proof.exists()


def test_an_unknown_architecture_with_code_is_refused_without_running_it(
    folder: Path, tmp_path: Path
) -> None:
    proof = tmp_path / "it-ran"
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')\n")
    change(
        folder,
        model_type="evil",
        auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    )
    with pytest.raises(UserError, match="model_type=evil: cannot be imported"):
        import_run(str(folder), "in", OVERRIDES)
    assert not proof.exists()


def test_transformers_sees_weights_and_plain_values_only(folder: Path) -> None:
    (folder / "evil.py").write_text("")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    change(
        folder,
        auto_map={"AutoConfig": "evil.Evil"},
        quantization_config={"quant_method": "awq"},
        attn_implementation="somebody/kernel",
        _experts_implementation="x",
    )
    with plain_copy(folder) as copy:
        assert {path.name for path in copy.iterdir()} == {"config.json", "model.safetensors"}
        kept = json.loads((copy / "config.json").read_text())
        assert kept.keys().isdisjoint({"auto_map", "quantization_config", "attn_implementation"})
        assert not any(key.startswith("_") for key in kept)


@pytest.mark.parametrize(
    "token", ["${oc.env:HOME}", "${seed}", "a'b", '"', "a,b=c", "\\${seed}", "${", "[x]", "null"]
)
def test_text_of_the_folder_enters_the_config_as_it_is(folder: Path, token: str) -> None:
    named = folder.rename(folder.with_name("it's a ${seed} model"))
    add_tokenizer(named, end=token)
    run, _ = import_run(str(named), "in", OVERRIDES)
    tokenizer = read_run(run).config["tokenizer"]
    assert tokenizer["separator"] == token
    assert tokenizer["path"] == str(named.absolute() / "tokenizer.json")


@torch.no_grad()
def test_begin_and_end_of_a_document_keep_their_roles(folder: Path) -> None:
    add_tokenizer(folder)
    run = read_run(import_run(str(folder), "in", OVERRIDES)[0])
    tokenizer = run.text.tokenizer
    rows = run.text.rows
    begin = tokenizer.begin
    end = tokenizer.separator
    assert (begin, end) == tuple(
        Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(t) for t in (BEGIN, END)
    )
    first = rows["tokens"][0]
    assert first[0] == begin
    assert end not in rows["tokens"] and begin not in rows["targets"]
    # the loss of the first row is that of transformers on <s> text
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens, targets = (torch.from_numpy(rows[name][:1]).long() for name in ("tokens", "targets"))
    expected = torch.nn.functional.cross_entropy(
        theirs(tokens).logits[0], targets[0], reduction="none"
    )
    valid = targets >= 0
    document = torch.from_numpy(rows["document"][:1]).long()
    nll, _ = run.model(tokens, targets, valid, document)
    assert document.unique().numel() == 1
    torch.testing.assert_close(nll[0], expected, atol=1e-4, rtol=1e-4)


def test_begin_and_end_go_out_as_they_came_in(folder: Path) -> None:
    add_tokenizer(folder)
    run = read_run(import_run(str(folder), "in", OVERRIDES)[0])
    export(run, folder.parent / "out", "unknown")
    values = {
        name: json.loads((folder.parent / f"out/{name}.json").read_text())
        for name in ("config", "generation_config", "tokenizer_config")
    }
    begin = run.text.tokenizer.begin
    end = run.text.tokenizer.separator
    for name in ("config", "generation_config"):
        assert (values[name]["bos_token_id"], values[name]["eos_token_id"]) == (begin, end)
    assert (values["tokenizer_config"]["bos_token"], values["tokenizer_config"]["eos_token"]) == (
        BEGIN,
        END,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder.parent / "out")
    assert (
        tokenizer("ab").input_ids[0] == begin
        and end not in tokenizer(f"a {END} b {BEGIN}").input_ids[1:]
    )


@pytest.mark.parametrize("change", [{"bos_token": None}, {"add_bos_token": False}])
def test_a_model_that_was_trained_with_one_mark_uses_it_for_both(
    folder: Path, change: dict[str, Any]
) -> None:
    add_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    tokenizer = read_run(import_run(str(folder), "in", OVERRIDES)[0]).text.tokenizer
    assert tokenizer.begin == tokenizer.separator


DEEP = "[" * 100_000 + "]" * 100_000
DAMAGED: dict[str, Callable[[Path], Any]] = {
    "rope theta is a text": lambda folder: change(
        folder, rope_parameters={"rope_theta": "x", "rope_type": "default"}
    ),
    "rope is a list": lambda folder: change(folder, rope_parameters=[1]),
    "dtype": lambda folder: change(folder, dtype="float99"),
    "id2label": lambda folder: change(folder, id2label=[1, 2]),
    "hidden size is a text": lambda folder: change(folder, hidden_size="x"),
    "hidden size is a reference": lambda folder: change(folder, hidden_size="${oc.env:HOME}"),
    "no heads": lambda folder: change(folder, num_attention_heads=0),
    "negative": lambda folder: change(folder, num_key_value_heads=-1),
    "layers without end": lambda folder: change(folder, num_hidden_layers=10**9),
    "experts without end": lambda folder: change(folder, num_local_experts=2**31),
    "width without end": lambda folder: change(folder, intermediate_size=2**31),
    "dim without end": lambda folder: change(
        folder, hidden_size=2**30, num_attention_heads=2**20, head_dim=None
    ),
    "a flag is a text": lambda folder: change(folder, tie_word_embeddings="yes"),
    "model type is a list": lambda folder: change(folder, model_type=["mixtral"]),
    "half a surrogate": lambda folder: change(folder, hidden_act="\ud800"),
    "deep": lambda folder: (folder / "config.json").write_text(DEEP),
    "a list": lambda folder: (folder / "config.json").write_text("[]"),
    "null": lambda folder: (folder / "config.json").write_text("null"),
    "bytes": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
    "tokenizer config is a list": lambda folder: (folder / "tokenizer_config.json").write_text(
        "[]"
    ),
    "tokenizer config is null": lambda folder: (folder / "tokenizer_config.json").write_text(
        "null"
    ),
    "end token is a number": lambda folder: (folder / "tokenizer_config.json").write_text(
        '{"eos_token": 3}'
    ),
    "end token is deep": lambda folder: (folder / "tokenizer_config.json").write_text(DEEP),
    "unknown end token": lambda folder: (folder / "tokenizer_config.json").write_text(
        '{"eos_token": "<x>"}'
    ),
    "tokenizer is a list": lambda folder: (folder / "tokenizer.json").write_text("[]"),
    "tokenizer is deep": lambda folder: (folder / "tokenizer.json").write_text(DEEP),
    "index of numbers": lambda folder: index(folder, {"weight_map": {"a": 1}}),
    "index of null": lambda folder: index(folder, {"weight_map": None}),
    "index is a list": lambda folder: index(folder, []),
    "index of an absent file": lambda folder: index(folder, {"weight_map": {"a": "b.safetensors"}}),
    "index of nothing": lambda folder: index(folder, {"weight_map": {}}),
}


def index(folder: Path, value: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(value))


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_folder_is_refused_in_one_line_and_leaves_no_run(folder: Path, how: str) -> None:
    add_tokenizer(folder)
    DAMAGED[how](folder)
    with pytest.raises(UserError) as refusal:
        import_run(str(folder), "in", OVERRIDES)
    assert "\n" not in str(refusal.value)
    assert not (folder.parent / "runs/in").exists()
