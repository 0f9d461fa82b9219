"""Sigmoid gate on the input: an expert sees its token times the sigmoid of the logit, and its
output counts whole.

    y = sum over the chosen experts of FFN_i(sigmoid(logit_i) x)

Llama 4 (Meta 2025), known from its released code, where k = 1: not the same as a gate on the
output, since an expert is not linear. The logits of the released model are those of a linear
router.
"""

from app.registry import register
from routers.weigh.sigmoid import Sigmoid


@register("weigh")
class SigmoidInput(Sigmoid):
    """Weighs each expert alone and acts on its input.

    Args:
        normalize: whether the gates of a token are divided by their sum.
        scale: factor on every gate; above 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    on_input = True
