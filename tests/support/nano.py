"""A model of nano size out of named parts, for the tests of routers."""

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from app.config.parts import build_part, defaults, router_of
from app.model.assemble import sizes_of
from app.model.config import ModelConfig
from app.model.moe import MoE
from app.model.transformer import Transformer
from app.registry import make
from experts.contract import Experts
from routers.balancer import Balancer
from routers.contract import Balance, Context, Routing, Sizes
from routers.router import Router

DIM = 16
VOCAB = 64
ROWS = 2
LENGTH = 8
SIZES = Sizes(dim=DIM, num_experts=8, top_k=2, num_layers=2, vocab_size=VOCAB)
SMALL = {
    "dim": DIM,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 2,
    "hidden_dim": 8,
    "init_std": 0.1,
}
CONFIG = ModelConfig(**OmegaConf.to_container(OmegaConf.load("conf/model/tiny.yaml")) | SMALL)


def layout(name: str = "coarse") -> Experts:
    """A layout with 8 routed experts where its knobs allow that."""
    small = {"num_experts": 8, "top_k": 2, "hidden_dim": 8, "segments": 1, "num_shared": 1} | {
        "skills": [*"abcdefgh"]
    }
    values = defaults("experts", name)
    if name == "deepseek":
        small |= {"num_experts": 9, "top_k": 3}
    return make(
        "experts", values | {k: v for k, v in small.items() if k in values}, DIM, key="experts"
    )


def router(layer: int = 0, sizes: Sizes = SIZES, **parts: str) -> Router:
    plain = {"score": "linear", "select": "top_k", "weigh": "softmax", "drop": "none"}
    return router_of(sizes._replace(layer=layer), **{**plain, **parts})


def model(
    balance: Sequence[str] | dict[str, Balance] = (),
    experts: str = "coarse",
    config: ModelConfig = CONFIG,
    seed: int = 0,
    **parts: str,
) -> Transformer:
    """Two MoE layers of these parts, their weights drawn from the seed."""
    torch.manual_seed(seed)
    layouts = [layout(experts) for _ in range(config.num_layers)]
    sizes = sizes_of(layouts, DIM, VOCAB)
    terms = (
        dict(balance)
        if isinstance(balance, dict)
        else {n: build_part("balance", n, sizes) for n in balance}
    )
    ffns = [MoE(router(i, sizes, **parts), inner) for i, inner in enumerate(layouts)]
    if not (ffns[0].router.select.limited or any(term.holds_k for term in terms.values())):
        terms["relu_lambda"] = build_part("balance", "relu_lambda", sizes)
    return Transformer(config, ffns, Balancer(terms), VOCAB)


def batch(
    rows: int = ROWS, length: int = LENGTH, seed: int = 0, padding: int = 0
) -> dict[str, Tensor]:
    """Random tokens; the last `padding` positions of every second row are padding."""
    tokens = torch.randint(VOCAB, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    valid = torch.ones(rows, length, dtype=torch.bool)
    if padding:
        valid[1::2, -padding:] = False
    targets = tokens[:, 1:].masked_fill(~valid, -100)
    return {
        "tokens": tokens[:, :-1],
        "targets": targets,
        "valid": valid,
        "document": torch.zeros_like(tokens[:, 1:]),
        "domain": torch.arange(rows)[:, None].expand(rows, length),
    }


def total_loss(
    net: Transformer, data: dict[str, Tensor], seed: int = 0, step: int = 0
) -> tuple[Tensor, list[Routing]]:
    """Likelihood per target plus all balance terms, and the routings."""
    nll, routings = net(**data, seed=seed, step=step)
    terms = net.balancer.losses(routings, None).values()
    return nll.sum() / (data["targets"] >= 0).sum() + sum(
        weight * raw for raw, weight in terms
    ), routings


def context(
    made: Router, layer: int = 0, seed: int = 0, data: dict[str, Tensor] | None = None, **more: Any
) -> Context:
    """What the router of a lower layer sees for a batch."""
    data = data or batch()
    torch.manual_seed(1)
    known = {"domain": data["domain"].flatten(), "seed": seed + layer} | more
    return Context(data["valid"], data["tokens"].flatten(), shared=made.score.shared(), **known)
