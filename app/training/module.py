"""The training step: one Lightning batch is one optimizer step of this rank, cut into
micro-batches.

The language-model loss is the sum over tokens divided by the number of target tokens of the *whole*
optimizer step, over all micro-batches and ranks, so its gradient does not depend on how the rows
are cut. Balance terms are means over the micro-batches. Controllers are updated once, after the
step, with what was observed over all micro-batches and ranks.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from app.model.transformer import Transformer
from app.training.clipping import clip_gradients, gradient_norm
from app.training.metrics import LanguageMetric, LoadMetric
from app.training.nonfinite import BadSteps
from app.training.sharding import averaged_ranks, hold_gradients, shard
from app.training.tags import Tag
from app.training.unfilled import Draw, Given, fill
from routers.collectives import num_ranks, rank_sum, rank_sums
from routers.contract import Routing

Batch = dict[str, Tensor]
# of a step, by what they are and the term that they are of
Sums = dict[tuple[str, str], Tensor]
LOSS = ("nats", "")
TERM = "term"
SEEN = "seen"
RoutingHook = Callable[[list[Routing], Batch], None]


class LanguageModel(lightning.LightningModule):
    """Trains a transformer.

    Args:
        model: what is trained.
        make_optimizer: from parameter groups to an optimizer.
        schedule: factor on the learning rate at step 0, 1, ...
        clip_norm: largest norm of the gradient; null does not clip.
        micro_batch_size: rows of one forward pass.
        domains: names of the text domains, for the validation metric.
        seed: of the routers' noise.
        ep_size: over how many ranks the experts of a layer are split.
        draws: of the matrices that the model has no memory for yet, by name.
        skip_bad_steps: how many steps may be skipped because their loss or gradient is not finite.
        router_lr_factor: of the routers' learning rate to that of all else; at 0 they are frozen.
    """

    automatic_optimization = False
    tags = (
        # TensorBoard sorts by name, capitals first: its opening page begins with this group
        Tag(
            "Loss/train",
            "language-model loss of the step, without any balance term",
            "nats per token",
        ),
        Tag("train/grad_norm", "norm of all gradients before clipping"),
        Tag("balance/TERM", "raw value of a balance term, mean over the micro-batches of the step"),
        Tag("balance/TERM_weighted", "the same times its weight"),
        Tag("Loss/val_nats", "cross entropy of held-out text", "nats per token"),
        Tag("Loss/val_ppl", "perplexity, its exponential"),
        Tag("Loss/val_bpb", "bits per byte, mean over the domains", "bits per byte"),
        Tag(
            "Loss/val_bpb_DOMAIN",
            "bits per byte of one domain, where there are several",
            "bits per byte",
        ),
    )

    def __init__(
        self,
        model: Transformer,
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        schedule: Callable[[int], float],
        *,
        clip_norm: float | None,
        micro_batch_size: int,
        domains: list[str],
        seed: int,
        ep_size: int = 1,
        draws: dict[str, Draw | Given] | None = None,
        skip_bad_steps: int = 0,
        router_lr_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.make_optimizer = make_optimizer
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.ep_size = ep_size
        self.draws = draws or {}
        self.bad_steps = BadSteps(skip_bad_steps)
        self.router_lr_factor = router_lr_factor
        self.metric = LanguageMetric(domains)
        self.load_metric = LoadMetric(len(model.routers()), model.num_experts)
        # of the last one: step, values by name, load (L, E)
        self.validation: dict[str, Any] = {}
        # called with the routings and the batch of every forward pass
        self.routing_hooks: list[RoutingHook] = []
        # in training, on all ranks
        self.tokens_seen = torch.zeros((), dtype=torch.int64)
        # of the last step, nats per token of this rank's rows
        self.own_loss = torch.zeros(())
        # of this rank, to be asked between two steps; of any rank, a step ago
        self.wish = False
        self.wished = False
        self.first_step = 0  # of this process

    def compile_blocks(self) -> None:
        """torch.compile for each block: they have the same code,
        so it is compiled once or twice.
        """
        for block in self.model.blocks:
            block.compile()

    def configure_model(self) -> None:
        """Shards the model where the strategy has a mesh of devices (FSDP2)."""
        if self.device_mesh is not None:
            low = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
            shard(self.model, self.device_mesh, self.ep_size, low)
            fill(self.model, self.draws)
            # once: this is called before each loop of the Trainer
            self.draws = {}

    def configure_optimizers(self) -> Any:
        """Weight decay on matrices only, routers at a rate of their own; `hidden` marks the
        matrices of the blocks.

        A group of hidden matrices also has the fields of their `MatrixLayout`; `axis` is None where
        they have none.

        The groups keep the order of the parameters: Lightning numbers the optimizer's state by it
        under FSDP2, and a checkpoint would hand one parameter's moments to another where the orders
        differ.
        """
        routers = {*self.model.router_parameters()}
        hidden = {*self.model.matrices()} & {*self.model.blocks.parameters()}
        vectors = {*self.model.stacked_vectors()}
        layouts = self.model.matrix_layouts()
        learned = (p for p in self.parameters() if p.requires_grad)
        runs = groupby(
            learned,
            key=lambda p: (
                p.dim() >= 2 and p not in vectors,
                p in routers,
                p in hidden,
                layouts.get(p),
            ),
        )
        groups = []
        for (is_matrix, of_router, is_hidden, layout), run in runs:
            group: dict[str, Any] = {
                "params": list(run),
                "hidden": is_hidden,
                "of_router": of_router,
                "axis": None,
            }
            if layout is not None:
                group |= layout._asdict()
            if not is_matrix:
                group["weight_decay"] = 0.0
            groups.append(group)
        optimizer = self.make_optimizer(groups)
        for group in optimizer.param_groups:
            group["lr"] *= self.router_lr_factor if group["of_router"] else 1.0
        return [optimizer], [LambdaLR(optimizer, self.schedule)]

    def on_train_start(self) -> None:
        self.first_step = self.global_step

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimizer step on this rank's rows:
        one or two collectives beside those of the gradients.
        """
        micros = list(self._micro_batches(batch))
        wish = batch["valid"].new_full((), self.wish, dtype=torch.int64)
        counts = rank_sum(torch.stack([(batch["targets"] >= 0).sum(), batch["valid"].sum(), wish]))
        num_targets = counts[0].clamp_min(1)
        num_tokens = counts[1]
        sums = self._backward(micros, num_targets)
        norm = gradient_norm(self)
        # the host, at the device, once
        looked: list[bool] = torch.stack([norm.isfinite(), counts[2] > 0]).tolist()
        finite, self.wished = looked
        self.own_loss = sums[LOSS] / (batch["targets"] >= 0).sum().clamp_min(1)
        told = num_ranks() == 1 or self._is_logged() or bool(self.model.balancer.controllers)
        sums = rank_sums(sums) if told else {}
        if told:
            self._log_step(sums, num_targets)
        self.log("train/grad_norm", norm)
        if finite:
            self._optimizer_step(norm)
            self.model.balancer.update(
                {name: sums[SEEN, name] for name in self.model.balancer.controllers}, num_tokens
            )
        else:
            self._skip_step(micros)
        self.tokens_seen = self.tokens_seen.to(num_tokens.device) + num_tokens

    def _backward(self, micros: list[Batch], num_targets: Tensor) -> Sums:
        """Adds up the gradients; sums over this rank's micro-batches."""
        sums: Sums = {}
        balancer = self.model.balancer
        cuts = len(micros) * num_ranks()
        for i, micro in enumerate(micros):
            with hold_gradients(self) if i < len(micros) - 1 else nullcontext():
                nll, routings = self._forward(micro, i)
                terms = balancer.losses(
                    routings, {name: value for (kind, name), value in sums.items() if kind == SEEN}
                )
                balance = sum(
                    (weight * raw for raw, weight in terms.values()),
                    torch.zeros((), device=self.device),
                )
                share = nll.sum() / num_targets + balance / cuts  # of the step's loss
                self.manual_backward(share * averaged_ranks(self.model))
            new: Sums = {LOSS: nll.detach().sum()}
            new |= {(TERM, name): raw.detach() / cuts for name, (raw, _) in terms.items()}
            new |= {(SEEN, name): value for name, value in balancer.observe(routings).items()}
            sums = {key: value if i == 0 else sums[key] + value for key, value in new.items()}
        return sums

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Only the likelihood: no balance term, no controller."""
        nll, routings = self._forward(batch, 0)
        self.load_metric.update(routings)
        self.metric.update(nll, batch["targets"], batch["nbytes"], batch["domain"])

    def on_validation_epoch_end(self) -> None:
        values = {name: value.float() for name, value in self.metric.compute().items()}
        several = len(self.metric.domains) > 1
        self.log_dict(
            {
                f"Loss/val_{name}": values[name]
                for name in values
                if several or not name.startswith("bpb_")
            }
        )
        step = float(max(0, self.global_step - 1))
        # under which Lightning writes them: that of the last step
        self.log("step", step)
        numbers = {name: value.item() for name, value in values.items()}
        self.validation = {
            "step": self.global_step,
            "values": numbers,
            "load": self.load_metric.compute().cpu(),
        }
        self.metric.reset()
        self.load_metric.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tokens_seen"] = int(self.tokens_seen)
        checkpoint["bad_steps"] = self.bad_steps.count
        checkpoint["validation"] = self.validation

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.tokens_seen = torch.tensor(checkpoint["tokens_seen"])
        self.bad_steps.count = checkpoint.get("bad_steps", 0)
        self.validation = checkpoint.get("validation", {})

    def _forward(self, batch: Batch, micro: int) -> tuple[Tensor, list[Routing]]:
        nll, routings = self._forward_without_hooks(batch, micro)
        with torch.no_grad():
            for hook in self.routing_hooks:
                hook(routings, batch)
        return nll, routings

    def _forward_without_hooks(self, batch: Batch, micro: int) -> tuple[Tensor, list[Routing]]:
        # of this micro-batch in the global batch
        place = micro * num_ranks() + self.global_rank
        seed = self.seed * 1_000_003 + self.global_step
        row = place * self.micro_batch_size
        inputs = (batch["tokens"], batch["targets"], batch["valid"], batch["document"])
        return self.model(*inputs, seed, self.global_step, batch["domain"], row)

    def _micro_batches(self, batch: Batch) -> Iterator[Batch]:
        parts = {name: value.split(self.micro_batch_size) for name, value in batch.items()}
        for i in range(len(parts["tokens"])):
            yield {name: part[i] for name, part in parts.items()}

    def _optimizer_step(self, norm: Tensor) -> None:
        if self.clip_norm is not None:
            clip_gradients(list(self.parameters()), norm, self.clip_norm)
        self._count_step()

    def _skip_step(self, micros: list[Batch]) -> None:
        """A step without a gradient: torch's optimizers leave such
        parameters and their state as they are.
        """
        again = lambda: [self._forward_without_hooks(m, i) for i, m in enumerate(micros)]  # noqa: E731
        self.bad_steps.skip(self.model, self.global_step, again)
        self.optimizers().zero_grad()  # type: ignore[union-attr]
        self._count_step()

    def _count_step(self) -> None:
        optimizer = self.optimizers()
        scheduler = self.lr_schedulers()
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        scheduler.step()  # type: ignore[union-attr]

    def _is_logged(self) -> bool:
        """Whether somebody looks at this step:
        the loggers, or the first and last line of the terminal.
        """
        step = self.global_step + 1
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return step % every == 0 or step in (self.first_step + 1, self.trainer.max_steps)

    def _log_step(self, sums: Sums, num_targets: Tensor) -> None:
        self.log("Loss/train", sums[LOSS] / num_targets)
        for (kind, name), raw in sums.items():
            if kind == TERM:
                weight = self.model.balancer.weight(name)
                self.log_dict({f"balance/{name}": raw, f"balance/{name}_weighted": weight * raw})
