"""What a race keeps of a finished run: a few numbers, so that the run itself may go."""

import csv
import json
from pathlib import Path
from typing import Any

import torch

from app.analysis.specialisation import load_by_label, mutual_information
from app.analysis.tasks.suite import scores
from app.data.corpus import Batch
from app.runs.folder import SUMMARY
from app.runs.read import TrainedRun, read_run
from app.training.metrics import Total, load_sums, routing_statistics, token_sums

KEPT = ("tokens_seen", "peak_memory_bytes", "total_params", "active_params", "flops_per_token_train")
ABOUT = ("corpus_fingerprint", "git_commit")
ROWS = 8  # of a forward pass
ITEMS = 100  # of each small task
Record = dict[str, Any]


def record_of(folder: Path) -> Record:
    """Everything that a race compares, of a run that has ended."""
    summary = json.loads((folder / SUMMARY).read_text())
    run = read_run(folder)
    torch.set_num_threads(run.config["trainer"]["threads"])
    return {
        "bpb": summary["val_bpb"],
        "nats": summary["val_nats"],
        "domains": summary["val_bpb_by_domain"],
        **{name: summary[name] for name in (*KEPT, *ABOUT)},
        "curve": curve(folder / "csv" / "metrics.csv"),
        "routing": routing_numbers(run) if run.model.num_experts else None,
        "tasks": {name: found and found.accuracy for name, found in scores(run, ITEMS).items()},
    }


def curve(path: Path) -> list[tuple[int, float]]:
    """Bits per byte at every validation, with the optimizer steps before it."""
    with path.open(newline="", encoding="utf-8") as file:
        return [(int(row["step"]) + 1, float(row["val/bpb"])) for row in csv.DictReader(file) if row.get("val/bpb")]


@torch.no_grad()
def routing_numbers(run: TrainedRun) -> dict[str, float]:
    """How the routers of a run deal with its held-out rows: means over the layers."""
    total, number = Total(), len(run.text.domains)
    for batch in run.text.held_out(run.config["data"]["val_rows"], ROWS):
        total.add(_sums(run, batch, number))
    sums = total.take()
    by_layer = routing_statistics(sums) | {"domain_information": mutual_information(sums["by_domain"])}
    names = ("maxvio", "dead", "drop_rate", "mean_k", "token_entropy", "domain_information")
    return {name: by_layer[name].double().mean().item() for name in names}


def _sums(run: TrainedRun, batch: Batch, domains: int) -> dict[str, torch.Tensor]:
    inputs = (batch["tokens"], batch["targets"], batch["valid"], batch["document"])
    _, routings = run.model(*inputs, domain=batch["domain"])
    by_domain = [load_by_label(routing, batch["domain"], domains) for routing in routings]
    return load_sums(routings) | token_sums(routings) | {"by_domain": torch.stack(by_domain)}
