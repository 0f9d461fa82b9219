"""Training without Lightning: what `train.py` computes in a step and nothing else.

The benchmarks hold Lightning's step against it, and time steps of several models in turns in one
process, which one Trainer cannot do.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor

from app.config.build import build_module
from app.config.compose import composed
from app.data.module import build_data
from app.training.clipping import clip_gradients, gradient_norm
from app.training.trainer import native_precision

Batch = dict[str, Tensor]


class Bare:
    """The model, data and optimizer that some overrides of the config describe, on one device."""

    def __init__(
        self, overrides: Sequence[str], device: str = "cpu", precision: str | None = None
    ) -> None:
        config = composed(overrides)
        lightning.seed_everything(config["seed"], verbose=False)
        self.device = torch.device(device)
        self.seed = config["seed"]
        self.clip_norm = config["trainer"]["gradient_clip_val"]
        precision = precision or native_precision("gpu" if device == "cuda" else "cpu")
        config["trainer"]["precision"] = precision  # which the optimizer follows
        self.low = precision == "bf16-mixed"
        self.data = build_data(config["data"], config["tokenizer"], config["seed"])
        module = build_module(
            config, self.data.vocab_size, self.data.domains, self.data.micro_batch_size
        )
        self.module = module.to(self.device)
        self.model = self.module.model
        (self.optimizer,), (self.schedule,) = self.module.configure_optimizers()
        self.step = 0

    def batches(self) -> Iterator[Batch]:
        """Those of the training steps, one after another, without an end."""
        for batch in self.data.train_dataloader():
            yield {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def next_step(self, batches: Iterator[Batch]) -> None:
        """Train on the next batch."""
        self.train_step(next(batches))

    def train_step(self, batch: Batch) -> Tensor:
        """One optimizer step; the loss in nats per token, on the device."""
        loss, observed = self.gradients(batch)
        if self.clip_norm is not None:
            clip_gradients(
                list(self.model.parameters()), gradient_norm(self.module), self.clip_norm
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.model.balancer.update(observed, batch["valid"].sum())
        self.step += 1
        return loss

    def gradients(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Set the gradients; return the loss, and what the balance terms have observed."""
        rows = self.data.micro_batch_size
        number = len(batch["tokens"]) // rows
        num_targets = (batch["targets"] >= 0).sum().clamp_min(1)
        total = torch.zeros((), device=self.device)
        observed: dict[str, Tensor] = {}
        for i in range(number):
            cut = slice(i * rows, (i + 1) * rows)
            nll, routings = self.forward({name: value[cut] for name, value in batch.items()}, i)
            balance = torch.zeros((), device=self.device)
            for raw, weight in self.model.balancer.losses(routings, observed).values():
                balance = balance + weight * raw
            (nll.sum() / num_targets + balance / number).backward()
            total = total + nll.detach().sum()
            for name, value in self.model.balancer.observe(routings).items():
                observed[name] = observed[name] + value if name in observed else value
        return total / num_targets, observed

    def forward(self, batch: Batch, micro: int = 0) -> Any:
        """Negative log-likelihoods and routings."""
        seed = self.seed * 1_000_003 + self.step
        row = micro * self.data.micro_batch_size
        inputs = (batch["tokens"], batch["targets"], batch["valid"], batch["document"])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            return self.model(*inputs, seed, self.step, batch["domain"], row)
