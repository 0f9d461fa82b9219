"""The user's mistakes in one line, whoever noticed them: us, Hydra or OmegaConf."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from app.config.compose import CONF
from app.registry import UserError, unknown

MISTAKES = (UserError, HydraException, OmegaConfBaseException)


@contextmanager
def exit_on_mistake() -> Iterator[None]:
    """Ends the program with status 2 and one line, or on Ctrl-C with 130; errors of our own keep their traceback."""
    try:
        yield
    except MISTAKES as error:
        if str(error):  # else the first process has told it
            line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in one_line(error))
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; nothing is half-written", file=sys.stderr)
        sys.exit(130)


def one_line(error: BaseException) -> str:
    """What was wrong, what is allowed and the way out, on one line."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    text = " ".join(str(error).split())
    option = re.match(r"(?:In '[^']+': )?Could not (?:find|load) '([^']+)/([^/']+)'", text)
    if option:
        return unknown(f"{option[1]}={option[2]}", option[2], _options(option[1]))
    if isinstance(error, ConfigCompositionException) and isinstance(error.__cause__, OmegaConfBaseException):
        return _unknown_key(text, error.__cause__)
    return text


def _options(group: str) -> list[str]:
    running = GlobalHydra.instance().is_initialized()  # mostly it has shut down when its errors reach us
    with nullcontext() if running else initialize_config_dir(str(CONF), version_base="1.3"):
        return GlobalHydra.instance().config_loader().get_group_options(group)


def _unreadable(override: str) -> str:
    key, separator, value = override.partition("=")
    if not separator:
        return f"{override}: write key=value, or --help"
    quoted = value.strip("'\"").replace("\\", "\\\\").replace('"', '\\"')
    return f"{key}={value}: has characters that Hydra reads as syntax; write it as '{key}=\"{quoted}\"'"


def _unknown_key(text: str, cause: OmegaConfBaseException) -> str:
    found = re.search(r"'([^']+)'", text)
    key, parent = found[1] if found else str(cause.key), cause.parent_node
    if isinstance(parent, DictConfig) and str(cause.key) not in parent:
        return unknown(key, str(cause.key), map(str, parent))
    return " ".join(str(cause).split())
