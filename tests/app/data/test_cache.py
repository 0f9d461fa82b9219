"""The cache is complete or absent, whatever happens while it is written."""

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.data.cache import _fill, _progress, _watch, open_corpus
from app.data.sources import Document
from app.data.tokenizers.bpe import Bpe
from app.data.tokenizers.bytes import Bytes
from app.data.writer import StreamWriter
from app.registry import UserError
from tests.support.toy_data import Toy


def folders(cache):
    return [path for path in cache.iterdir() if path.is_dir()]


def test_text_is_read_only_once(tmp_path):
    source = Toy()
    first = open_corpus(source, Bytes(), tmp_path)
    again = open_corpus(source, Bytes(), tmp_path)
    assert source.read == 1
    assert first.fingerprint == again.fingerprint


def test_other_text_or_another_tokenizer_is_another_cache(tmp_path):
    for source, tokenizer in (
        (Toy(), Bytes()),
        (Toy(text="else"), Bytes()),
        (Toy(), Bpe(vocab_size=300)),
    ):
        open_corpus(source, tokenizer, tmp_path)
    assert len(folders(tmp_path)) == 3


def test_a_learned_tokenizer_comes_back_from_the_cache(tmp_path):
    first = Bpe(vocab_size=300)
    again = Bpe(vocab_size=300)
    open_corpus(Toy(), first, tmp_path)
    open_corpus(Toy(), again, tmp_path)
    text = "a train naïve 😀 text"
    assert again.encode([text])[0].ids.tolist() == first.encode([text])[0].ids.tolist()
    assert again.vocab_size == first.vocab_size == 300


class Interrupted(Exception):
    pass


def interrupt(self, *args):
    raise Interrupted


def test_an_interrupted_build_leaves_nothing_and_the_next_one_starts_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(StreamWriter, "separate", interrupt)
        with pytest.raises(Interrupted):
            open_corpus(Toy(), Bytes(), tmp_path)
    assert folders(tmp_path) == []
    assert open_corpus(Toy(), Bytes(), tmp_path).rows("train", 32)[0] > 0


def test_what_a_killed_process_left_is_not_used(tmp_path):
    corpus = open_corpus(Toy(), Bytes(), tmp_path)
    corpus.folder.rename(corpus.folder.with_suffix(".tmp"))
    (corpus.folder.with_suffix(".tmp") / "train.0.tokens").write_bytes(b"")
    assert (open_corpus(Toy(), Bytes(), tmp_path).folder / "train.0.tokens").stat().st_size > 0


@pytest.mark.parametrize("name", ["train.0.tokens", "meta.json", "sums.json"])
def test_a_damaged_cache_is_named_and_built_anew(tmp_path, caplog, name):
    folder = open_corpus(Toy(), Bytes(), tmp_path).folder
    size = (folder / name).stat().st_size
    os.truncate(folder / name, size // 2)
    open_corpus(Toy(), Bytes(), tmp_path)
    assert (folder / name).stat().st_size == size
    assert "damaged" in caplog.text


@pytest.mark.parametrize("bit", [0, 1, 7])
def test_one_flipped_bit_in_any_file_is_damage(tmp_path, caplog, bit):
    folder = open_corpus(Toy(), Bpe(vocab_size=300), tmp_path).folder
    files = {path: path.read_bytes() for path in folder.iterdir() if path.stat().st_size}
    assert len(files) > 10
    for path, before in files.items():
        caplog.clear()
        place = len(before) // 2
        path.write_bytes(before[:place] + bytes([before[place] ^ 1 << bit]) + before[place + 1 :])
        open_corpus(Toy(), Bpe(vocab_size=300), tmp_path)
        assert path.read_bytes() == before and "damaged" in caplog.text, path
    caplog.clear()
    open_corpus(Toy(), Bpe(vocab_size=300), tmp_path)
    assert "damaged" not in caplog.text


def test_the_bar_counts_bytes(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    documents = [
        Document("a", "é" * 5, "a", None, "train"),
        Document("b", b"12345", "a", None, "train"),
    ]
    with _progress() as progress:
        assert list(_watch(documents, progress, "tokenising")) == documents
        assert (progress.tasks[0].completed, progress.tasks[0].total) == (15, 15)


def prepare(cache):
    open_corpus(Toy(), Bpe(vocab_size=300), Path(cache))


def test_two_processes_build_one_cache(tmp_path, monkeypatch):
    # its threads do not survive a fork
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=prepare, args=(str(tmp_path),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    assert len(folders(tmp_path)) == 1


def full(self, *args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(StreamWriter, "separate", full)
    with pytest.raises(
        UserError,
        match=r"data.cache_dir=.*No space left on device.*set "
        r"data.cache_dir",
    ):
        open_corpus(Toy(), Bytes(), tmp_path)
    assert folders(tmp_path) == []


def test_a_really_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True
    ).returncode:
        pytest.skip("may not mount")
    try:
        with pytest.raises(UserError, match="No space left on device"):
            open_corpus(Toy(text="word " * 500), Bytes(), tmp_path)
        assert folders(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_cache_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data.cache_dir=.*file: cannot be written"):
        open_corpus(Toy(), Bytes(), tmp_path / "file")


def test_the_fingerprint_depends_on_the_documents_only(tmp_path):
    other = open_corpus(Toy(), Bpe(vocab_size=300), tmp_path)
    assert open_corpus(Toy(), Bytes(), tmp_path).fingerprint == other.fingerprint
    assert open_corpus(Toy(text="else"), Bytes(), tmp_path).fingerprint != other.fingerprint


def test_a_warm_cache_needs_no_datasets_library(tmp_path):
    code = (
        "import sys, app.data.module, app.registry; app.registry.names('data'); print('datasets' "
        "in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_the_first_reading_says_what_takes_long_and_a_short_one_nothing(
    tmp_path, monkeypatch, caplog
):
    """Also where the output is no terminal."""
    caplog.set_level("INFO", logger="app")
    open_corpus(Toy(), Bytes(), tmp_path / "quick")
    assert not caplog.messages
    monkeypatch.setattr("app.data.notice.PATIENCE", 0.0)
    monkeypatch.setattr("app.data.cache._fill", slowly(_fill))
    open_corpus(Toy(), Bpe(vocab_size=300), tmp_path / "slow")
    began, ended = caplog.messages
    assert began.startswith(
        "data: reads the text and learns a tokenizer from it, which may take minutes; "
    )
    assert "MB of text are" in ended
    open_corpus(Toy(), Bpe(vocab_size=300), tmp_path / "slow")
    assert len(caplog.messages) == 2, "what the cache has is not read again"


def slowly(function):
    def after_a_while(*arguments):
        time.sleep(0.2)
        return function(*arguments)

    return after_a_while
