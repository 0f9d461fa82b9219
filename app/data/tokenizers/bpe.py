"""Byte-level byte-pair encoding (Sennrich et al. 2016, 1508.07909; over bytes as in GPT-2), learned
from the text.

The separator is one id more than the trained vocabulary, so no text can produce it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, __version__, decoders, models, pre_tokenizers, trainers

from app.data.tokenizers import Encoded, encode_pieces, pieces
from app.registry import register

FILE = "tokenizer.json"


@register("tokenizer")
class Bpe:
    """Learns 256 bytes, merges in the order of their counts, and the separator.

    Args:
        vocab_size: of tokens at most, with the separator; at least 257.

    Raises:
        ValueError: a knob is out of its range.
    """

    raw = False
    learns = True

    def __init__(self, *, vocab_size: int) -> None:
        if vocab_size < 257:
            raise ValueError(
                f"vocab_size={vocab_size}: must be at least 257, 256 bytes and the separator"
            )
        self.vocab_size = self._asked = vocab_size
        self.separator = self.begin = vocab_size - 1

    def fingerprint(self) -> str:
        return f"bpe {self._asked} tokenizers {__version__}"

    def fit(self, texts: Iterable[str], folder: Path) -> None:
        model = Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self._asked - 1,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        model.train_from_iterator(texts, trainer)
        self._use(model)
        (folder / FILE).write_text(self.to_json(), encoding="utf-8")

    def read(self, folder: Path) -> None:
        self._use(Tokenizer.from_str((folder / FILE).read_text(encoding="utf-8")))

    def to_json(self) -> str:
        return str(self._model.to_str())

    def encode(self, texts: Sequence[str | bytes]) -> list[Encoded]:
        cut = [list(pieces(str(text))) for text in texts]
        kept = encode_pieces(
            cut, self._model.encode_batch_fast, lambda encoding: np.array(encoding.ids, np.int32)
        )
        ids = [np.concatenate(parts) for parts in kept]
        return [Encoded(tokens, self._nbytes[tokens]) for tokens in ids]

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._model.decode([token for token in ids if token != self.separator]))

    def _use(self, model: Tokenizer) -> None:
        self._model = model
        self.separator = self.begin = model.get_vocab_size()
        self.vocab_size = self.separator + 1
        self._nbytes = np.zeros(self.separator, dtype=np.int32)
        for text, token in model.get_vocab().items():
            # a character of the byte-level alphabet is one byte
            self._nbytes[token] = len(text)
