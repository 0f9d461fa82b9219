"""Text to token cache, beside the tokenizers library alone: `python -m benchmarks.text [--mb 64]`.

A .jsonl of the offline corpus is read, cut and written as a run does it, and its texts alone are
given to `encode_batch`, in turns: the ratio belongs to us, the times to the machine. The memory is
the highest of a process that does nothing else, above what it had when it began.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from tokenizers import Tokenizer

from app.data.cache import open_corpus
from app.data.sources.offline import Offline
from app.data.sources.text import Text
from app.data.tokenizers.bpe import FILE, Bpe
from app.data.tokenizers.file import File
from benchmarks.timing import highest_memory

ROUNDS = 5
# texts that encode_batch gets at once
GROUP = 1000


def main() -> None:
    """Prints both speeds, their ratio and the memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=64, help="of text")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = write(Path(folder), asked.mb)
        rounds = [(library(Path(folder)), *ours(Path(folder))) for _ in range(asked.rounds)]
        alone, whole, memory = (median(column) for column in zip(*rounds, strict=True))
        print(f"{size / 1e6:.0f} MB of text, median of {asked.rounds} rounds")
        print(f"encode_batch alone     {size / alone / 1e6:7.2f} MB/s")
        print(
            f"file to token cache    {size / whole / 1e6:7.2f} MB/s, {alone / whole:.2f} times as "
            "fast"
        )
        print(f"memory above the base  {memory / 1e6:7.0f} MB")


def write(folder: Path, mb: int) -> int:
    """The text as rows, and a tokenizer that has learned from some of it;
    how many bytes of text.
    """
    texts = [
        str(document.text)
        for document in Offline(weights=None, by_size=True, versions=None).documents()
    ]
    Bpe(vocab_size=4096).fit(texts[::20], folder)
    size = 0
    with (folder / "text.jsonl").open("w") as file:
        for number, text in enumerate(cycle(texts)):
            if size >= mb * 1_000_000:
                return size
            file.write(json.dumps({"text": f"{number} {text}"}) + "\n")
            size += len(f"{number} {text}".encode())
    return size


def library(folder: Path) -> float:
    """Seconds that the library takes for the texts, which are there already."""
    tokenizer = Tokenizer.from_file(str(folder / FILE))
    seconds = 0.0
    for group in groups(folder):
        before = time.perf_counter()
        tokenizer.encode_batch(group, add_special_tokens=False)
        seconds += time.perf_counter() - before
    return seconds


def groups(folder: Path) -> Iterator[list[str]]:
    """The texts, so many at once."""
    with (folder / "text.jsonl").open() as file:
        while group := [json.loads(line)["text"] for line in islice(file, GROUP)]:
            yield group


def ours(folder: Path) -> tuple[float, float]:
    """Seconds and bytes of memory of a process that makes the token cache."""
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_build, args=(folder, send))
    process.start()
    seconds, memory = receive.recv()
    process.join()
    return seconds, memory


def _build(folder: Path, send: Connection) -> None:
    base = highest_memory()
    source = Text(path=str(folder / "text.jsonl"), text_key="text")
    with tempfile.TemporaryDirectory() as cache:
        before = time.perf_counter()
        open_corpus(source, File(path=str(folder / FILE), separator=None, begin=None), Path(cache))
        seconds = time.perf_counter() - before
    send.send((seconds, highest_memory() - base))


if __name__ == "__main__":
    main()
