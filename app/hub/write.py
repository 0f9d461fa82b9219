"""A run as a folder that `transformers` loads, and the proof that it computes the same there."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from app.data.tokenizers import Tokenizer
from app.hub.architectures import fitting
from app.hub.card import card
from app.hub.facts import facts_of
from app.hub.tokenizer import texts_with_special_tokens, tokenizer_files
from app.hub.weights import read_from
from app.model.transformer import Transformer
from app.registry import UserError
from app.runs.read import TrainedRun
from app.training.files import write_whole

CHECK = Path(__file__).with_name("check.py")
# largest difference of two logits in float32
CLOSE = 1e-4
# of the held-out text that is compared
ROWS = 2
LENGTH = 128
SHARD = "5GB"


def export(run: TrainedRun, out: Path, license_name: str) -> tuple[str, float]:
    """Writes a folder and compares; returns the architecture and the largest difference of two
    logits.

    Raises:
        UserError: no architecture computes this model, the folder is not empty, the disk is full,
            or the logits differ; what was written stays.
    """
    facts = facts_of(run.config, run.model)
    architecture = fitting(facts)
    ends = {"bos_token_id": run.text.tokenizer.begin, "eos_token_id": run.text.tokenizer.separator}
    files = tokenizer_files(run.text.tokenizer, run.seq_len)
    files |= {
        "config.json": as_json(architecture.config(facts) | ends),
        "generation_config.json": as_json(ends),
    }
    files |= {"README.md": card(run, architecture.cls, license_name, custom=False)}
    write_folder(out, files, read_from(run.model, architecture))
    return architecture.cls, difference(run.model, held_out(run), out, tokenizer=run.text.tokenizer)


def write_folder(out: Path, files: dict[str, str], weights: dict[str, Tensor]) -> None:
    """Writes files and weights into a new folder.

    Raises:
        UserError: it is not empty, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there and not empty; give another folder, or empty this one")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_whole(out / name, text)
        save_torch_state_dict(weights, out, max_shard_size=SHARD, metadata={"format": "pt"})
        # safetensors writes for the owner alone
        mode = (out / "config.json").stat().st_mode
        for file in out.glob("*.safetensors"):
            file.chmod(mode)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); what is there is not whole"
        ) from error


def difference(
    model: Transformer,
    tokens: Tensor,
    out: Path,
    code: str | None = None,
    tokenizer: Tokenizer | None = None,
    name: Path | None = None,
) -> float:
    """Return the largest difference between our logits and those of `transformers`, computed in a
    new process.

    Args:
        model: Our model.
        tokens: Token ids (N, S).
        out: The folder that `transformers` loads.
        code: Text of the modeling file that this process has just written into `out`. None: no code
            of the folder is executed, whatever its config says.
        tokenizer: Our tokenizer, where the folder holds it, too: texts with every special token
            must get our ids.
        name: What errors call the folder; by default `out`.

    Raises:
        UserError: It is too large, a weight is missing or left over there, or the ids of a text
            differ.
    """
    with torch.no_grad():
        logits = model.logits(tokens)
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {"tokens": tokens.numpy(), "logits": logits.float().numpy()}
        if tokenizer is not None:
            given["texts"] = np.array(json.dumps(_texts_and_ids(tokenizer)))
        np.savez(f"{folder}/given.npz", **given)
        found = _checked(out, f"{folder}/given.npz", code, name or out)
    out = name or out
    if found["wrong"]:
        some = ", ".join(found["wrong"][:5])
        raise UserError(f"{out}: does not fit transformers: {some}; it stays for you to look at")
    if not found["difference"] <= CLOSE:
        raise UserError(
            f"{out}: computes something else in transformers: logits differ by "
            f"{found['difference']:.2g}, more than {CLOSE}; do not use it, it stays for you to "
            "look at"
        )
    if found["texts"]:
        raise UserError(
            f"{out}: transformers gives other ids to the text {found['texts'][0]!r}; do not use "
            "it, it stays for you to look at"
        )
    return float(found["difference"])


def _texts_and_ids(tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """Pairs of a text and its ids; a text that the tokenizer refuses is left out."""
    pairs = []
    for text in texts_with_special_tokens(tokenizer):
        try:
            pairs.append((text, [int(token) for token in tokenizer.encode([text])[0].ids]))
        except UserError:
            continue
    return pairs


def held_out(run: TrainedRun) -> Tensor:
    """Some held-out text."""
    return torch.from_numpy(run.text.rows["tokens"][:ROWS, :LENGTH].astype(np.int64))


def _checked(out: Path, given: str, code: str | None, name: Path) -> dict[str, Any]:
    """Return what app/hub/check.py prints."""
    quiet = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1"
    }
    command = [sys.executable, "-P", str(CHECK), str(out), given]
    if code is not None:
        command.append(hashlib.sha256(code.encode()).hexdigest())
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise UserError(
            f"{name}: cannot be read by transformers ({reason}); it stays for you to look at"
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
