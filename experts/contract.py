"""What a layout of experts promises: computing the rows that were routed to its experts, and what
every token gets.

    y = shared(x) + leave( sum over the assignments of a token of gate * expert( enter(x) ), x )

A layout owns the number of routed experts and how many of them a token takes. Letters as in
`routers.contract`; F is the width inside one expert, Z the width that the experts see (D in most
layouts), C the experts that compute.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from app.registry import require
from experts import grouped
from experts.activation.contract import Activation
from experts.activation.swiglu import SwiGLU
from experts.matrix import MatrixLayout


class Experts(nn.Module):
    """Base of all layouts."""

    num_experts: int  # E, routed
    top_k: int  # K, routed experts per token
    # experts that compute next to nothing: they return 0, their input or a constant
    free: tuple[int, ...] = ()
    # those of them that return 0
    null: tuple[int, ...] = ()

    @property
    def num_computed(self) -> int:
        """C, the experts that rows are sorted by:
        the E routed ones and those that `assign` adds.
        """
        return self.num_experts

    def assign(
        self, token: Tensor, expert: Tensor, gate: Tensor, num_tokens: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The assignments (A',) that are computed for those that were routed (A,): token, expert in
        0..C, gate.

        An unassigned `expert` comes as E and leaves as C. Called before `forward`.
        """
        return token, expert, gate

    def enter(self, x: Tensor) -> Tensor:
        """What the experts see (T, Z) of tokens x (T, D);
        computed once per token, before the rows are copied.
        """
        return x

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Outputs (A, Z) of rows x (A, Z) sorted by expert; expert e owns rows ends[e-1] to ends[e]
        of ends (C,) int32.

        Rows after the last end belong to no expert; what comes back there is not used.
        """
        raise NotImplementedError

    def leave(self, y: Tensor, x: Tensor) -> Tensor:
        """(T, D) of the gated sums y (T, Z) of tokens x (T, D);
        linear in y, or it would not be a sum over experts.
        """
        return y

    def shared(self, x: Tensor) -> Tensor | None:
        """What every token (T, D) gets whatever the router says: (T, D), or None."""
        return None

    def activate(self, activation: Activation) -> None:
        """Puts an activation into all networks, their weights made anew if it needs others;
        called once, at first.
        """
        for module in self.modules():
            if isinstance(module, FeedForward | Stack):
                old = module.activation
                module.activation = activation
                if (old.columns, old.bias) != (activation.columns, activation.bias):
                    module.make()

    def settled(self) -> list[nn.Parameter]:
        """Weights that keep the values which they were made with;
        the model draws the others anew.
        """
        return [
            p for module in self.modules() if isinstance(module, Stack) for p in module.biases()
        ]

    def expert_params(self) -> list[int]:
        """Number of parameters of each routed expert, E of them."""
        return []

    def active_params(self, top_k: float) -> float:
        """Parameters of the routed part that a token meets with `top_k` experts,
        at uniform load.
        """
        each = self.expert_params()
        return top_k * sum(each) / max(1, len(each))


class FeedForward(nn.Module):
    """One feed-forward network, y = activation(x W_in) W_out."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.shape = dim, hidden_dim
        self.activation: Activation = SwiGLU()
        self.make()

    def make(self) -> None:
        """Makes the weights that the activation needs."""
        (dim, hidden_dim), activation = self.shape, self.activation
        self.w_in = nn.Linear(dim, activation.columns * hidden_dim, bias=activation.bias)
        self.w_out = nn.Linear(hidden_dim, dim, bias=activation.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_out(self.activation(self.w_in(x)))

    def matrix_layouts(self) -> dict[str, MatrixLayout]:
        """Return the axis and sections of the hidden units in each weight."""
        _, hidden_dim = self.shape
        sections = (hidden_dim,) * self.activation.columns
        return {
            "w_in.weight": MatrixLayout(-2, sections, paired=True),
            "w_out.weight": MatrixLayout(-1, (hidden_dim,)),
        }


class Dispatcher:
    """Brings the rows of a stack to the processes that hold its experts: here, all of them are this
    one's.

    Expert parallelism gives every stack a dispatcher that exchanges rows
    (`app.training.expert_parallel`).
    """

    def __call__(
        self, x: Tensor, ends: Tensor, compute: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Outputs (A, D) of rows x (A, D) sorted by expert;
        `compute` gives those of this process' own experts.
        """
        return compute(x, ends)


class Stack(nn.Module):
    """E networks of one width, their weights stacked so that
    an idle expert still has a gradient.
    """

    def __init__(self, num_experts: int, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.shape = num_experts, dim, hidden_dim
        self.activation: Activation = SwiGLU()
        self.dispatcher = Dispatcher()
        self.make()

    def make(self) -> None:
        """Make the weights that the activation needs."""
        num_experts, dim, hidden_dim = self.shape
        width = self.activation.columns * hidden_dim
        self.w_in = uniform(num_experts, dim, width, inputs=dim)
        self.w_out = uniform(num_experts, hidden_dim, dim, inputs=hidden_dim)
        self.b_in: nn.Parameter | None = None
        self.b_out: nn.Parameter | None = None
        if self.activation.bias:
            self.b_in = nn.Parameter(torch.zeros(num_experts, width))
            self.b_out = nn.Parameter(torch.zeros(num_experts, dim))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Outputs (A, D) of rows x (A, D) sorted by expert."""
        return self.dispatcher(x, ends, self.compute)

    def compute(self, x: Tensor, ends: Tensor) -> Tensor:
        """Outputs of rows that are all for experts of this process; 0 after the last end."""
        w_in = local(self.w_in)
        w_out = local(self.w_out)
        y = self.activation.fused(x, ends, w_in, w_out)
        if y is not None:
            return y
        hidden = plus(grouped.product(x, ends, w_in), self.b_in, ends)  # (A, columns * F)
        return plus(grouped.product(self.activation(hidden), ends, w_out), self.b_out, ends)

    def biases(self) -> list[nn.Parameter]:
        """Those of all networks (E, width)."""
        return [bias for bias in (self.b_in, self.b_out) if bias is not None]

    def matrix_layouts(self) -> dict[str, MatrixLayout]:
        """Return the axis and sections of the hidden units in each weight."""
        _, _, hidden_dim = self.shape
        sections = (hidden_dim,) * self.activation.columns
        return {
            "w_in": MatrixLayout(-1, sections, paired=True),
            "w_out": MatrixLayout(-2, (hidden_dim,)),
        }

    def params(self) -> list[int]:
        """Number of parameters of each network."""
        return [sum(p[0].numel() for p in self.parameters())] * len(self.w_in)


class Stacks(nn.ModuleList):
    """Stacks of different widths, one after the other: rows of the first stack's experts come
    first.

    `sizes` are (number of experts, width) of each stack.
    """

    def __init__(self, dim: int, sizes: list[tuple[int, int]]) -> None:
        super().__init__(Stack(num_experts, dim, width) for num_experts, width in sizes)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Return the outputs (A, D) of rows x (A, D) that are sorted by expert.

        The host reads how many rows each stack has.
        """
        ends_by_stack = ends.split([len(stack.w_in) for stack in self.each()])
        stops = torch.stack([stack_ends[-1] for stack_ends in ends_by_stack]).tolist()
        outputs = []
        start = 0
        for stack, stack_ends, stop in zip(self.each(), ends_by_stack, stops, strict=True):
            # The ends of a stack count from its own first row.
            outputs.append(stack(x[start:stop], stack_ends - start))
            start = stop
        # Rows after the last expert are for nobody.
        outputs.append(torch.zeros_like(x[start:]))
        return torch.cat(outputs)

    def params(self) -> list[int]:
        """Number of parameters of each expert."""
        return [number for stack in self.each() for number in stack.params()]

    def each(self) -> list[Stack]:
        """The stacks, in order."""
        return [stack for stack in self if isinstance(stack, Stack)]


class Routed(Experts):
    """A layout whose routed experts all have one width; the base of most.

    Raises:
        ValueError: fewer than one expert, a width below 1, or more experts per token than there
            are.
    """

    def __init__(self, dim: int, num_experts: int, top_k: int, hidden_dim: int) -> None:
        super().__init__()
        require_pool(num_experts, top_k)
        require("hidden_dim", hidden_dim, hidden_dim >= 1, "must be at least 1")
        self.num_experts = num_experts
        self.top_k = top_k
        self.hidden_dim = hidden_dim
        self.routed = Stack(num_experts, dim, hidden_dim)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return self.routed(x, ends)

    def expert_params(self) -> list[int]:
        return self.routed.params()


def require_pool(num_experts: int, top_k: int, segments: int = 1) -> None:
    """Check the two numbers that every routed layout has.

    Args:
        num_experts: Routed experts, before each is split into `segments`.
        top_k: Experts per token, before the split.
        segments: Parts that every expert is split into.

    Raises:
        ValueError: There are fewer than one expert, or more experts per token than there are.
    """
    require("num_experts", num_experts, num_experts >= 1, "leaves no routed expert")
    allowed = f"must be in 1..{num_experts}, "
    if segments == 1:
        allowed += "the number of routed experts"
    else:
        allowed += (
            f"num_experts: both count experts before each is split into segments={segments}, so "
            f"there are {segments * num_experts} experts, and a token has {segments} * top_k of "
            "them"
        )
    require("top_k", top_k, 1 <= top_k <= num_experts, allowed)


def segment(hidden_dim: int, segments: int) -> int:
    """The width of one of `segments` equal parts of an expert.

    Raises:
        ValueError: the width does not divide.
    """
    require(
        "segments",
        segments,
        segments >= 1 and hidden_dim % segments == 0,
        f"must divide hidden_dim={hidden_dim}",
    )
    return hidden_dim // segments


def uniform(*shape: int, inputs: int) -> nn.Parameter:
    """A new weight, drawn as torch's linear layers draw theirs: uniform in +-1/sqrt(inputs)."""
    return nn.Parameter(torch.empty(shape).uniform_(-(inputs**-0.5), inputs**-0.5))


def plus(y: Tensor, bias: nn.Parameter | None, ends: Tensor) -> Tensor:
    """y (A, width) plus the bias (E, width) of each row's expert;
    rows after the last end stay as they are.
    """
    if bias is None:
        return y
    # a row of zeros behind the last expert
    rows = functional.pad(local(bias), (0, 0, 0, 1))
    return y + rows[row_expert(y, ends)].to(y.dtype)


def local(weight: Tensor) -> Tensor:
    """This process' part of a weight that is divided over processes;
    the weight itself elsewhere.
    """
    return weight.to_local() if isinstance(weight, DTensor) else weight


def row_expert(x: Tensor, ends: Tensor) -> Tensor:
    """The expert (A,) of every row of x (A, D); C after the last end."""
    return torch.searchsorted(
        ends, torch.arange(len(x), device=x.device, dtype=ends.dtype), right=True
    )
