"""The budget against what torch counts, and against arithmetic on paper."""

import json
import re
from itertools import combinations
from math import comb
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from app.budget import main
from app.config.compose import CONF, composed
from app.cost.budget import Budget, nominal, on_meta
from app.model.assemble import build_model
from app.model.moe import MoE
from app.model.transformer import Transformer
from app.registry import UserError, find, names
from routers.contract import Activated, Context, Select, Sizes
from routers.score.hyper import Hyper
from routers.score.linear import Linear

S = 32
V = 257
ROUTERS = sorted(path.stem for path in (CONF / "router").glob("*.yaml"))
LAYOUTS = ["dense", "coarse", "fine_grained", "deepseek", "shared_gated", "residual", "latent"]


def config(*overrides: str) -> dict[str, Any]:
    return composed(["model=nano", "tokenizer=bytes", "model.vocab_size=257", *overrides])


def swiglu_flops(x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor, *_: Any, **__: Any) -> int:
    """FLOPs of the rows that belong to an expert; rows after the last offset are not computed."""
    return 2 * int(ends[-1]) * (w_in[0].numel() + w_out[0].numel())


def swiglu_backward_flops(
    grad: Any, x: Any, hidden: Any, ends: Any, w_in: Any, w_out: Any, *_: Any, **__: Any
) -> int:
    return 2 * swiglu_flops(x, ends, w_in, w_out)


def product_flops(x: Tensor, ends: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * int(ends[-1]) * weight[0].numel()


FORMULAS = {
    torch.ops.experts.swiglu: swiglu_flops,
    torch.ops.experts.swiglu_backward: swiglu_backward_flops,
    torch.ops.experts.product: product_flops,
}
for formula in FORMULAS.values():
    formula._get_raw = True  # type: ignore[attr-defined]  # torch gives it tensors, not their shapes


def counted(model: Transformer, num_tokens: int = S, backward: bool = True) -> tuple[int, int]:
    """FLOPs of one row by torch: forward, and forward with backward."""
    tokens = torch.randint(0, V, (1, num_tokens))
    document = torch.zeros_like(tokens)
    valid = torch.ones_like(tokens, dtype=torch.bool)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with sdpa_kernel(SDPBackend.MATH), counter:
        nll, _ = model(tokens, tokens, valid, document, domain=torch.zeros(1, dtype=torch.int64))
        forward = counter.get_total_flops()
        if backward:
            nll.sum().backward()
    return forward, counter.get_total_flops()


class EveryChoice(Select):
    """Select every k-subset of the experts in turn,
    or k neighbours on a ring if there are too many subsets.
    """

    def __init__(self, num_experts: int, k: int) -> None:
        super().__init__()
        self.k = self.max_k = k
        many = comb(num_experts, k) > 2000
        ring = [[(first + i) % num_experts for i in range(k)] for first in range(num_experts)]
        self.choices = torch.tensor(ring if many else [*combinations(range(num_experts), k)])

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        token = torch.arange(len(choice))
        return token.repeat_interleave(self.k), self.choices[token % len(self.choices)].flatten()


def evenly_routed(model: Transformer) -> int:
    """Route by `EveryChoice` without drops; the number of tokens that it needs."""
    number = S
    for router in model.routers():
        router.select = EveryChoice(router.num_experts, router.top_k)
        router.drop = find("drop", "none")(Sizes(32, router.num_experts, router.top_k))
        number = len(router.select.choices)
    return number


@pytest.mark.parametrize("name", names("experts"))
def test_flops_of_every_layout_equal_what_torch_counts(name):
    """A layout with experts of unequal cost is counted at an even load."""
    own = ["experts.skills=[a,b,c]", "router=context"] if name == "lora_skills" else []
    model = build_model(config(f"experts={name}", "experts/activation=swiglu", *own), V)
    num_tokens = evenly_routed(model)
    expected = counted(model, num_tokens, backward=False)[0]
    # it computes how to mix a constant for all rows, and uses a few
    close = 0.02 if name == "moepp" else 1e-6
    assert Budget.of(model, num_tokens).flops_per_token_forward * num_tokens == pytest.approx(
        expected, rel=close
    )


@pytest.mark.parametrize("name", names("activation"))
def test_flops_of_every_activation_equal_what_torch_counts(name):
    model = build_model(config("experts=coarse", f"experts/activation={name}"), V)
    num_tokens = evenly_routed(model)
    expected = counted(model, num_tokens, backward=False)[0]
    assert Budget.of(model, num_tokens).flops_per_token_forward * num_tokens == pytest.approx(
        expected, rel=1e-6
    )


def expected_flops(model: Transformer) -> float:
    """FLOPs by torch of S tokens, if every token had the number of experts that its router states.

    The data decide it under some selections, and full experts drop tokens. HyperRouter makes the
    router's weights once for all tokens, which is no work of a token.
    """
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    missing: list[int] = []
    for layer in layers:
        layer.router.register_forward_hook(
            lambda _, __, found: missing.append(S * found.top_k - int(found.kept.sum()))
        )
    flops: float = counted(model, backward=False)[0]
    for layer, number in zip(layers, missing, strict=True):
        flops += number * 2 * layer.experts.expert_params()[0]
        if isinstance(layer.router.score, Hyper):
            inner = layer.router.score.inner
            outer = layer.router.score.outer
            # for the logits, and for `directions`
            flops -= 2 * 2 * (inner[:, 1:].numel() + outer[:, 1:].numel())
    return flops


@pytest.mark.parametrize("name", names("score"))
def test_flops_of_every_score_equal_what_torch_counts(name):
    own = ["router.score.hidden_dims=[8,8]"] if name == "context" else []
    parts = [
        f"router/score={name}",
        "router/select=top_k",
        "experts=coarse",
        "experts.num_experts=5",
    ]
    model = build_model(config(*parts, *own), V)
    expected = expected_flops(model)
    assert Budget.of(model, S).flops_per_token_forward * S == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in ROUTERS if name != "context"])
def test_flops_of_every_router_equal_what_torch_counts(name):
    """With its own selection, weighing and drops: none of them multiplies matrices."""
    model = build_model(config(f"router={name}", "experts=coarse", "allow_non_causal=true"), V)
    expected = expected_flops(model)
    assert Budget.of(model, S).flops_per_token_forward * S == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("cell", ["gru", "rnn", "lstm"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_network_that_all_layers_share_counts_in_each(cell, shared):
    parts = ["router=gru", f"router.score.cell={cell}", f"router.score.shared_projection={shared}"]
    model = build_model(config(*parts, "experts=coarse", "model.num_layers=3"), V)
    assert Budget.of(model, S).flops_per_token_forward * S == pytest.approx(
        expected_flops(model), rel=1e-6
    )


def test_a_score_that_reads_values_counts_as_one_product_for_each_matrix(monkeypatch):
    forward = Linear.forward
    monkeypatch.setattr(
        Linear, "forward", lambda self, x, context: (x.sum().item(), forward(self, x, context))[1]
    )
    model = build_model(config("experts=coarse"), V)
    assert Budget.of(model, S).flops_per_token_forward * S == pytest.approx(
        expected_flops(model), rel=1e-6
    )


@pytest.mark.parametrize(
    "heads", ["model.num_kv_heads=1", "model.head_dim=32", "model.qk_norm=head"]
)
@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_every_form_of_the_model_equal_what_torch_counts(heads, tied):
    """A tied embedding is multiplied by as the head, and looked up as the embedding."""
    model = build_model(config("experts=deepseek", heads, f"model.tie_embeddings={tied}"), V)
    expected = counted(model, backward=False)[0]
    assert Budget.of(model, S).flops_per_token_forward * S == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flops_of_training_equal_what_torch_counts(layout):
    model = build_model(
        config(f"experts={layout}", "model.num_kv_heads=1", "experts.hidden_dim=64"), V
    )
    budget = Budget.of(model, S)
    forward, training = counted(model)
    assert budget.flops_per_token_forward * S == pytest.approx(forward, rel=0.01)
    assert budget.flops_per_sequence_train == pytest.approx(training, rel=0.01)


@pytest.mark.parametrize("linears", ["attention", "ffn", "all"])
@pytest.mark.parametrize("level", ["parameter", "layer", "logits"])
def test_flops_of_a_mixture_equal_what_torch_counts(level, linears):
    """A mixture of logits runs the whole model, routers and all,
    once without and once with each skill.
    """
    parts = (
        f"experts.level={level}",
        f"experts.linears={linears}",
        "experts.skills=[a,b,c]",
        "router=context",
    )
    model = build_model(config("experts=lora_skills", *parts), V)
    budget = Budget.of(model, S)
    assert budget.flops_per_token_forward * S == pytest.approx(counted(model)[0], rel=1e-6)
    named = {name: p.numel() for name, p in model.named_parameters()}
    assert budget.total_params == budget.active_params == sum(named.values())


@pytest.mark.parametrize("router", ["topk", "gru"])
@pytest.mark.parametrize("layout", ["coarse", "deepseek"])
def test_parameters_equal_what_torch_counts(layout, router):
    model = build_model(config(f"experts={layout}", f"router={router}", "model.first_dense=1"), V)
    budget = Budget.of(model, S)
    named = {name: p.numel() for name, p in model.named_parameters()}
    assert budget.total_params == sum(named.values())
    assert budget.embedding_params == named["embedding.weight"]
    assert budget.router_params == sum(
        n for key, n in named.items() if ".router." in key or "shared_score" in key
    )
    assert budget.expert_params == sum(n for key, n in named.items() if ".routed." in key)
    assert budget.ffn_params == sum(n for key, n in named.items() if ".ffn.experts." in key)


def test_active_parameters_leave_out_the_experts_that_were_not_chosen():
    model = on_meta(config("experts=coarse", "experts.num_experts=8", "experts.top_k=2"))
    budget = Budget.of(model, S)
    # layers, idle experts, one expert
    assert budget.total_params - budget.active_params == 2 * 6 * 3 * 32 * 32


def test_a_routers_own_k_counts_and_not_the_layouts():
    model = on_meta(config("experts=coarse", "experts.top_k=4", "router=switch"))
    assert (
        Budget.of(model, S).total_params - Budget.of(model, S).active_params == 2 * 7 * 3 * 32 * 32
    )


def test_conventions_differ_by_what_their_names_say():
    model = on_meta(
        config("experts=coarse", "experts.top_k=2", "experts.hidden_dim=88", "model.num_kv_heads=1")
    )
    layers = 2
    dim = 32
    ffn = 2 * 2 * 3 * 32
    attention = 4 * layers * dim * S
    real, causal = (
        Budget.of(model, S, name).flops_per_token_forward for name in ("real", "causal")
    )
    assert real - causal == attention / 2
    rest = 2 * (4 * layers * dim**2 + V * dim) + attention
    assert Budget.of(model, S, "paper_real").flops_per_token_forward == rest + 2 * ffn * 88
    assert Budget.of(model, S, "paper").flops_per_token_forward == pytest.approx(
        rest + 2 * ffn * 8 * 32 / 3
    )


@pytest.mark.parametrize(
    ("dim", "width", "share"),
    [
        (2048, 1408, 1 / 4),
        (2048, 2816, 1 / 2),
        (2048, 10944, 2),
        (4096, 1408, 1 / 8),
        (4096, 11008, 1),
        (1280, 4112, 1.2),
    ],
)
def test_a_rounded_width_stands_for_a_simple_fraction_of_eight_thirds(dim, width, share):
    assert nominal(width, dim) == pytest.approx(share * 8 * dim / 3)


def test_a_width_that_is_no_simple_fraction_stays():
    assert nominal(1, 4096) == 1


def test_layers_can_be_listed():
    model = on_meta(config("model.num_layers=4", "model.moe_layers=[1,3]"))
    assert [hasattr(block.ffn, "router") for block in model.blocks] == [False, True, False, True]
    with pytest.raises(UserError, match=r"model\.moe_layers=\[4\]: must be layers in 0\.\.3"):
        on_meta(config("model.num_layers=4", "model.moe_layers=[4]"))


def test_a_head_may_be_wider_than_its_share_of_the_model():
    model = build_model(config("model.head_dim=32", "experts=dense"), V)
    assert model.blocks[0].attention.out.weight.shape == (32, 64)
    assert Budget.of(model, S).flops_per_token_forward * S == pytest.approx(
        counted(model)[0], rel=0.01
    )


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused():
    with pytest.raises(UserError, match=r"model\.vocab_size=100: must be at least 257"):
        build_model(config("model.vocab_size=100"), 257)


def test_the_command_prints_json(capsys):
    main(["--json", "--convention=causal", "model=nano", "tokenizer=bytes"])
    printed = json.loads(capsys.readouterr().out)
    named = {
        "total_params",
        "active_params",
        "embedding_params",
        "expert_params",
        "router_params",
        "bytes",
    }
    named |= {"flops_per_token_forward", "flops_per_token_train", "flops_per_sequence_train"}
    assert named <= set(printed) and printed["convention"] == "causal"
    assert printed["flops_per_sequence_train"] == 3 * 256 * printed["flops_per_token_forward"]


def test_the_command_prints_a_table(capsys):
    main(["model=nano", "tokenizer=bytes"])
    assert "total parameters" in capsys.readouterr().out


def test_an_unknown_convention_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'causal'"):
        main(["--convention=casual"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.micro_batch_size=0"], "data.micro_batch_size=0: must be at least 1"),
        (["data.batch_size=many"], "data.batch_size=many: must be int"),
        (
            ["data.micro_batch_size=3"],
            "data.batch_size=8: must be a multiple of data.micro_batch_size=3",
        ),
        (["trainer.devices=0"], "trainer.devices=0: must be at least 1"),
        (["trainer.devices=2"], "trainer.devices=2: needs trainer=ddp or trainer=fsdp"),
        (["trainer=ep", "trainer.ep_size=3"], "trainer.ep_size=3: must divide 2"),
        (["trainer.strategy=fdsp2"], "trainer.strategy=fdsp2: "),
    ],
)
def test_what_train_refuses_has_no_budget(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        main(["model=nano", "tokenizer=bytes", *words])


def test_the_groups_that_grove_meets_are_counted_on_average():
    model = on_meta(
        config("experts=grove", "experts.num_experts=8", "experts.top_k=3", "experts.hidden_dim=16")
    )
    met = 4 * (1 - comb(6, 3) / comb(8, 3))
    idle = 5 * 3 * 32 * 16 + (4 - met) * 3 * 32 * 64
    assert Budget.of(model, S).total_params - Budget.of(model, S).active_params == pytest.approx(
        2 * idle, abs=1
    )
