"""Communication balance loss: f.P over devices, where a token counts once for each device that it
is sent to.

    f''_i = D / (M T) sum_t 1(t is sent to device i)
    P''_i = sum of P_j over the device's experts
    loss = sum_i f''_i P''_i

DeepSeek-V2, arXiv 2405.04434, eq. 29-31 (T there: the tokens of a sequence). Device i holds the
i-th E/D experts; M is the measured mean number of devices per token instead of the routing limit,
so the value is 1.0 at uniform load.
"""

import torch
from torch import Tensor

from app.registry import register
from routers.balance.device import Device
from routers.contract import Routing


@register("balance")
class Communication(Device):
    """The device-level loss of tokens sent instead of assignments: it evens out what travels
    between devices.

    Args:
        weight: of the term in the total loss; at least 0.
        scope: the tokens over which f and P are formed: `micro` (the micro-batch of a rank),
            `sequence` or `global` (the batch).
        num_groups: D, devices with equally many experts; divides the number of experts.

    Raises:
        ValueError: a knob is out of its range.
    """

    def loads(self, routing: Routing) -> Tensor:
        num_experts = routing.logits.size(1)
        served = routing.expert < num_experts
        device = routing.expert.clamp(max=num_experts - 1) * self.num_groups // num_experts  # (A,)
        index = routing.token * self.num_groups + device
        sent = torch.zeros_like(routing.logits[:, : self.num_groups]).flatten()  # (T*D,)
        sent.index_put_((index,), served.to(sent.dtype), accumulate=True)
        return sent.clamp(max=1).view(*routing.valid.shape, -1).sum(1)  # (B, D)
