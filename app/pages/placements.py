"""Placements on paper, for docs/scale.md:
what DeepSeekMoE's models would cost on many GPUs, by arithmetic.
"""

from typing import NamedTuple

from app.config.compose import composed
from app.cost.budget import Budget, on_meta
from app.cost.kept import Work
from app.cost.memory import GPU, Memory, Placement
from app.model.moe import MoE

# per second that an H100 gives: 40 % of the bfloat16 peak
FLOPS = 400e12
# bytes per second and GPU, inside a node of 8 (NVLink) and between nodes (400 Gb/s)
NEAR = 360e9
FAR = 40e9
# of an optimizer step, as in the papers
STEP_TOKENS = 4608 * 4096
PLACEMENTS = [
    ("deepseekmoe_16b", 8, 8),
    ("deepseekmoe_16b", 64, 8),
    ("deepseekmoe_16b", 512, 8),
    ("deepseekmoe_145b", 8, 8),
    ("deepseekmoe_145b", 64, 8),
    ("deepseekmoe_145b", 512, 8),
]


class Load(NamedTuple):
    """What one GPU holds, sends and computes."""

    # bytes of parameters, gradients and optimizer
    state: float
    # bytes, with activations and all else
    at_most: float
    # of 4,096 tokens in a micro-batch
    rows: int
    # in a micro-batch: FSDP2 gathers the parameters twice and scatters the gradients once
    shard_bytes: float
    # in a micro-batch: there and back, forward and backward, bfloat16
    exchange_bytes: float
    compute_s: float  # of a micro-batch
    communication_s: float


def load(name: str, gpus: int, ep_size: int) -> Load:
    """EP inside a node of 8, FSDP2 over all GPUs for the rest
    and over the nodes for the experts.
    """
    config = composed([f"experiment=paper/{name}"])
    model = on_meta(config)
    budget = Budget.of(model, 4096)
    length = 4096
    layers = [m.experts for m in model.modules() if isinstance(m, MoE)]
    experts = budget.expert_params
    rest = budget.total_params - budget.expert_params
    rows = 4 if name == "deepseekmoe_145b" else 8
    memory = Memory.of(
        model, Work(length, rows, micro_batches=2, product=2), Placement("ep", gpus, ep_size)
    )
    nodes = gpus // ep_size
    # bytes; the gathers of a ring; the head, too
    near = 8 * (rest + budget.embedding_params) * (gpus - 1) / gpus
    far = 8 * experts / ep_size * (nodes - 1) / nodes
    tokens = rows * length
    exchange = (
        tokens * len(layers) * layers[0].top_k * model.config.dim * 2 * 4 * (ep_size - 1) / ep_size
    )
    between = NEAR if nodes == 1 else FAR
    return Load(
        state=memory.parameters + memory.gradients + memory.optimizer,
        at_most=memory.at_most,
        rows=rows,
        shard_bytes=near + far,
        exchange_bytes=exchange,
        compute_s=tokens * budget.flops_per_token_train / FLOPS,
        communication_s=near / between + far / FAR + exchange / NEAR,
    )


def _row(name: str, gpus: int, ep_size: int) -> str:
    """One line of the table."""
    at = load(name, gpus, ep_size)
    micros = STEP_TOKENS / (at.rows * 4096 * gpus)
    fits = "yes" if at.at_most < GPU else "**no**"
    share = at.communication_s / (at.communication_s + at.compute_s)
    return (
        f"| {name} | {gpus} | ep {ep_size} x fsdp2 {gpus // ep_size} | {at.state / 1e9:.0f} of "
        f"{at.at_most / 1e9:.0f} GB | {fits} | {micros:.0f} x {at.rows} rows | "
        f"{micros * at.shard_bytes / 1e9:,.0f} GB | {micros * at.exchange_bytes / 1e9:,.0f} GB | "
        f"{micros * at.compute_s:.0f} s | {share:.0%} |"
    )


def markdown() -> str:
    """The table for docs/scale.md."""
    head = (
        "| model | GPUs | placement | state of all bytes of a GPU | fits 80 GB | micro-batches of "
        "a step | sharding "
    )
    head += "| exchange | computing | communication |\n" + "| --- " * 10 + "|\n"
    return head + "".join(f"{_row(*of)}\n" for of in PLACEMENTS)
