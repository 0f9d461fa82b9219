"""lm-evaluation-harness asks a run: what it is told, against the definition,
and its own command line.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.analysis.continuation import GREEDY, next_tokens
from app.analysis.harness import RouterZoo, windows
from app.registry import UserError
from tests.conftest import ROOT

WINDOW = 32
SEPARATOR = 256
ITEMS = [
    {
        "start": "import",
        "ends": ["sys", "a module whose name is longer than the window of this model"],
        "right": 1,
    },
    {
        "start": "def main(self) -> None, which is longer than the window",
        "ends": [":", "= 3"],
        "right": 0,
    },
]
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "ends",
        "doc_to_target": "right",
        "metric": "acc",
    },
    "roll": {
        "output_type": "loglikelihood_rolling",
        "doc_to_target": "{{ends[1]}}",
        "metric": "bits_per_byte",
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_target": "",
        "metric": "exact_match",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 5},
    },
}


@pytest.fixture
def folder(train: Callable[..., Path]) -> Path:
    return train("model.init_std=0.3")


def defined(run: RouterZoo, context: Sequence[int], text: Sequence[int]) -> tuple[float, bool]:
    """Part by part of a window's length; every token of its part's window, one at a time."""
    whole = [*context, *text]
    nats = 0.0
    greedy = True
    for place in range(len(context), len(whole)):
        part = (place - len(context)) // WINDOW
        last = min(len(context) + (part + 1) * WINDOW, len(whole))
        seen = run.run.model.embedding.weight.new_tensor(
            whole[max(0, last - 1 - WINDOW) : place]
        ).long()
        logits = run.run.model.logits(seen[None])[0, -1]
        nats += logits.log_softmax(-1)[whole[place]].item()
        greedy &= int(logits.argmax()) == whole[place]
    return nats, greedy


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def ids(text: str) -> list[int]:
    return list(text.encode())


@pytest.mark.parametrize("size", [1, 3])
def test_a_text_is_as_likely_as_its_tokens_are_one_after_another(folder: Path, size: int) -> None:
    run = RouterZoo(str(folder), batch_size=size)
    pairs = [(item["start"], f" {end}") for item in ITEMS for end in item["ends"]]
    pairs += [("", "the first"), ("a space ", "moves")]
    found = run.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
    for (context, text), (nats, greedy) in zip(pairs, found, strict=True):
        bare = context.rstrip()
        expected = defined(run, [SEPARATOR, *ids(bare)], ids(context[len(bare) :] + text))
        assert nats == pytest.approx(expected[0], rel=1e-4) and greedy == expected[1]
    rolled = run.loglikelihood_rolling([asked(text) for _, text in pairs] + [asked("")])
    assert rolled == pytest.approx(
        [defined(run, [SEPARATOR], ids(text))[0] for _, text in pairs] + [0.0], rel=1e-4
    )


def test_what_greedy_decoding_gives_is_known_as_such(folder: Path) -> None:
    run = RouterZoo(str(folder))
    start = [SEPARATOR, *ids("import")]
    steps = next_tokens(run.run.model, [start], GREEDY, window=WINDOW, seed=0, size=SEPARATOR + 1)
    drawn = [token for (token,) in islice(steps, 5)]
    other = [*drawn[:-2], drawn[-2] ^ 1, drawn[-1]]
    found = run._loglikelihood_tokens([(("", ""), start, drawn), (("", ""), start, other)])
    assert [greedy for _, greedy in found] == [True, False]


def test_a_text_is_written_up_to_what_ends_it(folder: Path) -> None:
    run = RouterZoo(str(folder))
    whole, again = run.generate_until(
        [asked("import", {"max_gen_toks": 9, "until": until}) for until in ("", [])]
    )
    assert whole == again and len(whole) > 3
    (cut,) = run.generate_until([asked("import", {"max_gen_toks": 9, "until": [whole[2]]})])
    assert cut == whole[: whole.index(whole[2])]
    hows = {"max_gen_toks": 9, "do_sample": True}, {"max_gen_toks": 2}
    drawn = run.generate_until([asked("import", how) for how in hows])
    assert drawn[0] != whole and whole.startswith(drawn[1].rstrip("\ufffd"))


def test_every_token_is_judged_once_behind_all_that_the_window_holds() -> None:
    context = list(range(10))
    text = list(range(10, 33))
    for size in (1, 4, 23, 40):
        parts = list(windows(context, text, size))
        assert [token for part in parts for token in part.text] == text
        for part in parts:
            assert len(part.context) + len(part.text) - 1 == min(size, part.text[-1])
            assert (*part.context, *part.text) == tuple(range(part.text[-1] + 1))[
                -len(part.context) - len(part.text) :
            ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": "auto"}, "--batch_size auto: must be a number of at least 1"),
        ({"dtype": "int8"}, "dtype=int8: must be float32, bfloat16 or float16"),
        ({"chekpoint": "step_2"}, "did you mean 'checkpoint'"),
        ({"run": ""}, "--model_args run: missing; give run=runs/NAME"),
        ({"checkpoint": "step_9"}, "--checkpoint step_9: unknown"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        RouterZoo(**{"run": str(folder)} | arguments)


def test_a_misspelt_run_is_named() -> None:
    with pytest.raises(UserError, match="--model_args rum: unknown; did you mean 'run'"):
        RouterZoo(rum="runs/one")


def test_so_is_one_in_a_task(folder: Path) -> None:
    run = RouterZoo(str(folder))
    with pytest.raises(UserError, match="gen_kwargs num_beams: is not known here"):
        run.generate_until([asked("import", {"num_beams": 2})])
    with pytest.raises(UserError, match="gen_kwargs top_p"):
        run.generate_until([asked("import", {"top_p": 7.0})])
    with pytest.raises(UserError, match="ask for a longer one"):
        run._loglikelihood_tokens([(("import", ""), ids("import"), [])])


@pytest.mark.nightly
def test_its_own_command_line_runs_tasks_defined_in_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
    for name, values in TASKS.items():
        files = {"data_files": {"validation": str(tmp_path / "items.jsonl")}}
        task = {"task": f"zoo_{name}", "dataset_path": "json", "dataset_kwargs": files} | values
        task |= {"validation_split": "validation", "doc_to_text": "{{start}}"}
        task["metric_list"] = [{"metric": task.pop("metric")}]
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))
    names = ",".join(f"zoo_{name}" for name in TASKS)
    words = [
        "run",
        "--model",
        "router_zoo",
        "--model_args",
        f"run={folder}",
        "--tasks",
        names,
        "--batch_size",
        "4",
    ]
    words += [
        "--include_path",
        str(tmp_path),
        "--output_path",
        str(tmp_path / "out"),
        "--log_samples",
    ]
    command = [sys.executable, "-m", "app.analysis.harness", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    (written,) = (tmp_path / "out").rglob("results*.json")
    scores = json.loads(written.read_text())["results"]
    run = RouterZoo(str(folder))
    right = 0
    bits = 0.0
    size = 0
    for item in ITEMS:
        likely = [
            defined(run, [SEPARATOR, *ids(item["start"])], ids(f" {end}"))[0]
            for end in item["ends"]
        ]
        right += likely.index(max(likely)) == item["right"]
        bits -= defined(run, [SEPARATOR], ids(item["ends"][1]))[0] / 0.6931471805599453
        size += len(item["ends"][1])
    assert scores["zoo_choice"]["acc,none"] == right / len(ITEMS)
    assert scores["zoo_roll"]["bits_per_byte,none"] == pytest.approx(bits / size, rel=1e-4)
    assert "zoo_write" in scores
