"""The text of `python train.py --help`: an example, the flags, and the config groups."""

import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from app.config.compose import CONF

# What each config group chooses, in the order of the text.
GROUPS = {
    "model": "size and form of the transformer",
    "router": "preset of score, weigh, select and drop",
    "router/score": "how well an expert fits a token",
    "router/weigh": "how scores become the gates of the experts",
    "router/select": "which experts compute a token",
    "router/drop": "which tokens an expert leaves out when it is full",
    "balance": "what keeps the load even; takes several: balance=[aux,z_loss]",
    "experts": "layout of the experts",
    "experts/activation": "activation function of the experts",
    "data": "text to train on",
    "tokenizer": "how text is cut into tokens",
    "init": "where the initial weights come from",
    "optimizer": "update rule, and the learning rates",
    "schedule": "learning rate over the steps",
    "trainer": "device, strategy, precision, number of steps",
    "callbacks": "what is logged",
    "logger": "where it is logged; takes several: logger=[tensorboard,csv]",
    "debug": "settings to find a mistake with; goes with any other choice",
    "experiment/paper": "models of papers at their size",
    "experiment/toy": "the same methods at a size for a laptop",
    "experiment/race": "sizes of the studies (python -m app.race)",
}
START = """\
Train a mixture-of-experts language model. Every part is chosen by config.

  python train.py router=topk experts=deepseek

--cfg job     print the composed config with all of its values, and exit
--multirun    run every combination of values with commas: router=topk,gru seed=0,1
--help        print this text, and exit

GROUP=OPTION chooses an option of a group (* marks the default):
"""
END = """
KEY=VALUE sets a value of the composed config, such as optimizer.lr=3e-3 or run=NAME.
`python -m app.zoo` describes each part of routers and experts in a sentence.
"""


def help_text() -> str:
    """Return the text; Hydra must have been initialized, so that options of plug-ins are known."""
    width = min(100, shutil.get_terminal_size((80, 24)).columns)
    return "\n".join([START, *_lines_of_groups(width), END])


def register_resolver() -> None:
    """Make the text known to `hydra.help.template` in conf/config.yaml."""
    OmegaConf.register_new_resolver("help_text", help_text, replace=True)


def _lines_of_groups(width: int) -> Iterator[str]:
    loader = GlobalHydra.instance().config_loader()
    defaults = _defaults()
    for group, description in GROUPS.items():
        chosen = defaults.get(group, ())
        options = []
        for option in loader.get_group_options(group):
            # A name with an underscore is a base of others.
            if not option.startswith("_"):
                options.append(f"*{option}" if option in chosen else option)
        yield f"  {group:20}{description}"
        indent = " " * 6
        yield textwrap.fill(
            ", ".join(options),
            width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )


def _defaults() -> dict[str, list[str]]:
    """Return the default options of each group, by the defaults list of conf/config.yaml."""
    root: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    defaults = {}
    for entry in root["defaults"]:
        for group, options in entry.items() if isinstance(entry, dict) else ():
            defaults[group] = options if isinstance(options, list) else [options]
    return defaults
