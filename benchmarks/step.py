"""A whole training step against a dense model of equal active FLOPs and against `transformers`'
Qwen3-MoE.

All contenders take turns, on new tokens each step, with AdamW. Read the ratios; the times belong to
the machine.
"""

import app.config.environment  # noqa: F401  isort: skip  before torch

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from app.config.compose import composed
from app.model.assemble import build_model
from benchmarks.bare import Bare
from benchmarks.layer import dtypes
from benchmarks.report import Row, command
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
    overrides = [
        f"model.num_layers={sizes.layers}",
        f"model.dim={sizes.dim}",
        f"model.num_heads={sizes.heads}",
        f"model.num_kv_heads={sizes.heads}",
        "balance=aux",
        "model.cross_documents=true",
    ]
    model = build_model(composed([*overrides, *layout]), sizes.vocab)

    def loss(tokens: Tensor) -> Tensor:
        inputs = tokens[:, :-1]
        targets = tokens[:, 1:]
        nll, routings = model(
            inputs, targets, torch.ones_like(inputs, dtype=torch.bool), torch.zeros_like(inputs)
        )
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


def _mixture(sizes: Sizes) -> tuple[nn.Module, Loss]:
    own = [
        f"experts.num_experts={sizes.experts}",
        f"experts.top_k={sizes.top_k}",
        f"experts.hidden_dim={sizes.hidden_dim}",
    ]
    return ours(sizes, ["experts=coarse", *own])


def _dense(sizes: Sizes) -> tuple[nn.Module, Loss]:
    return ours(sizes, ["experts=dense", f"experts.hidden_dim={sizes.top_k * sizes.hidden_dim}"])


CONTENDERS = {"ours": _mixture, "dense": _dense, "transformers": qwen3_moe}


DENSE = "dense"
# Layouts of equal active FLOPs on top of the default config.
DESIGNS = {
    DENSE: ["experts=dense", "experts.hidden_dim=1024"],
    "deepseek": ["experts=deepseek"],
    "fine 8": [],
}
TOKENS = 2048  # of a step of the default config


def run(quick: bool, device: str = "cpu") -> list[Row]:
    """One row a contender and dtype; the ratio is to the dense model of equal active FLOPs."""
    sizes, warm_up, steps = (Sizes(rows=2, layers=2), 1, 2) if quick else (Sizes(), 4, 20)
    rows = [
        row for dtype in dtypes(device) for row in measure(sizes, dtype, warm_up, steps, device)
    ]
    return rows if quick else rows + default_model(warm_up, steps, device)


def measure(
    sizes: Sizes, dtype: torch.dtype, warm_up: int, steps: int, device: str = "cpu"
) -> list[Row]:
    """One row a contender."""
    works = {name: work(*make(sizes), dtype, device, sizes) for name, make in CONTENDERS.items()}
    seconds = medians(works, warm_up, steps, device)
    case = (
        f"{sizes.layers} layers, D={sizes.dim} E={sizes.experts} K={sizes.top_k} "
        f"F={sizes.hidden_dim}"
    )
    rows: list[Row] = []
    for name, each in seconds.items():
        rows.append(
            {
                "what": f"{name}, {case}",
                "dtype": str(dtype).removeprefix("torch."),
                "s": each,
                "tokens_per_s": round(sizes.rows * sizes.length / each),
                "ratio": each / seconds["dense"],
            }
        )
    return rows


def default_model(warm_up: int, steps: int, device: str) -> list[Row]:
    """The model, data and optimizer of `python train.py` beside the dense model,
    both by either optimizer.
    """
    rows: list[Row] = []
    for precision in ("32-true", "bf16-mixed")[: len(dtypes(device))]:
        works = {}
        for optimizer in ("adamw", "muon"):
            for design, overrides in DESIGNS.items():
                model = Bare([*overrides, f"optimizer={optimizer}"], device, precision)
                works[design, optimizer] = partial(model.next_step, model.batches())
        seconds = medians(works, warm_up // 2, steps, device)
        for (design, optimizer), each in seconds.items():
            rows.append(
                {
                    "what": f"{design}, default, {optimizer}",
                    "dtype": precision,
                    "s": each,
                    "tokens_per_s": round(TOKENS / each),
                    "ratio": each / seconds[DENSE, optimizer],
                }
            )
    return rows


def work(
    model: nn.Module, loss: Loss, dtype: torch.dtype, device: str, sizes: Sizes
) -> Callable[[], None]:
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


if __name__ == "__main__":
    command("step", run)
