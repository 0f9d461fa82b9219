"""`python train.py --help` names every config group, and what it chooses."""

from pathlib import Path

from hydra import initialize_config_dir

from app.config.compose import CONF
from app.config.help import GROUPS, help_text


def test_every_group_with_options_is_described() -> None:
    folders = {path.parent.relative_to(CONF) for path in CONF.rglob("[!_]*.yaml")}
    ours = {str(folder) for folder in folders if "_base" not in folder.parts} - {".", "race"}
    assert ours == GROUPS.keys()


def test_the_text_has_the_example_the_flags_and_the_options_with_their_defaults() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        text = help_text()
    assert "python train.py router=topk experts=deepseek" in text
    assert "--multirun" in text and "*topk" in text and "gru" in text
    assert "_base" not in text and "max_steps" not in text
    for path in Path(CONF / "trainer").glob("[!_]*.yaml"):
        assert path.stem in text
