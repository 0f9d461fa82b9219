"""Settings of the process that must stand before torch is imported.

Import this module first; a value that the user has set in the environment stays.
"""

import ctypes
import logging
import os
import signal
import sys
import warnings

SETTINGS = {
    # oneDNN compiles a bfloat16 kernel for every new number of rows and forgets all but 1,024 of
    # them; experts get
    # another number of rows at every step.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16384",
    # A waiting thread sleeps after 1,000 turns: with any other load on the cores a spinning thread
    # holds up the one
    # that works, and a step took 3 to 5 times as long. (OMP_WAIT_POLICY=PASSIVE costs 12 % on a
    # quiet machine.)
    "GOMP_SPINCOUNT": "1000",
    # without it tokenizers warns, and serialises, after a fork
    "TOKENIZERS_PARALLELISM": "true",
}

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

# A killed study or torchrun cannot end the processes that it started, so Linux is asked to send
# them SIGTERM.
# set by a study for its trials: its process
PARENT = "ROUTER_ZOO_PARENT"
PR_SET_PDEATHSIG = 1  # of Linux

_parent = os.environ.pop(PARENT, None)
if sys.platform == "linux" and (_parent is not None or "TORCHELASTIC_RUN_ID" in os.environ):
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if _parent not in (None, str(os.getppid())):
    # the study ended before the request above was made
    sys.exit(128 + signal.SIGTERM)

# glibc gives large blocks back to the system when they are freed and asks for them again at the
# next step, page by
# page; keeping them made a layer's step 8 % faster: mallopt(M_MMAP_MAX, 0) and
# mallopt(M_TRIM_THRESHOLD, max).
_chosen = any(name.startswith("MALLOC_") for name in os.environ)
if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt") and not _chosen:
    ctypes.CDLL(None).mallopt(-4, 0)
    ctypes.CDLL(None).mallopt(-1, 2**31 - 1)


class _OneLine(logging.Formatter):
    """Format a record as one line, with the level as prefix from warnings on."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


# Messages and warnings take one line each, however Hydra configures the root logger.
_lines = logging.StreamHandler()
_lines.setFormatter(_OneLine())
logging.getLogger("app").addHandler(_lines)
logging.getLogger("app").setLevel(logging.INFO)

# Lightning's own news of the day; what a run says is in `app.runs.run`.
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
warnings.filterwarnings("ignore", message=r".*does not have many workers")
# what we log is already summed over the ranks
warnings.filterwarnings("ignore", message=r".*sync_dist=True")
