"""Statistics of models that are not ours: tiny random ones of `transformers`, counted by hand from what they return."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from app.analysis.watch import watch

transformers = pytest.importorskip("transformers")
E, K, LAYERS, VOCAB = 8, 2, 2, 50
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": E,
    "num_local_experts": E, "num_experts_per_tok": K, "pad_token_id": 0,
}  # fmt: skip
DEEPSEEK = {"n_routed_experts": E, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0, "kv_lora_rank": 8,
            "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}  # fmt: skip
MODELS = {
    "Mixtral": {}, "Qwen2Moe": {"decoder_sparse_step": 1}, "Qwen3Moe": {"decoder_sparse_step": 1}, "Olmoe": {},
    "DeepseekV3": DEEPSEEK, "GptOss": {},
}  # fmt: skip


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **{k: v for k, v in SIZES.items() if k != "head_dim"} | MODELS[name]
    )
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def chosen(model: nn.Module, **inputs: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits (T, E) and experts (T, K) of each layer, as its router returns them."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    routers = [module for module in model.modules() if type(module).__name__.lower().endswith("topkrouter")]
    hooks = [
        router.register_forward_hook(lambda m, i, o: seen.append((o[0].numpy(), o[2].numpy()))) for router in routers
    ]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_load_and_certainty_of_a_foreign_model_are_those_of_its_routers(name: str) -> None:
    model = model_of(name)
    ids = torch.randint(1, VOCAB, (3, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # padding
    real = mask.flatten().bool().numpy()
    layers = chosen(model, input_ids=ids, attention_mask=mask)
    watched = watch(model)
    with torch.no_grad():
        for rows in (slice(0, 1), slice(1, 3)):
            model(input_ids=ids[rows], attention_mask=mask[rows])
    found = watched.scalars()
    assert len(layers) == LAYERS
    for layer, (logits, experts) in enumerate(layers):
        load = np.bincount(experts[real].flatten(), minlength=E)
        assert found[f"experts_by_layer/maxvio/{layer}"] == pytest.approx(load.max() / load.mean() - 1, rel=1e-5)
        assert found[f"experts_by_layer/dead/{layer}"] == (load == 0).sum()
        assert found[f"router_by_layer/logit_rms/{layer}"] == pytest.approx(
            np.sqrt((logits[real] ** 2).mean()), rel=1e-3
        )
        score = 1 / (1 + np.exp(-logits)) if name == "DeepseekV3" else np.exp(logits)
        share = (score / score.sum(1, keepdims=True))[real]
        entropy = -(share * np.log(share)).sum(1).mean()
        assert found[f"router_by_layer/token_entropy/{layer}"] == pytest.approx(entropy, rel=1e-3)
    assert found["router/mean_k"] == K
    assert watched.scalars() == {}, "nothing since"


def test_what_is_computed_again_in_the_backward_pass_counts_once_and_training_is_the_same() -> None:
    ids = torch.randint(1, VOCAB, (2, 6))
    plain = model_of("Mixtral").train()
    plain(input_ids=ids, labels=ids).loss.backward()
    again = model_of("Mixtral").train()
    again.gradient_checkpointing_enable({"use_reentrant": False})
    watched = watch(again)
    again(input_ids=ids, labels=ids).loss.backward()
    assert int(watched._total._sums["tokens"]) == ids.numel()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_watcher_lets_go_and_a_model_without_routers_is_refused() -> None:
    model = model_of("Olmoe")
    watched = watch(model)
    watched.close()
    model(input_ids=torch.ones(1, 4, dtype=torch.long))
    assert watched.statistics() == {}
    with pytest.raises(ValueError, match="Linear: has no router"):
        watch(nn.Linear(2, 2))


def test_the_trainer_of_transformers_logs_them_with_its_own(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = model_of("Olmoe")
    watched = watch(model)

    class Watching(transformers.Trainer):
        def log(self, logs: dict[str, float], *more: float) -> None:
            super().log(logs | watched.scalars(), *more)

    rows = [{"input_ids": [1, 2, 3, 4, 5], "labels": [1, 2, 3, 4, 5]}] * 8
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, logging_steps=1, per_device_train_batch_size=4, report_to=[], use_cpu=True
    )
    trainer = Watching(model, args, train_dataset=rows)
    trainer.train()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert len(logged) == 2 and all("loss" in line and line["router/mean_k"] == K for line in logged)
    assert all(line["experts/load_max"] >= 1 for line in logged)
