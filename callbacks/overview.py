"""What TensorBoard opens with: the Custom Scalars tab in the order of the questions, and the HParams tab.

Writes no metric of its own. The HParams are the run's config (`config.yaml` in its folder) without what says how it is
watched and where it runs. Their metrics are the last points of the curves named in FINAL: final when the run is.
"""

from pathlib import Path
from typing import Any

import lightning
from omegaconf import OmegaConf
from torch.utils.tensorboard.summary import hparams

from app.registry import register
from callbacks.watcher import event_writer, labels_of

FINAL = ("val/bpb", "val/nats", "val/ppl", "train/loss", "experts/maxvio", "experts/dead", "speed/tokens_per_s")
PARTS = ("data", "forward", "backward", "optimizer")  # of a step
UNLISTED = ("callbacks", "run", "resume", "hydra", "experiment", "trainer", "allow_non_causal")
Layout = dict[str, dict[str, list[Any]]]


@register("callback")
class Overview(lightning.Callback):
    """Nothing to choose."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        writer = event_writer(trainer)
        if writer is None:
            return
        writer.add_custom_scalars(layout(list(labels_of(trainer, "domains"))))
        values = run_config(Path(trainer.default_root_dir))
        if values:
            for summary in hparams(values, dict.fromkeys(FINAL, 0.0)):
                writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]


def layout(domains: list[str]) -> Layout:
    """Charts by category."""
    lines = "Multiline"
    return {
        "1 Language model": {
            "loss, nats per token": [lines, ["train/loss", "val/nats"]],
            "bits per byte": [lines, ["val/bpb", *(f"val/bpb_{domain}" for domain in domains)]],
            "gradient norm": [lines, ["train/grad_norm"]],
            "learning rate": [lines, ["train/lr"]],
        },
        "2 Even load": {
            "load of an expert, multiples of the even load": [
                "Margin",
                ["experts/load_median", "experts/load_min", "experts/load_max"],
            ],
            "MaxVio": [lines, ["experts/maxvio", "experts/maxvio_micro", "val_experts/maxvio"]],
            "effective number of experts": [lines, ["experts/effective_experts"]],
            "dead experts": [lines, ["experts/dead", "val_experts/dead"]],
            "drop rate": [lines, ["experts/drop_rate"]],
            "balance terms": [lines, ["balance/.*"]],
        },
        "3 Routers": {
            "entropy of a token's scores, nats": [lines, ["router/token_entropy"]],
            "margin of the first expert": [lines, ["router/margin"]],
            "experts per token": [lines, ["router/mean_k"]],
            "size of the logits": [lines, ["router/logit_rms"]],
            "information of domain and expert, nats": [lines, ["specialisation/domain_information"]],
        },
        "4 Speed": {
            "tokens per second": [lines, ["speed/tokens_per_s"]],
            "time of a step, ms": [lines, [f"speed/{part}_ms" for part in PARTS]],
        },
    }


def run_config(folder: Path) -> dict[str, bool | int | float | str]:
    """The saved config of a run as flat keys; empty where none was saved."""
    path = folder / "config.yaml"
    if not path.exists():
        return {}
    saved = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(saved, dict)
    return dict(_flat("", {key: value for key, value in saved.items() if key not in UNLISTED}))


def _flat(prefix: str, value: Any) -> list[tuple[str, bool | int | float | str]]:
    if isinstance(value, dict):
        return [
            pair for key, inner in value.items() for pair in _flat(f"{prefix}.{key}" if prefix else str(key), inner)
        ]
    return [(prefix, value if isinstance(value, bool | int | float | str) else str(value))]
