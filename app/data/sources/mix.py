"""Several sources in one text, each a domain of its own,
in shares that may change towards the end.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from app.data.sources import Document, Phase, Source, require_shares
from app.registry import UserError, check, find, register


@register("data")
class Mix:
    """Reads one source after the other; a source of several domains keeps them, as NAME_DOMAIN.

    The second weights are those of an annealing phase: better text at the end, where the learning
    rate is low.

    Args:
        sources: the config of each source by its name, with all of its keys.
        weights: share of each source, any scale; at least 0, not all 0, or null: by size.
        until: part of the steps that these hold for; above 0, below 1, or null: for all.
        final_weights: share of each source afterwards; null: the same.

    Raises:
        ValueError: a knob is out of its range.
    """

    raw = False

    def __init__(
        self,
        *,
        sources: dict[str, dict[str, Any]] | None,
        weights: dict[str, float] | None,
        until: float | None,
        final_weights: dict[str, float] | None,
    ) -> None:
        if (until is None) != (final_weights is None):
            raise ValueError(
                f"until={until}: goes with final_weights={final_weights}; set both, or none"
            )
        if until is not None and not 0 < until < 1:
            raise ValueError(f"until={until}: must be above 0 and below 1, a part of the steps")
        # told where the text is read, as for every source without one
        sources = sources or {}
        for name in sources:
            if not re.fullmatch(r"\w+", name):
                raise ValueError(f"sources.{name}: a name must be of letters, digits and _")
        self._configs = sources
        self._sources = {name: _source(name, config) for name, config in sources.items()}
        self._shares = [_checked("weights", weights, sources)]
        if until is not None:
            self._shares.append(_checked("final_weights", final_weights, sources))
        self._until = until

    @property
    def domains(self) -> Sequence[str]:
        return [name for names in self._domains.values() for name in names]

    @property
    def phases(self) -> Sequence[Phase]:
        ends = [1.0] if self._until is None else [self._until, 1.0]
        return [
            Phase(end, self._spread(shares)) for end, shares in zip(ends, self._shares, strict=True)
        ]

    @property
    def pinned(self) -> Mapping[str, object]:
        return {
            "sources": {
                name: {**config, **self._sources[name].pinned}
                for name, config in self._configs.items()
            }
        }

    def fingerprint(self) -> str:
        self._require_divisible_shares()
        prints = []
        for name, source in self._sources.items():
            with _named(name):
                prints.append((name, source.fingerprint()))
        return f"mix {prints}"

    def documents(self) -> Iterator[Document]:
        for name, source in self._sources.items():
            domains = dict(zip(source.domains, self._domains[name], strict=True))
            with _named(name):
                for document in source.documents():
                    yield document._replace(
                        id=f"{name}/{document.id}", domain=domains[document.domain]
                    )

    @property
    def _domains(self) -> dict[str, list[str]]:
        """Our names of the domains of each source."""
        if not self._sources:
            raise UserError(
                "data.sources=null: data=mix needs some; set "
                "'data.sources={books:{path:books/},web:{data:fineweb_edu}}'"
            )
        return {
            name: [name]
            if len(source.domains) == 1
            else [f"{name}_{domain}" for domain in source.domains]
            for name, source in self._sources.items()
        }

    def _spread(self, shares: Mapping[str, float] | None) -> list[float] | None:
        """The share of each domain: that of its source, divided as the source does."""
        if shares is None:
            return None
        spread: list[float] = []
        for name, source in self._sources.items():
            inner = source.phases[0].weights or [1.0]
            spread += [shares[name] * weight / sum(inner) for weight in inner]
        return spread

    def _require_divisible_shares(self) -> None:
        for name, source in self._sources.items():
            if len(source.phases) > 1:
                raise UserError(
                    f"data.sources.{name}.until: the phases are those of the whole; set it to null"
                )
            by_size = source.phases[0].weights is None and len(source.domains) > 1
            if by_size and self._shares != [None]:
                raise UserError(
                    f"data.sources.{name}: its domains have shares by size; give it weights of its "
                    "own"
                )


def _source(name: str, config: Mapping[str, Any]) -> Source:
    knobs = dict(config)
    cls = find("data", knobs.pop("source", None), key=f"data.sources.{name}.source")
    try:
        source: Source = cls(**check(cls, knobs, f"data.sources.{name}"))
    except ValueError as error:
        raise UserError(f"data.sources.{name}.{error}") from error
    if source.raw:
        raise UserError(
            f"data.sources.{name}.source={config['source']}: is counted in bytes; a mix has tokens"
        )
    return source


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Mistakes are those of one of the sources."""
    try:
        yield
    except UserError as error:
        raise UserError(
            re.sub(r"^data\.(?!sources)", f"data.sources.{name}.", str(error))
        ) from error


def _checked(
    knob: str, shares: Mapping[str, float] | None, sources: Mapping[str, Any]
) -> Mapping[str, float] | None:
    """The share of every source."""
    if shares is None:
        return None
    require_shares(knob, shares, sources)
    left_out = ", ".join(name for name in sources if name not in shares)
    if left_out:
        raise ValueError(f"{knob}={shares}: leaves out {left_out}; a share of 0 is never read")
    return shares
