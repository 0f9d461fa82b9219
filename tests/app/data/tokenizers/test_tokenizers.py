"""Every tokenizer accounts for every byte; what is special about each."""

import unicodedata

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from app.data.tokenizers import PIECE, pieces
from app.data.tokenizers.bpe import Bpe
from app.data.tokenizers.bytes import Bytes
from app.data.tokenizers.file import File
from app.registry import UserError

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
    model.train_from_iterator(
        TEXTS[:1], trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]", "[SEP]"])
    )
    return model


def unigram():
    model = Tokenizer(models.Unigram())
    model.normalizer = normalizers.NFKC()
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<unk>", "</s>"], unk_token="<unk>"
    )
    model.train_from_iterator(TEXTS[:2], trainer)
    return model


def sentencepiece():
    """As Llama's: no words are split off, so the start of the text is marked as that of a word."""
    model = Tokenizer(models.BPE(unk_token="<unk>"))
    model.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], max_token_length=8)
    model.train_from_iterator(TEXTS[:2], trainer)
    return model


def word_level(*words, unknown=None):
    model = Tokenizer(
        models.WordLevel(
            {word: place for place, word in enumerate(words)}, unk_token=unknown or "none"
        )
    )
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return model


def byte_level():
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        TEXTS[:1], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    )
    return model


def half_byte_level():
    """Over bytes, but only those that were seen: of the two of é it has one."""
    model = Tokenizer(models.BPE({"a": 0, "Ã": 1, "b": 2}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return model


def ready(model, tmp_path, separator=None, begin=None):
    model.enable_truncation(4)
    model.enable_padding(length=9)
    model.save(str(tmp_path / "tokenizer.json"))
    return File(path=str(tmp_path / "tokenizer.json"), separator=separator, begin=begin)


READY = {
    "wordpiece": wordpiece,
    "unigram": unigram,
    "sentencepiece": sentencepiece,
    "byte_level": byte_level,
}


@pytest.fixture(params=["bytes", "bpe", *READY])
def tokenizer(request, tmp_path):
    if request.param == "bytes":
        return Bytes()
    if request.param == "bpe":
        learned = Bpe(vocab_size=400)
        learned.fit(TEXTS[:4], tmp_path)
        return learned
    return ready(READY[request.param](), tmp_path)


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
    assert tokenizer.decode([tokenizer.separator, *ids, tokenizer.separator]) == tokenizer.decode(
        ids
    )


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"], indirect=True)
def test_our_own_tokenizers_lose_nothing(tokenizer):
    for text, encoded in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert tokenizer.decode(encoded.ids.tolist()) == text


def test_pieces_are_the_text_and_end_before_white_space():
    text = "".join(TEXTS) * 3
    parts = list(pieces(text))
    assert "".join(parts) == text
    assert len(parts) > 10
    assert all(part[0].isspace() for part in parts[1:])
    assert list(pieces("")) == [""]


LONG = [
    "one line of many words, none of them its last " * 900,
    "two  spaces\t\ttabs \u00a0 and\u2003others\n\n\n  indented  " * 900,
    "it's we'll 12 34 ?! e\u0301 \u0301 \x1c \x1d!\n" * 900,
    "nospace" * 9000,
    "日本語の文章、" * 4000,
    ("x" * (PIECE - 2) + "\n    return a") * 3,
]


@pytest.mark.parametrize("tokenizer", ["bpe", *READY], indirect=True)
@pytest.mark.parametrize("text", LONG, ids=lambda text: text[:9])
def test_the_tokens_of_a_long_text_are_those_of_the_whole(tokenizer, text):
    whole = tokenizer._model.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode([text])[0].ids.tolist() == whole


def test_a_cut_that_would_change_tokens_is_not_made(tmp_path):
    text = LONG[0]
    tokenizer = ready(sentencepiece(), tmp_path)
    assert len(list(pieces(text, tokenizer._fits))) == 1
    assert len(list(pieces(text, ready(wordpiece(), tmp_path)._fits))) > 2


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


def test_a_letter_whose_parts_are_read_apart_has_its_bytes_once(tmp_path):
    model = byte_level()
    # U+FDFA is eighteen letters and spaces, whose offsets go back and forth
    model.normalizer = normalizers.NFKC()
    model.post_processor = processors.ByteLevel(trim_offsets=True)
    text = "ﷺ and ﷺ"
    ends = [end for _, end in model.encode(text).offsets]
    assert ends != sorted(ends)
    encoded = ready(model, tmp_path).encode([text])[0]
    assert encoded.nbytes.min() >= 0
    assert encoded.nbytes.sum() == len(text.encode())


SEPARATED = {
    "a special token": (byte_level, "<|endoftext|>", True),
    "a piece of a unigram": (unigram, "</s>", False),
    "a word that is split off": (
        lambda: word_level("the", "[SEP]", "[UNK]", unknown="[UNK]"),
        "[SEP]",
        False,
    ),
}


@pytest.mark.parametrize(("build", "separator", "special"), SEPARATED.values(), ids=SEPARATED)
def test_no_text_makes_a_separator_of_the_file_whatever_it_holds(
    tmp_path, build, separator, special
):
    model = build()
    if special:
        model.add_special_tokens([separator])
    assert model.token_to_id(separator) in model.encode(f"the {separator} the").ids
    tokenizer = ready(model, tmp_path, separator)
    for text in (
        separator,
        f"the {separator} the",
        f"the {separator}{' ' * 30}{separator}",
        f"{separator}\n" * 3000,
    ):
        encoded = tokenizer.encode([text])[0]
        assert tokenizer.separator not in encoded.ids
        assert encoded.nbytes.sum() == len(text.encode())


def test_text_that_spells_a_separator_is_read_as_if_there_were_none(tmp_path):
    plain = byte_level()
    marked = byte_level()
    marked.add_special_tokens(["<|endoftext|>", "<|im_start|>"])
    marked.add_tokens(["<tool>"])
    tokenizer = ready(marked, tmp_path, "<|endoftext|>")
    text = "the <|endoftext|> of"
    assert tokenizer.encode([text])[0].ids.tolist() == plain.encode(text).ids
    ids = tokenizer.encode(["a<|im_start|>b<tool>"])[0].ids.tolist()
    assert {marked.token_to_id("<|im_start|>"), marked.token_to_id("<tool>")} <= {*ids}


def test_a_file_may_have_one_token_for_the_beginning_and_one_for_the_end(tmp_path):
    model = byte_level()
    model.add_special_tokens(["<s>", "</s>"])
    tokenizer = ready(model, tmp_path, "</s>", "<s>")
    begin = tokenizer.begin
    end = tokenizer.separator
    assert (begin, end) == (model.token_to_id("<s>"), model.token_to_id("</s>"))
    assert {begin, end}.isdisjoint(tokenizer.encode(["a <s> b </s>"])[0].ids.tolist())
    ids = tokenizer.encode(["the dog"])[0].ids
    assert tokenizer.decode([begin, *ids, end]) == tokenizer.decode(ids)
    assert tokenizer.fingerprint() != ready(model, tmp_path, "</s>").fingerprint()
    with pytest.raises(ValueError, match="begin=<x>: not a token"):
        ready(model, tmp_path, "</s>", "<x>")


def test_a_separator_that_is_one_letter_of_the_text_is_refused(tmp_path):
    tokenizer = ready(word_level("a", "b"), tmp_path, "b")
    with pytest.raises(
        UserError,
        match=r"tokenizer.separator=b: is also how the text 'b' is "
        r"read; name a token",
    ):
        tokenizer.encode(["b a"])


@pytest.mark.parametrize(
    ("model", "text", "unknown"),
    [
        (word_level("the", "quick"), "the quick zebra", "'z' in 'zebra'"),
        (Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)])), "abïa", "'ï' in 'abïa'"),
        (Tokenizer(models.WordPiece({"a": 0, "##b": 1}, unk_token="[UNK]")), "abc", "'c' in 'abc'"),
        (Tokenizer(models.BPE({"a": 0, "b": 1}, [])), "abc", "'c' in 'abc'"),
        (half_byte_level(), "aébb", "'é' in 'aébb'"),
    ],
)
def test_a_character_without_a_token_is_named_where_the_file_has_none_for_it(
    tmp_path, model, text, unknown
):
    tokenizer = ready(model, tmp_path)
    with pytest.raises(
        UserError,
        match=rf"tokenizer.path=.*: has no token for {unknown}, and none for what is "
        r"unknown",
    ):
        tokenizer.encode(["a" if "a" in model.get_vocab() else "the", text])


def test_an_empty_vocabulary_is_one_line(tmp_path):
    with pytest.raises(
        UserError,
        match=r"tokenizer.path=.*: has an empty vocabulary; give "
        r"another file",
    ):
        ready(Tokenizer(models.BPE()), tmp_path)
