"""How many bytes one process of a run needs at most at one time, and on how many 80 GB GPUs a run
fits.

    parameters + optimizer + gathered + max(
        earlier gradients + activations + max(logits, backward + communication),
        gradients + communication,
    )

All that FSDP2 and expert parallelism split is divided by the number of processes; the block that
computes and the one that comes next are gathered. Earlier gradients are those that exist while
activations do: of the micro-batches before, and under DDP always. Logits lie where their gradient
will; backward is the gradient of the activations of one block. Held against what processes need in
`tests/app/cost/test_memory.py`.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import nn

from app.cost.kept import FLOAT, Numbers, Work
from app.model.transformer import Transformer

# bytes; the rest is the CUDA context's and fragmentation's
GPU = 0.95 * 80e9
MOST_GPUS = 16_384


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
    # copies of weights, whole or in the products' dtype
    gathered: float
    communication: float
    activations: float
    logits: float
    at_most: float

    @classmethod
    def of(cls, model: Transformer, work: Work, placement: Placement) -> "Memory":
        """Of a model, which may lie on the meta device."""
        return cls.held(Numbers.of(model, work), work, placement)

    @classmethod
    def held(cls, numbers: Numbers, work: Work, placement: Placement) -> "Memory":
        """By the formula at the top of this file."""
        split = placement.strategy in ("fsdp", "ep")
        own = (
            _split(numbers, work, placement)
            if split
            else _replicated(numbers, work, placement.strategy == "ddp")
        )
        share = FLOAT / (placement.ranks if split else 1)
        parameters = share * numbers.total
        optimizer = share * numbers.states
        kept = numbers.activations
        logits = numbers.logits
        # of the backward pass
        at_first = own.earlier + kept + max(logits, numbers.backward + own.communication)
        at_last = own.gradients + max(own.communication, own.last)
        at_most = parameters + optimizer + own.gathered + max(at_first, at_last)
        return cls(
            parameters,
            own.gradients,
            optimizer,
            own.gathered,
            own.communication,
            kept,
            logits,
            at_most,
        )

    def as_dict(self) -> dict[str, object]:
        """The entry `bytes` of the budget."""
        return {name: round(value) for name, value in asdict(self).items()}


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
            gpus_fsdp=next((n for n in range(1, MOST_GPUS) if fits(Placement("fsdp", n))), None),
            gpus_expert_parallel=next((n for n in divisors if fits(Placement("ep", n, n))), None),
        )


class Own(NamedTuple):
    """What a strategy decides, in bytes."""

    gradients: float
    # of the gradients, while activations exist
    earlier: float
    gathered: float
    communication: float = 0.0
    # of it, at the end of the backward pass
    last: float = 0.0


def _replicated(numbers: Numbers, work: Work, ddp: bool) -> Own:
    copies = work.product * numbers.total if work.product < FLOAT else 0.0  # autocast's
    gradients = FLOAT * numbers.total
    several = work.micro_batches > 1
    # they lie in its buckets from the start, and those of earlier micro-batches beside them
    if ddp:
        gradients *= 2 if several else 1
    return Own(gradients, gradients if ddp or several else 0.0, copies)


def _split(numbers: Numbers, work: Work, placement: Placement) -> Own:
    gathers = placement.ranks > 1
    several = work.micro_batches > 1
    experts = (
        numbers.block_experts / placement.ep_size if placement.ep_size < placement.ranks else 0
    )
    block = gathers * (numbers.block + experts)
    outside = gathers * FLOAT * numbers.outside
    gradients = FLOAT * numbers.total / placement.ranks
    if placement.accumulate == "whole" and several:
        gradients = FLOAT * (numbers.total - numbers.experts * (1 - 1 / placement.ep_size))
    # on the way to their experts and back
    exchanged = 2 * numbers.rows if placement.ep_size > 1 else 0
    return Own(
        gradients,
        earlier=gradients if several else 0.0,
        gathered=outside + 2 * work.product * block,
        # of a block, and of the one before it
        communication=(work.product + 2 * FLOAT) * block + exchanged,
        last=2 * outside,  # embedding and head
    )


def table(memory: Memory, fit: Fit) -> Table:
    """For the terminal."""
    shown = Table("bytes", "GB", title="Memory of one process, as this config is run")
    for name, value in asdict(memory).items():
        shown.add_row(name.replace("_", " "), f"{value / 1e9:,.2f}")
    shown.add_row("fits one 80 GB GPU", "yes" if fit.one_gpu else "no")
    shown.add_row(
        "80 GB GPUs for trainer=fsdp, at least", str(fit.gpus_fsdp or "no number is enough")
    )
    shown.add_row(
        "for trainer=ep with all of them", str(fit.gpus_expert_parallel or "no number is enough")
    )
    return shown


def optimizer_states(optimizer: Any) -> tuple[float, float]:
    """Numbers that an optimizer keeps per parameter of hidden matrices and of others, found by one
    step on small ones.

    Args:
        optimizer: from a list of parameter groups to a torch optimizer.
    """
    matrices = [nn.Parameter(torch.zeros(64, 64)) for _ in range(2)]
    for matrix in matrices:
        matrix.grad = torch.zeros_like(matrix)
    groups = zip(matrices, (True, False), strict=True)
    made = optimizer(
        [{"params": [matrix], "hidden": hidden, "axis": None} for matrix, hidden in groups]
    )
    made.step()
    kept = [
        [v for v in made.state[matrix].values() if torch.is_tensor(v) and v.dim()]
        for matrix in matrices
    ]
    of_hidden, of_others = (sum(value.numel() for value in values) / 64**2 for values in kept)
    return of_hidden, of_others
