"""A small corpus of several domains."""

from collections.abc import Iterator
from pathlib import Path

from app.data.sources import SPLITS, Document, Phase

CONF = Path(__file__).parents[2] / "conf"


class Toy:
    """Three domains of 40, 20 and 7 documents a split,
    with letters beyond ASCII and topics in the first.
    """

    raw = False
    domains = ("a", "b", "c")

    def __init__(self, weights: list[float] | None = None, text: str = "naïve 😀 text") -> None:
        self.phases = [Phase(1.0, weights)]
        self.text = text
        self.read = 0

    def fingerprint(self) -> str:
        return f"toy {self.text}"

    def documents(self) -> Iterator[Document]:
        self.read += 1
        for domain, count in zip(self.domains, (40, 20, 7), strict=True):
            for split in SPLITS:
                for number in range(count):
                    text = f"{domain} {split} {self.text} {'x' * number}"
                    topic = f"topic {number % 3}" if domain == "a" else None
                    yield Document(f"{split}/{number}", text, domain, topic, split)
