"""Statistics of models that are not ours:
tiny random ones of `transformers`, counted by hand from what they return.
"""

import importlib
import inspect
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from app.analysis.watch import watch

transformers = pytest.importorskip("transformers")
E = 8
K = 2
LAYERS = 2
VOCAB = 50
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": E,
    "num_local_experts": E,
    "num_experts_per_tok": K,
    "pad_token_id": 0,
}
DEEPSEEK = {
    "n_routed_experts": E,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
MODELS = {
    "Mixtral": {},
    "Qwen2Moe": {"decoder_sparse_step": 1},
    "Qwen3Moe": {"decoder_sparse_step": 1},
    "Olmoe": {},
    "DeepseekV3": DEEPSEEK,
    "GptOss": {},
}


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **{k: v for k, v in SIZES.items() if k != "head_dim"} | MODELS[name]
    )
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def chosen(model: nn.Module, **inputs: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits (T, E) and experts (T, K) of each layer, as its router returns them."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    routers = [
        module for module in model.modules() if type(module).__name__.lower().endswith("topkrouter")
    ]
    hooks = [
        router.register_forward_hook(lambda m, i, o: seen.append((o[0].numpy(), o[2].numpy())))
        for router in routers
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
    found = {tag.removeprefix("eval_"): value for tag, value in watched.scalars().items()}
    assert len(layers) == LAYERS
    for layer, (logits, experts) in enumerate(layers):
        load = np.bincount(experts[real].flatten(), minlength=E)
        assert found[f"experts_by_layer/maxvio/{layer}"] == pytest.approx(
            load.max() / load.mean() - 1, rel=1e-5
        )
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


# class, its module, and its score function, as its source has it
ROUTERS = {
    "MixtralTopKRouter": ("mixtral", "softmax"),
    "Qwen2MoeTopKRouter": ("qwen2_moe", "softmax"),
    "OlmoeTopKRouter": ("olmoe", "softmax"),
    "GptOssTopKRouter": ("gpt_oss", "softmax"),
    "GraniteMoeTopKRouter": ("granitemoe", "softmax"),
    "JambaTopKRouter": ("jamba", "softmax"),
    "LongcatFlashTopkRouter": ("longcat_flash", "softmax"),
    "DeepseekV2TopkRouter": ("deepseek_v2", "softmax"),
    "DeepseekV3TopkRouter": ("deepseek_v3", "sigmoid"),
    "Glm4MoeTopkRouter": ("glm4_moe", "sigmoid"),
    "MiniMaxM2TopKRouter": ("minimax_m2", "sigmoid"),
    "Lfm2MoeTopKRouter": ("lfm2_moe", "sigmoid"),
    "InklingTopkRouter": ("inkling", "sigmoid"),
    "HYV3TopKRouter": ("hy_v3", "sigmoid"),
    "DeepseekV4TopKRouter": ("deepseek_v4", "sqrt_softplus"),
    "DeepseekV4HashRouter": ("deepseek_v4", "sqrt_softplus"),
    "Cohere2MoeTopKRouter": ("cohere2_moe", "softmax"),
}
OPTIONS = {
    "hidden_size": 16,
    "num_experts": E,
    "num_local_experts": E,
    "n_routed_experts": E,
    "num_experts_per_tok": K,
    "top_k": K,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "route_scale": 2.0,
    "zero_expert_num": 0,
    "n_shared_experts": 1,
    "use_expert_bias": False,
    "scoring_func": "sqrtsoftplus",
    "expert_selection_fn": "softmax",
    "topk_method": "greedy",
    "vocab_size": VOCAB,
    "router_jitter_noise": 0.0,
    "input_jitter_noise": 0.0,
    "router_scaling_factor": 1.0,
    "num_group": 1,
}


class OneLayer(nn.Module):
    """A router of transformers behind an embedding."""

    def __init__(self, router: nn.Module, more: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 16)
        self.router = router
        self.more = more

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> None:
        x = self.embedding(input_ids)
        if self.more:
            self.router(x, input_ids if "Hash" in type(self.router).__name__ else torch.zeros(E))
        else:
            self.router(x.flatten(0, 1))


def router_of(name: str, **options: object) -> OneLayer:
    torch.manual_seed(1)
    module = importlib.import_module(
        f"transformers.models.{ROUTERS[name][0]}.modeling_{ROUTERS[name][0]}"
    )
    router = getattr(module, name)(types.SimpleNamespace(**OPTIONS | options))
    for parameter in router.parameters():
        nn.init.normal_(parameter, std=0.5)
    # the experts of each token id
    if hasattr(router, "tid2eid"):
        router.tid2eid.copy_((torch.arange(VOCAB)[:, None] + torch.arange(K)) % E)
    needed = [
        p for p in inspect.signature(router.forward).parameters.values() if p.default is p.empty
    ]
    return OneLayer(router, len(needed) - 1)


def entropy_of(model: OneLayer, ids: torch.Tensor, score_function: str) -> float:
    """Return the mean entropy of a router's normalised scores by
    the definition of its score function.
    """
    seen: list[torch.Tensor] = []
    hook = model.router.register_forward_hook(
        lambda m, i, o: seen.append(o[0].reshape(-1, o[0].shape[-1]).double())
    )
    with torch.no_grad():
        model(ids)
    hook.remove()
    scores = {
        "softmax": lambda x: x.exp(),
        "sigmoid": lambda x: 1 / (1 + (-x).exp()),
        "sqrt_softplus": lambda x: (1 + x.exp()).log().sqrt(),
    }[score_function](seen[0])
    share = scores / scores.sum(-1, keepdim=True)
    return float(-(share * share.log()).sum(-1).mean())


@pytest.mark.parametrize("name", ROUTERS)
def test_the_score_function_of_a_router_is_found_from_what_it_returns(name: str) -> None:
    model = router_of(name)
    ids = torch.randint(VOCAB, (2, 9))
    watched = watch(model)
    with torch.no_grad():
        model(ids)
    found = watched.scalars()["router/token_entropy"]
    assert found == pytest.approx(entropy_of(model, ids, ROUTERS[name][1]), rel=1e-4)


@pytest.mark.parametrize(("k", "normalised"), [(2, True), (2, False), (1, False)])
def test_cohere_has_the_score_function_that_its_config_names(k: int, normalised: bool) -> None:
    options = {
        "num_experts_per_tok": k,
        "expert_selection_fn": "sigmoid",
        "norm_topk_prob": normalised,
    }
    model = router_of("Cohere2MoeTopKRouter", **options)
    ids = torch.randint(VOCAB, (2, 9))
    watched = watch(model)
    with torch.no_grad():
        model(ids)
    assert watched.scalars()["router/token_entropy"] == pytest.approx(
        entropy_of(model, ids, "sigmoid"), rel=1e-4
    )


def test_scores_that_nothing_returned_tells_of_are_left_out() -> None:
    # all weights are 1
    options = {"num_experts_per_tok": 1, "expert_selection_fn": "sigmoid", "norm_topk_prob": True}
    model = router_of("Cohere2MoeTopKRouter", **options)
    watched = watch(model)
    with torch.no_grad():
        model(torch.randint(VOCAB, (2, 9)))
    found = watched.scalars()
    assert "router/token_entropy" not in found and found["router/mean_k"] == 1


def test_padding_is_seen_in_generation_by_place_and_in_four_dimensions() -> None:
    model = model_of("Mixtral")
    ids = torch.randint(1, VOCAB, (2, 6))
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, :4] = 0
    watched = watch(model)
    with torch.no_grad():
        model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
    tokens = int(watched._totals[False].take()["tokens"])
    # what is drawn last is not computed
    assert tokens == mask.sum() + 2 * 2
    with torch.no_grad():
        model(ids, mask)
    assert int(watched._totals[False].take()["tokens"]) == mask.sum()
    allowed = (mask[:, None, :] * mask[:, :, None]).bool().tril()[:, None]
    with torch.no_grad():
        model(ids, attention_mask=allowed)
    assert int(watched._totals[False].take()["tokens"]) == mask.sum()


def test_training_and_evaluation_are_counted_apart() -> None:
    model = model_of("Mixtral")
    ids = torch.randint(1, VOCAB, (2, 6))
    watched = watch(model)
    for training, count in ((True, 2), (False, 3)):
        model.train(training)
        for _ in range(count):
            model(ids)
    assert (
        int(watched._totals[True]._sums["forwards"]) == 2
        and int(watched._totals[False]._sums["forwards"]) == 3
    )
    found = watched.scalars()
    assert found.keys() == {
        *(tag for tag in found if tag.startswith("eval_")),
        *(tag for tag in found if f"eval_{tag}" in found),
    }
    assert watched.scalars() == {}


def test_what_is_computed_again_in_the_backward_pass_counts_once_and_training_is_the_same() -> None:
    ids = torch.randint(1, VOCAB, (2, 6))
    plain = model_of("Mixtral").train()
    plain(input_ids=ids, labels=ids).loss.backward()
    again = model_of("Mixtral").train()
    again.gradient_checkpointing_enable({"use_reentrant": False})
    watched = watch(again)
    again(input_ids=ids, labels=ids).loss.backward()
    assert int(watched._totals[True]._sums["tokens"]) == ids.numel()
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
        str(tmp_path),
        max_steps=2,
        logging_steps=1,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
    )
    trainer = Watching(model, args, train_dataset=rows)
    trainer.train()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert len(logged) == 2 and all(
        "loss" in line and line["router/mean_k"] == K for line in logged
    )
    assert all(line["experts/load_max"] >= 1 for line in logged)
