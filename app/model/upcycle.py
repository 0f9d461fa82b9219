"""A mixture of experts that starts from a dense model of ours, trained before.

    copied    every expert is the dense network (Komatsuzaki et al. 2022, arXiv 2212.05055)
    granular  expert e is part e mod m of the dense network, its output times m; the m experts of a
              group start with one score, so that they are chosen together (He et al. 2024, arXiv
              2410.07524, section 3, virtual groups)
    drop      copied, then a share of every expert's hidden units is drawn anew from N(mean, std) of
              the dense matrix (Nakamura et al. 2025, arXiv 2502.19261, section 3)

The outputs of the experts are divided by the sum of a token's gates at equal scores: 1 where gates
are normalised, top_k / E under a softmax over all experts (as Megatron-Core does for 2410.07524),
each times the router's `scale`. If all tokens have this sum, the first forward pass of `copied` and
`granular` equals that of the dense model; otherwise it is close while the scores are close to each
other. All other weights are copied; a shared expert starts at 0.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from app.model.block import Block
from app.model.moe import MoE
from app.model.transformer import Transformer
from app.registry import UserError, require
from experts.contract import FeedForward, Routed
from routers.contract import Context, Score
from routers.router import Router

How = Literal["copied", "granular", "drop"]
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class UpcycleInit:
    """`init=upcycle`: experts that are made of a dense model.

    Raises:
        ValueError: `drop_share` is not in 0..1, or no checkpoint is named.
    """

    checkpoint: str | None
    how: How
    drop_share: float

    def __post_init__(self) -> None:
        has_checkpoint = self.checkpoint is not None
        require("checkpoint", self.checkpoint, has_checkpoint, "must be a run of a dense model")
        require("drop_share", self.drop_share, 0 <= self.drop_share <= 1, "must be in 0..1")

    def freeze_parameters(self, model: Transformer) -> None:
        """Freeze nothing."""


@torch.no_grad()
def upcycle(
    model: Transformer, dense: State, how: How, drop_share: float = 0.5, seed: int = 0
) -> None:
    """Overwrites the weights of a model by those of a dense one.

    Args:
        dense: state of a `Transformer` without experts; the prefix `model.` of a checkpoint is
            understood.
        how: copied, granular or drop.
        drop_share: of the hidden units that `drop` draws anew, 0..1.
        seed: of what is drawn.

    Raises:
        UserError: the sizes do not fit, or the layout has no single stack of experts.
    """
    dense = {name.removeprefix("model."): tensor for name, tensor in dense.items()}
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".ffn." not in name and "shared_score" not in name:
            _copy(name, parameter, dense.get(name))
    for index, block in enumerate(block for block in model.blocks if isinstance(block, Block)):
        prefix = f"blocks.{index}.ffn."
        network = _dense_network(dense, f"{prefix}experts.common.")
        if isinstance(block.ffn, MoE):
            _fill(block.ffn, network, how, drop_share, random)
        else:
            for name, parameter in block.ffn.named_parameters():
                _copy(prefix + name, parameter, dense.get(prefix + name))


class _Network(NamedTuple):
    """A dense feed-forward network."""

    w_in: Tensor  # (D, 2F)
    w_out: Tensor  # (F, D)
    b_in: Tensor | None  # (2F,)
    b_out: Tensor | None  # (D,)


def _dense_network(dense: State, prefix: str) -> _Network:
    if f"{prefix}w_in.weight" not in dense:
        raise UserError(
            f"the checkpoint has no {prefix}w_in.weight: it is not of a dense model, or has fewer "
            "layers"
        )
    w_in = dense[f"{prefix}w_in.weight"].T
    w_out = dense[f"{prefix}w_out.weight"].T
    return _Network(w_in, w_out, dense.get(f"{prefix}w_in.bias"), dense.get(f"{prefix}w_out.bias"))


def _fill(
    layer: MoE, network: _Network, how: How, drop_share: float, random: torch.Generator
) -> None:
    """Overwrite the experts of one layer by one dense network."""
    layout, (w_in, w_out, b_in, b_out) = layer.experts, network
    if (
        not isinstance(layout, Routed)
        or hasattr(layout, "up")
        or layout.routed.activation.columns != 2
    ):
        raise UserError(
            f"{type(layout).__name__} cannot be upcycled: it has no stack of experts in the "
            "model's width"
        )
    if (layout.routed.b_in is None) != (b_in is None):
        raise UserError("experts.activation.bias: must be as in the dense model of init.checkpoint")
    parts = _parts(layout, len(w_out), how)
    gate_sum = _gate_sum(layer.router)
    for e in range(len(layout.routed.w_in)):
        units = torch.arange(layout.hidden_dim) + e % parts * layout.hidden_dim
        columns = torch.cat((units, units + len(w_out)))  # of gate and up
        layout.routed.w_in[e] = w_in[:, columns]
        layout.routed.w_out[e] = w_out[units] * parts / gate_sum
        if b_in is not None and layout.routed.b_in is not None:
            layout.routed.b_in[e] = b_in[columns]
        if b_out is not None and layout.routed.b_out is not None:
            layout.routed.b_out[e] = b_out / gate_sum
        if how == "drop":
            _draw_anew(layout.routed.w_in[e], layout.routed.w_out[e], drop_share, random)
    if parts > 1:
        _equal_scores(layer.router.score, layout.num_experts, parts)
    common = getattr(layout, "common", None)
    if isinstance(common, FeedForward):
        common.w_out.weight.zero_()


def _parts(layout: Routed, dense_width: int, how: How) -> int:
    """How many experts one dense network is split into."""
    parts = dense_width // layout.hidden_dim if how == "granular" else 1
    if parts * layout.hidden_dim != dense_width or layout.top_k % max(1, parts):
        raise UserError(
            f"experts of width {layout.hidden_dim}, {layout.top_k} per token, cannot start as "
            f"{how} from a dense width of {dense_width}: copied and drop need equal widths, "
            "granular a width and a top_k that divide evenly"
        )
    return parts


def _gate_sum(router: Router) -> float:
    """Return the sum of the gates of a token whose scores are all equal.

    Raises:
        UserError: No factor on the outputs makes up for these gates.
    """
    name = type(router.weigh).__name__
    if router.weigh.on_input:
        raise UserError(
            f"init.checkpoint: {name} weighs what experts see, so they cannot start as a dense "
            "model"
        )
    was_training = router.weigh.training
    router.weigh.eval()
    # real values are needed even if the model is on the meta device
    with torch.device("cpu"):
        activated = router.weigh.activated(torch.zeros(1, router.num_experts))
        token = torch.zeros(router.top_k, dtype=torch.int64)
        expert = torch.arange(router.top_k)
        gates = router.weigh(activated, token, expert, Context(torch.ones(1, 1, dtype=torch.bool)))
    router.weigh.train(was_training)
    if gates.sum() <= 0:
        raise UserError(
            f"init.checkpoint: {name} gives gates of 0 to equal scores; set router/weigh=softmax"
        )
    return float(gates.sum())


def _equal_scores(score: Score, num_experts: int, parts: int) -> None:
    """Gives the experts of a group, `parts` neighbours, the score of its first one."""
    for parameter in score.parameters():
        if len(parameter) == num_experts:
            parameter.copy_(parameter[torch.arange(num_experts) // parts * parts])


def _draw_anew(w_in: Tensor, w_out: Tensor, share: float, random: torch.Generator) -> None:
    """A share of the hidden units of one expert, in both matrices,
    by mean and standard deviation of each.
    """
    width = len(w_out)
    units = torch.randperm(width, generator=random)[: round(share * width)]
    for matrix in (w_in[:, :width], w_in[:, width:], w_out.T):
        drawn = torch.randn(len(matrix), len(units), generator=random)
        matrix[:, units] = (matrix.mean() + matrix.std() * drawn).to(matrix.dtype)


def _copy(name: str, parameter: Tensor, saved: Tensor | None) -> None:
    if saved is None or saved.shape != parameter.shape:
        there = "nothing" if saved is None else tuple(saved.shape)
        raise UserError(
            f"the checkpoint does not fit: {name} is {there} there and {tuple(parameter.shape)} "
            "here"
        )
    parameter.copy_(saved)
