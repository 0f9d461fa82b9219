"""Every tokenizer accounts for every byte; what is special about each."""

import unicodedata

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from app.data.tokenizers import PIECE, pieces
from app.data.tokenizers.bpe import Bpe
from app.data.tokenizers.bytes import Bytes
from app.data.tokenizers.file import File

TEXTS = [
    "The quick brown fox\n\n  jumps over\tthe lazy dog.  \n",
    "Ça déjà vu — naïve façade, ÉTÉ! ¿Qué? 日本語 😀👍🏽 ﬁn",
    "x",
    "def f(a):\n    return a  # <|endoftext|> [UNK]\n" * 3000,
    "nospace" * 9000,
]


def wordpiece():
    model = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.train_from_iterator(TEXTS[:1], trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]", "[SEP]"]))
    return model


def unigram():
    model = Tokenizer(models.Unigram())
    model.normalizer = normalizers.NFKC()
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    model.train_from_iterator(TEXTS[:2], trainer)
    return model


def byte_level():
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(TEXTS[:1], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return model


def ready(model, tmp_path, separator=None):
    model.enable_truncation(4)
    model.enable_padding(length=9)
    model.save(str(tmp_path / "tokenizer.json"))
    return File(path=str(tmp_path / "tokenizer.json"), separator=separator)


@pytest.fixture(params=["bytes", "bpe", "wordpiece", "unigram", "byte_level"])
def tokenizer(request, tmp_path):
    if request.param == "bytes":
        return Bytes()
    if request.param == "bpe":
        learned = Bpe(vocab_size=400)
        learned.fit(TEXTS[:4], tmp_path)
        return learned
    return ready({"wordpiece": wordpiece, "unigram": unigram, "byte_level": byte_level}[request.param](), tmp_path)


def test_bytes_of_the_tokens_sum_to_those_of_the_text(tokenizer):
    for text, encoded in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert encoded.nbytes.sum() == len(text.encode())
        assert encoded.nbytes.min() >= 0
        assert len(encoded.ids) == len(encoded.nbytes)


def test_ids_lie_in_the_vocabulary_and_no_text_makes_the_separator(tokenizer):
    ids = np.concatenate([encoded.ids for encoded in tokenizer.encode(TEXTS)])
    assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size
    assert tokenizer.separator < tokenizer.vocab_size
    assert tokenizer.separator not in ids


def test_a_text_is_encoded_alike_alone_and_in_company(tokenizer):
    together = tokenizer.encode(TEXTS)
    for text, encoded in zip(TEXTS, together, strict=True):
        assert np.array_equal(tokenizer.encode([text])[0].ids, encoded.ids)


def test_separators_are_not_decoded(tokenizer):
    ids = tokenizer.encode(["fox"])[0].ids.tolist()
    assert tokenizer.decode([tokenizer.separator, *ids, tokenizer.separator]) == tokenizer.decode(ids)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"], indirect=True)
def test_our_own_tokenizers_lose_nothing(tokenizer):
    for text, encoded in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert tokenizer.decode(encoded.ids.tolist()) == text


def test_pieces_are_the_text_and_change_no_bpe_token(tmp_path):
    text = "".join(TEXTS) * 3
    parts = list(pieces(text))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= PIECE
    lines = TEXTS[3] * 2
    learned = Bpe(vocab_size=400)
    learned.fit(TEXTS[:4], tmp_path)
    assert learned.encode([lines])[0].ids.tolist() == learned._model.encode(lines).ids


def test_a_small_text_gives_a_smaller_vocabulary(tmp_path):
    learned = Bpe(vocab_size=4096)
    learned.fit(["abc abc"], tmp_path)
    assert learned.vocab_size < 300
    assert learned.separator == learned.vocab_size - 1


def test_a_named_separator_is_the_files_own(tmp_path):
    model = wordpiece()
    assert ready(model, tmp_path, "[SEP]").separator == model.token_to_id("[SEP]")
    with pytest.raises(ValueError, match="separator=<eos>: not a token"):
        ready(model, tmp_path, "<eos>")


def test_a_normalizer_that_changes_lengths_keeps_the_bytes(tmp_path):
    text = unicodedata.normalize("NFC", "ﬁﬁ é ﬃ ½ Å")
    assert ready(unigram(), tmp_path).encode([text])[0].nbytes.sum() == len(text.encode())
