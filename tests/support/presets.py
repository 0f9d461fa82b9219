"""Routers as `router=NAME` composes them, for tests."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from app.model.assemble import build_router
from app.model.spec import model_spec
from routers.contract import Sizes
from routers.router import Router

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "router").glob("*.yaml"))


@cache
def config(name: str) -> dict[str, Any]:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        composed = compose("config", overrides=[f"router={name}", "allow_non_causal=true"])
    return OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]


def parts(name: str) -> dict[str, Any]:
    """The preset's own: its router, and the balance that it brings."""
    return {key: config(name)[key] for key in ("router", "balance")}


def build(name: str, sizes: Sizes, **changed: dict[str, Any]) -> Router:
    values = deepcopy(config(name))
    for kind, knobs in changed.items():
        values["router"][kind] |= knobs
    return build_router(model_spec(values), sizes)
