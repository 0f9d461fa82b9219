"""What all callbacks write on two real processes is what they write on one,
with the same rows of text.
"""

from pathlib import Path

import pytest

from tests.conftest import events_of
from tests.support.interrupted import TWO, train, train_two
from tests.support.shell import SMALL, write_text

pytestmark = pytest.mark.nightly

EVERY = ("controllers", "expert_pictures", "expert_weights", "weight_similarity")
LINE = (
    f"{SMALL} data.micro_batch_size=2 experts=deepseek experts.num_experts=8 experts.num_shared=2 "
    "experts.top_k=2 router=topk balance=[aux,loss_free] callbacks=full"
).split() + [f"callbacks.{name}.every=2" for name in EVERY]
EP = ("trainer=ep", "trainer.accelerator=cpu")
# sums in another order change the choice of a token in a hundred
TOLERANCE = {"ddp": 1e-4, "ep": 0.05}
Values = dict[str, list[float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_text(folder)
    assert train(folder, [*LINE, "run=one"]) == 0
    return folder


def written(folder: Path) -> Values:
    events = events_of(folder)
    found = {
        tag: [point.value for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    return {tag: values for tag, values in found.items() if not tag.startswith("speed/")}


@pytest.mark.parametrize(("name", "how"), [("ddp", TWO), ("ep", EP)])
def test_two_processes_write_what_one_writes(folder: Path, name: str, how: tuple[str, ...]) -> None:
    assert train_two(folder, [*LINE, f"run={name}"], how=how) == [0, 0]
    one = written(folder / "runs/one")
    two = written(folder / f"runs/{name}")
    assert (
        {"router/offset_overlap", "experts/shared_share", "weights/stable_rank"}
        <= one.keys()
        == two.keys()
    )
    for tag, values in one.items():
        assert two[tag] == pytest.approx(values, rel=2 * TOLERANCE[name], abs=TOLERANCE[name]), tag
