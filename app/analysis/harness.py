"""A run in EleutherAI's lm-evaluation-harness, whose command line this is, knowing our runs:

    python -m app.analysis.harness run --model router_zoo --model_args run=runs/NAME --tasks
        lambada_openai

From Python, `lm_eval.simple_evaluate(RouterZoo("runs/NAME"), tasks=[...])`.
"""

import app.config.environment  # noqa: F401  isort: skip  before torch

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor

from app.analysis.continuation import Sampling, continuations, prompt_ids, routed_alone
from app.config.errors import exit_on_mistake
from app.data.corpus import IGNORED
from app.registry import UserError, unknown
from app.runs.read import read_run

# context and text, and their ids
Pair = tuple[tuple[str, str], list[int], list[int]]
# log-likelihood in nats, and whether it is what greedy decoding gives
Judged = tuple[float, bool]
DRAWING = ("temperature", "top_k", "top_p")
ARGUMENTS = ("run", "checkpoint", "device", "dtype", "batch_size")
READ = {*DRAWING, "until", "max_gen_toks", "do_sample"}


class Option(NamedTuple):
    """Tokens that are read, beginning with the separator,
    and the tokens after them whose likelihood is computed.
    """

    context: tuple[int, ...]
    text: tuple[int, ...]


@register_model("router_zoo")
class RouterZoo(TemplateLM):
    """A run as lm-eval asks it: a text is the start of a document, as it was in training.

    Args:
        run: its folder, or one of its checkpoints.
        checkpoint: of the folder, such as `step_200`; None: the newest.
        device: such as `cuda`; `cuda:0`, which lm-eval's command line says by itself, is `cpu`
            where there is none.
        dtype: of products: float32, bfloat16 or float16.
        batch_size: texts computed together, at least 1; one where a router looks at other tokens.
        max_batch_size: of lm-eval's automatic choice, which is not made here.

    Raises:
        UserError: no run is given, there is no such run or device, or an argument is none of these.
    """

    def __init__(
        self,
        run: str = "",
        checkpoint: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **others: object,
    ) -> None:
        super().__init__()
        if others:
            raise UserError(unknown(f"--model_args {min(others)}", min(others), ARGUMENTS))
        if not run:
            raise UserError("--model_args run: missing; give run=runs/NAME")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"--batch_size {batch_size}: must be a number of at least 1")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"dtype={dtype}: must be float32, bfloat16 or float16")
        there = "cpu" if device == "cuda:0" and not torch.cuda.is_available() else device
        self.run = read_run(Path(run), checkpoint).on(there)
        self.dtype = dtype
        self.batch_size = int(batch_size) if routed_alone(self.run.model) else 1

    @property
    def eot_token_id(self) -> int:
        """The separator of documents."""
        return self.run.text.tokenizer.separator

    @property
    def prefix_token_id(self) -> int:
        """The token that starts a document."""
        return self.run.text.tokenizer.begin

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """The ids of a text, behind the separator unless there are to be no special tokens."""
        ids = prompt_ids(self.run.text.tokenizer, string)
        return ids[1:] if add_special_tokens is False else ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False
    ) -> list[Judged]:
        for (_, text), _, ids in requests:
            if not ids:
                raise UserError(
                    f"{text!r}: its tokens are among those of what stands before it; ask for a "
                    "longer one"
                )
        return self._judged([(context, ids) for _, context, ids in requests])

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of whole texts, each token predicted once,
        of as many before it as the window holds.
        """
        texts = []
        for request in requests:
            (text,) = request.args
            ids = self.tok_encode(text)
            # The first token starts the document and is not predicted.
            texts.append((ids[:1], ids[1:]))
        return [nats for nats, _ in self._judged(texts)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the run writes after each text, greedily unless the task says `do_sample`."""
        written: list[str] = []
        # Neighbours with the same settings are continued together.
        for settings, group in groupby(requests, key=lambda request: request.args[1]):
            written += self._continued([request.args[0] for request in group], settings)
        return written

    def _continued(self, texts: list[str], asked: dict[str, object]) -> Iterator[str]:
        how = dict(normalize_gen_kwargs(asked))
        unread = how.keys() - READ
        if unread:
            raise UserError(
                f"gen_kwargs {min(unread)}: is not known here; known are {', '.join(sorted(READ))}"
            )
        try:
            drawing = {name: how[name] for name in DRAWING if name in how}
            sampling = Sampling(**{"temperature": float(how["do_sample"]), **drawing})
        except ValueError as error:
            raise UserError(f"gen_kwargs {error}") from error
        with self.run.computing(self.dtype):
            yield from continuations(
                self.run.model,
                self.run.text.tokenizer,
                texts,
                sampling,
                batch_size=self.batch_size,
                num_tokens=how["max_gen_toks"],
                window=self.run.seq_len,
                stop=[stop for stop in how["until"] if stop],
            )

    def _judged(self, texts: Sequence[tuple[list[int], list[int]]]) -> list[Judged]:
        """Of each (context, text): how likely the text is after the context."""
        # A text that is longer than a window is judged in parts.
        parts = []
        text_of_part = []
        for number, (context, text) in enumerate(texts):
            for part in windows(context, text, self.run.seq_len):
                parts.append(part)
                text_of_part.append(number)
        judged: list[Judged] = []
        for start in range(0, len(parts), self.batch_size):
            judged += self._computed(parts[start : start + self.batch_size])
        totals = [(0.0, True)] * len(texts)
        for number, (nats, is_greedy) in zip(text_of_part, judged, strict=True):
            total, all_greedy = totals[number]
            totals[number] = (total + nats, all_greedy and is_greedy)
        return totals

    @torch.no_grad()
    def _computed(self, parts: Sequence[Option]) -> list[Judged]:
        model = self.run.model
        tokens, targets, valid = (part.to(model.embedding.weight.device) for part in padded(parts))
        with self.run.computing(self.dtype):
            hidden, _ = model.hidden(tokens, valid, None)
            logits = model.head(hidden).float()  # (B, S, V)
        asked = targets >= 0
        nats = (
            logits.log_softmax(-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0].double()
            * asked
        )
        greedy = (logits.argmax(-1) == targets) | ~asked
        return list(zip(nats.sum(-1).tolist(), greedy.all(-1).tolist(), strict=True))


def windows(context: Sequence[int], text: Sequence[int], size: int) -> Iterator[Option]:
    """The text in parts of `size` tokens at most,
    each behind as many tokens as a window of that size then holds.
    """
    whole = (*context, *text)
    for first in range(len(context), len(whole), size):
        last = min(first + size, len(whole))
        yield Option(whole[max(0, last - 1 - size) : first], whole[first:last])


def padded(options: Sequence[Option]) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, targets and validity, each (B, S), of rows that end with padding."""
    length = max(len(context) + len(text) for context, text in options) - 1
    tokens = torch.zeros(len(options), length, dtype=torch.int64)
    targets = torch.full_like(tokens, IGNORED)
    valid = torch.zeros_like(tokens, dtype=torch.bool)
    for row, (context, text) in enumerate(options):
        whole = torch.tensor(context + text)
        end = len(whole) - 1
        tokens[row, :end] = whole[:-1]
        targets[row, len(context) - 1 : end] = whole[len(context) :]
        valid[row, :end] = True
    return tokens, targets, valid


if __name__ == "__main__":
    with exit_on_mistake():
        cli_evaluate()
