"""Text after other text: spaces and letters stand where the whole has them,
in every kind of tokenizer.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from app.analysis.continuation import GREEDY, continued, written
from app.analysis.report import _spelled
from app.data.tokenizers.bytes import Bytes
from app.data.tokenizers.file import File

TEXT = "the lowest towers show newer flowers to the lower town, naïve 日本 and all"


def built(model: Any, trainer: Any, before: Any, decoder: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = before
    tokenizer.decoder = decoder
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"])
    return built(
        models.WordPiece(unk_token="[UNK]"),
        trainer,
        pre_tokenizers.Whitespace(),
        decoders.WordPiece(cleanup=False),
    )


def metaspace() -> Tokenizer:
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>")
    return built(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace())


def end_of_word() -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=60, end_of_word_suffix="</w>")
    return built(
        models.BPE(end_of_word_suffix="</w>"),
        trainer,
        pre_tokenizers.Whitespace(),
        decoders.BPEDecoder(),
    )


def byte_level() -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=270, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    return built(
        models.BPE(),
        trainer,
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )


@pytest.fixture(
    params=[Bytes, word_piece, metaspace, end_of_word, byte_level], ids=lambda build: build.__name__
)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    made = request.param()
    if isinstance(made, Bytes):
        return made
    made.save(str(tmp_path / "tokenizer.json"))
    return File(path=str(tmp_path / "tokenizer.json"), separator=None, begin=None)


def test_what_follows_a_text_completes_it_wherever_it_is_cut(tokenizer: Any) -> None:
    ids = tokenizer.encode([TEXT])[0].ids.tolist()
    whole = tokenizer.decode(ids)
    assert whole.replace(" ,", ",") == TEXT
    for place in range(len(ids) + 1):
        before = tokenizer.decode(ids[:place]).rstrip("\ufffd")  # half of a letter
        assert before + continued(tokenizer, ids[:place], ids[place:]) == whole


def test_a_model_continues_a_prompt_with_the_spaces_of_the_text(tokenizer: Any) -> None:
    ids = tokenizer.encode([TEXT])[0].ids.tolist()

    class Model:
        """Knows the text by heart."""

        embedding = torch.nn.Embedding(1, 1)

        def routers(self) -> list[Any]:
            return []

        def logits_of_next(self, tokens: Any, valid: Any, past: Any) -> torch.Tensor:
            # a separator stands before the prompt
            following = ids[past.valid.size(1) - 1]
            return torch.nn.functional.one_hot(torch.tensor([following]), tokenizer.vocab_size)

    prompt = "the lowest"
    number = len(ids) - len(tokenizer.encode([prompt])[0].ids)
    *_, (rest,) = written(
        Model(), tokenizer, [prompt], GREEDY, num_tokens=number, window=999, seed=0
    )  # type: ignore[arg-type]
    assert prompt + rest == tokenizer.decode(ids)


def test_the_reports_tokens_read_as_the_text(tokenizer: Any) -> None:
    ids = tokenizer.encode(["the lowest towers show newer flowers"])[0].ids.tolist()
    shown = [
        _spelled(tokenizer, [tokenizer.separator, *ids], place) for place in range(len(ids) + 1)
    ]
    assert shown[0] == "¶"
    assert "".join(shown[1:]) == tokenizer.decode(ids)
