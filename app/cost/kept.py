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
        hidden = sum(p.numel() for p in {*model.matrices()} & {*model.blocks.parameters()})
        total = count(model)
        sizes = [(count(block), count(*_stacks(block))) for block in blocks]
        largest, stacked = max(sizes)
        kept = [_kept_by(block, work) for block in blocks]
        most = max(kept)
        held = (
            FLOAT * dim * len(blocks) + most if model.config.activation_checkpointing else sum(kept)
        )
        mask = work.seq_len * work.product if work.on_cpu else 0  # elsewhere blocks of positions
        return cls(
            total=total,
            experts=sum(experts for _, experts in sizes),
            outside=total - sum(size for size, _ in sizes),
            block=largest - stacked,
            block_experts=stacked,
            states=work.states[0] * hidden + work.states[1] * (total - hidden),
            activations=tokens * (held + _kept_by_norm(dim, work) + work.product * dim + mask),
            backward=tokens * most / 2,
            logits=vocab * (work.product * tokens + FLOAT * min(tokens, ROWS)),
            rows=work.product
            * tokens
            * max((_chosen(b) * _widths(b)[0] for b in blocks if _stacks(b)), default=0),
        )


def _kept_by_norm(dim: int, work: Work) -> int:
    """Bytes per token: its input, and what was normed where torch has no fused kernel."""
    return FLOAT * dim * (2 if work.on_cpu else 1)


def _kept_by(block: Block, work: Work) -> float:
    """Bytes per token until the backward pass."""
    query, key, value = block.attention.sizes
    dim = block.ffn_norm.weight.numel()
    norms = 2 * _kept_by_norm(dim, work)
    # what norms give; before and after rotation; output
    attention = 2 * dim + 3 * query + 2 * key + value
    shared = sum(4 * m.w_out.in_features for m in block.modules() if isinstance(m, FeedForward))
    once = norms + work.product * (attention + shared)
    if not isinstance(block.ffn, MoE):
        return once
    layout = block.ffn.experts
    # each factor of a skill multiplies once
    if isinstance(layout, Mixture):
        factors = sum(2 * len(layer.skills_a) * layer.skills_a.size(-1) for layer in skilled(block))
        return layout.passes * once + work.product * factors
    # probabilities; places of assignments
    router = FLOAT * (3 * layout.num_experts + 10 * layout.top_k)
    return once + router + work.product * _chosen(block) * 2 * sum(_widths(block))


def _widths(block: nn.Module) -> tuple[float, float]:
    """Of what an expert of a block sees, and its hidden one, on average."""
    shapes = [stack.w_out.shape for stack in _stacks(block)]
    number = sum(experts for experts, _, _ in shapes) or 1  # a layout may have none
    width = sum(experts * seen for experts, _, seen in shapes) / number
    return width, sum(experts * hidden for experts, hidden, _ in shapes) / number


def _chosen(block: Block) -> int:
    assert isinstance(block.ffn, MoE)
    return block.ffn.experts.top_k


def _stacks(module: nn.Module) -> list[Stack]:
    return [inner for inner in module.modules() if isinstance(inner, Stack)]


def count(*modules: nn.Module | None) -> int:
    """Parameters of modules, those that are there."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())
