"""README.md of an adapter: what it is, what it scores, how to load it (a PEFT model card)."""

from __future__ import annotations

import math
from pathlib import Path

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_prep.files import read_json, write_text
from eval import metrics
from eval.charts.figure import percent
from eval.report.data import RunData, without_folders
from eval.report.numbers import Number, Summary

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


def write_model_card(run: RunData, summary: Summary) -> Path | None:
    """Write README.md into the newest evaluated adapter and return its path.

    None where no chunk is evaluated yet, or its adapter is not there any more.
    """
    chunk = metrics.last_row(run.matrix.values) if run.tasks else 0
    adapter = run.root / "chunks" / f"{chunk:03d}" / "adapter"
    if chunk == 0 or not (adapter / "adapter_config.json").is_file():
        return None
    path = adapter / "README.md"
    ours = str(read_json(adapter / "adapter_config.json").get("peft_type", "")) != "LORA"
    # The recipe may name folders of this machine; a card is for others.
    text = model_card(run, summary, chunk, ours).replace(str(run.root.resolve()), run.root.name)
    write_text(path, without_folders(text, run))
    return path


def model_card(run: RunData, summary: Summary, chunk: int, ours: bool) -> str:
    """Return the text of the card of one chunk's adapter; `ours`: PEFT alone does not know it."""
    base, method = base_name(run.manifest.model or "unknown"), run.method or "unknown"
    card_data = ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag="image-text-to-text",
        tags=[
            run.manifest.method or method,
            "peft",
            "continual-learning",
            "visual-instruction-tuning",
        ],
    )
    total = summary.total
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["with_error"] = _with_error
    return environment.get_template("adapter_card.md.j2").render(
        card_data=card_data,
        run=run,
        manifest=run.manifest,
        method=method,
        base=base,
        stream=run.stream.name if run.stream else "unknown",
        chunk=chunk,
        ours=ours,
        folder=f"runs/{run.root.resolve().name}/chunks/{chunk:03d}/adapter",
        rows=[
            *((row.task, (row.base, row.last, row.forgetting)) for row in summary.tasks),
            ("**mean**", (total["base"], total["last"], total["forgetting"])),
        ],
        average=total["average"],
        failed=summary.failed,
        steps=sum(record.steps or 0 for record in run.state.chunks),
    )


def base_name(path: str) -> str:
    """Return the base model's name: a hub name or relative path as it is, no machine's folder."""
    return path if not Path(path).is_absolute() else f"path/to/{Path(path).name}"


def _with_error(number: Number) -> str:
    if math.isnan(number.value):
        return "not measured"
    text = percent(number.value)
    return text if math.isnan(number.stderr) else f"{text} ± {percent(number.stderr)}"
