"""What every registered part promises, whatever it is."""

import pytest
import torch
from torch import Tensor, nn

from app.config.parts import KINDS, defaults
from app.model.moe import MoE
from app.model.transformer import Transformer
from app.pages import catalogue
from app.registry import check, find, knobs, names
from routers.contract import Routing
from tests.support import nano

ROUTER = ("score", "select", "weigh", "drop")
PARTS = [(kind, name) for kind in ROUTER for name in names(kind)]
EVERY = [(kind, name) for kind in KINDS for name in names(kind)]
part = pytest.mark.parametrize(("kind", "name"), PARTS, ids=[f"{k}-{n}" for k, n in PARTS])
every = pytest.mark.parametrize(("kind", "name"), EVERY, ids=[f"{k}-{n}" for k, n in EVERY])
balance = pytest.mark.parametrize("name", names("balance"))
mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def with_term(name: str) -> Transformer:
    """A model with one balance term, on parts that give what the term needs."""
    select = {"threshold": "expert_threshold", "relu_lambda": "positive"}.get(name, "top_k")
    return nano.model([name], score="noisy" if name == "smooth_load" else "linear", select=select)


def served(routing: Routing) -> Tensor:
    """Gates of what is computed as a matrix (T, E)."""
    num_tokens, num_experts = routing.logits.shape
    matrix = torch.zeros(num_tokens, num_experts + 1)
    index = routing.expert.masked_fill(~routing.kept, num_experts)
    return matrix.index_put((routing.token, index), routing.gate, accumulate=True)[:, :-1]


@every
def test_a_part_is_called_as_its_yaml_and_the_yaml_holds_exactly_its_knobs(kind, name):
    cls = find(kind, name)
    yaml = {key for key in defaults(kind, name) if key != "name"}
    assert defaults(kind, name)["name"] == name
    assert yaml == set(knobs(cls))
    check(cls, {key: value for key, value in defaults(kind, name).items() if key != "name"}, kind)


@every
def test_a_part_says_in_its_file_what_it_is(kind, name):
    entry = catalogue.entry(kind, name)
    assert len(entry.line) in range(21, 200)


@part
@mode
def test_a_routing_has_the_promised_shapes_types_and_ranges(kind, name, training):
    made = nano.router(**{kind: name}).train(training)
    data = nano.batch(padding=3)
    routing = made(torch.randn(16, nano.DIM), nano.context(made, data=data))
    assert routing.logits.shape == routing.scores.shape == (16, 8)
    length = {len(t) for t in (routing.token, routing.expert, routing.gate, routing.kept)}
    assert len(length) == 1
    assert (
        routing.token.dtype == routing.expert.dtype == torch.int64
        and routing.kept.dtype == torch.bool
    )
    assert {t.dtype for t in (routing.gate, routing.logits, routing.scores)} == {torch.float32}
    unassigned = routing.expert == 8
    assert routing.expert.min() >= 0 and routing.expert.max() <= 8
    assert not routing.kept[unassigned].any() and routing.gate[unassigned].eq(0).all()
    assert unassigned[~data["valid"].flatten()[routing.token]].all()
    assert routing.scores.isfinite().all() and routing.gate.isfinite().all()
    pairs = (routing.token * 9 + routing.expert)[~unassigned]
    assert len(pairs.unique()) == len(pairs), "an expert was assigned to a token twice"


@part
@mode
def test_later_tokens_change_nothing_before_them_if_the_part_says_so(kind, name, training):
    made = nano.router(**{kind: name}).train(training)
    causal = getattr(getattr(made, kind), "causal", "always")
    allowed = causal == "never" or (causal == "eval" and training)
    changed = False
    for seed in range(8):
        torch.manual_seed(seed)
        x = torch.randn(2, 16, nano.DIM)
        data = nano.batch(length=16, seed=seed)
        context = nano.context(made, data=data)
        before = served(made(x.flatten(0, 1), context)).view(2, 16, 8)
        x[:, 9:] = 3 * torch.randn(2, 7, nano.DIM)
        ids = data["tokens"].clone()
        ids[:, 9:] = 5
        after = served(made(x.flatten(0, 1), context._replace(token_ids=ids.flatten()))).view(
            2, 16, 8
        )
        changed |= not torch.allclose(before[:, :9], after[:, :9], atol=1e-6)
    assert not changed or allowed
    if allowed and kind == "select":
        assert changed, "declared not causal, yet it was"


@pytest.mark.parametrize("order", ["choice", "score"])
def test_capacity_by_choice_or_score_is_declared_not_causal_in_training(order):
    made = nano.router()
    values = {"factor": 0.5, "exempt": 0.0, "order": order}
    made.drop = find("drop", "capacity")(nano.SIZES, **values, eval=False)
    assert made.drop.causal == "eval"
    assert find("drop", "capacity")(nano.SIZES, **values, eval=True).causal == "never"
    differs = []
    for seed in range(10):
        torch.manual_seed(seed)
        x = torch.randn(16, nano.DIM)
        data = nano.batch(rows=1, length=16)
        before = served(made(x, nano.context(made, data=data)))[:9]
        x[9:] = torch.randn(7, nano.DIM)
        differs.append(not torch.equal(before, served(made(x, nano.context(made, data=data)))[:9]))
    assert any(differs)


@part
def test_forward_touches_no_buffer_and_the_same_seed_gives_the_same_result(kind, name):
    made = nano.router(**{kind: name}).train()
    before = {key: value.clone() for key, value in made.state_dict().items()}
    x = torch.randn(16, nano.DIM)
    context = nano.context(made, seed=3)
    first = made(x, context)
    second = made(x, context)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())


@part
def test_what_stands_on_padding_has_no_effect(kind, name):
    net = nano.model(
        ["aux", "z_loss", "importance", "entropy", "mutual_information"], **{kind: name}
    ).train()
    data = nano.batch(padding=3)
    other = {**data, "tokens": data["tokens"].where(data["valid"], 7)}
    for a, b in zip(_outcome(net, data), _outcome(net, other), strict=True):
        torch.testing.assert_close(a, b)


@balance
def test_padding_has_no_effect_on_a_balance_term(name):
    net = with_term(name)
    data = nano.batch(padding=3)
    other = {**data, "tokens": data["tokens"].where(data["valid"], 7)}
    for a, b in zip(_outcome(net, data), _outcome(net, other), strict=True):
        torch.testing.assert_close(a, b)


@balance
def test_a_balance_term_is_finite_on_nothing_but_padding(name):
    net = with_term(name)
    data = nano.batch()
    data |= {
        "valid": torch.zeros_like(data["valid"]),
        "targets": torch.full_like(data["targets"], -100),
    }
    nll, routings = net(**data)
    terms = net.balancer.losses(routings, None)
    (nll.sum() + sum(raw for raw, _ in terms.values())).backward()
    net.balancer.update(net.balancer.observe(routings), torch.tensor(0))
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    assert all(b.isfinite().all() for b in net.buffers())


@part
def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(kind, name):
    net = nano.model(["aux"], **{kind: name}).train()
    for seed in range(4):
        total_loss, _ = nano.total_loss(net, nano.batch(rows=4, length=16, seed=seed), seed=seed)
        total_loss.backward()
    learned = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    assert all(p.dim() for _, p in learned), "FSDP2 splits no scalar"
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in learned)
    # a frozen or tabulated score has no parameter; experts that no token chose have a zero gradient
    router = [n for n, p in learned if "experts" not in n and not p.grad.any()]
    assert not router, f"no gradient: {router}"


@part
def test_a_router_computes_in_float32_under_autocast(kind, name):
    made = nano.router(**{kind: name}).train()
    x = torch.randn(16, nano.DIM)
    context = nano.context(made)
    plain = made(x, context)
    with torch.autocast("cpu", torch.bfloat16):
        cast = made(x, context)
    assert torch.equal(plain.logits, cast.logits) and torch.equal(plain.gate, cast.gate)
    assert cast.logits.dtype == cast.gate.dtype == torch.float32


@balance
def test_the_state_of_a_balance_term_survives_a_round_trip_and_bfloat16(name):
    net = with_term(name)
    for seed in range(3):
        _, routings = nano.total_loss(net, nano.batch(seed=seed))
        net.balancer.update(net.balancer.observe(routings), torch.tensor(16))
    fresh = with_term(name)
    fresh.load_state_dict(net.state_dict())
    for (key, a), (_, b) in zip(net.named_buffers(), fresh.named_buffers(), strict=True):
        assert torch.equal(a, b), key
    dtypes = {key: b.dtype for key, b in net.balancer.named_buffers()}
    assert {key: b.dtype for key, b in net.to(torch.bfloat16).balancer.named_buffers()} == dtypes
    assert torch.bfloat16 not in dtypes.values()


@balance
def test_loss_offset_and_observation_change_no_state_and_have_the_promised_shapes(name):
    net = with_term(name)
    before = {key: value.clone() for key, value in net.balancer.state_dict().items()}
    loss, routings = nano.total_loss(net, nano.batch())
    observed = net.balancer.terms[name].observe(routings)
    assert loss.dim() == 0 and not observed.requires_grad
    assert observed.dtype == torch.float32 and observed.shape[0] == 2
    offset = net.balancer.offset()
    assert offset is None or (offset.shape == (2, 8) and offset.dtype == torch.float32)
    assert all(torch.equal(before[key], value) for key, value in net.balancer.state_dict().items())


@part
def test_the_layer_equals_the_dense_definition_with_all_gradients(kind, name):
    torch.manual_seed(0)
    layer = MoE(nano.router(**{kind: name}), nano.layout()).train()
    for weight in layer.experts.parameters():
        nn.init.normal_(weight, 0, 0.3)
    x = torch.randn(2, 8, nano.DIM, requires_grad=True)
    context = nano.context(layer.router)
    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
    y, _ = layer(x, context)
    tokens = x.flatten(0, 1)
    w_in = layer.experts.routed.w_in
    w_out = layer.experts.routed.w_out
    gate, up = torch.einsum("td,edf->tef", tokens, w_in).chunk(2, -1)
    routing = layer.router(tokens, context)
    gates = served(routing)
    if routing.on_input:  # E(g x)
        gate, up = (gates[..., None] * part for part in (gate, up))
        gates = (gates > 0).float()
    each = torch.einsum("tef,efd->ted", nn.functional.silu(gate) * up, w_out)
    dense = torch.einsum("te,ted->td", gates, each).view_as(y)
    torch.testing.assert_close(y, dense, atol=1e-5, rtol=1e-4)
    weight = torch.linspace(-1, 1, y.numel()).view_as(y)
    ours = torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True)
    theirs = torch.autograd.grad((dense * weight).sum(), leaves, allow_unused=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@part
@pytest.mark.parametrize("size", [1e4, 0.0], ids=["huge", "equal"])
def test_huge_and_equal_logits_stay_finite(kind, name, size):
    net = nano.model(["aux", "z_loss"], **{kind: name}).train()
    with torch.no_grad():
        for router in net.routers():
            for parameter in router.parameters():
                parameter.mul_(size)
    loss, _ = nano.total_loss(net, nano.batch())
    loss.backward()
    assert loss.isfinite() and all(
        p.grad is None or p.grad.isfinite().all() for p in net.parameters()
    )


@part
def test_one_token_alone_is_routed(kind, name):
    made = nano.router(**{kind: name}).train()
    data = nano.batch(rows=1, length=1)
    routing = made(torch.randn(1, nano.DIM), nano.context(made, data=data))
    assert routing.gate.isfinite().all()


def _outcome(net: Transformer, data: dict[str, Tensor]) -> list[Tensor]:
    """Everything that padding could reach: the loss, its gradients, what controllers observe."""
    net.zero_grad()
    loss, routings = nano.total_loss(net, data)
    loss.backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    embedded = net.embedding.weight.grad
    assert embedded is not None
    return [loss.detach(), *grads, *net.balancer.observe(routings).values()]
