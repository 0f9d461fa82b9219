"""What a race keeps of a finished run: a few numbers, so that the run itself may go."""

import json
from pathlib import Path
from statistics import fmean

import torch

from app.analysis.curves import table_of
from app.analysis.specialisation import load_by_label, mutual_information
from app.config.compose import Config
from app.data.corpus import Batch
from app.model.moe import MoE
from app.runs.folder import SUMMARY
from app.runs.read import TrainedRun, read_run
from app.training.metrics import Total, load_sums, routing_statistics, token_sums

KEPT = (
    "tokens_seen",
    "peak_memory_bytes",
    "total_params",
    "active_params",
    "flops_per_token_train",
)
ABOUT = ("corpus_fingerprint", "git_commit")
TRAINED = {
    "mean_k": "router/mean_k",
    "drop_rate": "experts/drop_rate",
    "maxvio_micro": "experts/maxvio_micro",
}
CURVE = "Loss/val_bpb"
ROWS = 8  # of a forward pass
Record = dict[str, object]


def record_of(folder: Path) -> Record:
    """Everything that a race compares, of a run that has ended."""
    summary = json.loads((folder / SUMMARY).read_text())
    run = read_run(folder)
    written = table_of(folder, (*TRAINED.values(), CURVE))
    trained = {
        name: fmean(value for _, value in written[tag])
        for name, tag in TRAINED.items()
        if written[tag]
    }
    torch.set_num_threads(run.config["trainer"]["threads"])
    return {
        "bpb": summary["val_bpb"],
        "nats": summary["val_nats"],
        "domains": summary["val_bpb_by_domain"],
        **{name: summary[name] for name in (*KEPT, *ABOUT)},
        "torch": summary["versions"]["torch"],
        "optimizer": optimizer_of(run.config),
        "flops": summary["flops_per_token_train"] + chosen_flops(run, trained.get("mean_k")),
        "curve": written[CURVE],
        "routing": trained | routing_numbers(run) if run.model.num_experts else None,
    }


def optimizer_of(config: Config) -> str:
    """Describe the optimizer settings that affect weights of different widths differently."""
    entry = config["optimizer"]
    rule = f", gate_up={entry['gate_up']}" if "gate_up" in entry else ""
    return (
        f"{entry.get('name', entry.get('_target_'))}{rule}, precision "
        f"{config['trainer']['precision']}"
    )


def chosen_flops(run: TrainedRun, mean_k: float | None) -> float:
    """FLOPs a token in training of the experts that it chose beyond those that the config names;
    fewer: negative.
    """
    if mean_k is None:
        return 0.0
    layers = [module for module in run.model.modules() if isinstance(module, MoE)]
    return sum(
        6.0 * (m.experts.active_params(mean_k) - m.experts.active_params(m.router.top_k))
        for m in layers
    )


@torch.no_grad()
def routing_numbers(run: TrainedRun) -> dict[str, float]:
    """How the routers of a run deal with its held-out rows: means over the layers."""
    total = Total()
    number = len(run.text.domains)
    for batch in run.text.held_out(run.config["data"]["val_rows"], ROWS):
        total.add(_sums(run, batch, number))
    sums = total.take()
    by_layer = routing_statistics(sums) | {
        "domain_information": mutual_information(sums["by_domain"])
    }
    names = ("maxvio", "dead", "token_entropy", "domain_information")
    return {name: by_layer[name].double().mean().item() for name in names}


def _sums(run: TrainedRun, batch: Batch, domains: int) -> dict[str, torch.Tensor]:
    inputs = (batch["tokens"], batch["targets"], batch["valid"], batch["document"])
    _, routings = run.model(*inputs, domain=batch["domain"])
    by_domain = [load_by_label(routing, batch["domain"], domains) for routing in routings]
    return load_sums(routings) | token_sums(routings) | {"by_domain": torch.stack(by_domain)}
