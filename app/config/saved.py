"""A config in a file: plain values, read as they stand, whoever wrote them."""

from pathlib import Path

import yaml

from app.config.compose import Config, require_groups, require_known_keys
from app.config.overrides import combined, key_of, last
from app.config.own_overrides import require_own_overrides
from app.registry import UserError
from app.training.files import read_whole

# where the folders of runs lie
RUNS = Path("runs")
# keys that came later, with the value that a run without them had, by group and name of the part
LATER: dict[tuple[str, str | None], Config] = {
    ("model", None): {"qkv_bias": False},
    ("tokenizer", "file"): {"begin": None},
    ("optimizer", "muon"): {"gate_up": None, "dtype": "auto"},
}
ROUTER_PARTS = ("score", "select", "weigh", "drop")
CONFIG, OVERRIDES = "config.yaml", "overrides.yaml"  # of a run


def dumped(config: Config) -> str:
    """What `read_config` reads."""
    return yaml.dump(config, Dumper=_NoAliases, sort_keys=False, allow_unicode=True)


def read_config(path: Path) -> Config:
    """A saved config. Nothing in it is resolved: what looks like a reference to the environment is
    a plain word.

    Raises:
        UserError: it cannot be read, or is none of ours.
    """
    try:
        config = yaml.load(read_whole(path), Loader=_PlainLoader)
    # ValueError: a date such as 2020-99-99
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: is no config of ours: it holds {type(config).__name__}, not keys")
    try:
        require_groups(config)
        return require_known_keys(with_later_keys(config))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def with_later_keys(config: Config) -> Config:
    """Return a saved config with the keys that did not exist yet when it was written."""
    whole = dict(config)
    for (group, name), keys in LATER.items():
        entry = whole.get(group)
        if isinstance(entry, dict) and entry.get("name") == name:
            whole[group] = keys | entry
    return whole


def get(config: Config, path: str) -> object:
    """Return the value of a key with dots; None where there is none."""
    value: object = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def put(config: Config, path: str, value: object) -> None:
    """Set the value of a key with dots."""
    *groups, name = path.split(".")
    for key in groups:
        config = config.setdefault(key, {})
    config[name] = value


def read_list(path: Path) -> list[str]:
    """Return a saved list of overrides, which set nothing but values of our own config groups.

    Raises:
        UserError: The file cannot be read, is no list of overrides, or holds one that would do
            something else.
    """
    try:
        words = yaml.safe_load(read_whole(path))
    except (yaml.YAMLError, ValueError, RecursionError):
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(
            f"{path}: is damaged: it holds no list of overrides; restore it, or delete it"
        )
    require_own_overrides(str(path), words)
    return words


def listed(words: list[str]) -> str:
    """What `read_list` reads."""
    return yaml.safe_dump(words, allow_unicode=True)


def with_saved_overrides(typed: list[str]) -> list[str]:
    """What was typed, on top of what the run was started with if it is to go on:
    the base that its config has.
    """
    name = last(typed, "run")
    saved = RUNS / (name or "") / OVERRIDES
    if name is None or (last(typed, "resume") or "").lower() != "true" or not saved.is_file():
        return typed
    flags = [word for word in typed if word.startswith("-")]
    return [*flags, *combined(read_list(saved), [word for word in typed if word not in flags])]


def folder_of_weights(place: str | None) -> Path | None:
    """Return the folder of the run to which a checkpoint, a file of weights or a folder belongs.

    It is None if there is no such run.
    """
    if place is None:
        return None
    path = Path(place)
    for folder in (path, path.parent, path.parent.parent):
        if (folder / CONFIG).is_file():
            return folder
    return None


def with_options_of_source(typed: list[str]) -> list[str]:
    """Return the overrides, before them the options of the run in `init.checkpoint`.

    These are its options of experts, router and balance, so that their keys exist and single ones
    can be set. An option that was typed stays; an `experiment` chooses all of them.

    Raises:
        UserError: The config of that run is damaged.
    """
    keys = {key_of(override) for override in typed}
    folder = None
    if last(typed, "init") == "run" and "experiment" not in keys:
        folder = folder_of_weights(last(typed, "init.checkpoint"))
    if folder is None:
        return typed
    saved = read_config(folder / CONFIG)
    options = {
        "experts": get(saved, "experts.name"),
        "experts/activation": get(saved, "experts.activation.name"),
    }
    # A router preset that was typed may bring its own balance.
    if "router" not in keys:
        options["balance"] = f"[{','.join(saved['balance'])}]" if saved["balance"] else "none"
        for part in ROUTER_PARTS:
            options[f"router/{part}"] = get(saved, f"router.{part}.name")
    before = []
    for group, option in options.items():
        is_typed = group.replace("/", ".") in keys or group.split("/")[0] in keys
        if option is not None and not is_typed:
            before.append(f"{group}={option}")
    require_own_overrides(str(folder / CONFIG), before)
    return [*before, *typed]


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases."""

    def compose_node(self, parent: object, index: object) -> object:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("a saved config has no aliases")
        return super().compose_node(parent, index)


class _NoAliases(yaml.SafeDumper):
    """Writes equal lists twice instead of naming one of them."""

    def ignore_aliases(self, data: object) -> bool:
        return True
