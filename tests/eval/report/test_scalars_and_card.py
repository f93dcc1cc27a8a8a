"""What stands beside the report: TensorBoard scalars, and the model card in the adapter."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from data_prep.files import write_jsonl
from eval.report import write_report
from eval.report.data import load_run
from eval.report.model_card import Published, card_after, passes_text
from tests.eval.make_run import make_run
from tests.eval.report.page_reader import mean, shown


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run after three of four chunks, with the newest adapter's folder."""
    run, _ = make_run(tmp_path, chunks=4, done=3, tests=6)
    adapter = run / "chunks" / "003" / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "STRLORA"}', "utf-8")
    return run


def _matrix(run: Path) -> dict[tuple[int, str], float]:
    with (run / "matrix.csv").open(encoding="utf-8") as file:
        return {(int(r["chunk"]), r["task"]): float(r["score"]) for r in csv.DictReader(file)}


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return what TensorBoard itself reads: {tag: {step: value}}."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_scores(run: Path) -> None:
    write_report(run)
    found, a = _scalars(run / "tensorboard"), _matrix(run)
    tasks = sorted({task for _, task in a})
    for task in tasks:
        assert found[f"score/{task}"] == pytest.approx({c: a[c, task] for c in range(4)}, abs=1e-6)
    means = {c: mean([a[c, t] for t in tasks]) for c in range(4)}
    assert found["stream/last"] == pytest.approx({c: means[c] for c in (1, 2, 3)})
    averages = {c: mean([means[k] for k in range(1, c + 1)]) for c in (1, 2, 3)}
    assert found["stream/average"] == pytest.approx(averages)
    lost = mean([max(a[1, t], a[2, t]) - a[3, t] for t in tasks])
    assert found["stream/forgetting"][3] == pytest.approx(lost, abs=1e-6)
    assert 1 not in found["stream/forgetting"], "one chunk cannot forget: no number, not 0"
    assert set(found["routing/nmi"]) == {1, 2, 3}


def test_a_second_report_writes_no_event_twice(run: Path) -> None:
    write_report(run)
    files = sorted((run / "tensorboard").iterdir())
    before = [(file.name, file.stat().st_mtime_ns) for file in files]
    write_report(run)
    files = sorted((run / "tensorboard").iterdir())
    assert [(file.name, file.stat().st_mtime_ns) for file in files] == before
    assert len(before) == 4


def _card(run: Path) -> tuple[dict, str]:
    text = (run / "chunks" / "003" / "adapter" / "README.md").read_text("utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_model_card(run: Path) -> None:
    write_report(run)
    front, body = _card(run)
    assert front["base_model"] == "assets/tiny_base"
    assert front["library_name"] == "peft"
    assert "strlora" in front["tags"]
    a = _matrix(run)
    rows = dict(re.findall(r"^\| (\S+) \| [^|]* \| ([^ |]+)", body, re.M))
    for task in sorted({task for _, task in a}):
        assert rows[task] == shown(a[3, task])
    assert rows["**mean**"] == shown(mean([v for (c, _), v in a.items() if c == 3]))
    assert "after chunk 3 of 4" in body
    assert "import strlora_tuner" in body
    assert "ms-swift 4.6.0" in body
    assert "method: strlora" in body
    assert str(run.parent) not in body


def test_no_folder_of_this_machine_in_a_card(run: Path) -> None:
    path = run / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    adapter = run / "chunks" / "003" / "adapter" / "adapter_config.json"
    adapter.write_text('{"peft_type": "LORA"}', "utf-8")
    manifest["recipe"] |= {"method": "er", "model": {"path": "/home/somebody/models/base"}}
    path.write_text(json.dumps(manifest), "utf-8")
    (run / "recipe.yaml").write_text(f"run_dir: {run.resolve()}\n", "utf-8")
    write_report(run)
    front, body = _card(run)
    assert front["base_model"] == "path/to/base"
    assert "/home/somebody" not in body
    assert "run_dir: fixture" in body
    assert "strlora_tuner" not in body, "plain LoRA needs nothing of ours"


@pytest.mark.parametrize("name", ["branchlora", "moelora", "olora", "smolora", "an_own_one"])
def test_the_card_of_every_tuner_of_ours_says_how_peft_gets_to_know_it(
    run: Path, name: str
) -> None:
    adapter = run / "chunks" / "003" / "adapter" / "adapter_config.json"
    adapter.write_text(json.dumps({"peft_type": name.upper()}), "utf-8")
    path = run / "manifest.json"
    path.write_text(path.read_text("utf-8").replace('"strlora"', f'"{name}"'), "utf-8")
    write_report(run)
    _, body = _card(run)
    assert "import strlora_tuner" in body
    assert "--external_plugins strlora_tuner/swift_plugins/routed_tuners.py`" in body


def test_the_card_of_a_lora_for_one_instruction_needs_nothing_of_ours(run: Path) -> None:
    prompts = r'whose text is exactly "Name \"it\" & say <one> word."'
    card = card_after(run, 3, Published("base", prompts=prompts))
    assert "strlora_tuner" not in card
    assert "it is not merged" not in card
    told = " ".join(card.split())
    assert "plain LoRA, which any tool that reads PEFT's loads, merges and serves." in told
    assert f"the run's adapter for prompts {prompts}; for others it is not" in told


@pytest.mark.parametrize(
    ("asked", "content"),
    [
        (["<image>What?"], [0, 1, "Which?"]),
        (["<image>\nWhat?"], [0, "\n", 1, "\nWhich?"]),
        (["What?\n<image>"], ["Which?\n", 0, "\n", 1]),
        (["<image>\nWhat?", "<image><image>\nThe same?"], [0, 1, "\nWhich?"]),
        (["What?\n<image>", "<image>\nWhat?", "Who?\n<image>"], ["Which?\n", 0, "\n", 1]),
    ],
)
def test_the_card_s_code_puts_a_question_as_the_evaluation_does(
    run: Path, asked: list[str], content: list[int | str]
) -> None:
    """Two pictures; turns as the processor's chat template gets them."""
    system = {"role": "system", "content": "Be brief."}
    lines = [
        {"messages": [system, {"role": "user", "content": text}], "images": ["a.png"] * n}
        for text in asked
        if (n := text.count("<image>"))
    ]
    write_jsonl(run / "test_prompts.jsonl", lines)
    text = card_after(run, 3, Published("base"))
    assert ("1 of the run's questions are put otherwise" in text) == (len(asked) == 3)
    assert ("behind the question" in text) == asked[0].endswith("<image>")
    code = re.search(r"(def ask.*?)\n\n\n", text, re.S)
    assert code is not None
    got: list[Any] = []
    picture = SimpleNamespace(open=lambda number: SimpleNamespace(convert=lambda mode: number))
    processor = SimpleNamespace(apply_chat_template=lambda turns, **_: got.extend(turns))
    names = {"re": re, "Image": picture, "processor": processor}
    exec(code[1], names)
    for question, expected in (("Which?", content), ("Is <image>, <image>?", None)):
        got.clear()
        with pytest.raises(AttributeError):  # what the processor returns is not asked for
            names["ask"](question, 0, 1)
        parts = [part.get("image", part.get("text")) for part in got[-1]["content"]]
        assert parts == (expected or ["Is ", 0, ", ", 1, "?"])
        assert got[0] == system


def test_no_adapter_no_card(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, chunks=2, done=0, tests=4)
    write_report(run)
    assert not list(run.glob("chunks/*/adapter"))
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_the_card_says_how_often_samples_were_trained_on(run: Path) -> None:
    """By the host's count; with replay the passes are inside the chunk's file."""
    adapter, data = run / "chunks/003/adapter", load_run(run)
    assert passes_text(data, adapter) == "an unknown number of passes over each"
    trainer = adapter / "trainer_state.json"
    for epoch, text in ((1.0, "one pass over each"), (7.5, "7.5 passes over each")):
        trainer.write_text(json.dumps({"epoch": epoch}), "utf-8")
        assert passes_text(data, adapter) == text
    data.manifest.recipe.update({"replay": {"memory": 9}, "schedule": {"epochs": 4}})
    trainer.write_text('{"epoch": 1.0}', "utf-8")
    assert passes_text(data, adapter) == "4 passes over each"
    data.manifest.recipe["replay"] |= {"share": 0.75, "samples": "equal"}
    assert passes_text(data, adapter) == "one pass over each"


def test_the_card_s_code_answers_with_the_adapter(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code block as it stands, run in the adapter's folder."""
    torch = pytest.importorskip("torch")
    from peft import get_peft_model
    from transformers import AutoModelForImageTextToText

    from strlora_tuner import StrLoraConfig

    root = Path(__file__).resolve().parents[3]
    base = AutoModelForImageTextToText.from_pretrained(root / "assets" / "tiny_base")
    targets = r".*language_model\.layers\.\d+\.self_attn\.q_proj"
    adapter = run / "chunks" / "003" / "adapter"
    torch.manual_seed(0)
    get_peft_model(base, StrLoraConfig(r=8, target_modules=targets)).save_pretrained(adapter)
    write_report(run)
    code = re.search(r"```python\n(.*?)```", _card(run)[1], re.S)
    assert code is not None
    monkeypatch.chdir(adapter)
    monkeypatch.setattr("sys.argv", ["ask.py", "What is this?"])
    names: dict = {}
    exec(code[1], names)
    assert names["model"].peft_config["default"].r == 8
    assert capsys.readouterr().out.strip() == names["ask"]("What is this?").strip()
