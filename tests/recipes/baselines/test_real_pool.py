"""MR-LoRA on the real host: killed in a router's training, it ends bit for bit the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_prep.files import read_json
from data_prep.mllm_cl.__main__ import main as mllm_cl
from data_prep.published.benchmarks import EXPERTS, MLLM_CL
from data_prep.stream import open_stream
from eval.predictions import split_results
from recipes.baselines.mr_lora.pool import router_recipe
from recipes.config.loading import load_recipe
from recipes.processes.host_process import HostProcess
from recipes.run.commands import infer_command, train_command
from recipes.run_folder.layout import RouterLayout, RunLayout
from recipes.use.ask import ask
from recipes.use.finished_adapter import open_adapter
from tests.data_prep import trees
from tests.recipes.real_host import (
    BASE,
    full_methods,
    gone_on,
    host_worker,
    killed_inside,
    needs_host,
    sha256,
    undisturbed,
)
from tests.recipes.toy import recipe_values, write_recipe, write_stream
from tests.recipes.use.served import seen, served

WEIGHTS = "adapter_model.safetensors"

pytestmark = [pytest.mark.slow, needs_host]


def make_pure(stream: Path, tasks: Sequence[str]) -> None:
    """Leaves each chunk the samples of one task, as in a task-incremental stream."""
    manifest = read_json(stream / "stream.json")
    for chunk, task in zip(manifest["chunks"], tasks, strict=True):
        path = stream / chunk["file"]
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["task"] == task]
        path.write_text("".join(kept), encoding="utf-8")
        chunk["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        chunk |= {"samples": len(kept), "tasks": {task: len(kept)}}
    (stream / "stream.json").write_text(json.dumps(manifest), encoding="utf-8")


@full_methods
def test_a_pool_survives_sigkill_and_answers_with_the_adapters_it_says(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", chunks=3, samples=64)
    make_pure(stream, ["VQAv2", "Fin", "VQAv2"])
    values = recipe_values(stream, tmp_path / "run", BASE, method="mr_lora")
    values["data"] |= {"chunks": 3}
    values["model"] |= {"aligner": "multi_modal_projector"}  # each adapter has one of its own
    values["pool"] = {"samples": 12, "epochs": 8, "learning_rate": 2e-3}
    values["schedule"] |= {"save_steps": 8}
    values["eval"] |= {"every": 3}
    values["launcher"] |= {"resident": True}
    path = write_recipe(tmp_path / "toy.yaml", values)
    recipe, layout = load_recipe(str(path)), RunLayout(tmp_path / "run")
    router = RouterLayout(layout.root)

    killed_inside(path, router.host(2), step=8)
    assert "training the router on 24 samples, resuming at step" in gone_on(path)

    # The same router, undisturbed.
    other = RouterLayout(tmp_path / "other")
    command = train_command(router_recipe(recipe), other, layout.router_data(2), 2)
    reference = undisturbed(command, other.host(2), tmp_path / "reference.log", host_worker())
    assert sha256(reference.path / WEIGHTS) == sha256(router.adapter(2) / WEIGHTS)
    assert sha256(layout.adapter(1) / WEIGHTS) != sha256(layout.adapter(3) / WEIGHTS)

    # Two questions that never change: which chunks know them is easily learned.
    found = read_json(layout.router_scores(3))
    assert (found["illegal"], found["any_chunk"]) == (0, 1.0)
    assert found["tasks"]["Fin"]["experts"] == {"2": 4}
    assert all(entry["unrouted"] == 0 for entry in found["tasks"].values())

    # What chunk 2's adapter answered is what it answers alone.
    alone = RunLayout(tmp_path / "alone")
    alone.chunk(2).mkdir(parents=True)
    alone.adapter(2).symlink_to(layout.adapter(2))
    plain = recipe.model_copy(update={"pool": None})
    command = infer_command(plain, alone, layout.prompts, 2)
    assert HostProcess(command, tmp_path / "alone.log").wait(lambda: None) == 0
    split_results(alone.answers(2), stream, alone.predictions(2))
    lines = {}
    for place in (layout.predictions(3), alone.predictions(2)):
        text = (place / "Fin.jsonl").read_text(encoding="utf-8")
        lines[place] = [json.loads(line) for line in text.splitlines()]
    pooled, single = lines.values()
    assert [row["id"] for row in pooled] == [row["id"] for row in single]
    assert [row["prediction"] for row in pooled] == [row["prediction"] for row in single]
    assert {row["router_answer"] for row in pooled} == {"B"}


def test_mllm_cl_s_five_domains_in_their_order_and_two_processes_answer_as_one(
    tmp_path: Path,
) -> None:
    source, stream = trees.mllm_cl(tmp_path / "source", train=8, tests=2), tmp_path / "stream"
    assert mllm_cl(["--source", str(source), "--out", str(stream), "--workers", "1"]) == 0
    values = recipe_values(stream, tmp_path / "run", BASE, method="mr_lora")
    values["data"] |= {"chunks": 5}
    domains = [task.name for task in MLLM_CL["DCL"].tasks]
    values["pool"] = {"samples": 4, "epochs": 2, "learning_rate": 2e-3}
    values["pool"]["descriptions"] = [EXPERTS[domain] for domain in domains]
    values["schedule"] |= {"save_steps": 100}
    values["eval"] |= {"every": 5}
    values["launcher"] |= {"resident": True}
    path = write_recipe(tmp_path / "toy.yaml", values)
    gone_on(path)
    layout = RunLayout(tmp_path / "run")

    rows = [json.loads(line) for line in layout.router_data(5).read_text().splitlines()]
    taught = [(row["task"], row["messages"][-1]["content"]) for row in rows]
    assert f"\nC. {EXPERTS['AD']}\n" in rows[0]["messages"][0]["content"]
    assert taught == [pair for pair in zip(domains, "ABCDE", strict=True) for _ in range(4)]
    found = read_json(layout.router_scores(5))
    assert found["tasks"].keys() == set(domains)
    assert all(entry["unrouted"] == 0 and entry["n"] == 2 for entry in found["tasks"].values())
    for chunk, domain in enumerate(domains, 1):  # pure chunks: one adapter is the right one
        right = found["tasks"][domain]["experts"].get(str(chunk), 0) / 2
        assert (
            found["tasks"][domain]["dominant_chunk"] == found["tasks"][domain]["any_chunk"] == right
        )

    words = ["launcher.nproc=2", "launcher.resident=false", "schedule.per_device_batch=2"]
    other = RunLayout(tmp_path / "two")
    other.chunk(5).mkdir(parents=True)
    other.adapter(5).symlink_to(layout.adapter(5))
    other.pool(5).write_bytes(layout.pool(5).read_bytes())
    command = infer_command(load_recipe(str(path), words), other, layout.prompts, 5)
    assert HostProcess(command, tmp_path / "two.log").wait(lambda: None) == 0
    split_results(other.answers(5), stream, other.predictions(5))
    for domain in domains:
        one, two = (place.predictions(5) / f"{domain}.jsonl" for place in (layout, other))
        assert one.read_text() == two.read_text(), domain
    _served_and_asked(layout, stream, domains)


def _served_and_asked(layout: RunLayout, stream: Path, domains: Sequence[str]) -> None:
    """Two clients at once get the recorded answers, each by the adapter that the router names."""
    openai = pytest.importorskip("openai")
    opened, asked = open_stream(stream), []
    for domain in domains:
        record = opened.test_records(domain)[0]
        text = str(record["messages"][0]["content"]).removeprefix("<image>")
        line = json.loads((layout.predictions(5) / f"{domain}.jsonl").read_text().splitlines()[0])
        asked.append((stream / record["images"][0], text, line["prediction"], line["expert"]))
    with served(layout.root) as (said, url):
        assert "adapter on" in said
        client = openai.OpenAI(base_url=url, api_key="unused", max_retries=0)

        def answer(picture: Path, text: str, *_: object) -> str:
            turns = seen(picture, text)
            reply = client.chat.completions.create(model="toy", messages=turns)
            return str(reply.choices[0].message.content)

        with ThreadPoolExecutor(2) as clients:
            assert list(clients.map(lambda each: answer(*each), asked)) == [a[2] for a in asked]
        with pytest.raises(openai.APIStatusError, match="cannot stream"):
            client.chat.completions.create(model="toy", messages=seen(*asked[0][:2]), stream=True)
    picture, text, recorded, expert = asked[-1]
    found = ask(open_adapter(layout.root, None), text, [picture])
    assert (found.text, found.expert) == (recorded, expert)
