"""A step that is not finite changes nothing: it is skipped, or it ends the run with the name of the
culprit.

A skipped step counts as a step: the schedule and the rows go on, so it is neither repeated nor
shifts what follows, and a resumed run skips the same. Optimizer and controllers keep their state.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from app.model.transformer import Transformer
from app.registry import UserError
from app.training.messages import warn
from app.training.sharding import full_tensor
from routers.collectives import gathered


class BadSteps:
    """Counts the steps that are skipped because their loss or gradient is not finite;
    `allowed` in a run.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.count = 0

    def skip(self, model: Transformer, step: int, forward_again: Callable[[], object]) -> None:
        """Counts one more; `forward_again` repeats the forward passes of the step. Called on all
        ranks.

        Raises:
            UserError: too many; the line names what was not finite.
        """
        what = culprit(model, forward_again)
        self.count += 1
        if self.count > self.allowed:
            raise UserError(
                f"step {step}: {what} is not finite; the checkpoints are from before. Lower "
                f"optimizer.lr, or go on with resume=true trainer.skip_bad_steps={self.count} to "
                "skip this step"
            )
        warn(f"step {step}: {what} is not finite; skipped ({self.count} of {self.allowed})")


@torch.no_grad()
def culprit(model: nn.Module, forward_again: Callable[[], object]) -> str:
    """What was not finite first, a weight, the output of a layer or a gradient; by its name."""
    weights = _not_finite(dict(model.named_parameters()))
    gradients = _not_finite(
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    )
    outputs = [name for each in gathered(_outputs(model, forward_again)) for name in each]
    if weights:
        return f"the weight {weights[0]}"
    if outputs:
        return f"the output of {outputs[0]}"
    # the last is nearest to the loss
    return f"the gradient of {gradients[-1]}" if gradients else "the loss"


def _not_finite(tensors: dict[str, Tensor]) -> list[str]:
    found = []
    for name, value in tensors.items():
        bad = (~full_tensor(value.detach()).isfinite()).nonzero()
        if len(bad):
            # which expert of a stack
            found.append(f"{name}[{bad[0, 0]}]" if value.dim() == 3 else name)
    return found


def _outputs(model: nn.Module, forward_again: Callable[[], object]) -> list[str]:
    """The modules whose output is not finite, in the order of the forward pass."""
    found: list[str] = []

    def look(name: str, output: object) -> None:
        # a Routing may hold -inf: an expert that is forbidden
        first = output[0] if type(output) is tuple else output
        if isinstance(first, Tensor) and first.is_floating_point() and not first.isfinite().all():
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: look(name, output))
        for name, module in model.named_modules()
        if name
    ]
    forward_again()
    for hook in hooks:
        hook.remove()
    return found
