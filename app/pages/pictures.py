"""The README's pictures and numbers of a run: `python -m app.pages.pictures runs/NAME`.

Writes `docs/curve.png` (loss and bits per byte) and `docs/experts.png` (who gets which domain), as
TensorBoard has them, and the lines between the README's markers `default-run`.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.pages.markers import ROOT, replaced


def main() -> None:
    """Reads one finished run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    events = EventAccumulator(
        str(run / "tb"), size_guidance={"scalars": 0, "images": 0, "tensors": 0}
    )
    events.Reload()
    curve(events, ROOT / "docs/curve.png")
    newest = events.Images("specialisation/experts_by_domain")[-1].encoded_image_string
    Image.open(io.BytesIO(newest)).save(ROOT / "docs/experts.png", optimize=True)
    sample = (
        events.Tensors("samples/continuation/text_summary")[-1].tensor_proto.string_val[0].decode()
    )
    readme = ROOT / "README.md"
    precision = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["precision"]
    body = lines(json.loads((run / "summary.json").read_text()), sample, precision)
    readme.write_text(replaced(readme.read_text(), "default-run", body))


def curve(events: EventAccumulator, path: Path) -> None:
    """Training loss and validation bits per byte over the steps."""
    figure = Figure(figsize=(8, 3), dpi=100, layout="constrained")
    units = {"Loss/train": "nats per token", "Loss/val_bpb": "bits per byte"}
    for axes, (tag, unit) in zip(figure.subplots(1, 2), units.items(), strict=True):
        points = events.Scalars(tag)
        axes.plot(
            [p.step for p in points],
            [p.value for p in points],
            marker="o" if len(points) < 20 else "",
        )
        axes.set(title=tag, xlabel="optimizer step", ylabel=unit)
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(str(path))


def lines(summary: dict[str, Any], sample: str, precision: str) -> str:
    """What a newcomer wants to know of the run."""
    domains = ", ".join(
        f"{name} {value:.2f}" for name, value in summary["val_bpb_by_domain"].items()
    )
    return (
        f"`python train.py` then ends at **{summary['val_bpb']:.2f} bits per byte** ({domains}) "
        f"after {summary['tokens_seen']:,} tokens, {summary['wall_s']:.0f} s on 2 cores in "
        f"{precision}:\n\n"
        "![Loss and bits per byte over the steps](docs/curve.png)\n\nIts last "
        f"sample:\n\n{sample}\n"
    )


if __name__ == "__main__":
    main()
