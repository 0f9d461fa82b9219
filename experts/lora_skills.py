"""A dense network and a library of low-rank skills, mixed by the router before the nonlinearity
(PSEC).

    W(x) = W_0 + scale * sum_i alpha_i(x) A_i B_i
        in every chosen linear layer, level `parameter`

Liu et al. 2025, arXiv 2502.05932, section 4: alpha is the gate, one for all layers with the score
`context`; rank 8 and scale 16 are those of its code. Its rivals mix what comes out, f = f_0 + sum_i
alpha_i (f_i - f_0) with f_i the network under skill i alone: the outputs of each attention and
feed-forward part (level `layer`), or the logits of whole models (level `logits`; as the head is
linear and has no skills, that is the output of the last block). The three agree where alpha chooses
one skill. With a router in each layer, `linears=ffn` and `level=layer` they are MixLoRA's experts
(Li et al. 2024, arXiv 2404.15159).
"""

from typing import Literal

from torch import Tensor, nn

from app.registry import register, require
from experts.activation.contract import Activation
from experts.contract import FeedForward
from experts.low_rank import give_skills, in_outputs, in_parameters, skilled
from experts.mixture import Mixture


@register("experts")
class LoraSkills(Mixture):
    """A dense network under a mixture of low-rank skills.

    Args:
        hidden_dim: F, width of the dense network; at least 1.
        skills: their names, each once; at least one.
        top_k: skills per token, in 1..number of skills; null: all.
        rank: r of every skill; at least 1.
        scale: factor on every skill, not divided by the rank; above 0.
        linears: which linear layers have skills.
        level: what is mixed.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int,
        skills: list[str],
        top_k: int | None,
        rank: int,
        scale: float,
        linears: Literal["attention", "ffn", "all"],
        level: Literal["parameter", "layer", "logits"],
    ) -> None:
        super().__init__()
        require("hidden_dim", hidden_dim, hidden_dim >= 1, "must be at least 1")
        require(
            "skills",
            skills,
            bool(skills) and len({*skills}) == len(skills),
            "must be names, each once",
        )
        require(
            "top_k",
            top_k,
            top_k is None or 1 <= top_k <= len(skills),
            f"must be in 1..{len(skills)}, or null",
        )
        require("rank", rank, rank >= 1, "must be at least 1")
        require("scale", scale, scale > 0, "must be positive")
        self.skills = skills
        self.num_experts = len(skills)
        self.top_k = top_k or len(skills)
        self.rank = rank
        self.scale = scale
        self.linears = linears
        self.level = level
        self.on_ffn = linears != "attention"
        self.on_attention = linears != "ffn"
        self.on_model = level == "logits"
        self.common = FeedForward(dim, hidden_dim)
        self._adapt_common()

    def activate(self, activation: Activation) -> None:
        super().activate(activation)
        # its layers may be new ones
        self._adapt_common()

    def _adapt_common(self) -> None:
        if self.on_ffn:
            self.adapt(self.common)

    def adapt(self, network: nn.Module) -> None:
        give_skills(network, self.num_experts, self.rank, self.scale)

    def under(self, gates: Tensor, network: nn.Module, *inputs: object) -> Tensor:
        mixture = in_outputs if self.level == "layer" else in_parameters
        return mixture(network, gates, lambda: network(*inputs))

    def mixed(self, x: Tensor, gates: Tensor) -> Tensor:
        return self.under(gates, self.common, x)

    def kind(self) -> dict[str, str]:
        return {name: str(getattr(self, name)) for name in ("linears", "rank", "scale")}

    @property
    def passes(self) -> int:
        return 1 if self.level == "parameter" else 1 + self.num_experts

    def active_params(self, top_k: float) -> float:
        # all are computed, whatever their share
        return sum(self.expert_params())

    def shared(self, x: Tensor) -> Tensor:
        return self.common(x)  # (T, D)

    def expert_params(self) -> list[int]:
        factors = [p for layer in skilled(self) for p in layer.settled()]
        return [sum(p[0].numel() for p in factors)] * self.num_experts
