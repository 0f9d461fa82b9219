"""Every part on hard inputs: one token, one expert, equal and huge logits, padding,
idle experts, autocast.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.config.parts import build_part, defaults
from app.registry import find, names
from routers.contract import Context, Routing, Score, Scored, Sizes
from routers.router import Router
from tests.support.nano import DIM, VOCAB

PLAIN = {"score": "linear", "weigh": "softmax", "select": "top_k", "drop": "none"}
PARTS = [(kind, name) for kind in PLAIN for name in names(kind)]
BALANCES = names("balance")
TRIES = settings(max_examples=25, deadline=None, derandomize=True)


class Given(Score):
    """Logits from outside."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, x: Tensor, context: Context) -> Scored:
        return Scored(self.logits, None, self.logits, torch.ones_like(self.logits))

    def directions(self) -> Tensor:
        return self.logits[:1].T


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes, logits (T, E) and padding (B, S)."""
    num_experts = draw(st.integers(1, 9))
    rows = draw(st.integers(1, 3))
    length = draw(st.integers(1, 6))
    torch.manual_seed(draw(st.integers(0, 1000)))
    logits = torch.randn(rows * length, num_experts) * draw(st.sampled_from([0.0, 1.0, 30.0, 1e4]))
    logits += draw(st.sampled_from([0.0, -60.0, 1e3]))
    if draw(st.booleans()):
        logits[:, -1] = -1e4  # an idle expert
    valid = torch.ones(rows, length, dtype=torch.bool)
    match draw(st.sampled_from(["none", "ends", "a row", "all"])):
        case "ends":
            valid[:, length // 2 :] = False
        case "a row":
            valid[0] = False
        case "all":
            valid[:] = False
    top_k = draw(st.sampled_from([1, min(2, num_experts), num_experts]))
    training = draw(st.booleans())
    step = draw(st.sampled_from([0, 99]))
    return {
        "num_experts": num_experts,
        "top_k": top_k,
        "logits": logits,
        "valid": valid,
        "training": training,
        "step": step,
    }


def made(kind: str, name: str, sizes: Sizes) -> Any:
    """The part at the values of its YAML, as far as they fit the sizes."""
    values = {key: value for key, value in defaults(kind, name).items() if key != "name"}
    fitting = {
        "k": sizes.top_k,
        "groups": None if name == "grouped" else 1,
        "limit": 1,
        "num_groups": 1,
    }
    if kind == "weigh" and sizes.top_k == 1:
        fitting["normalize"] = False
    return find(kind, name)(
        sizes, **{key: fitting.get(key, value) for key, value in values.items()}
    )


def routed(case: dict[str, Any], **parts: str) -> tuple[Router, Routing]:
    """A router of given logits, or of its own score where `parts` names one,
    and what it makes of a case.
    """
    sizes = Sizes(DIM, case["num_experts"], case["top_k"], 1, VOCAB)
    kinds = {kind: made(kind, name, sizes) for kind, name in {**PLAIN, **parts}.items()}
    if "score" not in parts:
        kinds["score"] = Given(case["logits"])
    router = Router(kinds["score"], kinds["weigh"], kinds["select"], kinds["drop"], sizes).train(
        case["training"]
    )
    ids = torch.arange(case["valid"].numel()) % VOCAB
    shared = router.score.shared()
    step = case["step"]
    context = Context(case["valid"], ids, shared=shared, seed=1, step=step, domain=ids % 3)
    x = case["logits"][:, :1] + torch.randn(len(ids), DIM)
    return router, router(x, context)


def assert_sound(case: dict[str, Any], routing: Routing) -> None:
    num_experts = case["num_experts"]
    served = routing.expert < case["num_experts"]
    assert all(t.isfinite().all() for t in (routing.gate, routing.scores, routing.probabilities))
    assert routing.gate[~served].eq(0).all() and not routing.kept[~served].any()
    assert case["valid"].flatten()[routing.token[served]].all(), "padding is served by nobody"
    pairs = routing.token[served] * num_experts + routing.expert[served]
    assert len(pairs) == len(pairs.unique()), "an expert was assigned to a token twice"
    total = routing.probabilities.sum(-1)
    assert (((total - 1).abs() < 1e-4) | (total == 0)).all()


def assert_finite_gradient(router: Router, value: Tensor) -> None:
    if value.requires_grad:
        value.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in router.parameters())


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[f"{kind}-{name}" for kind, name in PARTS])
@given(case=cases())
@TRIES
def test_a_part_gives_a_sound_routing_and_a_finite_gradient(kind, name, case):
    router, routing = routed(case, **{kind: name})
    assert_sound(case, routing)
    assert router.weigh.signed or (routing.gate >= 0).all()
    weight = torch.linspace(-1, 1, len(routing.gate))
    assert_finite_gradient(
        router, (routing.gate * weight).sum() + routing.probabilities.square().sum()
    )


@pytest.mark.parametrize("name", BALANCES)
@given(case=cases())
@TRIES
def test_a_balance_term_has_a_finite_loss_gradient_and_state(name, case):
    sizes = Sizes(DIM, case["num_experts"], case["top_k"], 1, VOCAB)
    term = made("balance", name, sizes)
    router, routing = routed(case)
    value = term.loss([routing], None)
    if value is not None:
        assert value.isfinite()
        assert_finite_gradient(router, value)
    term.update(term.observe([routing]), case["valid"].sum())
    assert all(state.isfinite().all() for state in term.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[f"{kind}-{name}" for kind, name in PARTS])
def test_autocast_changes_nothing(kind, name, dtype):
    torch.manual_seed(0)
    case = {
        "num_experts": 8,
        "top_k": 2,
        "logits": torch.randn(12, 8),
        "training": True,
        "step": 0,
        "valid": torch.ones(2, 6, dtype=torch.bool),
    }
    sizes = Sizes(DIM, 8, 2, 1, VOCAB)
    parts = {one: build_part(one, other, sizes) for one, other in {**PLAIN, kind: name}.items()}
    router = Router(parts["score"], parts["weigh"], parts["select"], parts["drop"], sizes).train()
    shared = router.score.shared()
    ids = torch.arange(12)
    context = Context(case["valid"], ids, shared=shared, seed=1, domain=ids % 3)
    x = torch.randn(12, DIM)
    plain = router(x, context)
    with torch.autocast("cpu", dtype):
        cast = router(x, context)
    for name_, value in plain._asdict().items():
        other = getattr(cast, name_)
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name_
