"""Data modules over the toy corpus and the composed config."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from app.data.module import TokenDataModule
from app.data.tokenizers.bytes import Bytes
from tests.support.toy_data import CONF, Toy


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., TokenDataModule]:
    def build(
        source: Toy | None = None, tokenizer: Any = None, seed: int = 0, **knobs: Any
    ) -> TokenDataModule:
        values = {
            "seq_len": 32,
            "batch_size": 8,
            "micro_batch_size": 2,
            "val_rows": None,
            "overfit_batches": None,
            "max_epochs": None,
            "num_workers": 0,
        }
        values |= {"cache_dir": str(tmp_path / "cache")} | knobs
        return TokenDataModule(source or Toy(), tokenizer or Bytes(), seed, **values)

    return build


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The groups data and tokenizer as `train.py` composes them."""

    def read(*overrides: str) -> dict[str, Any]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose(
                "config", overrides=[f"data.cache_dir={tmp_path / 'cache'}", *overrides]
            )
        keep = {key: OmegaConf.to_container(composed[key]) for key in ("data", "tokenizer")}
        return keep | {"seed": 0}

    return read
