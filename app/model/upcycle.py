"""A mixture of experts that starts from a dense model of ours, trained before.

    copied    every expert is the dense network (Komatsuzaki et al. 2022, arXiv 2212.05055)
    granular  expert e is part e mod m of the dense network, its output times m; the m experts of a group start with one
              score, so that they are chosen together (He et al. 2024, arXiv 2410.07524, section 3, virtual groups)
    drop      copied, then a share of every expert's hidden units is drawn anew from N(mean, std) of the dense matrix
              (Nakamura et al. 2025, arXiv 2502.19261, section 3)

With gates that sum to 1 the first forward pass of `copied` and `granular` is that of the dense model. All else is taken
over as it is; a shared expert starts at 0.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from app.model.block import Block
from app.model.moe import MoE
from app.model.transformer import Transformer
from app.registry import UserError, require
from experts.contract import FeedForward, Routed
from routers.contract import Score

How = Literal["copied", "granular", "drop"]
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Upcycle:
    """The config group `upcycle`: what the experts start from, and how.

    Raises:
        ValueError: `drop_share` is not in 0..1.
    """

    checkpoint: str | None
    how: How
    drop_share: float

    def __post_init__(self) -> None:
        require("drop_share", self.drop_share, 0 <= self.drop_share <= 1, "must be in 0..1")


@torch.no_grad()
def upcycle(model: Transformer, dense: State, how: How, drop_share: float = 0.5, seed: int = 0) -> None:
    """Overwrites the weights of a model by those of a dense one.

    Args:
        dense: state of a `Transformer` without experts; the prefix `model.` of a checkpoint is understood.
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
        w_in, w_out = _dense_weights(dense, f"{prefix}experts.common.")  # (D, 2F), (F, D)
        if isinstance(block.ffn, MoE):
            _fill(block.ffn, w_in, w_out, how, drop_share, random)
        else:
            for name, parameter in block.ffn.named_parameters():
                _copy(prefix + name, parameter, dense.get(prefix + name))


def _dense_weights(dense: State, prefix: str) -> tuple[Tensor, Tensor]:
    if f"{prefix}w_in.weight" not in dense:
        raise UserError(f"the checkpoint has no {prefix}w_in.weight: it is not of a dense model, or has fewer layers")
    return dense[f"{prefix}w_in.weight"].T, dense[f"{prefix}w_out.weight"].T


def _fill(layer: MoE, w_in: Tensor, w_out: Tensor, how: How, drop_share: float, random: torch.Generator) -> None:
    """The experts of one layer from one dense network (D, 2F), (F, D)."""
    layout = layer.experts
    if not isinstance(layout, Routed) or hasattr(layout, "up") or layout.routed.activation.columns != 2:
        raise UserError(f"{type(layout).__name__} cannot be upcycled: it has no stack of experts in the model's width")
    parts = _parts(layout, len(w_out), how)
    for e in range(len(layout.routed.w_in)):
        units = torch.arange(layout.hidden_dim) + e % parts * layout.hidden_dim
        layout.routed.w_in[e] = w_in[:, torch.cat((units, units + len(w_out)))]
        layout.routed.w_out[e] = w_out[units] * parts
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
            f"experts of width {layout.hidden_dim}, {layout.top_k} per token, cannot start as {how} from a dense width "
            f"of {dense_width}: copied and drop need equal widths, granular a width and a top_k that divide evenly"
        )
    return parts


def _equal_scores(score: Score, num_experts: int, parts: int) -> None:
    """Gives the experts of a group, `parts` neighbours, the score of its first one."""
    for parameter in score.parameters():
        if len(parameter) == num_experts:
            parameter.copy_(parameter[torch.arange(num_experts) // parts * parts])


def _draw_anew(w_in: Tensor, w_out: Tensor, share: float, random: torch.Generator) -> None:
    """A share of the hidden units of one expert, in both matrices, by mean and standard deviation of each."""
    width = len(w_out)
    units = torch.randperm(width, generator=random)[: round(share * width)]
    for matrix in (w_in[:, :width], w_in[:, width:], w_out.T):
        drawn = torch.randn(len(matrix), len(units), generator=random)
        matrix[:, units] = (matrix.mean() + matrix.std() * drawn).to(matrix.dtype)


def _copy(name: str, parameter: Tensor, saved: Tensor | None) -> None:
    if saved is None or saved.shape != parameter.shape:
        there = "nothing" if saved is None else tuple(saved.shape)
        raise UserError(f"the checkpoint does not fit: {name} is {there} there and {tuple(parameter.shape)} here")
    parameter.copy_(saved)
