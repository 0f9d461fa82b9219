"""The user's mistakes in one line, whoever noticed them: us, Hydra or OmegaConf."""

import io
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from app.config.compose import CONF
from app.config.hints import unknown_key
from app.registry import NO_WRITE, UserError, unknown

MISTAKES = (UserError, HydraException, OmegaConfBaseException)


@contextmanager
def exit_on_mistake() -> Iterator[None]:
    """End the program as a user expects; errors of our own keep their traceback.

    A mistake of the user, a full disk and a folder that cannot be written are one line and exit
    code 2. Ctrl-C is 130. A reader of the output that has gone, as in `| head`, is 141, the shell's
    code for it, without a line. What the terminal cannot show is escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except MISTAKES as error:
        # empty on the other ranks: the first one has reported it
        if str(error):
            _report(one_line(error))
        sys.exit(2)
    except MemoryError:
        _report(
            "out of memory: the config asks for more than this machine has; choose smaller sizes"
        )
        sys.exit(2)
    except BrokenPipeError:
        # or Python fails again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in NO_WRITE:
            raise
        where = error.filename or "the disk"
        _report(
            f"{where}: cannot be written or read ({error.strerror}); what was there is unchanged"
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; nothing is half-written", file=sys.stderr)
        sys.exit(130)


def _report(line: str) -> None:
    """Print an error, with letters that are not printable escaped."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
    print(f"error: {shown}", file=sys.stderr)


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
    if isinstance(error, ConfigCompositionException) and isinstance(
        error.__cause__, OmegaConfBaseException
    ):
        return _unknown_key(text, error.__cause__)
    return text


def _options(group: str) -> list[str]:
    # Hydra has mostly shut down when its errors reach us.
    running = GlobalHydra.instance().is_initialized()
    with nullcontext() if running else initialize_config_dir(str(CONF), version_base="1.3"):
        options = GlobalHydra.instance().config_loader().get_group_options(group)
    return [option for option in options if not option.startswith("_")]


def _unreadable(override: str) -> str:
    key, separator, value = override.partition("=")
    if not separator:
        return f"{override}: write key=value, or --help"
    quoted = value.strip("'\"").replace("\\", "\\\\").replace('"', '\\"')
    return (
        f"{key}={value}: has characters that Hydra reads as syntax; write it as "
        f"'{key}=\"{quoted}\"'"
    )


def _unknown_key(text: str, cause: OmegaConfBaseException) -> str:
    found = re.search(r"'([^']+)'", text)
    key = found[1] if found else str(cause.key)
    parent = cause.parent_node
    if isinstance(parent, DictConfig) and str(cause.key) not in parent:
        # OmegaConf gives the whole config of a node by no public method.
        root: object = parent._get_root()
        config: Any = OmegaConf.to_container(root, resolve=False)
        return unknown_key(key, config, CONF)
    return " ".join(str(cause).split())
