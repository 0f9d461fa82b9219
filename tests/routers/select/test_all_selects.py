"""What every registered selection promises, at the values of its YAML."""

import pytest
import torch

from app.registry import names
from routers.contract import Select, Sizes
from tests.support.selecting import SIZES, Pairs, build, every, pairs, probabilities


def cut(choice: torch.Tensor, valid: torch.Tensor, scope: str, select: Select) -> Pairs:
    """The choice without its padding: sequence by sequence, or the whole batch as one row."""
    where = valid.flatten().nonzero().flatten()
    if scope == "batch":
        return {(int(where[t]), e) for t, e in pairs(select, choice[where])}
    parts = [row.nonzero().flatten() + i * valid.size(1) for i, row in enumerate(valid)]
    return {
        (int(part[t]), e) for part in parts if len(part) for t, e in pairs(select, choice[part])
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", names("select"))
class TestSelect:
    def test_padding_changes_nothing(self, name: str, training: bool) -> None:
        select = build(name).train(training)
        valid = every(3, 5)
        valid[1, 3:], valid[2, :2] = False, False
        choice = probabilities(15)
        louder = torch.where(valid.view(-1, 1), choice, 1 + choice)
        assert pairs(select, choice, valid) == pairs(select, louder, valid)
        assert pairs(select, choice, valid) == cut(choice, valid, select.scope, select)

    def test_the_prefix_looks_back_only_as_declared(self, name: str, training: bool) -> None:
        select = build(name).train(training)
        causal = select.causal == "always" or (select.causal == "eval" and not training)
        same = []
        for _ in range(20):
            choice = probabilities(2 * 8)
            later = torch.arange(16) % 8 >= 5
            other = torch.where(later[:, None], probabilities(16), choice)
            one = pairs(select, choice, every(2, 8))
            two = pairs(select, other, every(2, 8))
            same.append({p for p in one if not later[p[0]]} == {p for p in two if not later[p[0]]})
        assert all(same) if causal else not all(same)

    def test_the_scope_is_as_declared(self, name: str, training: bool) -> None:
        select = build(name).train(training)
        same = []
        for _ in range(20):
            one = probabilities(8)
            two = probabilities(8)
            alone = pairs(select, one)
            together = pairs(select, torch.cat((one, two)), every(2, 8))
            same.append(alone == {p for p in together if p[0] < 8})
        scope = select.scope if training else select.eval_scope or select.scope
        assert all(same) if scope != "batch" else not all(same)
        alone = {(t, e) for t in range(8) for _, e in pairs(select, one[t : t + 1])}
        assert scope != "token" or alone == pairs(select, one)

    @pytest.mark.parametrize(
        "num_tokens,num_experts,top_k", [(1, 6, 2), (4, 1, 1), (5, 6, 6), (1, 1, 1)]
    )
    @pytest.mark.parametrize("kind", ["random", "equal", "one-hot", "negative"])
    def test_hard_inputs(
        self, name: str, training: bool, num_tokens: int, num_experts: int, top_k: int, kind: str
    ) -> None:
        sizes = SIZES._replace(num_experts=num_experts, top_k=top_k)
        changed = {"limit": min(3, num_experts)} if name == "group_limited" else {}
        select = build(name, sizes, **changed).train(training)
        logits = (
            torch.zeros(num_tokens, num_experts)
            if kind == "equal"
            else torch.randn(num_tokens, num_experts)
        )
        choice = (logits * (1e4 if kind == "one-hot" else 1)).softmax(-1) - (
            2 if kind == "negative" else 0
        )
        chosen = pairs(select, choice, scores=choice.clamp_min(0))
        if select.k is not None and select.k == select.max_k:
            assert len(chosen) == num_tokens * select.k

    def test_a_batch_of_padding_chooses_nothing(self, name: str, training: bool) -> None:
        assert not pairs(build(name).train(training), probabilities(6), ~every(2, 3))

    def test_forbidden_experts_cost_a_token_nothing_else(self, name: str, training: bool) -> None:
        """With as many allowed experts as a token needs, it gets those."""
        select = build(name, SIZES._replace(top_k=1)).train(training)
        choice = torch.full((4, 6), -torch.inf)
        choice[torch.arange(4), torch.tensor([0, 2, 5, 3])] = 1.0
        chosen = pairs(select, choice, scores=choice.clamp_min(0))
        assert chosen == {(0, 0), (1, 2), (2, 5), (3, 3)}


def test_what_a_selection_gives_is_declared() -> None:
    """Exactly k, k on average, or as the data decide; and never more than max_k."""
    sizes = Sizes(dim=8, num_experts=8, top_k=2, num_layers=1, vocab_size=16)
    made = {name: build(name, sizes) for name in names("select")}
    decided = {name: (select.k, select.max_k) for name, select in made.items()}
    exact = {
        "top_k",
        "group_limited",
        "grouped",
        "sinkhorn",
        "base_layer",
        "sparsemixer",
        "growing_k",
    }
    other = {
        "expert_choice": (2, None),
        "seq_top_k": (2, 4),
        "top_p": (None, 8),
        "positive": (None, None),
    }
    other |= {"expert_threshold": (2, None)}
    assert decided == dict.fromkeys(exact, (2, 2)) | other
