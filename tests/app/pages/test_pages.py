"""The pages that code writes are those that the code would write now."""

import re
from pathlib import Path

import pytest

from app.pages.__main__ import TABLES
from app.pages.markers import ROOT, between, replaced
from app.pages.tags import tags
from tests.conftest import events_of


@pytest.mark.parametrize(
    ("page", "marker", "table"), TABLES, ids=[marker for _, marker, _ in TABLES]
)
def test_a_table_is_in_step_with_the_code(page, marker, table):
    assert between((ROOT / page).read_text(), marker) == table(), "make docs writes it anew"


def test_only_what_stands_between_the_markers_is_replaced():
    text = "before\n<!-- a -->\nold\n<!-- /a -->\nafter <!-- b -->\n<!-- /b -->"
    assert replaced(text, "a", "new\n") == text.replace("old", "new")


def written(run: Path) -> set[tuple[str, str]]:
    """Kind and name of all that a run has written."""
    found = events_of(run).Tags()
    texts = {
        tag.removesuffix("/text_summary")
        for tag in found["tensors"]
        if tag.endswith("/text_summary")
    }
    kinds = {
        "scalar": found["scalars"],
        "image": found["images"],
        "histogram": found["histograms"],
        "text": texts,
    }
    return {(kind, name) for kind, names in kinds.items() for name in names}


def test_a_run_writes_the_tags_of_the_table_and_no_others(train):
    # a known device; text with topics; with domains; a layout with named experts
    sometimes = {
        "speed/mfu",
        "specialisation/experts_by_topic",
        "Loss/val_bpb_DOMAIN",
        "skills/DOMAIN/SKILL",
    }
    parts = (
        "router=topk",
        "experts=deepseek",
        "router/select=positive",
        "balance=[aux,loss_free,relu_lambda]",
        "callbacks=full",
        "trainer.log_every=1",
    )
    rare = ("samples", "expert_pictures", "controllers", "weight_similarity", "expert_weights")
    often = [f"callbacks.{name}.every=1" for name in rare]
    short = (
        "trainer.max_steps=3",
        "trainer.val_every=1",
        "callbacks.profile.skip=1",
        "callbacks.profile.steps=1",
    )
    found = written(train("debug=profile", *parts, *often, *short))
    # words in capitals stand for what the run fills in
    patterns = {
        (tag.kind, name): re.compile(re.sub(r"[A-Z]{2,}", r"[^/]+", name))
        for tag, _ in tags()
        for name in tag.names()
    }
    unknown = {
        (kind, name)
        for kind, name in found
        if not any(kind == of and pattern.fullmatch(name) for (of, _), pattern in patterns.items())
    }
    unused = {
        (kind, name)
        for (kind, name), pattern in patterns.items()
        if name not in sometimes
        and not any(kind == of and pattern.fullmatch(one) for of, one in found)
    }
    extra = {name for _, name in unknown if not name.startswith("_hparams_")}
    assert not extra
    assert not unused
