"""What a finished run writes down: `summary.json`."""

import importlib.metadata
import resource
import subprocess
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Timer

from app.training.metrics import dead_experts, max_violation
from app.training.module import LanguageModel

PACKAGES = ("torch", "lightning", "torchmetrics", "hydra-core", "datasets", "tokenizers")


def summarize(trainer: lightning.Trainer, module: LanguageModel) -> dict[str, Any]:
    """Everything but what the budget and the data know; called on all ranks."""
    values = {name.removeprefix("val/"): float(v) for name, v in trainer.callback_metrics.items() if "val/" in name}
    load = module.validation_load
    return {
        **{f"val_{name}": values[name] for name in ("nats", "ppl", "bpb")},
        "val_bpb_by_domain": {n.removeprefix("bpb_"): v for n, v in values.items() if n.startswith("bpb_")},
        "tokens_seen": int(module.tokens_seen),
        "tokens_per_s": (int(module.tokens_seen) - module.tokens_before) / _training_seconds(trainer),
        "peak_memory_bytes": _peak_memory(),
        "maxvio_by_layer": max_violation(load).tolist(),
        "dead_experts_by_layer": dead_experts(load).tolist(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }


def _training_seconds(trainer: lightning.Trainer) -> float:
    timer = next(callback for callback in trainer.callbacks if isinstance(callback, Timer))  # type: ignore[attr-defined]
    return timer.time_elapsed("train") - timer.time_elapsed("validate")


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _git_commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
