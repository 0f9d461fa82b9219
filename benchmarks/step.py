"""A whole training step against a dense model of equal active FLOPs and against `transformers`' Qwen3-MoE.

All contenders take turns, on new tokens each step, with AdamW. Read the ratios; the times belong to the machine.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from app.config.compose import composed
from app.model.assemble import build_model
from benchmarks.timing import medians


class Sizes(NamedTuple):
    rows: int = 8
    length: int = 512
    vocab: int = 4096
    layers: int = 6
    dim: int = 256
    heads: int = 4
    experts: int = 64
    top_k: int = 6
    hidden_dim: int = 128


Loss = Callable[[Tensor], Tensor]


def ours(sizes: Sizes, layout: list[str]) -> tuple[nn.Module, Loss]:
    """Our model with some layout, and its loss on rows of tokens (B, S+1) with a balance term."""
    overrides = [f"model.num_layers={sizes.layers}", f"model.dim={sizes.dim}", f"model.num_heads={sizes.heads}",
                 f"model.num_kv_heads={sizes.heads}", "balance=aux", "model.cross_documents=true"]  # fmt: skip
    model = build_model(composed([*overrides, *layout]), sizes.vocab)

    def loss(tokens: Tensor) -> Tensor:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        nll, routings = model(inputs, targets, torch.ones_like(inputs, dtype=torch.bool), torch.zeros_like(inputs))
        terms = model.balancer.losses(routings, None) if routings else {}
        return nll.mean() + sum(weight * raw for raw, weight in terms.values())

    return model, loss


def qwen3_moe(sizes: Sizes) -> tuple[nn.Module, Loss]:
    """The same sizes in `transformers`, experts by grouped_mm, with its balance term."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    values: dict[str, Any] = {
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.dim,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "head_dim": sizes.dim // sizes.heads,
        "num_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "moe_intermediate_size": sizes.hidden_dim,
        "output_router_logits": True,
        "experts_implementation": "grouped_mm",
    }
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**values))
    return model, lambda tokens: model(tokens[:, :-1], labels=tokens[:, :-1], use_cache=False).loss


def measure(sizes: Sizes, dtype: torch.dtype, warm_up: int, steps: int, device: str = "cpu") -> list[dict[str, Any]]:
    """One row a contender: seconds of a step after `warm_up`, over the dense model, and tokens per second."""
    coarse = ["experts=coarse", f"experts.num_experts={sizes.experts}", f"experts.top_k={sizes.top_k}"]
    contenders = {
        "ours": ours(sizes, [*coarse, f"experts.hidden_dim={sizes.hidden_dim}"]),
        "dense": ours(sizes, ["experts=dense", f"experts.hidden_dim={sizes.top_k * sizes.hidden_dim}"]),
        "transformers": qwen3_moe(sizes),
    }
    for model, _ in contenders.values():
        model.to(device)
    works = {name: _work(model, loss, dtype, device, sizes) for name, (model, loss) in contenders.items()}
    seconds = medians(works, warm_up, steps, device)
    return [
        {"name": name, "dtype": str(dtype).removeprefix("torch."), "median_s": each,
         "over_dense": each / seconds["dense"], "tokens_per_s": sizes.rows * sizes.length / each}
        for name, each in seconds.items()
    ]  # fmt: skip


def _work(model: nn.Module, loss: Loss, dtype: torch.dtype, device: str, sizes: Sizes) -> Callable[[], None]:
    """One optimizer step on new tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        tokens = torch.randint(0, sizes.vocab, (sizes.rows, sizes.length + 1), device=device)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            value = loss(tokens)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
