"""A run that starts from the weights of another one takes over its model."""

from copy import deepcopy

from app.config.compose import Config
from app.config.init import RunInit, build_init
from app.config.overrides import key_of
from app.config.saved import CONFIG, ROUTER_PARTS, folder_of_weights, get, put, read_config
from app.runs.text import tokenizer_config

# Config groups that weights depend on.
MODEL_GROUPS = ("model", "experts", "router", "balance", "tokenizer")


def with_model_of_source(config: Config, overrides: list[str]) -> Config:
    """Return the config with model, router, experts, balance and tokenizer of the run in
    `init.checkpoint`.

    An option of these groups that differs from the source run keeps its composed values, and so
    does every key in `overrides`. With an `experiment`, or if the source has no config file, the
    config is returned unchanged.

    Args:
        config: Composed config.
        overrides: Overrides that it was composed with.

    Raises:
        UserError: The source run's config is damaged.
    """
    init = build_init(config)
    folder = folder_of_weights(init.checkpoint) if isinstance(init, RunInit) else None
    keys = [key_of(override) for override in overrides]
    if folder is None or "experiment" in keys:
        return config
    saved = read_config(folder / CONFIG)
    inherited = deepcopy(config)
    for path in _inherited_paths(config, saved, overrides):
        put(inherited, path, deepcopy(get(saved, path)))
    if not any(key.split(".")[0] == "tokenizer" for key in keys):
        inherited["tokenizer"] = tokenizer_config(folder, saved)
    if "allow_non_causal" not in keys:
        inherited["allow_non_causal"] = saved["allow_non_causal"]
    for key in keys:
        is_value = "." in key and key.split(".")[0] in MODEL_GROUPS
        # The option of a router part has dots, too, and is a group of values.
        if is_value and not isinstance(get(config, key), dict):
            put(inherited, key, get(config, key))
    return inherited


def _inherited_paths(config: Config, saved: Config, overrides: list[str]) -> list[str]:
    """Return the config paths whose values a run takes over from the run that it starts from."""
    keys = [key_of(override) for override in overrides]
    paths = []
    if "model" not in keys:
        paths.append("model")
    if get(config, "experts.name") == get(saved, "experts.name"):
        paths.append("experts")
    if config["balance"].keys() == saved["balance"].keys():
        paths.append("balance")
    if "router" not in keys:
        for part in ROUTER_PARTS:
            if get(config, f"router.{part}.name") == get(saved, f"router.{part}.name"):
                paths.append(f"router.{part}")
        if not any("router.layers" in override for override in overrides):
            paths.append("router.layers")
    return paths
