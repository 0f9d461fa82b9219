"""Questions in made-up English: does the verb agree with its subject, and is a pair remembered?"""

from collections.abc import Iterator, Sequence
from itertools import product
from random import Random

from app.analysis.tasks.item import Item, Option
from app.data.tokenizers import Tokenizer

NOUNS = {"state": "states", "president": "presidents", "river": "rivers", "city": "cities", "member": "members",
         "king": "kings", "country": "countries", "people of the town": "leaders of the town"}  # fmt: skip
PREPOSITIONS = ("of", "near", "with")
VERBS = {"is": "are", "was": "were", "has": "have"}
ENDS = {"is": "known to the world.", "was": "known to the world.", "has": "been known to the world."}
KEYS = ("red", "blue", "green", "white", "black", "gold", "brown", "grey")
VALUES = ("one", "two", "three", "four", "five", "six", "seven", "eight")
PAIRS = 4


def agreement(tokenizer: Tokenizer, items: int) -> list[Item]:
    """A sentence against the same with a verb of the other number."""
    pairs = list(_sentences())
    return minimal_pairs(tokenizer, Random(3).sample(pairs, min(items, len(pairs))))


def _sentences() -> Iterator[tuple[str, str]]:
    """With the right verb and with the wrong one; what stands before it has the other number than the subject."""
    for (one, many), (verb, verbs) in product(NOUNS.items(), VERBS.items()):
        others = [pair for pair in NOUNS.items() if pair[0] != one]
        for subject, right, wrong, other in ((one, verb, verbs, 1), (many, verbs, verb, 0)):
            between = ["", *(f" {word} the {pair[other]}" for word, pair in product(PREPOSITIONS, others))]
            for phrase in between:
                yield f"The {subject}{phrase} {right} {ENDS[verb]}", f"The {subject}{phrase} {wrong} {ENDS[verb]}"


def minimal_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Item]:
    """Whole sentences, the good one of each first."""
    start = (tokenizer.begin,)
    encoded = [tuple(map(int, each.ids)) for each in tokenizer.encode([text for pair in pairs for text in pair])]
    both = zip(encoded[::2], encoded[1::2], strict=True)
    return [Item((Option(start, good), Option(start, bad))) for good, bad in both]


def recall(tokenizer: Tokenizer, items: int) -> list[Item]:
    """What belonged to a key that was named before, against what belonged to the others."""
    random, found = Random(4), []
    for _ in range(items):
        pairs = list(zip(random.sample(KEYS, PAIRS), random.sample(VALUES, PAIRS), strict=True))
        key, value = random.choice(pairs)
        question = ", ".join(f"{k} {v}" for k, v in pairs) + f", {key}"
        values = [value, *(v for _, v in pairs if v != value)]
        texts = tokenizer.encode([question, *(f"{question} {v}" for v in values)])
        before, *answers = (tuple(map(int, text.ids)) for text in texts)
        context = (tokenizer.begin, *before)
        found.append(Item(tuple(Option(context, answer[len(before) :]) for answer in answers)))
    return found
