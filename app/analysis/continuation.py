"""What a model writes after a prompt.

The model sees the tokens since some place, `window` at most: where they become more, it goes on
with the newest half of the window. What it computed of those before is kept, unless a router looks
at other tokens than the one it routes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from os.path import commonprefix

import torch
from torch import Tensor

from app.data.tokenizers import Tokenizer
from app.model.past import Past
from app.model.transformer import Transformer
from app.registry import require


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn.

    Args:
        temperature: at least 0; 0: always the likeliest token.
        top_k: draws from that many likeliest tokens, at least 1; None: from all.
        top_p: draws from the fewest likeliest tokens that have this probability together, in 0..1
            (Holtzman et al. 2019, arXiv 1904.09751, section 3.1); None: from all. With `top_k`, of
            those.

    Raises:
        ValueError: a value is out of its range.
    """

    temperature: float
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        allowed = math.isfinite(self.temperature) and self.temperature >= 0
        require("temperature", self.temperature, allowed, "must be a number of at least 0")
        require("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "must be at least 1")
        require(
            "top_p",
            self.top_p,
            self.top_p is None or 0 < self.top_p <= 1,
            "must be above 0 and at most 1",
        )

    def draw(self, logits: Tensor, generator: torch.Generator) -> int:
        """One token of logits (V,)."""
        if self.temperature == 0:
            return int(logits.argmax())
        scaled = (logits - logits.max()) / max(self.temperature, COLDEST)
        values, tokens = scaled.sort(descending=True, stable=True)
        if self.top_k is not None:
            values = values[: self.top_k]
        probability = values.softmax(-1)
        if self.top_p is not None:
            # A token goes if those that are likelier have the mass already.
            before = probability.cumsum(-1) - probability
            probability = probability * (before < self.top_p)
        return int(tokens[torch.multinomial(probability, 1, generator=generator)])


# below it float32 divides by 0; any difference of logits already decides here
COLDEST = 1e-30
GREEDY = Sampling(temperature=0)


@torch.no_grad()
def next_tokens(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    window: int,
    seed: int,
    size: int,
    remember: bool = True,
) -> Iterator[list[int]]:
    """The next token of each prompt, then the one after it, and so on without end.

    Args:
        model: in evaluation mode.
        prompts: token ids, one at least each; several only where no router looks at other tokens.
        sampling: how tokens are drawn.
        window: tokens that the model sees at most.
        seed: of each prompt's own random numbers: it gets among others what it gets alone.
        size: token ids are below this one.
        remember: False computes all positions for every token.
    """
    generators = [torch.Generator().manual_seed(seed) for _ in prompts]
    device = model.embedding.weight.device
    seen = Seen(prompts, window, remember and routed_alone(model))
    while True:
        tokens, valid = left_padded(seen.new())
        tokens = tokens.to(device)
        valid = valid.to(device)
        seen.past.see(valid)
        logits = model.logits_of_next(tokens, valid, seen.past)  # (B, V)
        # The head may have more rows than the tokenizer has tokens.
        logits = logits[:, :size].float().cpu()
        drawn = []
        for row, generator in zip(logits, generators, strict=True):
            drawn.append(sampling.draw(row, generator))
        seen.add(drawn)
        yield drawn


class Seen:
    """The tokens that the model sees of each text, and what it remembers of them."""

    def __init__(self, prompts: Sequence[Sequence[int]], window: int, remember: bool) -> None:
        self.texts = [list(prompt[-window:]) for prompt in prompts]
        self.window = window
        self.remember = remember
        self.past = Past()

    def new(self) -> list[list[int]]:
        """The tokens of each text that are to be computed: those which the past does not have."""
        full = any(len(text) > self.window for text in self.texts)
        if self.past.valid.numel() and self.remember and not full:
            return [text[-1:] for text in self.texts]
        newest = max(1, self.window // 2)
        self.texts = [text if len(text) <= self.window else text[-newest:] for text in self.texts]
        self.past = Past()
        return self.texts

    def add(self, tokens: Sequence[int]) -> None:
        """One more token of each text."""
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)


def routed_alone(model: Transformer) -> bool:
    """Whether in evaluation no router looks at other tokens than the one it routes."""
    return all(router.alone for router in model.routers())


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of one length: tokens (B, S) int64 that end together,
    and which of them are no padding (B, S).
    """
    length = max(map(len, rows))
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    valid = torch.zeros(len(rows), length, dtype=torch.bool)
    for place, row in enumerate(rows):
        tokens[place, length - len(row) :] = torch.tensor(row)
        valid[place, length - len(row) :] = True
    return tokens, valid


def prompt_ids(tokenizer: Tokenizer, prompt: str | bytes) -> list[int]:
    """A prompt as the start of a document."""
    return [tokenizer.begin, *map(int, tokenizer.encode([prompt])[0].ids)]


def written(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str | bytes],
    sampling: Sampling,
    *,
    num_tokens: int,
    window: int,
    seed: int,
    stop: Sequence[str] = (),
) -> Iterator[list[str]]:
    """What the model has written after each prompt, after one token, after two, ... until all of
    them have ended.

    A text ends where its document does, before the first of the texts `stop`, or after `num_tokens`
    tokens.
    """
    starts = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    ids: list[list[int]] = [[] for _ in prompts]
    texts = ["" for _ in prompts]
    ended = [False for _ in prompts]
    steps = next_tokens(
        model, starts, sampling, window=window, seed=seed, size=tokenizer.vocab_size
    )
    for drawn in islice(steps, num_tokens):
        for i, token in enumerate(drawn):
            if ended[i]:
                continue
            ids[i].append(token)
            text = continued(tokenizer, starts[i], ids[i])
            texts[i], is_stopped = _cut(text, stop)
            ended[i] = is_stopped or token == tokenizer.separator
        yield texts
        if all(ended):
            return


def _cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the texts `stop`, and whether there is one."""
    places = [text.find(each) for each in stop if each in text]
    if not places:
        return text, False
    return text[: min(places)], True


def continuations(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str | bytes],
    sampling: Sampling,
    *,
    batch_size: int,
    num_tokens: int,
    window: int,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """What the model writes after each prompt,
    `batch_size` of them computed together where no router minds.
    """
    size = batch_size if routed_alone(model) else 1
    for first in range(0, len(prompts), size):
        some = prompts[first : first + size]
        *_, texts = written(
            model,
            tokenizer,
            some,
            sampling,
            num_tokens=num_tokens,
            window=window,
            seed=seed,
            stop=stop,
        )
        yield from texts


def continued(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str:
    """What the ids add to the text of those before them:
    a space belongs to where a token stands, not to the token.
    """
    known = tokenizer.decode(before)
    whole = tokenizer.decode([*before, *ids])
    return whole[len(commonprefix([known, whole])) :]  # noqa: RUF071  of texts, not of paths
