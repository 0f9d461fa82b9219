"""What a model writes after a prompt."""

from collections.abc import Sequence
from os.path import commonprefix

import torch
from torch import Tensor

from app.data.tokenizers import Tokenizer
from app.model.transformer import Transformer


@torch.no_grad()
def continuation(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    num_tokens: int,
    temperature: float,
    window: int,
    generator: torch.Generator,
) -> str:
    """The text after the prompt, of a model in evaluation mode that sees the last `window` tokens."""
    start = [tokenizer.separator, *map(int, tokenizer.encode([prompt])[0].ids)]
    tokens = torch.tensor([start], device=generator.device)
    for _ in range(num_tokens):
        logits = model.logits(tokens[:, -window:])[0, -1, : tokenizer.vocab_size].float()
        tokens = torch.cat((tokens, draw_token(logits, temperature, generator).view(1, 1)), 1)
    return continued(tokenizer, start, tokens[0, len(start) :].tolist())


def continued(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str:
    """What the ids add to the text of those before them: a space belongs to where a token stands, not to the token."""
    known, whole = tokenizer.decode(before), tokenizer.decode([*before, *ids])
    return whole[len(commonprefix([known, whole])) :]  # noqa: RUF071  of texts, not of paths


def draw_token(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token, of logits (V,); the likeliest at temperature 0."""
    if temperature == 0:
        return logits.argmax()
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
