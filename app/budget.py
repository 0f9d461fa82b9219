"""What a model costs before anything is trained: parameters, floating-point operations per token, bytes.

Parameters are exact. FLOPs are training's 3 x forward, and forward counts one of these conventions:

    real        2 (active matrix parameters) + 4 L H S: what torch counts; attention over the full row of S positions
    causal      2 (active matrix parameters) + 2 L H S: the causal half of the attention
    paper       2 (4 L D^2 + N_ffn + V D) + 4 L D S: DeepSeekMoE's tables (arXiv 2401.06066), without norms and routers,
                with D^2 for each of the four matrices of an attention, and with nominal widths: the simplest fraction
                of 8 D / 3 that the real, rounded width stands for
    paper_real  the same with the real widths

H is the width of all heads, S the length of a row. Active parameters are those that a token meets: all but the experts
that were not chosen for it.
`python -m app.budget [--json] [--convention=NAME] OVERRIDES` is the budget of `python train.py OVERRIDES`.
"""

import app.environment  # noqa: F401, I001  before torch

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import hydra
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from app.assemble import build_model
from app.compose import composed
from app.errors import exit_on_mistake
from app.memory import Memory, optimizer_states
from app.moe import MoE
from app.registry import UserError, find, unknown
from app.transformer import Block, Transformer
from experts.contract import FeedForward, Stack

Convention = Literal["real", "causal", "paper", "paper_real"]
NEAR = 0.035  # a width is rounded up to a multiple of 64 by at most this share


@dataclass(frozen=True)
class Budget:
    """Parameters (numbers) and FLOPs (per token) of a model on rows of a given length."""

    total_params: int
    active_params: int
    embedding_params: int  # of the input alone, also where the head is tied to it
    expert_params: int  # routed
    router_params: int
    ffn_params: int  # everything in feed-forward parts, routed or not; nominal in the convention `paper`
    active_ffn_params: int
    flops_per_token_forward: float
    seq_len: int
    convention: str

    @classmethod
    def of(cls, model: Transformer, seq_len: int, convention: Convention = "real") -> "Budget":
        """Counts a model, which may lie on the meta device."""
        layers = [module for module in model.modules() if isinstance(module, MoE)]
        total, embedding = _count(model), _count(model.embedding)
        idle = sum(sum(layer.experts.expert_params()) - _chosen(layer) for layer in layers)
        shape = nominal if convention == "paper" else real
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        routers = sum(map(_count, model.routers()))
        fed = [_fed(block.ffn, shape) for block in blocks]
        ffn = sum(_count(block.ffn) for block in blocks) - routers
        active = round(total - idle)
        matrices = active - (0 if model.config.tie_embeddings else embedding)
        matrices -= sum(p.numel() for p in model.parameters() if p.dim() < 2)
        flops = _paper(model, seq_len, sum(f for _, f in fed)) if convention.startswith("paper") else (
            2 * matrices + _attention(model, seq_len) / (2 if convention == "causal" else 1)
        )  # fmt: skip
        return cls(
            total_params=total,
            active_params=active,
            embedding_params=embedding,
            expert_params=sum(sum(layer.experts.expert_params()) for layer in layers),
            router_params=routers + _count(model.shared_score),
            ffn_params=round(sum(f for f, _ in fed)) if convention == "paper" else ffn,
            active_ffn_params=round(sum(f for _, f in fed)),
            flops_per_token_forward=flops,
            seq_len=seq_len,
            convention=convention,
        )

    @property
    def flops_per_token_train(self) -> float:
        """Forward and backward."""
        return 3 * self.flops_per_token_forward

    @property
    def flops_per_sequence_train(self) -> float:
        """Forward and backward of a whole row."""
        return self.flops_per_token_train * self.seq_len

    def summary(self) -> dict[str, Any]:
        """The keys of `summary.json` that are known before training."""
        return {
            "total_params": self.total_params,
            "active_params": self.active_params,
            "flops_per_token_train": self.flops_per_token_train,
        }

    def as_dict(self) -> dict[str, Any]:
        """All numbers by name."""
        names = ("total", "active", "embedding", "expert", "router", "ffn", "active_ffn")
        flops = ("flops_per_token_forward", "flops_per_token_train", "flops_per_sequence_train")
        return {
            name: getattr(self, name) for name in (*(f"{n}_params" for n in names), *flops, "seq_len", "convention")
        }

    def table(self) -> Table:
        """For the terminal."""
        table = Table("what", "number", "share of total", title="Budget")
        for name in ("total", "active", "expert", "router", "embedding"):
            number = getattr(self, f"{name}_params")
            table.add_row(f"{name} parameters", f"{number:,}", f"{number / self.total_params:.1%}")
        table.add_row("FLOPs per token, training", f"{self.flops_per_token_train:,.0f}", "")
        table.caption = f"FLOPs by the convention `{self.convention}` of app/budget.py, rows of {self.seq_len} tokens"
        return table


def real(width: int, dim: int) -> float:
    """The width as it is."""
    return width


def nominal(width: int, dim: int) -> float:
    """The simplest fraction of 8 D / 3 that a width was rounded from; the width itself if none is near."""
    full = 8 * dim / 3
    for parts in range(1, 65):
        value = round(width / full * parts) * full / parts
        if abs(width - value) <= NEAR * value:
            return value
    return width


def _fed(ffn: nn.Module, shape: Callable[[int, int], float]) -> tuple[float, float]:
    """Parameters of one feed-forward part with the widths that `shape` gives, all and active."""
    sizes = [(m, _width(m)) for m in ffn.modules() if isinstance(m, FeedForward | Stack)]
    scaled = [(m, _count(m), shape(width, dim) / width) for m, (dim, width) in sizes]
    shared = sum(number * share for m, number, share in scaled if isinstance(m, FeedForward))
    routed = [(number, share) for m, number, share in scaled if isinstance(m, Stack)]
    if not isinstance(ffn, MoE) or not routed:
        return shared, shared
    all_routed = sum(number * share for number, share in routed)
    return shared + all_routed, shared + _chosen(ffn) * all_routed / sum(number for number, _ in routed)


def _chosen(layer: MoE) -> float:
    """Parameters of the routed experts that one token meets."""
    return layer.experts.active_params(layer.router.select.k or layer.experts.top_k)


def _width(network: FeedForward | Stack) -> tuple[int, int]:
    """D and F of a network."""
    if isinstance(network, Stack):
        return network.w_out.shape[2], network.w_out.shape[1]
    return network.w_out.out_features, network.w_out.in_features


def _attention(model: Transformer, seq_len: int) -> float:
    """Forward FLOPs per token of scores and weighted sums over a full row."""
    config = model.config
    return 4 * config.num_layers * config.num_heads * config.head_width * seq_len


def _paper(model: Transformer, seq_len: int, active_ffn: float) -> float:
    config = model.config
    head = model.head.weight.numel()
    return (
        2 * (4 * config.num_layers * config.dim**2 + active_ffn + head) + 4 * config.num_layers * config.dim * seq_len
    )


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def budget_of(config: dict[str, Any], convention: Convention = "real") -> tuple[Budget, Memory]:
    """What a composed config costs; nothing is allocated and no data is read.

    Raises:
        UserError: the config is wrong, or the number of tokens is known only when the tokenizer's file is read.
    """
    data, trainer, model = config["data"], config["trainer"], on_meta(config)
    states = optimizer_states(lambda matrices: hydra.utils.instantiate(config["optimizer"], matrices, _convert_="all"))
    memory = Memory.of(model, data["seq_len"], data["micro_batch_size"], trainer["precision"], states)
    return Budget.of(model, data["seq_len"], convention), memory


def on_meta(config: dict[str, Any]) -> Transformer:
    """The model of a composed config, without memory.

    Raises:
        UserError: as `budget_of`.
    """
    with torch.device("meta"):
        return build_model(config, _vocabulary(config))


def _vocabulary(config: dict[str, Any]) -> int:
    """What the tokenizer is asked for; what it finds in the text may be less."""
    if config["model"]["vocab_size"] is not None:
        return 1
    chosen = config["tokenizer"]
    size = chosen.get("vocab_size") or getattr(find("tokenizer", chosen["name"], "tokenizer"), "vocab_size", None)
    if not isinstance(size, int):
        raise UserError("model.vocab_size=null: this tokenizer's size is in its file; state it with model.vocab_size=N")
    return size


def main(arguments: list[str]) -> None:
    """Prints the budget of the config that the overrides compose."""
    flags = [argument for argument in arguments if argument.startswith("--")]
    convention: Any = next((f.partition("=")[2] for f in flags if f.startswith("--convention=")), "real")
    if convention not in get_args(Convention):
        raise UserError(unknown(f"--convention={convention}", convention, get_args(Convention)))
    config = composed([argument for argument in arguments if argument not in flags])
    budget, memory = budget_of(config, convention)
    if "--json" in flags:
        print(json.dumps(budget.as_dict() | {"bytes": memory.as_dict()}, indent=2))
        return
    Console().print(budget.table(), memory.table())


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
