"""A finished run of the real host, used: asked, exported, and as its model card says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import read_json, read_jsonl, sha256_file, write_json, write_jsonl
from eval.question_form import form_of
from recipes import REPO
from recipes.use.ask import own_questions
from recipes.use.chat import converse
from recipes.use.finished_adapter import open_adapter
from recipes.use.serve import Server
from tests.recipes.real_host import BASE, gone_on, needs_host
from tests.recipes.toy import QUESTIONS, recipe_values, write_recipe, write_stream
from tests.recipes.use.served import seen, served

pytestmark = [pytest.mark.slow, needs_host]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished StrLoRA run of one chunk."""
    return finished(tmp_path_factory.mktemp("use"), "strlora", {"stability_weight": 0})


def finished(root: Path, method: str, first: dict[str, Any]) -> Path:
    """A finished run of one chunk of the stream beside it, which is made where it is not there."""
    stream = root / "stream"
    if not stream.is_dir():
        write_stream(stream, chunks=1)
    values = recipe_values(stream, root / "run", BASE, method=method)
    values["data"]["chunks"] = 1
    values["launcher"]["resident"] = True
    values["schedule"] |= {"epochs": 2, "first": {"learning_rate": 1e-2} | first}
    gone_on(write_recipe(root / "toy.yaml", values))
    return root / "run"


def recorded(run: Path, task: str) -> dict[str, str]:
    """Answers of the last evaluation by picture."""
    lines = (run / "chunks/001/predictions" / f"{task}.jsonl").read_text("utf-8").splitlines()
    return {line["images"][0]: line["prediction"] for line in map(json.loads, lines)}


def ask_card(folder: Path, picture: Path, question: str, path: str = str(REPO)) -> str:
    """Runs the code of a folder's card as it stands, with `path` as PYTHONPATH."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.S)
    assert code is not None
    done = subprocess.run(
        [sys.executable, "-c", code[1], str(picture), question],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_ask_and_the_card_give_the_recorded_answer(run: Path, tmp_path: Path) -> None:
    answers = recorded(run, "VQAv2")
    name, expected = next(iter(answers.items()))
    picture, question = run.parent / "stream" / name, QUESTIONS["VQAv2"].removeprefix("<image>")
    command = [sys.executable, "-m", "recipes.cli", "ask", str(run), str(picture), question]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{expected}\n"
    assert "strlora after chunk 1 of 1 answers; adapter on: 28 layers routed" in done.stderr

    adapter = run / "chunks" / "001" / "adapter"
    assert "2 passes over each chunk, 6 optimizer steps" in (adapter / "README.md").read_text()
    assert ask_card(adapter, picture, question) == expected


def test_pictures_behind_the_question_and_a_system_turn(tmp_path: Path) -> None:
    """`ask`, `serve` and the card's code give the recorded answers."""
    stream = write_stream(tmp_path / "stream", chunks=1)
    manifest = read_json(stream / "stream.json")
    for entry in (*manifest["chunks"], *manifest["tasks"].values()):
        path = stream / entry.get("file", entry.get("test"))
        rows = read_jsonl(path)
        for row in rows:
            row["messages"][0]["content"] = row["messages"][0]["content"][len("<image>") :]
            row["messages"][0]["content"] += "\n<image>"
            row["messages"].insert(0, {"role": "system", "content": "You count shapes."})
        write_jsonl(path, rows)
        entry["sha256"] = sha256_file(path)
    write_json(stream / "stream.json", manifest)
    run = finished(tmp_path, "strlora", {"stability_weight": 0})
    task, question = "Fin", QUESTIONS["Fin"].removeprefix("<image>")
    name, expected = next(iter(recorded(run, task).items()))
    command = ["ask", str(run), str(stream / name), question]
    done = subprocess.run(
        [sys.executable, "-m", "recipes.cli", *command], cwd=REPO, capture_output=True, text=True
    )
    assert done.stdout == f"{expected}\n", done.stderr
    assert ask_card(run / "chunks/001/adapter", stream / name, question) == expected
    alone = seen(stream / name, question)
    picture = alone[0]["content"][0]["image_url"]["url"]
    system, text = {"role": "system", "content": "You count shapes."}, f"{question}\n<image>"
    exact = [system, {"role": "user", "content": text}]
    other = [system, {"role": "user", "content": f"<image>{question}"}]
    with served(run) as (_, url):
        found = [answered(url, alone), *(answered(url, each, picture) for each in (exact, other))]
    assert found[0]["message"]["content"] == expected
    assert found[0] == found[1], "to the last bit of its logarithms"
    assert found[0] != found[2]


def answered(url: str, messages: Any, *images: str) -> Any:
    """The server's choice of an answer, with the logarithms of its probabilities."""
    body = {"model": "toy", "messages": messages, "images": images, "logprobs": True}
    header = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), header)
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]


def test_one_instruction_s_lora_answers_by_peft_alone(tmp_path: Path) -> None:
    """Two pictures of the question that it is for, without this project on the path."""
    run, question = finished(tmp_path, "strlora_signed", {}), QUESTIONS["VQAv2"]
    text, out = question.removeprefix("<image>"), tmp_path / "out"
    command = [sys.executable, "-m", "recipes.cli", "export", str(run), "--to", str(out)]
    command += ["--instruction", text, "--base-name", str(BASE)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        f"for prompts whose text is exactly {json.dumps(text)} alone, with 1 picture before it; "
        in done.stdout
    )
    assert "no question" not in done.stdout
    assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert "strlora_tuner" not in (out / "README.md").read_text()
    answers = list(recorded(run, "VQAv2").items())[:2]
    for name, expected in answers:
        assert ask_card(out, tmp_path / "stream" / name, text, path="") == expected


def test_served_to_two_clients_at_once_and_stopped(run: Path) -> None:
    openai = pytest.importorskip("openai")
    with served(run, "opensesame") as (said, url):
        assert "adapter on: 28 layers routed" in said
        client = openai.OpenAI(base_url=url, api_key="opensesame", max_retries=0)

        def answer(task: str, **more: Any) -> Any:
            name = next(iter(recorded(run, task)))
            turns = seen(run.parent / "stream" / name, QUESTIONS[task].removeprefix("<image>"))
            return client.chat.completions.create(model="toy", messages=turns, **more)

        with ThreadPoolExecutor() as pool:
            replies = list(pool.map(answer, QUESTIONS))
        found = [reply.choices[0].message.content for reply in replies]
        assert found == [next(iter(recorded(run, task).values())) for task in QUESTIONS]
        pieces = [part.choices[0].delta.content or "" for part in answer("VQAv2", stream=True)]
        assert "".join(pieces).strip() == found[list(QUESTIONS).index("VQAv2")]

        stranger = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="API key error"):
            stranger.chat.completions.create(model="toy", messages=[])
        picture = next((run.parent / "stream" / "images").glob("*.png"))
        spying: Any = {"messages": [{"role": "user", "content": "<image>What?"}]}
        with pytest.raises(openai.UnprocessableEntityError):  # files of the server's machine
            client.chat.completions.create(
                model="toy", **spying, extra_body={"images": [str(picture)]}
            )

        talked: list[str] = []
        lines = iter([QUESTIONS["Fin"].removeprefix("<image>"), "Sure?", "/new", "/end", "no"])
        name, expected = next(iter(recorded(run, "Fin").items()))
        form = form_of(own_questions(open_adapter(run, None)))
        spoken = Server(url, "toy", "opensesame", None, run, form)
        pictures = [run.parent / "stream" / name]
        converse(
            spoken,
            form,
            lines,
            pictures,
            run,
            talked.append,
        )
        assert (len(talked), talked[0]) == (2, expected)
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


def test_a_merged_model_answers_as_the_adapter(run: Path, tmp_path: Path) -> None:
    values = recipe_values(run.parent / "stream", tmp_path / "lora", BASE, method="lora")
    values["data"]["chunks"] = 1
    values["launcher"]["resident"] = True
    values["schedule"]["first"]["learning_rate"] = 1e-2
    gone_on(write_recipe(tmp_path / "lora.yaml", values), "--train-only")
    merged = tmp_path / "merged"
    command = ["export", str(tmp_path / "lora"), "--merged", "--to", str(merged)]
    subprocess.run([sys.executable, "-m", "recipes.cli", *command], cwd=REPO, check=True)
    assert not (merged / "adapter_config.json").exists()
    question = QUESTIONS["Fin"].removeprefix("<image>")
    picture = next((run.parent / "stream/images").glob("Fin-test-*.png"))
    asked = ["ask", str(tmp_path / "lora"), str(picture), question]
    done = subprocess.run(
        [sys.executable, "-m", "recipes.cli", *asked], cwd=REPO, capture_output=True, text=True
    )
    assert "adapter on: 28 layers wrapped" in done.stderr
    assert ask_card(merged, picture, question) == done.stdout.strip() != ""
    shutil.rmtree(merged)
