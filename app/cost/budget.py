"""What a model costs before anything is trained: parameters, floating-point operations per token,
bytes.

Parameters are exact. FLOPs are training's 3 x forward, and forward counts one of these conventions:

    real        what torch counts: 2 for each number of a matrix that a token meets, as often as it
                is multiplied by it, and 4 L H S for attention over the full row of S positions
    causal      the same with 2 L H S, the causal half of the attention
    paper       2 (4 L D^2 + N_ffn + V D) + 4 L D S: DeepSeekMoE's tables (arXiv 2401.06066),
                without norms and routers, with D^2 for each of the four matrices of an attention,
                and with nominal widths: the simplest fraction of 8 D / 3 that the real, rounded
                width stands for
    paper_real  the same with the real widths

H is the width of all heads, S the length of a row. Active parameters are those that a token meets:
all but the experts that were not chosen for it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from rich.table import Table
from torch import nn

from app.config.build import build_optimizer, build_trainer_config
from app.config.compose import Config
from app.cost.flops import forward_flops
from app.cost.kept import FLOAT, Work, count
from app.cost.memory import Fit, Memory, Placement, optimizer_states
from app.data.module import build_data
from app.model.assemble import build_model
from app.model.block import Block
from app.model.moe import MoE
from app.model.transformer import Transformer
from app.registry import UserError, find
from app.training.trainer import fixed_to_machine, uses_gpu
from experts.contract import FeedForward, Stack

Convention = Literal["real", "causal", "paper", "paper_real"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
# a width is rounded up to a multiple of 64 by at most this share
NEAR = 0.035


@dataclass(frozen=True)
class Budget:
    """Parameters (numbers) and FLOPs (per token) of a model on rows of a given length."""

    total_params: int
    active_params: int
    # of the input alone, also where the head is tied to it
    embedding_params: int
    expert_params: int  # routed
    router_params: int
    # everything in feed-forward parts, routed or not; nominal in the convention `paper`
    ffn_params: int
    active_ffn_params: int
    flops_per_token_forward: float
    seq_len: int
    convention: str

    @classmethod
    def of(cls, model: Transformer, seq_len: int, convention: Convention = "real") -> "Budget":
        """Counts a model, which may lie on the meta device."""
        layers = [module for module in model.modules() if isinstance(module, MoE)]
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        total = count(model)
        routers = count(*model.routers())
        experts = sum(sum(layer.experts.expert_params()) for layer in layers)
        active = round(total - experts + sum(map(_chosen, layers)))
        shape = nominal if convention == "paper" else real
        ffn, active_ffn = map(
            sum, zip(*(_ffn_params(block.ffn, shape) for block in blocks), strict=True)
        )
        return cls(
            total_params=total,
            active_params=active,
            embedding_params=count(model.embedding),
            expert_params=experts,
            router_params=routers + count(model.shared_score),
            ffn_params=round(ffn)
            if convention == "paper"
            else count(*(b.ffn for b in blocks)) - routers,
            active_ffn_params=round(active_ffn),
            flops_per_token_forward=_forward_flops(model, seq_len, convention, active_ffn),
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

    def summary(self) -> dict[str, object]:
        """The keys of `summary.json` that are known before training."""
        return {
            "total_params": self.total_params,
            "active_params": self.active_params,
            "flops_per_token_train": self.flops_per_token_train,
        }

    def as_dict(self) -> dict[str, object]:
        """All numbers by name."""
        train = ("flops_per_token_train", "flops_per_sequence_train")
        return asdict(self) | {name: getattr(self, name) for name in train}

    def table(self) -> Table:
        """For the terminal."""
        table = Table("what", "number", "share of total", title="Budget")
        for name in ("total", "active", "expert", "router", "embedding"):
            number = getattr(self, f"{name}_params")
            table.add_row(f"{name} parameters", f"{number:,}", f"{number / self.total_params:.1%}")
        table.add_row("FLOPs per token, training", f"{self.flops_per_token_train:,.0f}", "")
        table.caption = (
            f"FLOPs by the convention `{self.convention}` of app/budget.py, rows of {self.seq_len} "
            "tokens"
        )
        return table


def real(width: int, dim: int) -> float:
    """The width as it is."""
    return width


def nominal(width: int, dim: int) -> float:
    """The simplest fraction of 8 D / 3 that a width was rounded from;
    the width itself if none is near.
    """
    full = 8 * dim / 3
    for parts in range(1, 65):
        value = round(width / full * parts) * full / parts
        if abs(width - value) <= NEAR * value:
            return value
    return width


def _ffn_params(ffn: nn.Module, shape: Callable[[int, int], float]) -> tuple[float, float]:
    """Parameters of one feed-forward part with the widths that `shape` gives, all and active."""
    shared = sum(_scaled(m, shape) for m in ffn.modules() if isinstance(m, FeedForward))
    stacks = [m for m in ffn.modules() if isinstance(m, Stack)]
    if not isinstance(ffn, MoE) or not stacks:
        return shared, shared
    routed = sum(_scaled(stack, shape) for stack in stacks)
    return shared + routed, shared + _chosen(ffn) * routed / count(*stacks)


def _scaled(network: FeedForward | Stack, shape: Callable[[int, int], float]) -> float:
    """Parameters of a network with the width that `shape` gives."""
    dim, width = _width(network)
    return count(network) * shape(width, dim) / width


def _chosen(layer: MoE) -> float:
    """Parameters of the routed experts that one token meets."""
    return layer.experts.active_params(layer.router.top_k)


def _width(network: FeedForward | Stack) -> tuple[int, int]:
    """D and F of a network."""
    if isinstance(network, Stack):
        return network.w_out.shape[2], network.w_out.shape[1]
    return network.w_out.out_features, network.w_out.in_features


def _forward_flops(
    model: Transformer, seq_len: int, convention: Convention, active_ffn: float
) -> float:
    """Per token, by the formulas at the top of this file."""
    config = model.config
    if convention.startswith("paper"):
        products = config.num_layers * 4 * config.dim**2 + active_ffn + model.head.weight.numel()
        return 2 * products + 4 * config.num_layers * config.dim * seq_len
    return forward_flops(model, seq_len / 2 if convention == "causal" else seq_len)


def budget_of(config: Config, convention: Convention = "real") -> tuple[Budget, Memory, Fit]:
    """What a composed config costs, and on what it fits; nothing is allocated and no data is read.

    Raises:
        UserError: the config is wrong, or the number of tokens is known only when the tokenizer's
            file is read.
    """
    model = on_meta(config)
    trainer = build_trainer_config(config | {"trainer": fixed_to_machine(config["trainer"])})
    placement = Placement(
        trainer.strategy, trainer.devices * trainer.num_nodes, trainer.ep_size, trainer.accumulate
    )
    data = build_data(config["data"], config["tokenizer"], config["seed"], placement.ranks)
    work = Work(
        data.seq_len,
        data.micro_batch_size,
        data.micro_batches(placement.ranks),
        FLOAT if trainer.precision == "32-true" else 2,
        optimizer_states(build_optimizer(config)),
        on_cpu=not uses_gpu(trainer.accelerator),
    )
    return (
        Budget.of(model, data.seq_len, convention),
        Memory.of(model, work, placement),
        Fit.of(model, work),
    )


def on_meta(config: Config) -> Transformer:
    """The model of a composed config, without memory.

    Raises:
        UserError: as `budget_of`.
    """
    with torch.device("meta"):
        return build_model(config, _vocabulary(config))


def _vocabulary(config: Config) -> int:
    """What the tokenizer is asked for; what it finds in the text may be less."""
    if config["model"]["vocab_size"] is not None:
        return 1
    chosen = config["tokenizer"]
    size = chosen.get("vocab_size") or getattr(
        find("tokenizer", chosen["name"], "tokenizer"), "vocab_size", None
    )
    if not isinstance(size, int):
        raise UserError(
            "model.vocab_size=null: this tokenizer's size is in its file; state it with "
            "model.vocab_size=N"
        )
    return size
