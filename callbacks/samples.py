"""How does the model write? It continues each prompt every `every` steps.

Tokens are drawn with a generator of this callback's own and inside a fork of torch's, in evaluation
mode, so training goes on as if nothing had been asked. Under FSDP2 all ranks take part, otherwise
the first alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from app.analysis.continuation import Sampling, continuations
from app.registry import register, require
from app.training.module import LanguageModel
from app.training.tags import Tag
from callbacks.writing import event_writer, step_of, table


@register("callback")
class Samples(lightning.Callback):
    """Writes how the model continues some prompts.

    Args:
        every: steps between two samples; at least 1.
        prompts: at least one.
        num_tokens: of a continuation; at least 1.
        temperature: at least 0; 0: always the likeliest token.

    Raises:
        ValueError: a knob is out of its range.
    """

    tags = (Tag("samples/continuation", "one row a prompt", "text", "text", "rank 0"),)

    def __init__(
        self, *, every: int, prompts: list[str], num_tokens: int, temperature: float
    ) -> None:
        require("every", every, every >= 1, "must be at least 1")
        require("prompts", prompts, len(prompts) > 0, "must have at least one")
        require("num_tokens", num_tokens, num_tokens >= 1, "must be at least 1")
        self.every = every
        self.prompts = prompts
        self.num_tokens = num_tokens
        self.sampling = Sampling(temperature)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        step = trainer.global_step
        everyone = isinstance(trainer.strategy, ModelParallelStrategy)
        due = step % self.every == 0 or step == trainer.max_steps
        if not due or not (everyone or trainer.is_global_zero):
            return
        assert isinstance(pl_module, LanguageModel)
        data = getattr(trainer, "datamodule", None)
        if data is None:
            return
        asked = {
            "batch_size": len(self.prompts),
            "num_tokens": self.num_tokens,
            "window": data.seq_len,
        }
        with undisturbed(pl_module.model), trainer.precision_plugin.forward_context():
            texts = list(
                continuations(pl_module.model, data.tokenizer, self.prompts, self.sampling, **asked)
            )
        writer = event_writer(trainer)
        if writer is not None:
            rows = list(zip(self.prompts, texts, strict=True))
            writer.add_text(
                "samples/continuation", table(["prompt", "continuation"], rows), step_of(trainer)
            )


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; modes and random numbers are afterwards what they were."""
    modes = {module: module.training for module in model.modules()}
    # every token has another length
    with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
