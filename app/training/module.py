"""The training step: one Lightning batch is one optimizer step of this rank, cut into
micro-batches.

The language-model loss is the sum over tokens divided by the number of target tokens of the *whole*
optimizer step, over all micro-batches and ranks, so its gradient does not depend on how the rows
are cut. Balance terms are means over the micro-batches. Controllers are updated once, after the
step, with what was observed over all micro-batches and ranks.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from app.fault_points import fault_point
from app.model.transformer import Transformer
from app.training.clipping import clip_gradients, gradient_norm
from app.training.files import Checkpoint
from app.training.metrics import LanguageMetric, LoadMetric
from app.training.nonfinite import BadSteps
from app.training.sharding import averaged_ranks, hold_gradients, shard
from app.training.tags import Tag
from app.training.unfilled import Draw, Given, fill
from experts.matrix import MatrixLayout
from routers.collectives import num_ranks, rank_sum, rank_sums
from routers.contract import Routing

Batch = dict[str, Tensor]
RoutingHook = Callable[[list[Routing], Batch], None]


@dataclass(frozen=True)
class StepSums:
    """Sums over the micro-batches of one optimizer step.

    Attributes:
        nll: Negative log-likelihood of all targets, in nats.
        balance: Raw value of each balance term, as its share of the mean over all micro-batches.
        observed: What each balance term observes of the routings, by the name of the term.
    """

    nll: Tensor
    balance: dict[str, Tensor]
    observed: dict[str, Tensor]

    def __add__(self, other: "StepSums") -> "StepSums":
        return StepSums(
            self.nll + other.nll,
            {name: value + other.balance[name] for name, value in self.balance.items()},
            {name: value + other.observed[name] for name, value in self.observed.items()},
        )

    def over_ranks(self) -> "StepSums":
        """Return the sums over all ranks, by one collective."""
        values = [self.nll, *self.balance.values(), *self.observed.values()]
        nll, *rest = rank_sums(dict(enumerate(values))).values()
        balance = rest[: len(self.balance)]
        observed = rest[len(self.balance) :]
        return StepSums(
            nll,
            dict(zip(self.balance, balance, strict=True)),
            dict(zip(self.observed, observed, strict=True)),
        )


class GroupKey(NamedTuple):
    """What the parameters of one optimizer group have in common."""

    decays: bool
    is_router: bool
    is_hidden: bool
    layout: MatrixLayout | None


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
        make_optimizer: Callable[[list[dict[str, object]]], torch.optim.Optimizer],
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
        self.local_loss = torch.zeros(())
        # A rank requests a checkpoint between two steps; after the next step all ranks know of it.
        self.save_requested = False
        self.any_rank_requested_save = False
        self.first_step = 0  # of this process

    def compile_blocks(self) -> None:
        """Compile each block by torch.compile: they share their code, so this takes little time."""
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
        """Return the optimizer, and the schedule of its learning rates.

        A parameter group has the keys `hidden` (whether it holds matrices of the blocks),
        `of_router`, and the fields of the `MatrixLayout` of its matrices; `axis` is None where they
        have no layout.
        """
        # Groups keep the order of the parameters. Lightning numbers the optimizer's state by it
        # under FSDP2: a checkpoint would hand one parameter's moments to another where the orders
        # differ.
        learned = (parameter for parameter in self.parameters() if parameter.requires_grad)
        groups = []
        for key, parameters in groupby(learned, self._group_key()):
            group: dict[str, Any] = {
                "params": list(parameters),
                "hidden": key.is_hidden,
                "of_router": key.is_router,
                "axis": None,
            }
            if key.layout is not None:
                group.update(key.layout._asdict())
            if not key.decays:
                group["weight_decay"] = 0.0
            groups.append(group)
        optimizer = self.make_optimizer(groups)
        for group in optimizer.param_groups:
            if group["of_router"]:
                group["lr"] *= self.router_lr_factor
        return [optimizer], [LambdaLR(optimizer, self.schedule)]

    def _group_key(self) -> Callable[[nn.Parameter], GroupKey]:
        """Return the function from a parameter to the key of its optimizer group."""
        routers = {*self.model.router_parameters()}
        hidden_matrices = {*self.model.matrices()} & {*self.model.blocks.parameters()}
        stacked_vectors = {*self.model.stacked_vectors()}
        layouts = self.model.matrix_layouts()

        def group_key(parameter: nn.Parameter) -> GroupKey:
            return GroupKey(
                # Weight decay: only matrices decay. The biases of all experts of a layer are
                # stacked to two dimensions, and are vectors all the same.
                decays=parameter.dim() >= 2 and parameter not in stacked_vectors,
                # Learning rate: that of routers has a factor of its own.
                is_router=parameter in routers,
                # Update rule: Muon orthogonalizes the matrices of the blocks; embedding, head,
                # norms and routers step by AdamW.
                is_hidden=parameter in hidden_matrices,
                # Blocks: Muon cuts a matrix between its units, which the layout tells.
                layout=layouts.get(parameter),
            )

        return group_key

    def on_train_start(self) -> None:
        self.first_step = self.global_step

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one optimizer step on this rank's rows.

        It takes one or two collectives beside those of the gradients.
        """
        fault_point("training step")
        micro_batches = list(self._micro_batches(batch))
        num_local_targets = (batch["targets"] >= 0).sum()
        # The request to save travels with the counts: ranks hear of time and signals at different
        # moments, and this costs no collective of its own.
        save_requested = batch["valid"].new_full((), self.save_requested, dtype=torch.int64)
        counts = rank_sum(torch.stack([num_local_targets, batch["valid"].sum(), save_requested]))
        num_targets = counts[0].clamp_min(1)
        num_tokens = counts[1]

        sums = self._backward(micro_batches, num_targets)
        norm = gradient_norm(self)
        # The only place where the host waits for the device: both flags in one transfer.
        flags: list[bool] = torch.stack([norm.isfinite(), counts[2] > 0]).tolist()
        is_finite, self.any_rank_requested_save = flags
        self.local_loss = sums.nll / num_local_targets.clamp_min(1)

        # The sums of the other ranks are needed in steps that log, and by controllers.
        controllers = self.model.balancer.controllers
        should_reduce = num_ranks() == 1 or self._is_logged() or bool(controllers)
        if should_reduce:
            sums = sums.over_ranks()
            self._log_step(sums, num_targets)
        self.log("train/grad_norm", norm)

        fault_point("optimizer step")
        if is_finite:
            self._optimizer_step(norm)
            observed = {name: sums.observed[name] for name in controllers}
            self.model.balancer.update(observed, num_tokens)
        else:
            self._skip_step(micro_batches)
        self.tokens_seen = self.tokens_seen.to(num_tokens.device) + num_tokens

    def _backward(self, micro_batches: list[Batch], num_targets: Tensor) -> StepSums:
        """Accumulate the gradients of this rank; return the sums over its micro-batches.

        Args:
            micro_batches: The rows of this rank; there is at least one.
            num_targets: Number of target tokens of the step, over all ranks.
        """
        balancer = self.model.balancer
        num_micro_batches_global = len(micro_batches) * num_ranks()
        sums: StepSums | None = None
        for i, micro_batch in enumerate(micro_batches):
            # Ranks exchange gradients once, with the last micro-batch.
            is_last = i == len(micro_batches) - 1
            with nullcontext() if is_last else hold_gradients(self):
                nll, routings = self._forward(micro_batch, i)
                terms = balancer.losses(routings, sums.observed if sums else {})
                balance = torch.zeros((), device=self.device)
                for raw, weight in terms.values():
                    balance = balance + weight * raw
                # The share of this micro-batch in the loss of the step.
                loss = nll.sum() / num_targets + balance / num_micro_batches_global
                # Distributed strategies average gradients, and this loss is to be summed.
                self.manual_backward(loss * averaged_ranks(self.model))
            new = StepSums(
                nll.detach().sum(),
                {name: raw.detach() / num_micro_batches_global for name, (raw, _) in terms.items()},
                balancer.observe(routings),
            )
            sums = sums + new if sums else new
        assert sums is not None
        return sums

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Only the likelihood: no balance term, no controller."""
        fault_point("validation step")
        nll, routings = self._forward(batch, 0)
        self.load_metric.update(routings)
        self.metric.update(nll, batch["targets"], batch["nbytes"], batch["domain"])

    def on_validation_epoch_end(self) -> None:
        values = {name: value.float() for name, value in self.metric.compute().items()}
        has_domains = len(self.metric.domains) > 1
        for name, value in values.items():
            # With one domain, its value is the mean itself.
            if has_domains or not name.startswith("bpb_"):
                self.log(f"Loss/val_{name}", value)
        # Lightning writes the values at the step that this key names: the last one.
        self.log("step", float(max(0, self.global_step - 1)))
        self.validation = {
            "step": self.global_step,
            "values": {name: value.item() for name, value in values.items()},
            "load": self.load_metric.compute().cpu(),
        }
        self.metric.reset()
        self.load_metric.reset()

    def on_save_checkpoint(self, checkpoint: Checkpoint) -> None:
        checkpoint["tokens_seen"] = int(self.tokens_seen)
        checkpoint["bad_steps"] = self.bad_steps.count
        checkpoint["validation"] = self.validation

    def on_load_checkpoint(self, checkpoint: Checkpoint) -> None:
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
        # The noise of a row depends on its number in the global batch, not on the rank.
        place = micro * num_ranks() + self.global_rank
        first_row = place * self.micro_batch_size
        seed = self.seed * 1_000_003 + self.global_step
        return self.model(
            batch["tokens"],
            batch["targets"],
            batch["valid"],
            batch["document"],
            seed,
            self.global_step,
            batch["domain"],
            first_row,
        )

    def _micro_batches(self, batch: Batch) -> Iterator[Batch]:
        parts = {name: value.split(self.micro_batch_size) for name, value in batch.items()}
        for i in range(len(parts["tokens"])):
            yield {name: part[i] for name, part in parts.items()}

    def _optimizer_step(self, norm: Tensor) -> None:
        if self.clip_norm is not None:
            clip_gradients(list(self.parameters()), norm, self.clip_norm)
        self._count_step()

    def _skip_step(self, micro_batches: list[Batch]) -> None:
        """Count a step without gradients: optimizers leave such parameters and their state."""

        def forward_again() -> None:
            for i, micro_batch in enumerate(micro_batches):
                self._forward_without_hooks(micro_batch, i)

        self.bad_steps.skip(self.model, self.global_step, forward_again)
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

    def _log_step(self, sums: StepSums, num_targets: Tensor) -> None:
        self.log("Loss/train", sums.nll / num_targets)
        for name, raw in sums.balance.items():
            self.log(f"balance/{name}", raw)
            self.log(f"balance/{name}_weighted", self.model.balancer.weight(name) * raw)
