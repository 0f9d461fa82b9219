"""How many bytes a training run needs on a GPU, and on how many 80 GB GPUs it fits.

    parameters + gradients + optimizer + activations <= 95 % of 80 GB

DDP holds all of it on every GPU. FSDP divides the first three by the number of GPUs and gathers one block at a time;
expert parallelism divides only the routed experts. The activations are an estimate of what autograd keeps, by the
shapes of the inputs of matrix products (as in Korthikanti et al. 2022, arXiv 2205.05198, section 4, with an attention
that keeps no S x S matrix).
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from app.model.block import Block
from app.model.moe import MoE
from app.model.transformer import Transformer
from experts.contract import FeedForward, Stack
from experts.low_rank import skilled
from experts.mixture import Mixture

GPU = 0.95 * 80e9  # bytes; the rest is the CUDA context's and fragmentation's
MOST_GPUS = 16_384


@dataclass(frozen=True)
class Memory:
    """Bytes of one process that holds everything, and the numbers of GPUs; None where no number is enough."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    fits_one_gpu: bool
    gpus_fsdp: int | None
    gpus_expert_parallel: int | None

    @classmethod
    def of(cls, model: Transformer, seq_len: int, rows: int, precision: str, states: float) -> "Memory":
        """For micro-batches of `rows` rows; `states` are the optimizer's numbers per parameter (AdamW: 2)."""
        width = 2 if precision.endswith("-true") and not precision.startswith("32") else 4
        total = sum(p.numel() for p in model.parameters())
        state = width * (2 + states)  # bytes per parameter
        activations = round(_kept(model) * (4 if precision.startswith("32") else 2) * seq_len * rows)
        largest = max(sum(p.numel() for p in block.parameters()) for block in model.blocks)
        experts = sum(sum(m.experts.expert_params()) for m in model.modules() if isinstance(m, MoE))
        gathered = activations + 2 * width * largest
        return cls(
            parameters=width * total,
            gradients=width * total,
            optimizer=round(width * states * total),
            activations=activations,
            fits_one_gpu=state * total + activations <= GPU,
            gpus_fsdp=next((n for n in range(1, MOST_GPUS) if state * total / n + gathered <= GPU), None),
            gpus_expert_parallel=_smallest(model.num_experts, state * experts, state * (total - experts) + activations),
        )

    def as_dict(self) -> dict[str, Any]:
        """The entry `bytes` of the budget."""
        return asdict(self)

    def table(self) -> Table:
        """For the terminal."""
        table = Table("bytes", "GB", title="Memory of one process that holds everything")
        for name in ("parameters", "gradients", "optimizer", "activations"):
            table.add_row(
                name + (", an estimate" if name == "activations" else ""), f"{getattr(self, name) / 1e9:,.2f}"
            )
        table.add_row("fits one 80 GB GPU (DDP)", "yes" if self.fits_one_gpu else "no")
        table.add_row("80 GB GPUs for FSDP, at least", str(self.gpus_fsdp or "no number is enough"))
        table.add_row("for expert parallelism alone, at least", str(self.gpus_expert_parallel or "no number is enough"))
        return table


def optimizer_states(optimizer: Any) -> float:
    """Numbers that an optimizer keeps per parameter, found by one step on a small hidden matrix.

    Args:
        optimizer: from a list of parameter groups to a torch optimizer.
    """
    matrix = nn.Parameter(torch.zeros(64, 64))
    matrix.grad = torch.zeros_like(matrix)
    made = optimizer([{"params": [matrix], "hidden": True, "axis": None}])
    made.step()
    kept = (value for value in made.state[matrix].values() if torch.is_tensor(value) and value.dim())
    return sum(value.numel() for value in kept) / matrix.numel()


def _smallest(num_experts: int, divided: float, whole: float) -> int | None:
    """The smallest number of GPUs that the experts divide among evenly."""
    even = [n for n in range(1, num_experts + 1) if num_experts % n == 0]
    return next((n for n in even if divided / n + whole <= GPU), None)


def _kept(model: Transformer) -> float:
    """Numbers kept per token until the backward pass."""
    blocks = [_kept_by(block) for block in model.blocks if isinstance(block, Block)]
    dim, vocab = model.config.dim, model.head.weight.shape[0]
    if model.config.activation_checkpointing:
        return dim * len(blocks) + max(blocks) + vocab
    return sum(blocks) + vocab


def _kept_by(block: Block) -> float:
    query, key, value = block.attention.sizes
    dim = block.ffn_norm.weight.numel()
    attention = 4 * dim + 2 * (query + key) + value + query  # two norms in and out, before and after rotation, output
    shared = sum(4 * m.w_out.in_features for m in block.modules() if isinstance(m, FeedForward))
    if not isinstance(block.ffn, MoE):
        return attention + shared
    mixture = block.ffn.experts
    if isinstance(mixture, Mixture):  # each factor of a skill multiplies once
        factors = sum(2 * len(layer.skills_a) * layer.skills_a.size(-1) for layer in skilled(block))
        return mixture.passes * (attention + shared) + factors
    stacks = [m.w_out.shape for m in block.modules() if isinstance(m, Stack)]
    routed = sum(experts * 2 * (width + hidden) for experts, hidden, width in stacks) / sum(s[0] for s in stacks)
    return attention + shared + block.ffn.experts.top_k * routed + block.ffn.experts.num_experts * 2
