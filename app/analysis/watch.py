"""The expert statistics of this project on a model of `transformers`, in any training loop:

    watched = watch(model)
    for batch in batches:
        model(**batch).loss.backward()
        ...
        print(watched.scalars())  # since the last call: experts/maxvio, router_by_layer/token_entropy/3, ...

Looks at Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek-V3, gpt-oss and all others whose routers return logits, weights
and indices, as those of transformers 5 do. Padding by `attention_mask` does not count, nor what is computed again in
the backward pass. On several processes every one of them asks at the same steps, and gets the sums over all.
"""

from typing import Any

import torch
from torch import Tensor, nn

from app.training.metrics import Total, group_of, routing_statistics, routing_sums
from app.training.tags import by_layer
from routers.contract import Routing
from routers.distributions import normalized


def watch(model: nn.Module) -> "Watched":
    """Attaches to the routers of a model.

    Raises:
        ValueError: it has none that is known.
    """
    routers = [m for m in model.modules() if type(m).__name__.endswith(("TopKRouter", "TopkRouter"))]
    if not routers:
        raise ValueError(f"{type(model).__name__}: has no router of transformers 5 (a module named ...TopKRouter)")
    return Watched(model, routers)


class Watched:
    """What the routers of a model have chosen since it was last asked."""

    def __init__(self, model: nn.Module, routers: list[nn.Module]) -> None:
        self._total = Total()
        self._routings: list[Routing] | None = None  # of the forward pass that is under way
        self._valid: Tensor | None = None  # (B, S)
        self._hooks = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end),
            *(router.register_forward_hook(self._look) for router in routers),
        ]

    def statistics(self) -> dict[str, Tensor]:
        """The STATISTICS of `app.training.metrics`, a value for each layer (L,); empty if nothing was seen."""
        sums = self._total.take()
        return routing_statistics(sums) if sums else {}

    def scalars(self) -> dict[str, float]:
        """The same under the tags of our own runs: the mean over the layers, and each layer."""
        told = [by_layer(group_of(name), name, values.tolist()) for name, values in self.statistics().items()]
        return {tag: value for statistic in told for tag, value in statistic.items()}

    def close(self) -> None:
        """Lets the model go."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self, model: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        mask = named.get("attention_mask")
        self._valid = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self._routings = []

    @torch.no_grad()
    def _look(self, router: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
        if self._routings is not None:
            self._routings.append(_routing(router, *outputs, self._valid))

    @torch.no_grad()
    def _end(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        if self._routings:
            self._total.add(routing_sums(self._routings))
        self._routings = None


def _routing(router: nn.Module, logits: Tensor, weight: Tensor, index: Tensor, valid: Tensor | None) -> Routing:
    """What a router of transformers gave: logits (T, E), weights and indices (T, K)."""
    num_tokens, num_experts = logits.shape
    valid = torch.ones(1, num_tokens, dtype=torch.bool, device=logits.device) if valid is None else valid
    logits = logits.float()
    sigmoid = hasattr(router, "e_score_correction_bias")
    log_scores = nn.functional.logsigmoid(logits) if sigmoid else logits.log_softmax(-1)
    token = torch.arange(num_tokens, device=logits.device).repeat_interleave(index.size(1))
    expert = index.flatten().masked_fill(~valid.flatten()[token], num_experts)
    gate = weight.flatten().float().masked_fill(expert == num_experts, 0)
    return Routing(
        token, expert, gate, expert < num_experts, logits, log_scores.exp(), normalized(log_scores), index.size(1),
        valid, None,
    )  # fmt: skip
