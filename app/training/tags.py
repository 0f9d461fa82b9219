"""What is logged, as the classes that log it declare it; `docs/tags.md` is the list of all."""

from typing import Literal, NamedTuple


def by_layer(group: str, name: str, values: list[float]) -> dict[str, float]:
    """A statistic of each layer (L,) under its tags: the mean over layers, and each layer."""
    each = {f"{group}_by_layer/{name}/{layer}": value for layer, value in enumerate(values)}
    return {f"{group}/{name}": sum(values) / len(values), **each}


class Tag(NamedTuple):
    """One curve, picture or text of TensorBoard. Words in capitals stand for what a run fills in.

    `scope` says over what it is taken: `global` over all micro-batches and ranks, or less.
    """

    name: str
    meaning: str
    unit: str = "1"
    kind: Literal["scalar", "histogram", "image", "text"] = "scalar"
    scope: Literal["global", "mean over micro-batches", "rank 0"] = "global"
    # the mean over layers; GROUP_by_layer/NAME/LAYER has each
    by_layer: bool = False

    def names(self) -> list[str]:
        """All names under which it is written."""
        group, _, rest = self.name.partition("/")
        return [self.name, f"{group}_by_layer/{rest}/LAYER"] if self.by_layer else [self.name]
