"""Settings of the process that must stand before torch is imported. Import this module first; a value that the user has
set in the environment stays."""

import os

SETTINGS = {
    # oneDNN compiles a bfloat16 kernel for every new number of rows and forgets all but 1,024 of them; experts get
    # another number of rows at every step.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16384",
    # Waiting threads sleep instead of spinning: with any other load on the cores a spinning thread holds up the one that
    # works, and a training step took 3 to 5 times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "true",  # without it tokenizers warns, and serialises, after a fork
}

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
