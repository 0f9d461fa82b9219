"""A linear layer with a library of low-rank skills, and what a network of such layers computes
under a mixture of them.

    y = x W_0 + scale * sum_i alpha_i (x A_i) B_i,      A_i: in -> r, B_i: r -> out

Hu et al. 2021, arXiv 2106.09685; mixed by alpha in PSEC (Liu et al. 2025, arXiv 2502.05932, section
4). Where LoRA writes alpha / r for the factor, PSEC's code writes 16 with r = 8 and does not
divide: LoRA's alpha would be 128. A is drawn from N(0, 1/in) and B starts at 0.

The sum is one product over the concatenated ranks. The products with A are a batch of one for each
skill: of their concatenation each column would be rounded by how many there are, and a skill among
others would not be the same bits as alone.

Alpha reaches the layers by their attribute, for as long as the network around them computes: their
inputs and outputs stay those of any linear layer, so whatever is built of linear layers can be
given skills.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SkilledLinear(nn.Linear):
    """A linear layer that shares the weight of another one and adds k skills to it."""

    def __init__(self, linear: nn.Linear, num_skills: int, rank: int, scale: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.scale = scale
        self.skills_a = nn.Parameter(
            torch.randn(num_skills, linear.in_features, rank) * linear.in_features**-0.5
        )
        self.skills_b = nn.Parameter(torch.zeros(num_skills, rank, linear.out_features))
        self.alpha: Tensor | None = None  # (T, k) while a mixture acts

    def settled(self) -> list[nn.Parameter]:
        """The factors: a model that draws its matrices anew leaves them as they are."""
        return [self.skills_a, self.skills_b]

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.alpha is None:
            return y
        low = (x.flatten(0, -2) @ self.skills_a).transpose(0, 1)  # (T, k, r)
        share = (self.scale * self.alpha)[..., None].to(low.dtype)  # (T, k, 1)
        mixed = (low * share).flatten(1)  # (T, k * r)
        return y + (mixed @ self.skills_b.flatten(0, 1)).view_as(y)


def give_skills(module: nn.Module, num_skills: int, rank: int, scale: float) -> None:
    """Puts a layer with skills in the place of every linear layer directly inside of a module."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear) and not isinstance(child, SkilledLinear):
            setattr(module, name, SkilledLinear(child, num_skills, rank, scale))


def skilled(module: nn.Module) -> list[SkilledLinear]:
    """All layers with skills inside of a module."""
    return [inner for inner in module.modules() if isinstance(inner, SkilledLinear)]


def in_parameters(module: nn.Module, alpha: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """What `compute` gives while the skills of `module` are mixed by alpha (T, k) in each of its
    layers.
    """
    with _acting(module, alpha):
        return compute()


def in_outputs(module: nn.Module, alpha: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """The same mixture of outputs: f_0 + sum_i alpha_i (f_i - f_0),
    where f_i has skill i alone and f_0 has none.
    """
    base = compute()
    if not skilled(module):
        return base
    y = base
    for i, share in enumerate(alpha.unbind(-1)):
        alone = torch.zeros_like(alpha)
        alone[:, i] = 1
        with _acting(module, alone):
            difference = compute() - base
        y = y + share.view(*base.shape[:-1], 1).to(base.dtype) * difference
    return y


@contextmanager
def _acting(module: nn.Module, alpha: Tensor) -> Iterator[None]:
    layers = skilled(module)
    for layer in layers:
        layer.alpha = alpha
    try:
        yield
    finally:
        for layer in layers:
            layer.alpha = None
