"""Expert threshold: a token goes to every expert whose threshold its logit exceeds; at first
experts choose tokens.

    t takes e  iff  logit_(t,e) > tau_e      tau from earlier steps, the offset of the balance term
               `threshold`

Sun et al. 2026, arXiv 2603.11535: expert choice made causal. While tau is not yet known, in the
first steps of a training, every expert takes its best tokens of the batch, as in expert choice; how
long is unverified. That looks at later tokens, and evaluation never does.
"""

from torch import Tensor

from app.registry import register, require
from routers.contract import Activated, Context, Sizes
from routers.select.expert_choice import ExpertChoice
from routers.select.positive import above_zero


@register("select")
class ExpertThreshold(ExpertChoice):
    """Takes every expert whose threshold is exceeded; a token gets 0..E experts, k on average.

    Args:
        k: experts per token on average while experts choose; in 1..num_experts.
        warmup_steps: of the training, in which experts choose their tokens; at least 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    causal = "eval"
    eval_scope = "token"
    by = "logits"
    limited = False

    def __init__(self, sizes: Sizes, *, k: int, warmup_steps: int) -> None:
        super().__init__(sizes, k=k)
        require("warmup_steps", warmup_steps, warmup_steps >= 0, "must be at least 0")
        self.warmup_steps = warmup_steps

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        if self.training and context.step < self.warmup_steps:
            return super().forward(activated, choice, context)
        return above_zero(choice, context)
