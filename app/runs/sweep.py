"""A sweep is runs one after another:
what goes wrong in one is said at once, with its number, and the others run.
"""

import os
import sys
import traceback
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from app.config.errors import MISTAKES, exit_on_mistake, one_line
from app.registry import UserError


class Members(Callback):
    """Called by Hydra around a sweep and after every run of it; the exit code is 2 if one of them
    has failed.

    Launchers for several processes run `on_job_end` in the process of the job, so a failure travels
    in what that returns and not in this object.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        # run='x_${seed}' as it is
        typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        with exit_on_mistake():
            require_one_name_each(typed)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: object) -> None:
        if job_return.status is not JobStatus.FAILED:
            return
        # The public property raises the error of a failed job.
        error = job_return._return_value
        if config.hydra.mode == RunMode.MULTIRUN:
            tell(error, config)
            job_return.__class__ = ReportedFailure
            job_return._return_value = os.getpid()
        # Hydra raises others, and would say a line of its own before these
        elif isinstance(error, MISTAKES):
            with exit_on_mistake():
                raise error


class ReportedFailure(JobReturn):
    """A job whose error is printed already.
    Hydra asks for its value when all jobs have ended, which ends the sweep.
    """

    @property  # type: ignore[misc]  # nothing sets it
    def return_value(self) -> Any:
        """Nothing.

        Raises:
            UserError: Always: without a line where this process has printed the error.
        """
        here = self._return_value == os.getpid()
        raise UserError(
            ""
            if here
            else "a job of the sweep has failed; its error is above, or in the launcher's logs"
        )


def tell(error: Exception, config: DictConfig) -> None:
    """What was wrong with a member of a sweep, after its number and what sets it apart."""
    if not isinstance(error, MISTAKES):
        traceback.print_exception(error)
    # else the first process of the run has told it
    if str(error):
        what = " ".join(word for word in config.hydra.overrides.task if word not in sys.argv)
        print(f"error: job {config.hydra.job.num} ({what}): {one_line(error)}", file=sys.stderr)


def require_one_name_each(overrides: list[str]) -> None:
    """Checks that the members of a sweep do not all have one name.

    Raises:
        UserError: they do.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    swept = [override for override in parsed if override.is_sweep_override()]
    fixed = [override for override in parsed if override.key_or_group == "run"][-1:]
    fixed = [
        o
        for o in fixed
        if o not in swept and o.value() is not None and "${" not in str(o.input_line)
    ]
    if swept and fixed:
        raise UserError(
            f"{fixed[-1].input_line}: would be the name of every member of the sweep; leave it "
            f"out, or put in what differs: run='{fixed[-1].value()}_${{{swept[0].key_or_group}}}'"
        )
