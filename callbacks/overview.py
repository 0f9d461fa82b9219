"""What TensorBoard opens with: the Custom Scalars tab in the order of the questions, and the
HParams tab.

Writes no metric of its own. The HParams are the run's config (`config.yaml` in its folder) without
what says how it is watched and where it runs. Their metrics are the last points of the curves named
in FINAL: final when the run is.
"""

from pathlib import Path

import lightning
from torch.utils.tensorboard.summary import hparams

from app.config.compose import Config
from app.config.saved import read_config
from app.registry import register
from app.training.metrics import STATISTICS
from callbacks.writing import event_writer, labels_of
from routers.noise import PARTS as PARTS_OF_ROUTER

FINAL = (
    "Loss/val_bpb",
    "experts/maxvio",
    "speed/tokens_per_s",
    "Loss/val_nats",
    "Loss/train",
    "experts/dead",
)
# of `experts_by_layer`
BY_LAYER = ("load_max", "load_min", "maxvio", "effective_experts", "dead", "drop_rate")
ROUTERS = ("token_entropy", "margin", "mean_k", "logit_rms")  # of `router_by_layer`
PARTS = ("data", "forward", "backward", "optimizer")  # of a step
UNLISTED = ("callbacks", "run", "resume", "hydra", "experiment", "trainer", "allow_non_causal")
Scalar = bool | int | float | str
Layout = dict[str, dict[str, list[object]]]
LINES = "Multiline"
MARGIN = "Margin"
CHARTS: dict[str, dict[str, tuple[str, list[str]]]] = {
    "1 Language model": {
        "loss, nats per token": (LINES, ["Loss/train", "Loss/val_nats"]),
        "bits per byte": (LINES, ["Loss/val_bpb"]),
        "gradient norm": (LINES, ["train/grad_norm"]),
        "learning rate": (LINES, ["train/lr"]),
    },
    "2 Even load": {
        "load of an expert, multiples of the even load": (
            MARGIN,
            ["experts/load_median", "experts/load_min", "experts/load_max"],
        ),
        "MaxVio": (LINES, ["experts/maxvio", "experts/maxvio_micro", "val_experts/maxvio"]),
        "effective number of experts": (LINES, ["experts/effective_experts"]),
        "dead experts": (LINES, ["experts/dead", "val_experts/dead"]),
        "drop rate": (LINES, ["experts/drop_rate"]),
        "balance terms": (LINES, ["balance/.*"]),
    },
    "3 Routers": {
        "entropy of a token's scores, nats": (LINES, ["router/token_entropy"]),
        "margin of the first expert": (LINES, ["router/margin"]),
        "experts per token": (LINES, ["router/mean_k"]),
        "size of the logits": (LINES, ["router/logit_rms"]),
        "information of domain and expert, nats": (LINES, ["specialisation/domain_information"]),
    },
    "4 Speed": {
        "tokens per second": (LINES, ["speed/tokens_per_s"]),
        "time of a step, ms": (LINES, [f"speed/{part}_ms" for part in PARTS]),
    },
    "5 Layer by layer": {
        f"{STATISTICS[name][0]}, each layer a line": (LINES, [f"{group}_by_layer/{name}/.*"])
        for group, names in (("experts", BY_LAYER), ("router", ROUTERS))
        for name in names
    },
}


@register("callback")
class Overview(lightning.Callback):
    """Writes the layout of TensorBoard's first page and the settings of the run, once."""

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        writer = event_writer(trainer)
        # a run that goes on has it
        if writer is None or trainer.global_step:
            return
        writer.add_custom_scalars(layout(list(labels_of(trainer, "domains"))))
        values = run_config(Path(trainer.default_root_dir))
        if values:
            for summary in hparams(values, dict.fromkeys(FINAL, 0.0)):
                writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]


def layout(domains: list[str]) -> Layout:
    """Return the charts by category; the bits per byte of all domains are in one chart."""
    by_domain = [f"Loss/val_bpb_{domain}" for domain in domains] if len(domains) > 1 else []
    categories: Layout = {}
    for category, charts in CHARTS.items():
        categories[category] = {}
        for title, (kind, tags) in charts.items():
            extra = by_domain if "Loss/val_bpb" in tags else []
            categories[category][title] = [kind, [*tags, *extra]]
    return categories


def run_config(folder: Path) -> dict[str, Scalar]:
    """Return the saved config of a run as flat keys, those in which runs differ most first.

    It is empty where no config was saved.
    """
    path = folder / "config.yaml"
    if not path.exists():
        return {}
    config = read_config(path)
    values = _short(config)
    for key, value in config.items():
        if key not in UNLISTED:
            values.update(_flat(key, value))
    return values


def _short(config: Config) -> dict[str, Scalar]:
    """Router, layout, balance, size and learning rate, in a word each."""
    router = config["router"]
    model = config["model"]
    return {
        "router": " ".join(router[part]["name"] for part in PARTS_OF_ROUTER),
        "experts": config["experts"]["name"],
        "balance": " ".join(config["balance"] or {}) or "none",
        "size": f"{model['num_layers']} x {model['dim']}",
        "lr": config["optimizer"].get("lr", "its own"),
    }


def _flat(key: str, value: object) -> dict[str, Scalar]:
    """Return the values inside of a value, with dotted keys; what is no scalar becomes a text."""
    if isinstance(value, dict):
        flat = {}
        for inner_key, inner in value.items():
            flat.update(_flat(f"{key}.{inner_key}", inner))
        return flat
    return {key: value if isinstance(value, bool | int | float | str) else str(value)}
