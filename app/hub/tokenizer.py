"""A run's tokenizer as files that `AutoTokenizer` reads, with our ids."""

import json

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Model
from tokenizers.processors import TemplateProcessing

from app.data.tokenizers import Tokenizer
from app.data.tokenizers.file import matched_in_text
from app.registry import UserError

# where the tokenizer has no separator of its own
OURS = "<|separator|>"


def tokenizer_files(tokenizer: Tokenizer, window: int) -> dict[str, str]:
    """By name.

    Raises:
        UserError: the separator's id is not the next one behind the vocabulary.
    """
    written = tokenizer.to_json()
    model = _bytes() if written is None else Model.from_str(matched_in_text(written))
    separator = model.id_to_token(tokenizer.separator)
    if separator is None:
        model.add_special_tokens([AddedToken(OURS, special=True, normalized=False)])
        separator = OURS
    if model.token_to_id(separator) != tokenizer.separator:
        raise UserError(
            f"tokenizer: the separator has the id {tokenizer.separator}, which a file of "
            "`tokenizers` cannot give it; train with tokenizer.separator=TOKEN, one of its own"
        )
    begin = str(model.id_to_token(tokenizer.begin))
    model.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in {begin, separator}]
    )
    model.no_truncation()
    model.no_padding()
    model.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.begin)]
    )
    about: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": window,
    }
    about |= {"bos_token": begin, "eos_token": separator, "clean_up_tokenization_spaces": False}
    about |= {"model_input_names": ["input_ids", "attention_mask"]}
    # a text that spells one of these two does not start or end a document
    about |= {"split_special_tokens": True}
    return {
        "tokenizer.json": model.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(about, indent=2) + "\n",
    }


def texts_with_special_tokens(tokenizer: Tokenizer) -> list[str]:
    """Return texts that hold every added token of a tokenizer, alone and inside of words,
    and some hard letters.
    """
    written = tokenizer.to_json()
    added = (
        []
        if written is None
        else [token["content"] for token in json.loads(written)["added_tokens"]]
    )
    marked = [f"a {token}b {token} c{token}" for token in added]
    return ["naïve 日本  two\t spaces\n", f"{OURS} is text", *marked, " ".join(added)]


def _bytes() -> Model:
    """Every byte a token, by its value."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    # GPT-2's letters of the bytes
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    vocabulary = {chr(byte): byte for byte in plain} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }
    assert {*vocabulary} == {*letters}
    model = Model(models.BPE(vocab=vocabulary, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    return model
