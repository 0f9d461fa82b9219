"""How many bytes one process of a run needs at most at one time, and on how many 80 GB GPUs a run fits.

    parameters + optimizer + gathered + max(earlier gradients + activations + max(logits, backward + communication),
                                            gradients + communication)

All that FSDP2 and expert parallelism split is divided by the number of processes; the block that computes and the one
that comes next are gathered. Earlier gradients are those that exist while activations do: of the micro-batches before,
and under DDP always. Activations are what autograd keeps, by the shapes of the inputs of matrix products (as in
Korthikanti et al. 2022, arXiv 2205.05198, section 4); logits lie where their gradient will; backward is the gradient of
the activations of one block. Held against what processes need in `tests/app/cost/test_memory.py`.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import nn

from app.model.block import Block
from app.model.loss import ROWS
from app.model.moe import MoE
from app.model.transformer import Transformer
from experts.contract import FeedForward, Stack
from experts.low_rank import skilled
from experts.mixture import Mixture

GPU = 0.95 * 80e9  # bytes; the rest is the CUDA context's and fragmentation's
MOST_GPUS = 16_384
FLOAT = 4  # bytes of a number, outside of the products of bf16-mixed


class Work(NamedTuple):
    """What a process computes in a step."""

    seq_len: int
    rows: int  # of a micro-batch
    micro_batches: int = 1
    product: int = FLOAT  # bytes of a number in a matrix product
    states: tuple[float, float] = (2, 2)  # the optimizer's numbers per parameter: of hidden matrices, of all else
    on_cpu: bool = False


class Placement(NamedTuple):
    """Among how many processes a run is shared, and how; as in the group `trainer`."""

    strategy: str = "auto"
    ranks: int = 1
    ep_size: int = 1
    accumulate: str = "sharded"


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, and how many are needed at one time."""

    parameters: float
    gradients: float
    optimizer: float
    gathered: float  # copies of weights, whole or in the products' dtype
    communication: float
    activations: float
    logits: float
    at_most: float

    @classmethod
    def of(cls, model: Transformer, work: Work, placement: Placement) -> "Memory":
        """Of a model, which may lie on the meta device."""
        return cls.held(Numbers.of(model, work), work, placement)

    @classmethod
    def held(cls, numbers: "Numbers", work: Work, placement: Placement) -> "Memory":
        """By the formula at the top of this file."""
        split, several = placement.strategy in ("fsdp2", "ep"), work.micro_batches > 1
        share = 1 / placement.ranks if split else 1
        block = numbers.block + numbers.block_experts / placement.ep_size * (placement.ep_size < placement.ranks)
        gathered = communication = last = 0.0
        gradients, early = FLOAT * share * numbers.total, several
        if split and placement.ranks > 1:
            gathered = FLOAT * numbers.outside + 2 * work.product * block
            communication = (work.product + 2 * FLOAT) * block  # of one block, and of the one before it on its way
            last = 2 * FLOAT * numbers.outside  # embedding and head
            if placement.accumulate == "whole" and several:
                gradients = FLOAT * (numbers.total - numbers.experts * (1 - 1 / placement.ep_size))
        elif not split:
            gathered = work.product * numbers.total if work.product < FLOAT else 0.0  # autocast's copies
        if placement.strategy == "ddp":  # gradients lie in its buckets, and those of earlier micro-batches beside them
            gradients, early = (2 if several else 1) * gradients, True
        if placement.ep_size > 1:
            communication += 2 * numbers.rows  # on the way to their experts and back
        parameters, optimizer = FLOAT * share * numbers.total, FLOAT * share * numbers.states
        kept, logits = numbers.activations, numbers.logits
        at_first = early * gradients + kept + max(logits, numbers.backward + communication)  # of the backward pass
        at_last = gradients + max(communication, last)
        at_most = parameters + optimizer + gathered + max(at_first, at_last)
        return cls(parameters, gradients, optimizer, gathered, communication, kept, logits, at_most)

    def as_dict(self) -> dict[str, Any]:
        """The entry `bytes` of the budget."""
        return {name: round(value) for name, value in asdict(self).items()}


class Numbers(NamedTuple):
    """What the memory of a model is made of: numbers of parameters, bytes of all else."""

    total: int
    experts: int  # in stacks
    outside: int  # of the blocks
    block: int  # the largest one, without its stacks
    block_experts: int  # its stacks
    states: float  # of the optimizer
    activations: float
    backward: float
    logits: float
    rows: float  # of tokens that travel to experts, in one layer

    @classmethod
    def of(cls, model: Transformer, work: Work) -> "Numbers":
        """Counts a model, which may lie on the meta device."""
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        dim, vocab = model.config.dim, model.head.weight.shape[0]
        tokens = work.rows * work.seq_len
        hidden = sum(p.numel() for p in {*model.matrices()} & {*model.blocks.parameters()})
        total = _count(model)
        sizes = [(_count(block), _count(*_stacks(block))) for block in blocks]
        largest, stacked = max(sizes)
        kept = [_kept_by(block, work) for block in blocks]
        most = max(kept)
        held = FLOAT * dim * len(blocks) + most if model.config.activation_checkpointing else sum(kept)
        mask = work.seq_len * (work.product + 1) if work.on_cpu else 0  # elsewhere blocks of positions
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
            rows=work.product * tokens * max((_chosen(b) * _widths(b)[0] for b in blocks if _stacks(b)), default=0),
        )


@dataclass(frozen=True)
class Fit:
    """On what a run fits; None where no number is enough."""

    one_gpu: bool
    gpus_fsdp: int | None
    gpus_expert_parallel: int | None

    @classmethod
    def of(cls, model: Transformer, work: Work) -> "Fit":
        """For 80 GB GPUs, on each of which `work` is done."""
        work = work._replace(on_cpu=False)
        numbers = Numbers.of(model, work)

        def fits(placement: Placement) -> bool:
            return Memory.held(numbers, work, placement).at_most <= GPU

        divisors = [n for n in range(1, model.num_experts + 1) if model.num_experts % n == 0]
        return cls(
            one_gpu=fits(Placement()),
            gpus_fsdp=next((n for n in range(1, MOST_GPUS) if fits(Placement("fsdp2", n))), None),
            gpus_expert_parallel=next((n for n in divisors if fits(Placement("ep", n, n))), None),
        )


def table(memory: Memory, fit: Fit) -> Table:
    """For the terminal."""
    shown = Table("bytes", "GB", title="Memory of one process, as this config is run")
    for name, value in asdict(memory).items():
        shown.add_row(name.replace("_", " "), f"{value / 1e9:,.2f}")
    shown.add_row("fits one 80 GB GPU", "yes" if fit.one_gpu else "no")
    shown.add_row("80 GB GPUs for trainer=fsdp, at least", str(fit.gpus_fsdp or "no number is enough"))
    shown.add_row("for trainer=ep with all of them", str(fit.gpus_expert_parallel or "no number is enough"))
    return shown


def optimizer_states(optimizer: Any) -> tuple[float, float]:
    """Numbers that an optimizer keeps per parameter of hidden matrices and of others, found by one step on small ones.

    Args:
        optimizer: from a list of parameter groups to a torch optimizer.
    """
    matrices = [nn.Parameter(torch.zeros(64, 64)) for _ in range(2)]
    for matrix in matrices:
        matrix.grad = torch.zeros_like(matrix)
    groups = zip(matrices, (True, False), strict=True)
    made = optimizer([{"params": [matrix], "hidden": hidden, "axis": None} for matrix, hidden in groups])
    made.step()
    kept = [[v for v in made.state[matrix].values() if torch.is_tensor(v) and v.dim()] for matrix in matrices]
    of_hidden, of_others = (sum(value.numel() for value in values) / 64**2 for values in kept)
    return of_hidden, of_others


def _kept_by_norm(dim: int, work: Work) -> int:
    """Bytes per token: its input, and what was normed where torch has no fused kernel."""
    return FLOAT * dim * (2 if work.on_cpu else 1)


def _kept_by(block: Block, work: Work) -> float:
    """Bytes per token until the backward pass."""
    query, key, value = block.attention.sizes
    dim = block.ffn_norm.weight.numel()
    norms = 2 * _kept_by_norm(dim, work)
    attention = 2 * dim + 3 * query + 2 * key + value  # what norms give; before and after rotation; output
    shared = sum(4 * m.w_out.in_features for m in block.modules() if isinstance(m, FeedForward))
    once = norms + work.product * (attention + shared)
    if not isinstance(block.ffn, MoE):
        return once
    mixture = block.ffn.experts
    if isinstance(mixture, Mixture):  # each factor of a skill multiplies once
        factors = sum(2 * len(layer.skills_a) * layer.skills_a.size(-1) for layer in skilled(block))
        return mixture.passes * once + work.product * factors
    router = FLOAT * (3 * mixture.num_experts + 10 * mixture.top_k)  # probabilities; places of assignments
    return once + router + work.product * _chosen(block) * 2 * sum(_widths(block))


def _widths(block: nn.Module) -> tuple[float, float]:
    """Of what an expert of a block sees, and its hidden one, on average."""
    shapes = [stack.w_out.shape for stack in _stacks(block)]
    number = sum(experts for experts, _, _ in shapes)
    width = sum(experts * seen for experts, _, seen in shapes) / number
    return width, sum(experts * hidden for experts, hidden, _ in shapes) / number


def _chosen(block: Block) -> int:
    assert isinstance(block.ffn, MoE)
    return block.ffn.experts.top_k


def _stacks(module: nn.Module) -> list[Stack]:
    return [inner for inner in module.modules() if isinstance(inner, Stack)]


def _count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())
