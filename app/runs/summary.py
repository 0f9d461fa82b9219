"""What a finished run writes down, `summary.json`:
all of it from the checkpoint after its last step.
"""

import importlib.metadata
import json
import os
import subprocess
from pathlib import Path

import torch

from app.config.compose import Config
from app.cost.budget import Budget
from app.model.assemble import build_model
from app.runs.folder import SUMMARY
from app.runs.text import read_text
from app.training.files import Checkpoint, write_whole
from app.training.messages import say
from app.training.metrics import dead_experts, max_violation

PACKAGES = ("torch", "lightning", "torchmetrics", "hydra-core", "datasets", "tokenizers")


def summarize(checkpoint: Checkpoint) -> dict[str, object]:
    """Everything but what the budget and the text know."""
    values = checkpoint["validation"]["values"]
    load = checkpoint["validation"]["load"]
    used = checkpoint["callbacks"]["Usage"]
    return {
        **{f"val_{name}": values[name] for name in ("nats", "ppl", "bpb")},
        "val_bpb_by_domain": {
            n.removeprefix("bpb_"): v for n, v in values.items() if n.startswith("bpb_")
        },
        "tokens_seen": checkpoint["tokens_seen"],
        "tokens_per_s": checkpoint["tokens_seen"] / used["training_s"],
        "wall_s": used["wall_s"],
        "peak_memory_bytes": used["peak_memory_bytes"],
        "maxvio_by_layer": max_violation(load).tolist(),
        "dead_experts_by_layer": dead_experts(load).tolist(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }


def write_summary(folder: Path, config: Config, checkpoint: Checkpoint) -> None:
    """Writes `summary.json`, and tells what it says first."""
    text = read_text(folder, config)
    with torch.device("meta"):
        model = build_model(config, text.tokenizer.vocab_size)
    about = {"seed": config["seed"], "corpus_fingerprint": text.fingerprint}
    summary = summarize(checkpoint) | Budget.of(model, config["data"]["seq_len"]).summary() | about
    write_whole(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    say(f"{summary['val_bpb']:.3f} bits per byte. The run lies in {folder}")
    if (folder / "tb").exists():
        say(f"look at it: tensorboard --logdir {folder.parent}")


def is_validated(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint was validated at its own step, as the one after the last step is."""
    return bool(checkpoint.get("validation", {}).get("step") == checkpoint["global_step"])


def _git_commit() -> str | None:
    """Return the commit of the code, whatever the working directory;
    None if it is not the root of a repository.
    """
    root = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    top, commit = done.stdout.split("\n")[:2]
    # an installed package may be inside of another repository
    return commit if Path(top).resolve() == root else None
