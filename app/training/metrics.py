"""How good is the language model, and how even is the load of its experts?"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from routers.assignments import expert_load, importance
from routers.collectives import rank, rank_sums
from routers.contract import Routing


class LanguageMetric(Metric):
    """Sums of nats, target tokens and text bytes per domain, over all ranks.

    A separator's nats count and its bytes do not, so bits per byte compares any two tokenizers.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor
    bytes: Tensor

    def __init__(self, domains: list[str]) -> None:
        super().__init__()
        self.domains = domains
        for name in ("nats", "tokens", "bytes"):
            self.add_state(
                name, torch.zeros(len(domains), dtype=torch.float64), dist_reduce_fx="sum"
            )

    def update(self, nll: Tensor, targets: Tensor, num_bytes: Tensor, domain: Tensor) -> None:
        """Adds one batch.

        Args:
            nll: (B, S) nats of the targets, 0 where there is none.
            targets: (B, S) int64, negative where nothing is predicted.
            num_bytes: (B, S) UTF-8 bytes of the target tokens.
            domain: (B, S) int64 in 0..number of domains - 1.
        """
        real = targets >= 0
        for state, values in (
            (self.nats, nll),
            (self.tokens, real),
            (self.bytes, num_bytes * real),
        ):
            state.scatter_add_(0, domain.flatten(), values.flatten().to(state.dtype))

    def compute(self) -> dict[str, Tensor]:
        """`nats` per token, `ppl`, `bpb` (unweighted mean over the
        domains that occurred) and `bpb_DOMAIN`.
        """
        nats = self.nats.sum() / self.tokens.sum()
        bpb = self.nats / self.bytes / math.log(2)
        seen = self.bytes > 0
        named = {f"bpb_{name}": bpb[i] for i, name in enumerate(self.domains) if seen[i]}
        return {"nats": nats, "ppl": nats.exp(), "bpb": bpb[seen].mean(), **named}


class LoadMetric(Metric):
    """Assignments per MoE layer and expert, before the drop and without padding, over all ranks."""

    full_state_update = False
    load: Tensor

    def __init__(self, num_layers: int, num_experts: int) -> None:
        super().__init__()
        self.add_state(
            "load",
            torch.zeros(num_layers, max(1, num_experts), dtype=torch.float64),
            dist_reduce_fx="sum",
        )

    def update(self, routings: Sequence[Routing]) -> None:
        """Adds one forward pass."""
        if routings:
            self.load += expert_load(routings)

    def compute(self) -> Tensor:
        """Load (L, E)."""
        return self.load


def max_violation(load: Tensor) -> Tensor:
    """MaxVio per layer (L,) of load (L, E):
    largest load over mean load, minus 1 (arXiv 2408.15664, section 4.1).
    """
    return load.amax(-1) / load.mean(-1).clamp_min(1e-9) - 1


def dead_experts(load: Tensor) -> Tensor:
    """How many experts of each layer (L,) got nothing, of load (L, E)."""
    return (load == 0).sum(-1)


def coefficient_of_variation(load: Tensor) -> Tensor:
    """Standard deviation over mean of load (L, E), per layer (L,): Shazeer et al.
    2017, arXiv 1701.06538, eq. 8.
    """
    return load.std(-1, correction=0) / load.mean(-1).clamp_min(1e-9)


def load_entropy(load: Tensor) -> Tensor:
    """Entropy in nats of load (L, E) as a distribution over the experts, per layer (L,); ln E where
    it is even.

    Its exponential is the effective number of experts.
    """
    return torch.special.entr(load / load.sum(-1, keepdim=True).clamp_min(1e-9)).sum(-1)


def uniform_multiple(load: Tensor) -> Tensor:
    """Load (..., E) as a multiple of what each expert gets where the load is even;
    0 where there is none at all.
    """
    return load / load.mean(-1, keepdim=True).clamp_min(1e-9)


class Total:
    """Named sums on the device, added up over forward passes,
    and over the ranks when they are read.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds to the sums, in float64: counts stay exact."""
        for name, value in values.items():
            old = self._sums.get(name)
            self._sums[name] = value.double() if old is None else old.to(value.device) + value

    def take(self) -> dict[str, Tensor]:
        """The sums over all ranks, which are forgotten; one collective.
        Every rank calls it at the same step.
        """
        sums = self._sums
        self._sums = {}
        return rank_sums(sums)

    def state(self) -> dict[str, Tensor]:
        """The sums over all ranks; every rank calls it at the same step."""
        return {name: value.cpu() for name, value in rank_sums(self._sums).items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from sums over all ranks, which the first one then has."""
        self._sums = {name: value * (rank() == 0) for name, value in state.items()}


EVEN = "multiples of the even load"
# of `routing_statistics`, with their meaning and unit
STATISTICS = {
    "load_min": ("load of the least loaded expert", EVEN),
    "load_median": ("load of the median expert", EVEN),
    "load_max": ("load of the most loaded expert", EVEN),
    "load_cv": ("standard deviation of the load over its mean", "1"),
    "load_entropy": ("entropy of the load", "nats"),
    "effective_experts": ("exponential of the entropy of the load", "experts"),
    "importance_max": ("largest sum of an expert's gates", "multiples of the mean"),
    "importance_cv": ("standard deviation of these sums over their mean", "1"),
    "maxvio": ("largest over mean load, minus 1", "1"),
    "maxvio_micro": ("the same inside one micro-batch", "1"),
    "dead": ("experts without a token", "experts"),
    "drop_rate": ("share of the assignments that a full expert did not compute", "0..1"),
    "mean_k": ("experts of a token, before the drop", "experts"),
    "token_entropy": ("entropy of a token's normalised scores", "nats"),
    "margin": ("between a token's two largest normalised scores", "1"),
    "z": ("mean square of the logits' log-sum-exp", "1"),
    "logit_rms": ("root mean square of the logits", "1"),
}


# of these, what is said of routers
ROUTERS = ("mean_k", "token_entropy", "margin", "logit_rms", "z")


def group_of(statistic: str) -> str:
    """Under which group of tags a statistic is written."""
    return "router" if statistic in ROUTERS else "experts"


def routing_sums(routings: Sequence[Routing]) -> dict[str, Tensor]:
    """What `routing_statistics` needs of one forward pass, as sums:
    add them over micro-batches and ranks.
    """
    return load_sums(routings) | token_sums(routings)


def load_sums(routings: Sequence[Routing]) -> dict[str, Tensor]:
    """The part of `routing_sums` that is about assignments; cheap enough for every forward pass."""
    loads = expert_load(routings)
    dropped = []
    for routing in routings:
        is_assigned = routing.expert < routing.logits.size(1)
        dropped.append((is_assigned & ~routing.kept).sum())
    return {
        "load": loads,
        "importance": importance(routings),
        "dropped": torch.stack(dropped),
        "tokens": routings[0].valid.sum(),
        "forwards": torch.ones((), device=loads.device),
        "maxvio": max_violation(loads),
    }


def token_sums(routings: Sequence[Routing]) -> dict[str, Tensor]:
    """The part of `routing_sums` that is about the scores of single tokens, with their number."""
    each = [_scores_of_tokens(routing) for routing in routings]
    sums = {name: torch.stack([layer[name] for layer in each]) for name in each[0]}
    return sums | {"scored_tokens": routings[0].valid.sum()}


def routing_statistics(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The STATISTICS per layer (L,), of sums over any number of forward passes.

    `maxvio_micro` is a mean over forward passes; all others are global: they do not depend on how
    tokens were cut.
    """
    return _load_statistics(sums) | _score_statistics(sums)


def _load_statistics(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # (L, E)
    load = sums["load"]
    importance = uniform_multiple(sums["importance"])
    relative = uniform_multiple(load)
    assigned = load.sum(-1)
    entropy = load_entropy(load)
    return {
        "load_min": relative.amin(-1),
        "load_median": relative.quantile(0.5, dim=-1),
        "load_max": relative.amax(-1),
        "load_cv": coefficient_of_variation(load),
        "load_entropy": entropy,
        "effective_experts": entropy.exp(),
        "importance_max": importance.amax(-1),
        "importance_cv": coefficient_of_variation(importance),
        "maxvio": max_violation(load),
        "maxvio_micro": sums["maxvio"] / sums["forwards"].clamp_min(1),
        "dead": dead_experts(load),
        "drop_rate": sums["dropped"] / assigned.clamp_min(1),
        "mean_k": assigned / sums["tokens"].clamp_min(1),
    }


def _score_statistics(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tokens = sums["scored_tokens"].clamp_min(1)
    return {
        "token_entropy": sums["entropy"] / tokens,
        "margin": sums["margin"] / tokens,
        "z": sums["z"] / tokens,
        "logit_rms": (sums["logit_square"] / sums["logits"].clamp_min(1)).sqrt(),
    }


def _scores_of_tokens(routing: Routing) -> dict[str, Tensor]:
    """Sums over the real tokens of one layer, as scalars."""
    valid = routing.valid.flatten().to(routing.scores.dtype)  # (T,)
    share = routing.probabilities
    # A logit of -inf is an expert that is forbidden.
    allowed = ~routing.logits.isinf()
    # One expert alone has no margin: the first and the last of one are the same.
    largest = share.topk(min(2, share.size(1)), -1).values
    of_tokens = {
        "entropy": torch.special.entr(share).sum(-1),
        "margin": largest[:, 0] - largest[:, -1],
        "z": routing.logits.logsumexp(-1).square(),
        "logit_square": routing.logits.masked_fill(~allowed, 0).square().sum(-1),
        "logits": allowed.sum(-1),
    }
    totals = torch.stack(list(of_tokens.values())) @ valid  # (5, T) @ (T,)
    return dict(zip(of_tokens, totals, strict=True))
