"""Load a folder with `transformers` in a separate process and compare its logits with ours.

    python check.py FOLDER GIVEN.npz [SHA256]

GIVEN holds `tokens` (N, S) and our `logits` (N, S, V). It may hold `texts`, a JSON list of pairs of
a text and our ids of it. The result is printed as JSON: the largest difference of two logits, the
names of weights that are missing or left over, and the texts whose ids differ. Nothing of this
repository is imported.

Code in FOLDER is never executed, unless SHA256 is given: the checksum of the one file that
`app.export --to hf-remote` has just written there.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

CODE = "modeling_router_zoo.py"


def main(folder: str, file: str, written: str | None = None) -> None:
    """Print the comparison."""
    if (
        written is not None
        and hashlib.sha256((Path(folder) / CODE).read_bytes()).hexdigest() != written
    ):
        raise SystemExit(f"{CODE} is not the file that was written")
    with tempfile.TemporaryDirectory() as modules:
        # transformers copies the code there; set before it is imported
        os.environ["HF_MODULES_CACHE"] = modules
        print(json.dumps(compare(folder, file, run_code=written is not None)))


def compare(folder: str, file: str, run_code: bool) -> dict[str, object]:
    """Return the largest difference of two logits and the names of weights that do not fit."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = np.load(file)
    read: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=run_code,
        local_files_only=True,
        use_safetensors=True,
    )
    model, loaded = read
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(given["tokens"]), use_cache=False).logits
    difference = (logits - torch.from_numpy(given["logits"])).abs().max().item()
    wrong = sorted(
        {*loaded["missing_keys"], *loaded["unexpected_keys"], *map(str, loaded["mismatched_keys"])}
    )
    return {"difference": difference, "wrong": wrong, "texts": _other_ids(folder, given)}


def _other_ids(folder: str, given: Any) -> list[str]:
    """Return the texts to which the tokenizer of the folder gives other ids."""
    if "texts" not in given:
        return []
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    pairs = json.loads(str(given["texts"]))
    return [
        text for text, ids in pairs if tokenizer(text, add_special_tokens=False).input_ids != ids
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
