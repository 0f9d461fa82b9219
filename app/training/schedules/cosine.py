"""Linear warm-up, then half a cosine down to a final share (Loshchilov & Hutter 2016,
arXiv 1608.03983, eq. 5).
"""

import math

from app.registry import register, require


@register("schedule")
class Cosine:
    """Rises linearly, then falls along half a cosine.

    Args:
        warmup_steps: steps of the rise; at least 0.
        total_steps: of the run; at least 1.
        final: share of the peak rate at the end; in 0..1.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, *, warmup_steps: int, total_steps: int, final: float) -> None:
        require("warmup_steps", warmup_steps, warmup_steps >= 0, "must be at least 0")
        require("total_steps", total_steps, total_steps >= 1, "must be at least 1")
        require("final", final, 0 <= final <= 1, "must be in 0..1")
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.final = final

    def __call__(self, step: int) -> float:
        """Factor on the peak rate at step 0, 1, ..."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))
