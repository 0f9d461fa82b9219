"""The user's mistakes in one line, whoever noticed them: us, Hydra or OmegaConf."""

import re

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from app.registry import UserError, unknown

MISTAKES = (UserError, HydraException, OmegaConfBaseException)


def one_line(error: BaseException) -> str:
    """What was wrong, what is allowed and the way out, on one line."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return unknown(f"{group}={option}", option, error.options or ())
    if isinstance(error, ConfigCompositionException):
        return _composition(error)
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _unreadable(override: str) -> str:
    key, separator, value = override.partition("=")
    if not separator:
        return f"{override}: write key=value, or --help"
    quoted = value.strip("'\"").replace("\\", "\\\\").replace('"', '\\"')
    return f"{key}={value}: has characters that Hydra reads as syntax; write it as '{key}=\"{quoted}\"'"


def _composition(error: ConfigCompositionException) -> str:
    text = " ".join(str(error).split())
    found = re.match(r"Could not override '([^']+)'", text)
    if found:
        cause = str(error.__cause__).splitlines()[0] if error.__cause__ else "unknown key"
        return f"{found[1]}: {cause[0].lower() + cause[1:]}; `python train.py --cfg job` prints every key"
    missing = re.match(r"Could not find '([^']+)/([^/']+)' Available options in '[^']+': (.*?)(?: Config search path.*)?$", text)
    if missing:
        return unknown(f"{missing[1]}={missing[2]}", missing[2], missing[3].split())
    return text
