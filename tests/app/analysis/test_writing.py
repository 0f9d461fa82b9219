"""What is remembered of the positions before changes no token, whatever routes them;
and how tokens are drawn.
"""

from itertools import islice
from typing import Any

import pytest
import torch

from app.analysis.continuation import GREEDY, Sampling, continuations, next_tokens, written
from app.config.compose import composed
from app.data.tokenizers.bytes import Bytes
from app.model.assemble import build_model
from app.model.transformer import Transformer
from tests.support.presets import NAMES

# the window moves on its way
WINDOW = 12
TOKENS = 20
SIZE = 257


def model(*overrides: str) -> Transformer:
    config = composed(["model=nano", "allow_non_causal=true", "model.init_std=0.3", *overrides])
    torch.manual_seed(0)
    return build_model(config, SIZE).eval()


def tokens(net: Transformer, prompts: list[list[int]], **asked: Any) -> list[list[int]]:
    asked = {"sampling": GREEDY, "window": WINDOW, "seed": 0, "size": SIZE} | asked
    return [
        list(row) for row in zip(*islice(next_tokens(net, prompts, **asked), TOKENS), strict=True)
    ]


@pytest.mark.nightly
# which writes nothing
@pytest.mark.parametrize("router", [name for name in NAMES if name != "oracle"])
def test_a_token_is_the_same_with_and_without_what_is_remembered(router: str) -> None:
    net = model(f"router={router}")
    remembered = tokens(net, [[256, 5, 9]])
    assert remembered == tokens(net, [[256, 5, 9]], remember=False)
    # not one token over and over, which anything would give
    assert len({*remembered[0]}) > 3


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.num_kv_heads=1", "model.qk_norm=head"),
        ("experts=deepseek", "balance=loss_free"),
        ("experts=dense",),
        (
            "experts=lora_skills",
            "experts.skills=[a,b]",
            "router=context",
            "experts.level=parameter",
        ),
        ("experts=lora_skills", "experts.skills=[a,b]", "router=context", "experts.level=layer"),
        ("experts=lora_skills", "experts.skills=[a,b]", "router=context", "experts.level=logits"),
        ("router=switch", "router/drop=capacity", "router.drop.eval=true"),
    ],
    ids=lambda words: "-".join(words),
)
def test_so_it_is_in_other_models(overrides: tuple[str, ...]) -> None:
    net = model(*overrides)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "skills_b" in name:
                parameter.normal_(0, 0.5)
    assert tokens(net, [[256, 5, 9]]) == tokens(net, [[256, 5, 9]], remember=False)


def test_a_prompt_gets_among_others_what_it_gets_alone() -> None:
    net = model()
    prompts = [[256], [256, *range(30)], [256, 1, 2, 3, 4]]
    for sampling in (GREEDY, Sampling(temperature=1.0, top_k=50, top_p=0.95)):
        assert tokens(net, prompts, sampling=sampling) == [
            tokens(net, [p], sampling=sampling)[0] for p in prompts
        ]


def test_the_newest_half_of_the_window_stays_when_it_is_full() -> None:
    net = model()
    made = [256, *tokens(net, [[256]])[0]]
    for place in range(1, TOKENS + 1):
        # 13 tokens are too many: the last 6 stay
        start = 0 if place <= WINDOW else 7 if place <= 19 else 14
        seen = torch.tensor([made[start:place]])
        assert int(net.logits(seen)[0, -1].argmax()) == made[place]


def test_where_a_router_looks_at_other_tokens_prompts_are_computed_one_by_one() -> None:
    net = model("router=expert_choice", "balance=none")
    prompts = ["ab", "c", "def gh"]
    asked: dict[str, Any] = {"num_tokens": 6, "window": WINDOW}
    together = list(continuations(net, Bytes(), prompts, GREEDY, batch_size=3, **asked))
    assert together == [
        next(continuations(net, Bytes(), [p], GREEDY, batch_size=1, **asked)) for p in prompts
    ]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(1.0, top_k=2), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(1.0, top_p=0.6), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(1.0, top_p=0.05), [1, 0, 0, 0]),
        (Sampling(0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (Sampling(1.0, top_k=3, top_p=0.5), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(0.0), [1, 0, 0, 0]),
        (Sampling(1e-30), [1, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_with_their_probabilities(
    sampling: Sampling, expected: list[float]
) -> None:
    order = torch.tensor([2, 0, 3, 1])
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[order]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([sampling.draw(logits, generator) for _ in range(4000)])
    shares = torch.bincount(order[drawn], minlength=4) / 4000
    torch.testing.assert_close(
        shares, torch.tensor(expected, dtype=torch.float32), atol=0.03, rtol=0
    )
    assert [bool(share) for share in shares] == [bool(share) for share in expected]


@pytest.mark.parametrize(
    "value",
    [
        {"temperature": float("nan")},
        {"temperature": -1},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": float("nan")},
        {"temperature": float("inf")},
    ],
)
def test_values_that_mean_nothing_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(value))):
        Sampling(**{"temperature": 1.0, **value})


class Reciting:
    """A model that knows a text by heart."""

    def __init__(self, text: str) -> None:
        self.ids = [*text.encode(), 256]
        self.embedding = torch.nn.Embedding(1, 1)

    def routers(self) -> list[object]:
        return []

    def logits_of_next(self, tokens: torch.Tensor, valid: Any, past: Any) -> torch.Tensor:
        # a separator stands before the prompt
        following = self.ids[past.valid.size(1) - 1]
        return torch.nn.functional.one_hot(torch.tensor([following]), SIZE)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), "two, three: naïve."),
        (("three",), "two, "),
        (("x", "e:", "wo"), "t"),
        (("ï",), "two, three: na"),
    ],
)
def test_a_text_ends_with_its_document_or_before_a_stop(
    stop: tuple[str, ...], expected: str
) -> None:
    asked: dict[str, Any] = {"num_tokens": 99, "window": 99, "seed": 0, "stop": stop}
    *_, (text,) = written(Reciting("one two, three: naïve."), Bytes(), ["one "], GREEDY, **asked)  # type: ignore[arg-type]
    assert text == expected
