"""How far is the run? A bar in a terminal; elsewhere one line every `every` steps:

    step 100/600 loss 4.21 1,900 tokens/s 3:10 left

and one line after each validation. Loss and speed are read from the device only every `every`
steps; the speed is that of the last `every` steps, the time left is judged by the whole session,
validation included. Writes no metric.
"""

import time

import lightning
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from app.registry import register, require
from app.training.module import LanguageModel


@register("callback")
class ProgressLine(ProgressBar):
    """Tells on the terminal how far the run is.

    Args:
        every: steps between two lines, or two readings of the loss; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, *, every: int) -> None:
        super().__init__()
        require("every", every, every >= 1, "must be at least 1")
        self.every = every
        self.enabled = True
        self.console = Console(stderr=True, soft_wrap=True, highlight=False)
        self.bar: Progress | None = None
        self.text = ""

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def print(self, *args: object, **kwargs: object) -> None:
        if self.enabled:
            self.console.print(*args, markup=False)

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.first_step = trainer.global_step
        self.started = self.last_time = time.monotonic()
        self.last_tokens = _tokens(pl_module)
        # seconds of validation since the last reading
        self.paused = 0.0
        if self.enabled and self.console.is_terminal:
            count = TextColumn("step {task.completed:.0f}/{task.total:.0f}")
            text = TextColumn("{task.description}")
            self.bar = Progress(count, BarColumn(), text, console=self.console)
            self.task = self.bar.add_task("", total=trainer.max_steps, completed=self.first_step)
            self.bar.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        if not self.enabled:
            return
        step = trainer.global_step
        due = step % self.every == 0 or step in (trainer.max_steps, self.first_step + 1)
        if due:
            self.text = self._text(trainer, pl_module)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=self.text)
        elif due:
            self.print(f"step {step}/{trainer.max_steps} {self.text}")

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.validation_started = time.monotonic()

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.paused = getattr(self, "paused", 0.0) + time.monotonic() - self.validation_started
        bpb = trainer.callback_metrics.get("Loss/val_bpb")
        if bpb is not None:
            self.print(
                f"step {trainer.global_step}/{trainer.max_steps} held-out text: {float(bpb):.3f} "
                "bits per byte"
            )

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._stop()

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _text(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> str:
        tokens = _tokens(module)
        now = time.monotonic()
        step = trainer.global_step
        speed = (tokens - self.last_tokens) / max(1e-9, now - self.last_time - self.paused)
        left = (now - self.started) / (step - self.first_step) * (trainer.max_steps - step)
        self.last_tokens = tokens
        self.last_time = now
        self.paused = 0.0
        loss = float(trainer.callback_metrics.get("Loss/train", float("nan")))
        return f"loss {loss:.2f} {speed:,.0f} tokens/s {clock(left)} left"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _tokens(module: lightning.LightningModule) -> int:
    assert isinstance(module, LanguageModel)
    return int(module.tokens_seen)
