"""What a model writes after a prompt."""

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
    return tokenizer.decode(tokens[0, len(start) :].tolist())


def draw_token(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token, of logits (V,); the likeliest at temperature 0."""
    if temperature == 0:
        return logits.argmax()
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
