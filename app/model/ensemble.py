"""One model for each expert, their logits mixed by the gates:
what a mixture inside of the model is compared with.
"""

from typing import Any

from torch import Tensor

from app.model.transformer import Transformer
from routers.assignments import gates
from routers.contract import Routing


class Ensemble(Transformer):
    """Runs the model once without experts and once with each of them alone; the last layer's gates
    mix the outputs.

        h = h_0 + sum_i gate_i (h_i - h_0)

    The head is linear, so this mixes the logits, too.
    """

    def hidden(self, *inputs: Any, **more: Any) -> tuple[Tensor, list[Routing]]:
        if more.get("alone") is not None:
            return super().hidden(*inputs, **more)
        base, routings = super().hidden(*inputs, **more | {"alone": self.num_experts})
        y = base
        for expert, gate in enumerate(gates(routings[-1]).unbind(-1)):
            own, _ = super().hidden(*inputs, **more | {"alone": expert})
            y = y + gate.view(*base.shape[:-1], 1).to(base.dtype) * (own - base)
        return y, routings
