"""The weights and the plain values of a Hugging Face checkpoint directory.
Nothing in the directory is executed.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from app.data.sources import first_line
from app.registry import UserError
from app.training.checkpoints import require_finite
from app.training.files import read_json

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# keys of a config.json that name code, kernels or quantisation, none of which the comparison with
# transformers needs
CODE_KEYS = re.compile(r"^_|auto_map|custom|implementation|quant|compress|adapter|peft|processor")


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Return all weights of a folder, in float32.

    Raises:
        UserError: A file is missing or damaged, or all are pickles.
    """
    tensors: dict[str, Tensor] = {}
    for file in _shards(folder):
        try:
            tensors |= safetensors.torch.load_file(file)
        # OSError, SafetensorError, and KeyError for a dtype that torch does not have
        except Exception as error:
            raise UserError(
                f"{file}: is missing or damaged ({first_line(error)}); fetch it again"
            ) from error
    require_finite(str(folder), tensors)
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}


def _shards(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        places = read_json(folder / INDEX, dict).get("weight_map")
        if not isinstance(places, dict) or not all(
            isinstance(name, str) and name for name in places.values()
        ):
            raise UserError(
                f"{folder / INDEX}: is damaged: weight_map must name a file for each weight; fetch "
                "it again"
            )
        return [folder / Path(name).name for name in sorted({*places.values()})]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    pickles = [path.name for path in folder.glob("*.bin")]
    reason = f"{pickles[0]} is a pickle, which may be a program" if pickles else f"has no {SINGLE}"
    raise UserError(f"{folder}: {reason}; only safetensors are read")


@contextmanager
def plain_copy(folder: Path) -> Iterator[Path]:
    """A folder for `transformers` with nothing but the weights and the values of the config.

    It has no Python files, pickles, adapters or templates of the original, and its config names no
    code.
    """
    values = read_json(folder / CONFIG, dict)
    files = _shards(folder)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        kept = {key: value for key, value in values.items() if not CODE_KEYS.search(key)}
        (copy / CONFIG).write_text(json.dumps(kept), encoding="utf-8")
        places: dict[str, str] = {}
        for number, file in enumerate(files, 1):
            link = (
                SINGLE if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
            )
            (copy / link).symlink_to(file.absolute())
            with safetensors.safe_open(file, "pt") as tensors:
                places |= dict.fromkeys(tensors.keys(), link)
        if len(files) > 1:
            index = {"metadata": {}, "weight_map": places}
            (copy / INDEX).write_text(json.dumps(index), encoding="utf-8")
        yield copy
