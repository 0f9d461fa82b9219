"""Laws of streams and rows, on a toy corpus."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from app.data.corpus import IGNORED, PADDING, Row
from app.data.sources import SPLITS
from tests.support.toy_data import Toy

SEQ = 32


@pytest.fixture
def corpus(toy):
    return toy().prepare()


def whole(corpus, split, domain):
    rows = [Row(domain, number) for number in range(corpus.rows(split, SEQ)[domain])]
    return {name: value.flatten() for name, value in corpus.batch(split, rows, SEQ).items()}


@pytest.mark.parametrize("split", SPLITS)
def test_every_token_but_the_first_is_a_target_exactly_once(corpus, split):
    for domain, stream in enumerate(corpus.streams[split]):
        batch = whole(corpus, split, domain)
        targets = batch["targets"][batch["valid"]].numpy()
        assert np.array_equal(targets, stream.tokens[1:])


def test_targets_are_the_inputs_one_further(corpus):
    batch = whole(corpus, "train", 0)
    tokens = batch["tokens"][batch["valid"]]
    targets = batch["targets"][batch["valid"]]
    assert torch.equal(tokens[1:], targets[:-1])


def test_bytes_of_the_targets_sum_to_the_utf8_bytes_of_the_documents(corpus):
    for split in SPLITS:
        for place, domain in enumerate(Toy.domains):
            size = sum(
                len(d.text.encode())
                for d in Toy().documents()
                if (d.split, d.domain) == (split, domain)
            )
            assert whole(corpus, split, place)["nbytes"].sum() == size


def test_a_separator_is_predicted_at_the_end_of_every_document_and_has_no_bytes(corpus):
    batch = whole(corpus, "val", 1)
    separators = batch["targets"] == 256
    assert separators.sum() == 20
    assert batch["nbytes"][separators].sum() == 0


def test_an_input_separator_belongs_to_the_document_that_follows(corpus):
    batch = whole(corpus, "val", 0)
    texts = [d.text for d in Toy().documents() if (d.split, d.domain) == ("val", "a")]
    for number, text in enumerate(texts):
        tokens = batch["tokens"][batch["document"] == number].tolist()
        assert tokens[0] == 256
        assert bytes(tokens[1:]).decode() == text


def test_tokens_keep_domain_and_topic(corpus):
    batch = whole(corpus, "train", 0)
    valid = batch["valid"]
    assert batch["domain"].unique().tolist() == [0]
    assert torch.equal(batch["topic"][valid], batch["document"][valid] % 3)
    assert corpus.topics == ["topic 0", "topic 1", "topic 2"]
    assert whole(corpus, "train", 1)["topic"].unique().tolist() == [-1]


def test_padding_has_no_target_no_document_and_no_bytes(corpus):
    batch = corpus.batch("train", [PADDING], SEQ)
    assert not batch["valid"].any()
    expected = {
        "targets": IGNORED,
        "document": -1,
        "topic": -1,
        "domain": 0,
        "nbytes": 0,
        "tokens": 256,
    }
    for name, value in expected.items():
        assert batch[name].unique().tolist() == [value]


def test_all_columns_have_one_shape(corpus):
    batch = corpus.batch("train", [Row(0, 0), Row(1, 0), PADDING], SEQ)
    assert {tuple(value.shape) for value in batch.values()} == {(3, SEQ)}
    assert {name for name, value in batch.items() if value.dtype != torch.int64} == {"valid"}


def test_rows_do_not_overlap(corpus):
    rows = [corpus.streams["train"][0].row(number, SEQ)["targets"] for number in range(3)]
    tokens = corpus.streams["train"][0].tokens
    assert [len(row) for row in rows] == [SEQ] * 3
    assert np.array_equal(np.concatenate(rows), tokens[1 : 3 * SEQ + 1])
    assert all(
        first[-1] == tokens[(place + 1) * SEQ] for place, (first, _) in enumerate(pairwise(rows))
    )


def test_a_document_begins_with_its_own_token_where_the_tokenizer_has_one(
    toy, tmp_path, monkeypatch
):
    plain = toy().prepare()
    monkeypatch.setattr("app.data.tokenizers.bytes.Bytes.begin", 255)  # no byte of UTF-8
    monkeypatch.setattr(
        "app.data.tokenizers.bytes.Bytes.fingerprint", lambda self: "another beginning"
    )
    other = toy().prepare()
    for split in SPLITS:
        for domain in range(len(Toy.domains)):
            before = whole(plain, split, domain)
            after = whole(other, split, domain)
            assert (after["tokens"] == 255).sum() > 0 and (after["tokens"] == 256).sum() == 0
            assert torch.equal(after["tokens"] == 255, before["tokens"] == 256)
            assert all(
                torch.equal(after[name], before[name]) for name in before.keys() - {"tokens"}
            )
