"""What does the choice of experts hang on? After a validation, on its tokens: the same router
chooses again.

Without the offset that a controller adds to the scores: how much it steers. With logits rounded to
bfloat16: how many choices are so close that the precision decides (why routers compute in float32).
Compiled blocks are not looked into.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from app.analysis.specialisation import chosen
from app.registry import register
from app.training.module import LanguageModel
from app.training.tags import Tag
from callbacks.layer_means import LayerMeans
from routers.contract import Context, Routing, Scored
from routers.router import Router


@register("callback")
class Choices(LayerMeans):
    """Writes how much of the choice is left without the offset of a controller,
    and under bfloat16.
    """

    tags = (
        Tag(
            "router/offset_overlap",
            "experts chosen both with and without the offset of the controllers, of those chosen "
            "either way (Jaccard)",
            "0..1",
            by_layer=True,
        ),
        Tag(
            "router/bf16_flips",
            "share of the tokens that logits in bfloat16 would give others",
            "0..1",
            by_layer=True,
        ),
    )

    group = "router"

    def layers(self, module: LanguageModel) -> Sequence[nn.Module]:
        return module.model.routers()

    def look(
        self, layer: Router, inputs: tuple[Tensor, Context], outputs: Routing
    ) -> tuple[dict[str, Tensor], Tensor]:
        (x, context), own = inputs, chosen(outputs)
        found = {
            "bf16_flips": (chosen(rounded(layer, partial(layer.forward, x, context))) != own)
            .any(-1)
            .float()
        }
        if isinstance(context.offset, Tensor):
            without = chosen(layer.forward(x, context._replace(offset=0.0)))
            found["offset_overlap"] = (own & without).sum(-1) / (own | without).sum(-1).clamp_min(1)
        return found, outputs.valid.flatten()


def rounded(router: Router, choose: Callable[[], Routing]) -> Routing:
    """What a router chooses with logits in bfloat16."""

    def rounding(score: nn.Module, inputs: object, scored: Scored) -> Scored:
        return scored._replace(logits=scored.logits.bfloat16().float())

    hook = router.score.register_forward_hook(rounding)
    try:
        return choose()
    finally:
        hook.remove()
