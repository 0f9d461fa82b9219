"""The table of all that is written to TensorBoard, from the classes that write it."""

from app.registry import find, names
from app.training.module import LanguageModel
from app.training.tags import Tag


def tags() -> list[tuple[Tag, str]]:
    """Every tag, and which callback writes it; empty: every run."""
    callbacks = [
        (tag, name)
        for name in names("callback")
        for tag in getattr(find("callback", name), "tags", ())
    ]
    return [*((tag, "") for tag in LanguageModel.tags), *sorted(callbacks)]


def markdown() -> str:
    """The table for docs/tags.md."""
    head = "| tag | kind | unit | meaning | over | callback |\n" + "| --- " * 6 + "|\n"
    return head + "".join(
        f"| {'<br>'.join(f'`{name}`' for name in tag.names())} | {tag.kind} | {tag.unit} | "
        f"{tag.meaning} | {tag.scope} | {f'`{callback}`' * bool(callback)} |\n"
        for tag, callback in tags()
    )
