"""Questions about held-out text: how does it go on, which word ends it, which topic has it?

A passage is a document's tokens inside one row. The wrong answers come from other passages of the same topic, or of the
same domain where documents have no topic, and are as long as the right one.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import NamedTuple, TypeVar

from app.analysis.tasks.item import Item, Option, Tokens
from app.data.tokenizers import Tokenizer
from app.runs.text import RunText

READ, JUDGED = 48, 16  # tokens
WRONG = 3  # answers
T = TypeVar("T")


class Passage(NamedTuple):
    """At least READ + JUDGED tokens of a document, without separators."""

    tokens: Tokens
    domain: int
    topic: int  # -1: none


def passages(text: RunText) -> list[Passage]:
    """Of all held-out rows."""
    found = []
    for batch in text.held_out(text.rows["tokens"].shape[0], 1):
        columns = (batch[name][0].tolist() for name in ("tokens", "document", "topic", "domain"))
        found += list(_passages(list(zip(*columns, strict=True)), text.tokenizer))
    return [passage for passage in found if len(passage.tokens) >= READ + JUDGED]


def _passages(row: Sequence[tuple[int, int, int, int]], tokenizer: Tokenizer) -> Iterator[Passage]:
    around = (tokenizer.begin, tokenizer.separator)
    for number in dict.fromkeys(document for _, document, _, _ in row if document >= 0):
        own = [(token, topic, domain) for token, document, topic, domain in row if document == number]
        yield Passage(tuple(token for token, _, _ in own if token not in around), own[0][2], own[0][1])


def continuation(text: RunText, items: int) -> list[Item]:
    """The true continuation against three that follow other passages of the topic."""
    known, random = passages(text), Random(0)

    def item(passage: Passage) -> Item | None:
        context = (text.tokenizer.begin, *passage.tokens[:READ])
        others = [p.tokens for p in known if _alike(p, passage) and p is not passage]
        ends = [other[READ : READ + JUDGED] for other in _some(others, random)]
        return _item(passage, [(context, end) for end in (passage.tokens[READ : READ + JUDGED], *ends)])

    return _items(known, item, items, random)


def topic(text: RunText, items: int) -> list[Item]:
    """A passage after the beginning of another one of its topic, against beginnings of three other topics."""
    known, random = [passage for passage in passages(text) if passage.topic >= 0], Random(1)

    def item(passage: Passage) -> Item | None:
        same = [p for p in known if _alike(p, passage) and p is not passage]
        other = {p.topic: p for p in random.sample(known, len(known)) if p.domain == passage.domain}
        other.pop(passage.topic, None)
        if not same:
            return None
        before = [random.choice(same), *_some(list(other.values()), random)]
        contexts = [(text.tokenizer.begin, *p.tokens[:READ]) for p in before]
        return _item(passage, [(context, passage.tokens[:READ]) for context in contexts])

    return _items(known, item, items, random)


def last_word(text: RunText, items: int) -> list[Item]:
    """The last word of a passage against three that end others and have as many tokens."""
    random = Random(2)
    cut = [(passage, end) for passage in passages(text) if (end := _last_word(passage, text.tokenizer))]
    ends = dict(cut)

    def item(passage: Passage) -> Item | None:
        context, word = ends[passage]
        other = {e[1] for p, e in cut if p.domain == passage.domain and len(e[1]) == len(word) and e[1] != word}
        return _item(passage, [(context, each) for each in (word, *_some(sorted(other), random))])

    return _items(list(ends), item, items, random)


def _last_word(passage: Passage, tokenizer: Tokenizer) -> tuple[Tokens, Tokens] | None:
    """The tokens before and of the last whole word, if it is one of at least four letters."""
    words = tokenizer.decode(passage.tokens[: READ + JUDGED]).split(" ")[:-1]  # the last may be cut
    if len(words) < 2 or not words[-1].isalpha() or len(words[-1]) < 4:
        return None
    before, whole = (tuple(map(int, e.ids)) for e in tokenizer.encode([" ".join(words[:-1]), " ".join(words)]))
    if whole[: len(before)] != before:
        return None
    return (tokenizer.begin, *before), whole[len(before) :]


def _alike(one: Passage, other: Passage) -> bool:
    return (one.domain, one.topic) == (other.domain, other.topic)


def _some(others: Sequence[T], random: Random) -> list[T]:
    return random.sample(others, WRONG) if len(others) >= WRONG else []


def _item(passage: Passage, options: list[tuple[Tokens, Tokens]]) -> Item | None:
    """None where there are too few wrong answers."""
    complete = len(options) == WRONG + 1
    return Item(tuple(Option(*option) for option in options), passage.domain) if complete else None


def _items(known: Sequence[Passage], item: Callable[[Passage], Item | None], number: int, random: Random) -> list[Item]:
    found = (item(passage) for passage in random.sample(known, len(known)))
    return list(islice((each for each in found if each is not None), number))
