"""How fast is training, and where does the time go? Every `trainer.log_every` steps, means over the
steps since.

On a GPU the parts are timed by events on the stream: no step waits for the device. MFU is tokens
per second * FLOPs per token in training / (peak FLOPs of a device * ranks), with the FLOPs of
`app.cost.budget`. The first of the callbacks, so that it does not time the others.
"""

import time

import lightning
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import nn

from app.cost.budget import Budget
from app.registry import register, require
from app.training.module import LanguageModel
from app.training.tags import Tag
from callbacks.writing import event_writer, logs, write

Mark = float | torch.cuda.Event
PARTS = ("data", "forward", "backward", "optimizer")


@register("callback")
class Speed(lightning.Callback):
    """Writes tokens per second, where the time of a step goes, and the share of the device's FLOPs.

    Args:
        peak_flops: of one device per second; above 0, or null: what Lightning knows of it.

    Raises:
        ValueError: a knob is out of its range.
    """

    tags = (
        Tag(
            "speed/tokens_per_s",
            "training tokens; validation, checkpoints and pictures do not count as time",
            "tokens/s",
        ),
        Tag("speed/step_ms", "one optimizer step", "ms", scope="rank 0"),
        Tag("speed/data_ms", "waiting for the batch", "ms", scope="rank 0"),
        Tag("speed/forward_ms", "all micro-batches, with the losses", "ms", scope="rank 0"),
        Tag("speed/backward_ms", "all micro-batches", "ms", scope="rank 0"),
        Tag("speed/optimizer_ms", "clipping, optimizer, controllers", "ms", scope="rank 0"),
        Tag("speed/mfu", "share of the devices' peak FLOPs", "0..1"),
        Tag("speed/mfu", "why it is unknown", "text", "text", "rank 0"),
    )

    def __init__(self, *, peak_flops: float | None) -> None:
        require(
            "peak_flops",
            peak_flops,
            peak_flops is None or peak_flops > 0,
            "must be positive, or null",
        )
        self.peak_flops = peak_flops

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        seq_len = getattr(getattr(trainer, "datamodule", None), "seq_len", None)
        # counted here, for later the model may be split over ranks
        self.flops = (
            None if seq_len is None else Budget.of(pl_module.model, seq_len).flops_per_token_train
        )

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        self.cuda = pl_module.device.type == "cuda"
        self.tokens = int(pl_module.tokens_seen)
        self.per_token = self._utilisation_per_token(trainer, pl_module)
        writer = event_writer(trainer)
        if self.per_token is None and writer is not None:
            writer.add_text(
                "speed/mfu",
                "unknown: the peak of this device is not known; set callbacks.speed.peak_flops",
            )
        self._reset()
        # the end of the part before; None where something else came between
        self.last: Mark | None = None
        self.hook = pl_module.model.register_forward_pre_hook(self._go_on)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.hook.remove()

    def _go_on(self, model: nn.Module, _: object) -> None:
        """A checkpoint is written when the batch is there: the forward pass begins after it."""
        if self.last is None and model.training:
            self.last = self._now()

    def _reset(self) -> None:
        self.spans: list[tuple[str, Mark, Mark]] = []
        self.steps = 0

    def _now(self) -> Mark:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _end(self, part: str) -> None:
        """Ends the part of the step that began at the last mark."""
        now = self._now()
        if self.last is not None:
            self.spans.append((part, self.last, now))
        self.last = now

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        self._end("data")

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        self._end("forward")

    def on_after_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._end("backward")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        self._end("optimizer")
        self.steps += 1
        if logs(trainer):
            self._write(trainer, pl_module)
            # what the other callbacks draw and write now is not the next step's waiting
            self.last = None

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.last = None

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        self.last = None

    def _write(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, LanguageModel)
        if self.cuda:
            torch.cuda.synchronize()
        seconds = dict.fromkeys(PARTS, 0.0)
        for part, start, end in self.spans:
            seconds[part] += _between(start, end)
        tokens = int(module.tokens_seen)
        total = sum(seconds.values())
        values = {f"speed/{part}_ms": 1000 * value / self.steps for part, value in seconds.items()}
        values["speed/step_ms"] = 1000 * total / self.steps
        values["speed/tokens_per_s"] = (tokens - self.tokens) / max(total, 1e-9)
        if self.per_token is not None:
            values["speed/mfu"] = values["speed/tokens_per_s"] * self.per_token
        self.tokens = tokens
        self._reset()
        write(trainer, values)

    def _utilisation_per_token(
        self, trainer: lightning.Trainer, module: LanguageModel
    ) -> float | None:
        """Return the share of all devices' FLOPs in a second that one token takes;
        None where it is not known.
        """
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        peak = self.peak_flops or get_available_flops(module.device, dtype)
        if peak is None or self.flops is None:
            return None
        return self.flops / (peak * trainer.world_size)


def _between(start: Mark, end: Mark) -> float:
    """Seconds."""
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    return start.elapsed_time(end) / 1000  # type: ignore[union-attr, arg-type]
