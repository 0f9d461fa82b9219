"""What the memory of a model is made of: numbers of parameters, and bytes that are kept for the
backward pass.

Activations are what autograd keeps, by the shapes of the inputs of matrix products (as in
Korthikanti et al. 2022, arXiv 2205.05198, section 4).
"""

from typing import NamedTuple

from torch import nn

from app.model.block import Block
from app.model.loss import ROWS
from app.model.moe import MoE
from app.model.transformer import Transformer
from experts.contract import FeedForward, Stack
from experts.low_rank import skilled
from experts.mixture import Mixture

# bytes of a number, outside of the products of bf16-mixed
FLOAT = 4


class Work(NamedTuple):
    """What a process computes in a step."""

    seq_len: int
    rows: int  # of a micro-batch
    micro_batches: int = 1
    # bytes of a number in a matrix product
    product: int = FLOAT
    # the optimizer's numbers per parameter: of hidden matrices, of all else
    states: tuple[float, float] = (2, 2)
    on_cpu: bool = False


class Numbers(NamedTuple):
    """What the memory of a model is made of: numbers of parameters, bytes of all else."""

    total: int
    experts: int  # in stacks
    outside: int  # of the blocks
    # the largest one, without its stacks
    block: int
    block_experts: int  # its stacks
    states: float  # of the optimizer
    activations: float
    backward: float
    logits: float
    # of tokens that travel to experts, in one layer
    rows: float

    @classmethod
    def of(cls, model: Transformer, work: Work) -> "Numbers":
        """Counts a model, which may lie on the meta device."""
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        dim = model.config.dim
        vocab = model.head.weight.shape[0]
        tokens = work.rows * work.seq_len

        # Parameters
        total = count(model)
        hidden = sum(p.numel() for p in {*model.matrices()} & {*model.blocks.parameters()})
        sizes = [(count(block), count(*_stacks(block))) for block in blocks]
        largest, stacked = max(sizes)

        # Activations, in bytes per token. With checkpointing each block keeps its input alone, and
        # the one whose backward pass runs has the rest again.
        by_block = [_kept_by(block, work) for block in blocks]
        most = max(by_block)
        if model.config.activation_checkpointing:
            held = FLOAT * dim * len(blocks) + most
        else:
            held = sum(by_block)
        head = _kept_by_norm(dim, work) + work.product * dim
        # The mask of a document: elsewhere it is made of blocks of positions, which are few.
        mask = work.seq_len * work.product if work.on_cpu else 0

        # Rows that travel to the experts of one layer
        rows = [_chosen(block) * _widths(block)[0] for block in blocks if _stacks(block)]
        return cls(
            total=total,
            experts=sum(experts for _, experts in sizes),
            outside=total - sum(size for size, _ in sizes),
            block=largest - stacked,
            block_experts=stacked,
            states=work.states[0] * hidden + work.states[1] * (total - hidden),
            activations=tokens * (held + head + mask),
            backward=tokens * most / 2,
            logits=vocab * (work.product * tokens + FLOAT * min(tokens, ROWS)),
            rows=work.product * tokens * max(rows, default=0),
        )


def _kept_by_norm(dim: int, work: Work) -> int:
    """Bytes per token: its input, and what was normed where torch has no fused kernel."""
    return FLOAT * dim * (2 if work.on_cpu else 1)


def _kept_by(block: Block, work: Work) -> float:
    """Bytes per token until the backward pass."""
    query, key, value = block.attention.sizes
    dim = block.ffn_norm.weight.numel()
    norms = 2 * _kept_by_norm(dim, work)
    # The outputs of both norms; queries and keys before and after rotation, values, the output.
    attention = 2 * dim + 3 * query + 2 * key + value
    shared = 0
    for module in block.modules():
        if isinstance(module, FeedForward):
            shared += 4 * module.w_out.in_features
    once = norms + work.product * (attention + shared)
    if not isinstance(block.ffn, MoE):
        return once
    layout = block.ffn.experts
    if isinstance(layout, Mixture):
        # Each factor of a skill multiplies once.
        factors = 0
        for layer in skilled(block):
            factors += 2 * len(layer.skills_a) * layer.skills_a.size(-1)
        return layout.passes * once + work.product * factors
    # Probabilities, and the places of the assignments.
    router = FLOAT * (3 * layout.num_experts + 10 * layout.top_k)
    experts = work.product * _chosen(block) * 2 * sum(_widths(block))
    return once + router + experts


def _widths(block: nn.Module) -> tuple[float, float]:
    """Mean width of what an expert of a block sees, and mean width of its hidden layer."""
    experts = 0
    inputs = 0
    hidden = 0
    for stack in _stacks(block):
        number, hidden_dim, dim = stack.w_out.shape
        experts += number
        inputs += number * dim
        hidden += number * hidden_dim
    # A layout may have no experts that compute.
    return inputs / max(1, experts), hidden / max(1, experts)


def _chosen(block: Block) -> int:
    assert isinstance(block.ffn, MoE)
    return block.ffn.experts.top_k


def _stacks(module: nn.Module) -> list[Stack]:
    return [inner for inner in module.modules() if isinstance(inner, Stack)]


def count(*modules: nn.Module | None) -> int:
    """Parameters of modules, those that are there."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())
