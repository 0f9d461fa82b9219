"""Linear warm-up, then a constant rate that drops by a factor at given shares of the run.

DeepSeekMoE (Dai et al. 2024, arXiv 2401.06066, section 4.1.2): times 0.316 at 80 % and again at 90
% of the steps.
"""

from app.registry import register, require


@register("schedule")
class MultiStep:
    """Rises linearly, stays, and drops at milestones.

    Args:
        warmup_steps: steps of the rise; at least 0.
        total_steps: of the run; at least 1.
        milestones: shares of the run at which the rate drops; in 0..1.
        factor: of every drop; in 0..1.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self, *, warmup_steps: int, total_steps: int, milestones: list[float], factor: float
    ) -> None:
        require("warmup_steps", warmup_steps, warmup_steps >= 0, "must be at least 0")
        require("total_steps", total_steps, total_steps >= 1, "must be at least 1")
        require(
            "milestones",
            milestones,
            all(0 <= m <= 1 for m in milestones),
            "must be shares of the run in 0..1",
        )
        require("factor", factor, 0 <= factor <= 1, "must be in 0..1")
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.milestones = milestones
        self.factor = factor

    def __call__(self, step: int) -> float:
        """Factor on the peak rate at step 0, 1, ..."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.factor ** sum(step >= share * self.total_steps for share in self.milestones)
