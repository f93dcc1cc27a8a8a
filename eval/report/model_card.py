"""README.md of an adapter: what it is, what it scores, how to load it (a PEFT model card)."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_prep.files import read_json, read_jsonl, write_text
from data_prep.stream import StreamError
from eval import metrics
from eval.question_form import Form, form_of
from eval.report.data import RunData, load_run, without_folders
from eval.report.numbers import Number, Summary, summarise
from eval.report.tables import with_error
from eval.significance import ONE_RUN_NOTE

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
CONFIG = "adapter_config.json"
PROMPTS = "test_prompts.jsonl"  # of the last evaluation, in the run folder


@dataclass(frozen=True)
class Published:
    """What a card for others says of the base model.

    Attributes:
        base: how others get it; None: as the run names it.
        licence: its licence; None: not known here.
        merged: whether the folder holds one whole model instead of an adapter.
        prompts: for which alone the folder's LoRA is the run's adapter, as "whose text is ...";
            None: it is the adapter.
    """

    base: str | None = None
    licence: str | None = None
    merged: bool = False
    prompts: str | None = None


def write_model_card(run: RunData, summary: Summary) -> Path | None:
    """Write README.md into the newest evaluated adapter and return its path.

    None where no chunk is evaluated yet, or its adapter is not there any more.
    """
    chunk = metrics.last_row(run.matrix.values) if run.tasks else 0
    adapter = run.chunk(chunk) / "adapter"
    if chunk == 0 or not (adapter / CONFIG).is_file():
        return None
    path = adapter / "README.md"
    write_text(path, model_card(run, summary, chunk))
    return path


def card_after(run_dir: Path, chunk: int, published: Published) -> str:
    """Return the card of a chunk's adapter for others, with its own scores, not the newest ones.

    Raises:
        FileNotFoundError: there is no such run folder.
    """
    run = load_run(run_dir)
    a = run.matrix
    run.matrix = replace(a, values=a.values[: chunk + 1], samples=a.samples[: chunk + 1])
    return model_card(run, summarise(run), chunk, published)


def model_card(
    run: RunData, summary: Summary, chunk: int, published: Published | None = None
) -> str:
    """Return the text of the card of one chunk's adapter.

    Args:
        run: the run.
        summary: its numbers.
        chunk: whose adapter.
        published: what is known of the base model where the card goes to others.
    """
    folder = run.chunk(chunk) / "adapter"
    method, given = run.method or "unknown", published or Published()
    base = given.base or base_name(run.manifest.model or "unknown")
    tags = [run.manifest.method or method, "continual-learning", "visual-instruction-tuning"]
    card_data = ModelCardData(
        base_model=base,
        license=given.licence,
        library_name="transformers" if given.merged else "peft",
        pipeline_tag="image-text-to-text",
        tags=tags if given.merged else [tags[0], "peft", *tags[1:]],
    )
    # An export may take a chunk that was not evaluated: another one's scores would stand there.
    scored = chunk == metrics.last_row(run.matrix.values) if run.tasks else False
    rows = [
        *((row.task, (row.base, row.last, row.forgetting)) for row in summary.tasks),
        ("**mean**", tuple(summary.total.get(key) for key in ("base", "last", "forgetting"))),
    ]
    # Markdown, so no autoescape: it would make entities of quotes and of <image>.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["with_error"] = _with_error
    text = environment.get_template("adapter_card.md.j2").render(
        card_data=card_data,
        run=run,
        manifest=run.manifest,
        method=method,
        base=base,
        given=given,
        stream=run.stream.name if run.stream else "unknown",
        chunk=chunk,
        # PEFT knows plain LoRA by itself.
        ours=given.prompts is None
        and str(read_json(folder / CONFIG).get("peft_type", "")) != "LORA",
        passes=passes_text(run, folder),
        form=_form(run),
        dtype=run.manifest.block("model").get("dtype") or "float32",
        tokens=run.manifest.block("eval").get("max_new_tokens") or 64,
        plus_minus=ONE_RUN_NOTE,
        rows=rows if scored else [],
        average=summary.total.get("average"),
        failed=summary.failed,
        steps=sum(r.steps or 0 for r in run.state.chunks if r.index <= chunk),
    )
    # The recipe may name folders of this machine; a card is for others.
    return without_folders(text.replace(str(run.root.resolve()), run.root.name), run)


def passes_text(run: RunData, adapter: Path) -> str:
    """Return how often a chunk's samples were really trained on, by the host's own count."""
    try:
        counted = float(read_json(adapter / "trainer_state.json")["epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown number of passes over each"
    if replay := run.manifest.recipe.get("replay"):
        # The file of a chunk with replayed samples holds all its passes.
        counted *= float(run.manifest.block("schedule").get("epochs") or 1)
        if replay.get("samples") == "equal":  # they stand in the place of the chunk's own
            counted *= 1 - float(replay["share"])
    return "one pass over each" if counted == 1 else f"{counted:.4g} passes over each"


def _form(run: RunData) -> Form:
    with suppress(OSError, ValueError, StreamError):  # the card does without
        path = run.root / PROMPTS
        if path.is_file() and (asked := read_jsonl(path, torn_tail=True)):
            return form_of(asked)
        if run.stream is not None:
            records = (run.stream.test_records(task) for task in run.tasks)
            return form_of([record for each in records for record in each])
    return Form()


def base_name(path: str) -> str:
    """Return the base model's name: a hub name or relative path as it is, no machine's folder."""
    return path if not Path(path).is_absolute() else f"path/to/{Path(path).name}"


def _with_error(number: Number | None) -> str:
    if number is None or math.isnan(number.value):
        return "not measured"
    return with_error(number)
