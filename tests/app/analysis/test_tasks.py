"""The small tasks: what is asked, what counts as right, and that only what follows the context is judged."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.analysis.tasks import held_out, made
from app.analysis.tasks.held_out import JUDGED, READ, passages
from app.analysis.tasks.item import Item, Option, score
from app.data.tokenizers.bytes import Bytes
from app.model.transformer import Transformer
from app.runs.text import RunText

SENTENCES = [f"the {noun} of the {place} goes along the old road to the north every morning with all people"
             for noun in ("king", "river", "member", "city") for place in ("state", "country", "town")]  # fmt: skip


class Counting(nn.Module):
    """Finds a token the less likely the larger it is: -log p = id."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1, 1)
        self.domains: list[Tensor | None] = []

    def forward(
        self, tokens: Tensor, targets: Tensor, valid: Tensor, document: Tensor, domain: Tensor | None
    ) -> tuple[Tensor, list[Any]]:
        self.domains.append(domain)
        assert bool(((targets >= 0) <= valid).all()) and bool((document == 0).all())
        return targets.clamp_min(0).float(), []


def item(*texts: tuple[int, ...], domain: int | None = None) -> Item:
    return Item(tuple(Option((200, 201), text) for text in texts), domain)


def test_the_likelier_answer_is_right_whatever_its_length() -> None:
    found = score(Counting(), [item((1, 2), (4,)), item((5,), (1, 2)), item((3,), (9, 9, 9), (7,))])  # type: ignore[arg-type]
    assert found.accuracy == pytest.approx(2 / 3) and found.items == 3
    assert found.error == pytest.approx((2 / 3 * 1 / 3 / 3) ** 0.5)
    assert found.chance == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


def test_a_tie_counts_a_half_and_one_of_four_a_quarter() -> None:
    model: Any = Counting()
    assert score(model, [item((2,), (2,))]).accuracy == 0.5
    assert score(model, [item((2,), (2,), (1, 1), (2,))]).accuracy == 0.25
    assert score(model, [item((2,), (2,), (1,))]).accuracy == 0


def test_the_domain_is_told_where_all_of_a_batch_have_one() -> None:
    model: Any = Counting()
    score(model, [item((1,), (2,), domain=3)])
    score(model, [item((1,), (2,))])
    assert model.domains[0].tolist() == [[3, 3], [3, 3]] and model.domains[1] is None


def test_what_is_judged_is_the_text_after_the_context(tiny: Transformer) -> None:
    option = Option((256, 7, 8, 9), (10, 11))
    log_p = tiny.logits(torch.tensor([[256, 7, 8, 9, 10]])).log_softmax(-1)[0]
    likely = (log_p[3, 10] + log_p[4, 11]).item()
    others = [Option((256, 7, 8, 9), (token, 11)) for token in range(40, 90)]
    rows = [tiny.logits(torch.tensor([[*o.context, o.text[0]]])).log_softmax(-1)[0] for o in others]
    better = [(row[3, o.text[0]] + row[4, 11]).item() > likely for row, o in zip(rows, others, strict=True)]
    items = [Item((option, other)) for other in others]
    assert score(tiny, items).accuracy == pytest.approx(1 - sum(better) / len(better))


@pytest.fixture
def tiny() -> Transformer:
    from app.config.compose import composed
    from app.model.assemble import build_model

    torch.manual_seed(0)
    return build_model(composed(["model=nano", "experts=dense", "balance=none", "model.init_std=0.5"]), 257).eval()


@pytest.fixture
def text() -> RunText:
    """Twelve documents of a domain with two topics, and four of another one without."""
    rows: dict[str, list[list[int]]] = {
        name: [] for name in ("tokens", "targets", "document", "domain", "topic", "nbytes")
    }
    for number, sentence in enumerate([*SENTENCES, *SENTENCES[:4]]):
        ids = [256, *sentence.encode()][:96]
        domain = int(number >= len(SENTENCES))
        rows["tokens"].append(ids + [0] * (96 - len(ids)))
        rows["targets"].append([*ids[1:], 256] + [-100] * (96 - len(ids)))
        rows["document"].append([number] * len(ids) + [-1] * (96 - len(ids)))
        rows["domain"].append([domain] * 96)
        rows["topic"].append([-1 if domain else number % 5] * 96)
        rows["nbytes"].append([1] * 96)
    return RunText(["a", "b"], list("vwxyz"), "", Bytes(), {name: np.array(values) for name, values in rows.items()})


def words(tokens: tuple[int, ...]) -> str:
    return Bytes().decode(tokens)


def test_passages_are_the_tokens_of_single_documents(text: RunText) -> None:
    found = passages(text)
    assert len(found) == 16
    assert all(any(sentence.startswith(words(p.tokens)) for sentence in SENTENCES) for p in found)
    assert {p.topic for p in found if p.domain == 1} == {-1}


def test_a_continuation_is_asked_for_among_passages_of_its_domain(text: RunText) -> None:
    items = held_out.continuation(text, 100)
    assert items and {each.domain for each in items} == {1}, "in domain a no topic has four passages"
    for each in items:
        right, *wrong = each.options
        assert (
            words(right.context + right.text)
            == next(s for s in SENTENCES if s.startswith(words(right.context)))[: READ + JUDGED]
        )
        assert len(wrong) == 3 and {len(o.text) for o in each.options} == {JUDGED}
        assert {o.context for o in wrong} == {right.context}


def test_a_topic_is_asked_for_by_other_passages_of_it(text: RunText) -> None:
    topics = {p.tokens[:READ]: p.topic for p in passages(text) if p.domain == 0}
    items = held_out.topic(text, 100)
    assert items
    for each in items:
        own = topics[each.options[0].text]
        assert [topics[o.context[1:]] == own for o in each.options] == [True, False, False, False]
        assert {o.text for o in each.options} == {each.options[0].text}
        assert each.options[0].context[1:] != each.options[0].text


def test_a_last_word_is_asked_for_among_words_as_long(text: RunText) -> None:
    for each in held_out.last_word(text, 100):
        assert len({len(o.text) for o in each.options}) == 1 and len({o.text for o in each.options}) == 4
        assert words(each.options[0].text).strip().isalpha()


def test_the_questions_are_the_same_every_time(text: RunText) -> None:
    assert held_out.continuation(text, 5) == held_out.continuation(text, 5)
    assert made.recall(Bytes(), 5) == made.recall(Bytes(), 5)


def test_a_verb_agrees_with_the_subject_and_not_with_what_stands_between() -> None:
    pairs = [[words(o.text) for o in each.options] for each in made.agreement(Bytes(), 10_000)]
    assert len({right for right, _ in pairs}) == len(pairs) > 300
    assert ["The state is known to the world.", "The state are known to the world."] in pairs
    right, wrong = (f"The states of the president {verb} known to the world." for verb in ("are", "is"))
    assert [right, wrong] in pairs


def test_what_is_recalled_was_said_and_the_others_were_too() -> None:
    for each in made.recall(Bytes(), 50):
        said = words(each.options[0].context)
        key = said.rpartition(", ")[2]
        assert f"{key}{words(each.options[0].text)}," in said
        assert len({o.text for o in each.options}) == 4 and all(words(o.text).strip() in said for o in each.options)
