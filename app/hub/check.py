"""What `transformers` makes of a folder that was written for it: run by path in a process of its own.

    python check.py FOLDER GIVEN.npz      GIVEN has `tokens` (N, S) and our `logits` (N, S, V)

Prints as JSON the largest difference of the logits and the names of weights that are missing or left over. Nothing of
this repository is imported.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging


def main(folder: str, file: str) -> None:
    """Prints what differs."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = np.load(file)
    custom = "auto_map" in json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    read: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=custom
    )
    model, loaded = read
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(given["tokens"]), use_cache=False).logits
    difference = (logits - torch.from_numpy(given["logits"])).abs().max().item()
    wrong = sorted({*loaded["missing_keys"], *loaded["unexpected_keys"], *map(str, loaded["mismatched_keys"])})
    print(json.dumps({"difference": difference, "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])
