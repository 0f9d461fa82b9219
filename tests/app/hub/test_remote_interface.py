"""An exported model with its own code under `transformers`:
Trainer, packing, tied heads, half precision, reload.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.data.tokenizers.bytes import Bytes
from app.hub.remote import with_code
from app.hub.tokenizer import tokenizer_files
from app.hub.write import write_folder
from app.model.assemble import build_model
from app.pages.exports import choices, pairs
from app.registry import UserError
from tests.support.hub_models import VOCAB
from tests.support.hub_models import config_of as config_by

pytestmark = pytest.mark.nightly

transformers = pytest.importorskip("transformers", minversion="5.0")
# the others are tried in the slow tests
GATE = ("topk", "deepseek_v3", "gru")
# their choice depends on which tokens are computed together, as the definition of each says
BATCHED = ("expert_choice", "seq_top_k", "base_layer", "sinkhorn")
ROUTERS = [
    pytest.param(name, marks=() if name in GATE else pytest.mark.nightly)
    for name in choices("router")
    # reads the domain of a text
    if name != "oracle"
]


def exported(folder: Path, config: dict[str, Any]) -> Any:
    """The model of a config as `AutoModelForCausalLM` loads it, and ours."""
    torch.manual_seed(0)
    ours = build_model(config, VOCAB).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    write_folder(folder, *with_code(config, ours, {"eos_token_id": None}))
    return ours


def load(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, **options
    )


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )


def config_with(router: str) -> dict[str, Any]:
    for name, layout, config in pairs():
        if name == router and layout in ("coarse", "moepp", "lora_skills"):
            try:
                build_model(config, VOCAB)
            except UserError:
                continue
            return config
    raise AssertionError(f"{router} goes with no layout")


@pytest.fixture
def rows() -> Tensor:
    return torch.randint(VOCAB, (8, 12), generator=torch.Generator().manual_seed(1))


def deterministic(model: Any) -> Any:
    """Routers draw noise and drop tokens in training;
    here a gradient is compared, so they evaluate.
    """
    model.eval()
    model.train = lambda mode=True: model
    return model


def gradient(model: Any, rows: Tensor, steps: int, folder: Path) -> float:
    """Norm of the gradient that Trainer accumulates over the same rows in so many steps."""
    found: list[float] = []

    class Seen(transformers.Trainer):  # type: ignore[misc, name-defined]
        def _clip_grad_norm(self, model: Any) -> Tensor:
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), torch.inf)
            found.append(norm.item())
            return norm

    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=len(rows) // steps,
        gradient_accumulation_steps=steps,
        max_steps=1,
        learning_rate=0.0,
        max_grad_norm=1.0,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        seed=0,
        data_seed=0,
    )
    data = [{"input_ids": row, "labels": masked(row, number)} for number, row in enumerate(rows)]
    Seen(model, arguments, train_dataset=data).train()
    assert len(found) == 1
    return found[0]


def masked(row: Tensor, number: int) -> Tensor:
    """Labels of which each row has another number, as chats have."""
    labels = row.clone()
    labels[: number + 1] = -100
    return labels


@pytest.mark.parametrize(
    "router", [router for router in ROUTERS if router.values[0] not in BATCHED]
)
def test_trainer_accumulates_the_same_gradient_in_any_number_of_steps(
    router: str, rows: Tensor, tmp_path: Path
) -> None:
    exported(tmp_path / "out", config_with(router))
    model = deterministic(load(tmp_path / "out"))
    norms = {steps: gradient(model, rows, steps, tmp_path / "t") for steps in (1, 2, 8)}
    assert norms[1] > 0
    assert norms == pytest.approx(dict.fromkeys(norms, norms[1]), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "router", [router for router in ROUTERS if router.values[0] not in BATCHED]
)
def test_packed_documents_get_the_logits_of_each_alone(
    router: str, rows: Tensor, tmp_path: Path
) -> None:
    exported(tmp_path / "out", config_with(router))
    model = load(tmp_path / "out").eval()
    lengths = (5, 3, 4)
    alone = torch.cat([model(part).logits for part in rows[:1].split(lengths, 1)], 1)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    document = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)])[
        None
    ]
    same = (document[:, :, None] == document[:, None]).tril()[:, None]
    additive = torch.zeros(same.shape).masked_fill(~same, torch.finfo(torch.float32).min)
    for how in (
        {"position_ids": positions},
        {"seq_idx": document},
        {"attention_mask": same},
        {"attention_mask": additive},
        {"cu_seq_lens_q": torch.tensor([0, 5, 8, 12]), "max_length_q": 5},
        {"position_ids": positions, "attention_mask": torch.ones(1, 12)},
    ):
        torch.testing.assert_close(model(rows[:1], **how).logits, alone, atol=1e-5, rtol=1e-4)
    assert (model(rows[:1]).logits - alone).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("router", ROUTERS)
def test_half_precision_keeps_routers_and_balance_in_float32(
    router: str, dtype: torch.dtype, rows: Tensor, tmp_path: Path
) -> None:
    exported(tmp_path / "out", config_with(router))
    whole = load(tmp_path / "out")
    own = dict(whole.model.named_parameters()) | dict(whole.model.named_buffers())
    cast = load(tmp_path / "out").to(dtype)
    loaded = load(tmp_path / "out", dtype=dtype)
    for model in (loaded, cast):
        for name, tensor in [*model.model.named_parameters(), *model.model.named_buffers()]:
            routes = ".router." in f".{name}." or name.startswith(("balancer", "shared_score"))
            wanted = own[name].dtype if routes or not own[name].is_floating_point() else dtype
            assert tensor.dtype == wanted, name
            if routes:
                assert torch.equal(tensor, own[name]), name
        output = model(rows, labels=rows)
        assert output.logits.dtype == dtype and output.logits.isfinite().all()
        output.loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        with torch.no_grad():
            error = (output.logits.float() - whole(rows).logits).abs()
        assert error.median() < 0.1, "a few tokens may go to other experts, most do not"


@pytest.mark.parametrize("router", ROUTERS)
def test_tied_embeddings_stay_tied_when_loaded_trained_saved_and_loaded_again(
    router: str, rows: Tensor, tmp_path: Path
) -> None:
    config = config_with(router)
    config = config | {"model": config["model"] | {"tie_embeddings": True}}
    ours = exported(tmp_path / "out", config)
    model = load(tmp_path / "out", dtype=torch.float32)
    assert model.model.head.weight is model.model.embedding.weight
    torch.testing.assert_close(model.eval()(rows).logits, ours.logits(rows), atol=1e-4, rtol=1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(rows, labels=rows).loss.backward()
    optimizer.step()
    assert model.model.head.weight is model.model.embedding.weight
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", dtype=torch.float32).eval()
    assert again.model.head.weight is again.model.embedding.weight
    torch.testing.assert_close(again(rows).logits, model(rows).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("router", ROUTERS)
def test_what_is_saved_is_loaded_with_the_same_logits(
    router: str, rows: Tensor, tmp_path: Path
) -> None:
    exported(tmp_path / "out", config_with(router))
    model = load(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", dtype=torch.float32).eval()
    assert model.state_dict().keys() == again.state_dict().keys()
    torch.testing.assert_close(again(rows).logits, model(rows).logits, atol=0, rtol=0)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Any]:
    exported(tmp_path / "out", config_with("topk"))
    yield load(tmp_path / "out", dtype=torch.float32).eval()


@torch.no_grad()
def test_every_argument_of_a_causal_model_is_honoured(model: Any, rows: Tensor) -> None:
    logits = model(rows).logits
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(
        model(inputs_embeds=model.get_input_embeddings()(rows)).logits, logits, **close
    )
    torch.testing.assert_close(model(rows, logits_to_keep=3).logits, logits[:, -3:], **close)
    torch.testing.assert_close(
        model(rows, logits_to_keep=torch.tensor([0, 5])).logits, logits[:, [0, 5]], **close
    )
    torch.testing.assert_close(model(rows, return_dict=False)[0], logits, **close)
    states = model(rows, output_hidden_states=True).hidden_states
    assert len(states) == 1 + len(model.model.blocks)
    torch.testing.assert_close(states[0], model.get_input_embeddings()(rows), **close)
    torch.testing.assert_close(model.get_output_embeddings()(states[-1]), logits, **close)
    mean = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    torch.testing.assert_close(model(rows, labels=rows).loss, mean)
    total = mean * rows[:, 1:].numel()
    torch.testing.assert_close(model(rows, labels=rows, num_items_in_batch=7).loss, total / 7)
    shifted = torch.nn.functional.pad(rows[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(rows, labels=rows, shift_labels=shifted).loss, mean)
    torch.testing.assert_close(
        model(rows, use_cache=False, past_key_values=None).logits, logits, **close
    )


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(model: Any, rows: Tensor) -> None:
    logits = model(rows).logits
    filler = torch.zeros(8, 3, dtype=torch.long)
    left = model(
        torch.cat((filler, rows), 1), attention_mask=torch.cat((filler, torch.ones_like(rows)), 1)
    ).logits
    right = model(
        torch.cat((rows, filler), 1), attention_mask=torch.cat((torch.ones_like(rows), filler), 1)
    ).logits
    torch.testing.assert_close(left[:, 3:], logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(right[:, :-3], logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("past_key_values", object()),
        ("use_cache", True),
        ("output_attentions", True),
        ("output_router_logits", True),
        ("token_type_ids", torch.zeros(8, 12)),
        ("attention_mask", torch.ones(8, 5)),
        ("inputs_embeds", torch.ones(8, 12, 32)),
        ("cu_seq_lens_q", torch.tensor([0, 5, 12])),
    ],
)
def test_an_argument_that_is_not_supported_is_refused_by_name(
    model: Any, rows: Tensor, argument: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=argument):
        model(rows, **{argument: value})


def test_embeddings_alone_are_refused_where_the_router_reads_tokens(
    tmp_path: Path, rows: Tensor
) -> None:
    exported(tmp_path / "out", config_with("hash"))
    model = load(tmp_path / "out").eval()
    with pytest.raises(ValueError, match="reads token ids"):
        model(inputs_embeds=model.get_input_embeddings()(rows))


def test_weights_are_readable_by_whom_the_other_files_are(tmp_path: Path) -> None:
    exported(tmp_path / "out", config_by("experts=coarse"))
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


@pytest.mark.parametrize(
    "router", [router for router in ROUTERS if router.values[0] not in BATCHED]
)
def test_a_pipeline_writes_what_the_model_does(router: str, tmp_path: Path) -> None:
    config = config_with(router)
    torch.manual_seed(0)
    ours = build_model(config, 257).eval()
    files, weights = with_code(config, ours, {"bos_token_id": 256, "eos_token_id": 256})
    write_folder(tmp_path / "out", files | tokenizer_files(Bytes(), 32), weights)
    writer = transformers.pipeline(
        "text-generation", model=str(tmp_path / "out"), trust_remote_code=True
    )
    (found,) = writer("the people", max_new_tokens=8, do_sample=False)
    ids = [256, *b"the people"]
    for _ in range(8):
        with torch.no_grad():
            ids.append(int(ours.logits(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == 256:
            break
    assert found["generated_text"] == Bytes().decode(ids)
