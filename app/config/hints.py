"""Hints for a key that does not exist, searched for in all groups and their options."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from app.registry import unknown

CLOSE = 0.7  # similarity of a typing error
# names in other trainers and libraries
ELSEWHERE = {
    "accumulate_grad_batches": "data.micro_batch_size",
    "gradient_accumulation_steps": "data.micro_batch_size",
    "per_device_train_batch_size": "data.micro_batch_size",
    "learning_rate": "optimizer.lr",
    "lr_factor": "optimizer.router_lr_factor",
    "from": "init.checkpoint",
    "resume_from_checkpoint": "resume",
    "init_from": "init.checkpoint",
    "max_lr": "optimizer.lr",
    "steps": "trainer.max_steps",
    "epochs": "trainer.max_steps",
    "num_train_epochs": "trainer.max_steps",
    "val_check_interval": "trainer.val_every",
    "eval_steps": "trainer.val_every",
    "save_steps": "trainer.checkpoint_every",
    "gpus": "trainer.devices",
    "d_model": "model.dim",
    "hidden_size": "model.dim",
    "intermediate_size": "model.hidden_dim",
    "num_hidden_layers": "model.num_layers",
    "n_layer": "model.num_layers",
    "num_experts_per_tok": "experts.top_k",
    "num_local_experts": "experts.num_experts",
    "aux_loss_coef": "balance.aux.weight",
    "router_aux_loss_coef": "balance.aux.weight",
    "max_length": "data.seq_len",
    "block_size": "data.seq_len",
}
REMARKS = {
    "data.micro_batch_size": "rows of one forward pass; an optimizer step has data.batch_size rows",
    "trainer.max_steps": "the length of a run is given in optimizer steps",
}


def unknown_key(key: str, config: Mapping[str, object], conf: Path) -> str:
    """Return one line for a key that a composed config does not have.

    Args:
        key: The key with its groups, such as `router.k`.
        config: The config that was composed, with the options that the user chose.
        conf: Folder of the config groups.
    """
    *groups, name = key.split(".")
    inside = (
        OmegaConf.select(OmegaConf.create(dict(config)), ".".join(groups)) if groups else config
    )
    siblings = [str(sibling) for sibling in inside] if isinstance(inside, Mapping) else []
    if name not in ELSEWHERE and difflib.get_close_matches(name, siblings, n=1, cutoff=CLOSE):
        return unknown(key, name, siblings)
    options = _options_with(name, conf / "/".join(groups)) if groups else []
    if options:
        chosen = " or ".join(f"{'/'.join(groups)}={option}" for option in options[:3])
        return f"{key}: the chosen {'/'.join(groups)} has no such key; set {chosen}, too"
    meant = [ELSEWHERE[name]] if name in ELSEWHERE else _same_name(key, config)
    if not meant and groups and groups[0] not in config:
        return unknown(key, groups[0], [group for group in config if group != "hydra"])
    if not meant:
        return unknown(key, name, siblings)
    remark = f" ({REMARKS[meant[0]]})" if meant[0] in REMARKS else ""
    return f"{key}: unknown; did you mean {' or '.join(map(repr, meant))}?{remark}"


def _options_with(name: str, group: Path) -> list[str]:
    """Return the options of a group that have a key;
    options that require a value for it come first.
    """
    options: dict[str, bool] = {}
    for path in sorted(group.glob("[!_]*.yaml")):
        values = OmegaConf.load(path)
        if isinstance(values, DictConfig) and name in values:
            options[path.stem] = OmegaConf.is_missing(values, name)
    return sorted(options, key=lambda option: not options[option])


def _same_name(key: str, config: Mapping[str, object]) -> list[str]:
    """Return keys with the same last part elsewhere in the config,
    preferring keys of the same group.
    """
    first = key.split(".")[0]
    name = key.split(".")[-1]
    found = [path for path in _paths(config) if path.split(".")[-1] == name and path != key]
    near = [path for path in found if path.split(".")[0] == first] or found
    return near[:3]


def _paths(config: Mapping[str, object], before: str = "") -> Iterator[str]:
    """Yield every dotted key of a config."""
    for key, value in config.items():
        path = f"{before}{key}"
        yield path
        if isinstance(value, Mapping):
            yield from _paths(value, f"{path}.")
