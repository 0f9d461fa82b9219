"""What goes wrong in a sweep is said by member, and the other members run."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from app.config.errors import MISTAKES, MemberFailed, exit_on_mistake, one_line
from app.registry import UserError


class OneNameEach(Callback):
    """Refuses a sweep whose members would all have one name; Hydra calls it before the first of them."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # run='x_${seed}' as it is
        overrides = OverridesParser.create().parse_overrides(typed)
        swept = [override for override in overrides if override.is_sweep_override()]
        fixed = [override for override in overrides if override.key_or_group == "run"][-1:]
        fixed = [o for o in fixed if o not in swept and o.value() is not None and "${" not in str(o.input_line)]
        if swept and fixed:
            key = swept[0].key_or_group
            with exit_on_mistake():
                raise UserError(
                    f"{fixed[-1].input_line}: would be the name of every member of the sweep; leave it out, or put in "
                    f"what differs: run='{fixed[-1].value()}_${{{key}}}'"
                )


@contextmanager
def member() -> Iterator[None]:
    """Around one run: in a sweep tells its failure at once, with its number and what it was, and goes on.

    Raises:
        MemberFailed: told; at the end of the sweep it makes the exit status.
    """
    job = HydraConfig.get()
    if job.mode != RunMode.MULTIRUN:
        with exit_on_mistake():
            yield
        return
    try:
        yield
    except Exception as error:
        if not isinstance(error, MISTAKES):
            traceback.print_exc()
        what = " ".join(word for word in job.overrides.task if word not in sys.argv)
        if str(error):
            print(f"error: job {job.job.num} ({what}): {one_line(error)}", file=sys.stderr)
        raise MemberFailed from error
