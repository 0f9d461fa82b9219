"""All small tasks of a run: made from its own held-out text and from a small grammar, without any download.

They describe a model and decide nothing: twenty runs that differ in the seed alone spread by 0.03 % in bits per byte,
and by 2.6 % in such a score.
"""

import json
from collections.abc import Callable
from pathlib import Path

from app.analysis.tasks import held_out, made
from app.analysis.tasks.item import Item, Score, score
from app.registry import UserError
from app.runs.read import TrainedRun
from app.runs.text import RunText
from app.training.files import is_unicode, lines_of

TASKS: dict[str, Callable[[RunText, int], list[Item]]] = {
    "continuation": held_out.continuation,
    "last_word": held_out.last_word,
    "topic": held_out.topic,
    "agreement": lambda text, items: made.agreement(text.tokenizer, items),
    "recall": lambda text, items: made.recall(text.tokenizer, items),
}


def scores(run: TrainedRun, items: int) -> dict[str, Score | None]:
    """By name; None where the text has none of the items, or where the model cannot read text without a domain."""
    return {name: _score(run, make(run.text, items)) for name, make in TASKS.items()}


def _score(run: TrainedRun, items: list[Item]) -> Score | None:
    try:
        return score(run.model, items) if items else None
    except UserError:  # of a router that reads the domain, of text that has none
        return None


def pairs_score(run: TrainedRun, path: Path) -> Score:
    """Of minimal pairs in a file: a JSON object a line with `sentence_good` and `sentence_bad`, as BLiMP has them.

    Raises:
        UserError: the file cannot be read, or is none of these.
    """
    pairs = []
    for number, line in enumerate(lines_of(path), 1):
        try:
            entry = json.loads(line)
            pair = (entry["sentence_good"], entry["sentence_bad"])
            if not all(isinstance(text, str) and is_unicode(text) for text in pair):
                raise ValueError("not two texts")
            pairs.append(pair)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}:{number}: is no object with sentence_good and sentence_bad") from error
    if not pairs:
        raise UserError(f"{path}: is empty; give a JSON object a line with sentence_good and sentence_bad")
    return score(run.model, made.minimal_pairs(run.text.tokenizer, pairs))
