"""README.md of an adapter: what it is, what it scores, how to load it (a PEFT model card)."""

from __future__ import annotations

import json
import math
from pathlib import Path

from data_prep.files import read_json, write_text
from eval import metrics
from eval.charts.figure import percent
from eval.report.data import RunData, without_folders
from eval.report.numbers import Number, Summary

LOAD_OURS = """import strlora_tuner  # registers the method with PEFT; from this pack's root
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{folder}").eval()
processor = AutoProcessor.from_pretrained("{base}")"""
LOAD_PLAIN = LOAD_OURS.split("\n", 1)[1]


def write_model_card(run: RunData, summary: Summary) -> Path | None:
    """Write README.md into the newest evaluated adapter and return its path.

    None where no chunk is evaluated yet, or its adapter is not there any more.
    """
    chunk = metrics.last_row(run.matrix.values) if run.tasks else 0
    adapter = run.root / "chunks" / f"{chunk:03d}" / "adapter"
    if chunk == 0 or not (adapter / "adapter_config.json").is_file():
        return None
    path = adapter / "README.md"
    # The recipe may name folders of this machine; a card is for others.
    ours = str(read_json(adapter / "adapter_config.json").get("peft_type", "")) != "LORA"
    text = model_card(run, summary, chunk, ours).replace(str(run.root.resolve()), run.root.name)
    write_text(path, without_folders(text, run))
    return path


def model_card(run: RunData, summary: Summary, chunk: int, ours: bool) -> str:
    """Return the text of the card of one chunk's adapter; `ours`: PEFT alone does not know it."""
    method = run.method or "unknown"
    base = base_name(run.manifest.model or "unknown")
    stream = run.stream.name if run.stream else "unknown"
    planned = f" of {run.planned}" if run.planned else ""
    what = "finished" if run.finished else "the stream goes on"
    parts = [
        _front_matter(base, method),
        f"# {run.name}: {method} after chunk {chunk}{planned}",
        f"An adapter for `{base}`, trained on the stream `{stream}` chunk after chunk, one pass,"
        f" seed {run.seed_text} ({what}).",
        "## How to load it",
        _code(LOAD_OURS if ours else LOAD_PLAIN, base, _folder(run, chunk)),
        _host(ours),
        "## Scores",
        "Percent, on the stream's test sets; ± one standard error over test samples.",
        _scores(summary),
        "## How it was made",
        _facts(run),
        f"<details><summary>The resolved recipe</summary>\n\n```yaml\n{run.recipe.strip()}\n```\n"
        "\n</details>",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def base_name(path: str) -> str:
    """Return the base model's name: a hub name or relative path as it is, no machine's folder."""
    return path if not Path(path).is_absolute() else f"path/to/{Path(path).name}"


def _front_matter(base: str, method: str) -> str:
    tags = [method, "peft", "continual-learning", "visual-instruction-tuning"]
    lines = ["---", f"base_model: {json.dumps(base)}", "library_name: peft"]
    lines += ["pipeline_tag: image-text-to-text", "tags:", *(f"- {json.dumps(t)}" for t in tags)]
    return "\n".join([*lines, "---"])


def _folder(run: RunData, chunk: int) -> str:
    return f"runs/{run.root.resolve().name}/chunks/{chunk:03d}/adapter"


def _code(template: str, base: str, folder: str) -> str:
    return f"```python\n{template.format(base=base, folder=folder)}\n```"


def _host(ours: bool) -> str:
    text = "With ms-swift: `swift infer --adapters <this folder>`."
    if ours:
        text = text.replace("folder>`.", "folder>") + (
            " --external_plugins strlora_tuner/swift_plugins/routed_tuners.py`. Keep the adapter"
            " loaded: it is not merged into the base weights."
        )
    return text


def _scores(summary: Summary) -> str:
    rows = ["| task | base model | this adapter | forgetting |", "| --- | --- | --- | --- |"]
    for row in summary.tasks:
        cells = [_with_error(number) for number in (row.base, row.last, row.forgetting)]
        rows.append(f"| {' | '.join([_cell(row.task), *cells])} |")
    means = [_with_error(summary.total[key]) for key in ("base", "last", "forgetting")]
    rows.append(f"| **mean** | {' | '.join(means)} |")
    text = f"\n\nAverage over all chunks: {_with_error(summary.total['average'])}."
    failed = f" {summary.failed} test samples got no answer." if summary.failed else ""
    return "\n".join(rows) + text + failed


def _with_error(number: Number) -> str:
    if math.isnan(number.value):
        return "not measured"
    text = percent(number.value)
    return text if math.isnan(number.stderr) else f"{text} ± {percent(number.stderr)}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _facts(run: RunData) -> str:
    manifest = run.manifest
    git = manifest.git
    steps = sum(record.steps or 0 for record in run.state.chunks)
    facts = [
        ("Code", f"{git.get('sha', 'unknown')}{', local changes' if git.get('dirty') else ''}"),
        ("Versions", ", ".join(f"{k} {v}" for k, v in manifest.versions.items())),
        ("Optimizer steps", str(steps) if steps else ""),
        ("Global batch", str(manifest.global_batch or "")),
        ("Data", manifest.stream_sha256),
    ]
    return "\n".join(f"- {name}: {value}" for name, value in facts if value)
