"""Who does the work, the shared or the routed experts? Norms of what both add to a token,
on held-out text.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from app.model.moe import MoE
from app.registry import register
from app.training.module import LanguageModel
from app.training.tags import Tag
from callbacks.layer_means import LayerMeans
from routers.contract import Context, Routing


@register("callback")
class SharedShare(LayerMeans):
    """Writes how much of the output of a layer the shared expert gives;
    nothing where there is none.
    """

    tags = (
        Tag(
            "experts/shared_share",
            "norm of the shared output over the sum of that and of the routed output's, mean over "
            "tokens",
            "0..1",
            by_layer=True,
        ),
    )

    group = "experts"

    def layers(self, module: LanguageModel) -> Sequence[nn.Module]:
        return [layer for layer in module.modules() if isinstance(layer, MoE)]

    def look(
        self, layer: MoE, inputs: tuple[Tensor, Context], outputs: tuple[Tensor, Routing]
    ) -> tuple[dict[str, Tensor], Tensor]:
        (x, _), (y, routing) = inputs, outputs
        real = routing.valid.flatten()
        shared = layer.experts.shared(x.flatten(0, 1))
        if shared is None:
            return {}, real
        norm, rest = (each.float().norm(dim=-1) for each in (shared, y.flatten(0, 1) - shared))
        return {"shared_share": norm / (norm + rest).clamp_min(1e-9)}, real
