"""The exact commands: golden for the first and second chunk, and what changes between them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.config.loading import load_recipe, shipped_recipes
from recipes.config.problems import RecipeError
from recipes.config.schema import Recipe
from recipes.config.sizes.base_model import model_shape, tuner_size
from recipes.config.swift_arguments import known_arguments
from recipes.processes.command import Command
from recipes.run import commands
from recipes.run.commands import infer_command, train_command, tuner_arguments
from recipes.run_folder.layout import RunLayout
from tests.recipes.fake_host import arguments_of

RUN = RunLayout(Path("runs/x"))
CHUNK_FILE = Path("data/strcvit/chunks/001.jsonl")
GOLDEN_FIRST = {
    "model": "models/InternVL3_5-8B-HF",
    "torch_dtype": "bfloat16",
    "bf16": "true",
    "fp16": "false",
    "check_model": "false",
    "max_length": "4096",
    "freeze_vit": "true",
    "tuner_type": "strlora",
    "freeze_aligner": "false",
    "external_plugins": f"{commands.HOST_PLUGIN} {commands.PLUGIN}",
    "callbacks": "save_and_stop strlora",
    "lora_rank": "64",
    "lora_alpha": "128.0",
    "lora_dropout": "0.05",
    "dataset": "data/strcvit/chunks/001.jsonl",
    "split_dataset_ratio": "0",
    "strict": "true",
    "dataset_num_proc": "1",
    "dataset_shuffle": "false",
    "data_seed": "42001",
    "num_train_epochs": "1",
    "per_device_train_batch_size": "2",
    "gradient_accumulation_steps": "4",
    "learning_rate": "0.0001",
    "lr_scheduler_type": "cosine",
    "warmup_ratio": "0.05",
    "weight_decay": "0.1",
    "aligner_lr": "1e-05",
    "output_dir": "runs/x/chunks/001/host",
    "logging_dir": "runs/x/chunks/001/trackers",
    "add_version": "false",
    "save_strategy": "steps",
    "save_steps": "20",
    "save_total_limit": "2",
    "save_only_model": "false",
    "eval_strategy": "no",
    "seed": "42",
    "deepspeed": "zero2",
    "attn_impl": "sdpa",
    "gradient_checkpointing": "true",
    "dataloader_num_workers": "4",
    "logging_steps": "1",
    "report_to": "none",
}
RELEASED = {
    "strlora_preset": "released",
    "strlora_num_experts": 4,
    "strlora_top_k": 2,
    "strlora_router_dim": 64,
}


def flags(command: Command) -> dict[str, str]:
    return arguments_of(command.arguments)


def test_golden_first_chunk() -> None:
    command = train_command(load_recipe("internvl3.5-8b"), RUN, CHUNK_FILE, 1)
    found = flags(command)
    keywords = json.loads(found.pop("model_kwargs"))
    assert found == GOLDEN_FIRST
    assert keywords == {**RELEASED, "strlora_stability_weight": 0.0}


def test_golden_second_chunk() -> None:
    recipe = load_recipe("internvl3.5-8b")
    found = flags(train_command(recipe, RUN, Path("data/strcvit/chunks/002.jsonl"), 2))
    keywords = json.loads(found.pop("model_kwargs"))
    assert found == {
        **GOLDEN_FIRST,
        "dataset": "data/strcvit/chunks/002.jsonl",
        "data_seed": "42002",
        "learning_rate": "2e-05",
        "lr_scheduler_type": "constant",
        "warmup_ratio": "0.0",
        "output_dir": "runs/x/chunks/002/host",
        "logging_dir": "runs/x/chunks/002/trackers",
        "adapters": "runs/x/chunks/001/adapter",
    }
    assert keywords == {**RELEASED, "strlora_stability_weight": 0.1}


def test_routers_freeze_and_the_teacher_is_required() -> None:
    recipe = load_recipe("internvl3.5-8b")
    by_chunk = {chunk: tuner_arguments(recipe, chunk) for chunk in range(1, 7)}
    assert [c for c, o in by_chunk.items() if o.get("freeze_routers")] == [5, 6]
    # The teacher starts in chunk 2, so chunk 3 is the first that must find one.
    assert [c for c, o in by_chunk.items() if o.get("require_teacher")] == [3, 4]


@pytest.mark.parametrize(
    ("overrides", "required"),
    [
        ([], True),
        (["tuner.task_router=frozen"], True),
        (["tuner.token_router=off"], True),
        # Nothing trains that a teacher could hold, so no chunk leaves one.
        (["tuner.task_router=frozen", "tuner.token_router=off"], False),
        (["tuner.stability_on=scores", "tuner.token_router=off"], False),
        (["schedule.later.stability_weight=0"], False),
    ],
)
def test_a_teacher_is_required_where_the_term_acts(overrides: list[str], required: bool) -> None:
    recipe = load_recipe("tiny", overrides)
    assert tuner_arguments(recipe, 3).get("require_teacher", False) == required


def test_lora_is_the_hosts_own_with_the_same_layers_and_rank() -> None:
    recipe = load_recipe("internvl3.5-8b", ["method=lora"])
    found = flags(train_command(recipe, RUN, CHUNK_FILE, 1))
    assert found["tuner_type"] == "lora"
    assert found["external_plugins"] == str(commands.HOST_PLUGIN)
    assert found["callbacks"] == "save_and_stop"
    assert "model_kwargs" not in found
    assert (found["lora_rank"], found["lora_alpha"]) == ("64", "128.0")
    # The aligner is trained in full there too; freeze_aligner false would put an adapter on it.
    assert (found["freeze_aligner"], found["modules_to_save"]) == ("true", "multi_modal_projector")
    inference = infer_command(recipe, RUN, RUN.prompts, 1)
    plugins = f"{commands.HOST_PLUGIN} {commands.INFER_PLUGIN}"
    assert flags(inference)["external_plugins"] == plugins


@pytest.mark.parametrize("method", ["lora", "strlora", "moelora"])
def test_targets_choose_the_layers_of_every_tuner(method: str) -> None:
    usual = train_command(load_recipe("tiny", [f"method={method}"]), RUN, CHUNK_FILE, 1)
    named = load_recipe("tiny", [f"method={method}", "tuner.targets=all"])
    assert train_command(named, RUN, CHUNK_FILE, 1) == usual
    assert "target_regex" not in flags(usual)
    recipe = load_recipe("tiny", [f"method={method}", "tuner.targets=attention"])
    shape = model_shape(recipe)
    assert shape is not None
    found = flags(train_command(recipe, RUN, CHUNK_FILE, 1))
    assert found["target_regex"].endswith(r"in_proj_\w+|out_proj))")
    assert "targets" not in found.get("model_kwargs", "")
    if method == "lora":
        # Width 256, 4 heads of queries and 2 of keys of 64: q, k, v and o of 4 layers, rank 16.
        row = (256 + 256) + 2 * (256 + 128) + (256 + 256)
        assert tuner_size(recipe, shape).trained == 16 * 4 * row


def test_honest_baselines_are_lora_but_for_the_later_rate_or_the_layers() -> None:
    def told(method: str, chunk: int) -> dict[str, str]:
        recipe = load_recipe("internvl3.5-8b", [f"method={method}"])
        return flags(train_command(recipe, RUN, CHUNK_FILE, chunk))

    for chunk in (1, 2, 3):
        lora = told("lora", chunk)
        rates = ("1e-4", "1e-4", "1e-4") if chunk == 1 else ("2e-5", "4e-6", "2e-6")
        aligner = ("1e-5", "1e-5", "1e-5") if chunk == 1 else ("1e-5", "2e-6", "1e-6")
        methods = ("lora", "lora_fifth", "lora_tenth")
        for method, rate, of_aligner in zip(methods, rates, aligner, strict=True):
            both = {"learning_rate": str(float(rate)), "aligner_lr": str(float(of_aligner))}
            assert told(method, chunk) == lora | both
        attention = told("lora_attention", chunk)
        assert "self_attn" in attention.pop("target_regex")
        assert attention == lora


def test_inference_of_the_base_and_of_a_chunk() -> None:
    recipe = load_recipe("tiny")
    base = infer_command(recipe, RUN, RUN.prompts, 0)
    assert "adapters" not in flags(base)
    assert "STRLORA_ROUTING_FILE" not in base.environment
    later = infer_command(recipe, RUN, RUN.prompts, 3)
    assert flags(later)["adapters"] == "runs/x/chunks/003/adapter"
    assert later.environment["STRLORA_ROUTING_FILE"] == "runs/x/chunks/003/routing.json"
    assert flags(later)["temperature"] == "0"
    # Of the swift block only what describes the model reaches inference.
    assert "gradient_checkpointing" not in flags(later)
    attention = load_recipe("tiny", ["swift.attn_impl=eager"])
    assert flags(infer_command(attention, RUN, RUN.prompts, 0))["attn_impl"] == "eager"


def test_answers_are_written_after_every_batch() -> None:
    recipe = load_recipe("internvl3.5-8b", ["eval.batch_size=6", "launcher.nproc=4"])
    found = flags(infer_command(recipe, RUN, RUN.prompts, 1))
    assert (found["max_batch_size"], found["write_batch_size"]) == ("6", "24")


def test_vllm_gets_a_merged_adapter() -> None:
    recipe = load_recipe("internvl3.5-8b", ["method=lora", "eval.backend=vllm"])
    later = flags(infer_command(recipe, RUN, RUN.prompts, 2))
    assert (later["infer_backend"], later["merge_lora"]) == ("vllm", "true")
    base = flags(infer_command(recipe, RUN, RUN.prompts, 0))
    assert base["infer_backend"] == "vllm"
    assert "merge_lora" not in base


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["eval.backend=vllm"], "cannot serve method = strlora"),
        (["eval.backend=vllm", "method=lora", "launcher.cpu=true"], "needs a GPU"),
        (["eval.backend=sglang"], "eval.backend"),
        (["launcher.resident=true", "launcher.kind=torchrun"], "kind = torchrun.*use local"),
        (["launcher.resident=true", "launcher.kind=slurm", "launcher.nodes=2"], "of one machine"),
        (["launcher.resident=true", "launcher.deepspeed=zero3"], "resident.*use zero2 or null"),
        (["launcher.resident=true", "method=lora", "eval.backend=vllm"], "loads the model itself"),
    ],
)
def test_a_backend_that_cannot_serve_the_method_is_refused(
    overrides: list[str], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("internvl3.5-8b", overrides)


def test_resuming_keeps_the_previous_adapter_and_names_the_checkpoint() -> None:
    checkpoint = Path("runs/x/chunks/002/host/checkpoint-15")
    found = flags(train_command(load_recipe("tiny"), RUN, CHUNK_FILE, 2, checkpoint))
    assert found["resume_from_checkpoint"] == str(checkpoint)
    assert found["adapters"] == "runs/x/chunks/001/adapter"


def test_environment() -> None:
    tiny = train_command(load_recipe("tiny"), RUN, CHUNK_FILE, 1).environment
    assert tiny["ROOT_IMAGE_DIR"] == "data/mini-tiny"
    assert tiny["CUDA_VISIBLE_DEVICES"] == ""
    assert tiny["HF_HUB_OFFLINE"] == "1"
    assert "NPROC_PER_NODE" not in tiny
    big = train_command(load_recipe("internvl3.5-8b"), RUN, CHUNK_FILE, 1).environment
    assert big["NPROC_PER_NODE"] == "4"
    assert "CUDA_VISIBLE_DEVICES" not in big
    assert big["HF_HUB_OFFLINE"] == "1"
    assert "ATEN_CPU_CAPABILITY" not in tiny
    portable = load_recipe("tiny", ["launcher.portable_kernels=true"])
    assert train_command(portable, RUN, CHUNK_FILE, 1).environment.items() >= {
        ("ATEN_CPU_CAPABILITY", "default"),
        ("MKL_CBWR", "COMPATIBLE"),
        ("ONEDNN_MAX_CPU_ISA", "SSE41"),
    }
    with pytest.raises(RecipeError, match=r"kernels needs launcher\.cpu: true and a launcher"):
        load_recipe("tiny", ["launcher.portable_kernels=true", "launcher.omp_threads=null"])
    hub = load_recipe("tiny", ["model.path=OpenGVLab/InternVL3_5-1B-HF"])
    assert "HF_HUB_OFFLINE" not in train_command(hub, RUN, CHUNK_FILE, 1).environment


@pytest.mark.parametrize(("processes", "accumulation"), [(1, "16"), (2, "8"), (16, "1")])
def test_the_global_batch_is_kept(processes: int, accumulation: str) -> None:
    recipe = load_recipe("internvl3.5-8b", [f"launcher.nproc={processes}"])
    found = flags(train_command(recipe, RUN, CHUNK_FILE, 1))
    assert found["gradient_accumulation_steps"] == accumulation


@pytest.mark.parametrize("name", shipped_recipes())
@pytest.mark.parametrize("method", ["strlora", "lora"])
def test_every_training_flag_is_an_argument_of_the_host(name: str, method: str) -> None:
    recipe = load_recipe(name, [f"method={method}"])
    for chunk in (1, 2, 6):
        resume = Path("checkpoint-1") if chunk == 2 else None
        assert flags(train_command(recipe, RUN, CHUNK_FILE, chunk, resume)).keys() <= set(
            known_arguments()
        )


def test_float32_switches_mixed_precision_off() -> None:
    """The host turns fp16 on by itself for float32 when nobody says otherwise."""
    found = flags(train_command(load_recipe("tiny"), RUN, CHUNK_FILE, 1))
    assert (found["torch_dtype"], found["fp16"], found["bf16"]) == ("float32", "false", "false")


def test_nothing_goes_through_a_shell(toy: Callable[..., Recipe]) -> None:
    nasty = "$(touch /tmp/pwned); `id` 'x' \"y\""
    recipe = toy(swift={"system": nasty})
    command = train_command(recipe, RUN, CHUNK_FILE, 1)
    assert nasty in command.argv()
    text = command.as_shell().replace("\\\n", " ")
    assert nasty in shlex.split(text)


def test_one_process_runs_the_module_and_several_run_the_launcher() -> None:
    one = train_command(load_recipe("tiny"), RUN, CHUNK_FILE, 1).argv()
    assert one[1:3] == ["-m", "swift.cli.sft"]
    four = train_command(load_recipe("internvl3.5-8b"), RUN, CHUNK_FILE, 1).argv()
    assert four[1:4] == ["-m", "swift.cli.main", "sft"]
