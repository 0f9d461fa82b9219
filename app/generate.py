"""`python -m app.generate RUN --prompt TEXT`: continues a text with the newest checkpoint of a run."""

import argparse  # noqa: I001  app.environment must stand before torch
import sys
from pathlib import Path

import app.environment  # noqa: F401

import torch
from torch import Tensor

from app.data.tokenizers import Tokenizer
from app.errors import exit_on_mistake
from app.registry import UserError
from app.transformer import Transformer


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
    """What a model in evaluation mode writes after a prompt; it sees the last `window` tokens."""
    start = [tokenizer.separator, *map(int, tokenizer.encode([prompt])[0].ids)]
    tokens = torch.tensor([start], device=generator.device)
    for _ in range(num_tokens):
        logits = model.logits(tokens[:, -window:])[0, -1, : tokenizer.vocab_size].float()
        tokens = torch.cat((tokens, draw(logits, temperature, generator).view(1, 1)), 1)
    return tokenizer.decode(tokens[0, len(start) :].tolist())


def draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token, of logits (V,); the likeliest at temperature 0."""
    if temperature == 0:
        return logits.argmax()
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)


def main(arguments: list[str]) -> None:
    """Prints prompt and continuation."""
    from app.trained import load_run

    parser = argparse.ArgumentParser(prog="python -m app.generate", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, default=100, help="how many")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    if asked.temperature < 0 or asked.tokens < 1:
        raise UserError("--temperature must be at least 0 and --tokens at least 1")
    run = load_run(asked.run)
    text = continuation(
        run.model,
        run.data.tokenizer,
        asked.prompt,
        num_tokens=asked.tokens,
        temperature=asked.temperature,
        window=run.data.seq_len,
        generator=torch.Generator().manual_seed(asked.seed),
    )
    print(asked.prompt + text)


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
