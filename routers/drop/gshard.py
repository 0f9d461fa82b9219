"""GShard's dispatch: a second expert is used by chance, the likelier the larger its gate, and
capacity is limited.

    training:  a choice after the first is used with probability 2 g,  g its normalised gate
    then       an expert serves all first choices before any second one, C = ceil(factor T K / E) of
               them

Lepikhin et al. 2020, arXiv 2006.16668, section 2.2 and algorithm 1 (C = 2 N / E at K = 2: factor
1). What is not used takes no place and counts as dropped; the gate of the first expert stays g_1.
In evaluation nothing is dropped.
"""

from torch import Tensor

from app.registry import register
from routers.assignments import assigned, rank_in_token
from routers.contract import Context, Selected, Sizes
from routers.drop.capacity import Capacity


@register("drop")
class GShard(Capacity):
    """Leaves second choices out by chance, then drops what is beyond an expert's capacity; first
    choices go first.

    Args:
        factor: places of an expert, in units of its mean load; above 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, sizes: Sizes, *, factor: float) -> None:
        super().__init__(sizes, factor=factor, order="choice", exempt=0.0, eval=False)

    def forward(self, selected: Selected, context: Context) -> Tensor:
        if not self.training:
            return super().forward(selected, context)
        token = selected.token
        num_experts = selected.scores.size(1)
        score = assigned(selected.scores, token, selected.expert)
        first = rank_in_token(score, token, len(selected.scores)) == 0  # (A,)
        # (A,)
        drawn = context.drawn("drop", num_experts)[
            token, selected.expert.clamp(max=num_experts - 1)
        ]
        used = first | (2 * selected.gate > drawn)
        return super().forward(
            selected._replace(expert=selected.expert.masked_fill(~used, num_experts)), context
        )
