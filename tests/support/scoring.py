"""What the tests of the scores share."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.func import functional_call

from routers.contract import Context, Score, Scored, Sizes

SIZES = Sizes(dim=6, num_experts=5, top_k=2, num_layers=3, vocab_size=40, layer=1)
CONF = Path(__file__).parents[2] / "conf" / "router"


def knobs(kind: str, name: str, top_k: int) -> dict[str, Any]:
    """The values in a part's YAML."""
    root = OmegaConf.create({"seed": 0, "part": OmegaConf.load(CONF / kind / f"{name}.yaml")})
    values = OmegaConf.to_container(root, resolve=True)["part"]  # type: ignore[index, call-overload]
    values.pop("name")
    return {**values, "k": values["k"] or top_k} if "k" in values else values


def context(num_tokens: int, **more: Any) -> Context:
    ids = torch.arange(num_tokens) % SIZES.vocab_size
    return Context(
        torch.ones(1, num_tokens, dtype=torch.bool), ids, **{"seed": 7, "domain": ids % 3, **more}
    )


def tokens(num_tokens: int, sizes: Sizes = SIZES) -> Tensor:
    return torch.randn(num_tokens, sizes.dim)


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def assert_equal(ours: Tensor, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(array(ours), theirs, rtol=1e-5, atol=1e-5)


def assert_gradients_are_those_of_the_formula(score: Score, x: Tensor, where: Context) -> None:
    """Finite differences in float64, over the tokens, the state and every parameter."""
    score = score.double()
    names = [name for name, _ in score.named_parameters()]
    state = [] if where.state is None else [where.state.double().requires_grad_()]

    def logits(x: Tensor, *rest: Tensor) -> Tensor:
        parameters = dict(zip(names, rest[len(state) :], strict=True))
        changed = where._replace(state=rest[0] if state else None)
        scored: Scored = functional_call(score, parameters, (x, changed))
        return scored.logits

    inputs = [p.detach().clone().requires_grad_() for p in score.parameters()]
    assert torch.autograd.gradcheck(logits, (x.double().requires_grad_(), *state, *inputs))
