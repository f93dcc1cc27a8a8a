"""Every name of the host that no documentation promises and that this project replaces or reads.

The host is ms-swift with transformers, accelerate, DeepSpeed and PEFT under it. A new version may
rename such a name. An assignment to the old one then still succeeds, and what it was to do is not
done: a model's own Python files would run, the newest checkpoint would be removed, a router would
read no instruction. So each plug-in calls :func:`check` with its group before anything else, and
replaces a name only through :func:`replace`. A new private name goes into the table first.

It imports nothing of the host before a group is checked, so that it can be read anywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pkgutil import resolve_name
from types import CodeType
from typing import Any, NamedTuple

PACKAGES = ("ms-swift", "transformers", "accelerate", "deepspeed", "peft", "torch")


class HostName(NamedTuple):
    """One name of the host.

    Attributes:
        path: `module:object`, which must exist.
        protects: what would no longer be done without it.
        mentions: a name that the code of the object (of any method, for a class) must mention: an
            attribute of its instances, a parameter, or a function that it must really call.
    """

    path: str
    protects: str
    mentions: str = ""

    def __str__(self) -> str:
        mentioned = f" (its code must mention {self.mentions!r})" if self.mentions else ""
        return f"{self.path}{mentioned}: {self.protects}"


_NO_FOREIGN_CODE = "Python files that come with a model are not run"
_NEWEST = "the newest checkpoint is kept, whatever the files' times say"
_TYPE = "a model's type is known from its config.json, whatever its folder is called"
_LONG = "one sample that is too long does not end a run, and is named"
_NO_STOP_FILE = "the file /tmp/stop, which anybody can write, does not end a run"
_ANSWERS = "every answer says why it ended, and one bad question does not end the run"
_ALL_RANKS = "on a CPU the answers of all processes are written"
_ADAPTER_ON = "an adapter that acts on no layer is an error, and does not pass for the base model"
_KEY = "a server asks its clients for the key"
_FORM = "a server puts a question as the run's evaluation does, and refuses pictures it cannot show"
_LIMIT = "a server keeps to max_completion_tokens"
_POOL = "a server routes each question to the adapter that should answer it"
_ROWS = "a row leaves its batch as soon as its answer ends"
_QWEN = "the rows that stay in a batch keep their own positions (Qwen-VL)"
_MODELS = "the resident host loads a base model once"
_OPTIONS = "the tuner's options reach an adapter that is loaded"
_TOKENS = "the stability term is averaged over the tokens of the global batch"
_METRICS = "our numbers reach the training log"
_SCALE = "the loss scale of float16 applies to gradients that we add"
_TUNER = "the host creates, saves and loads our adapters"
_LOGITS = "of a mixed batch only logits with a label are kept"
_RATES = "the rate of each group is logged under its name"
_WARM_UP = "a chunk of one step is not trained at a rate of 0"
_SHAPES = "a step's memory is predicted without computing it"
_MASTERS = "what trains is float32, whatever the model's dtype"
_FOLLOWED = "what LwF's teacher says is part of the loss"
_FISHER = "the Fisher information of EWC is that of the host's own loss"
_SHARDED = "parameters that DeepSpeed ZeRO-3 cut into slices are recognised and gathered"
_CHECKED = "an adapter is compared with the model before a layer is changed"
_PROMPT = "the routers see the prompt"
_FROZEN = "routers that must not train stay frozen"
_LAYERS = "layers are wrapped"
_KEPT = "no training sample is left out without a word"
_UNREAD = "options that a tuner of ours does not read are refused"
_UNKNOWN = "unknown options of an adapter are refused"
_INSIDE = "an adapter that transformers itself loads is loaded whole"

_DYNAMIC, _LOADER = "transformers.dynamic_module_utils", "swift.model.register:ModelLoader"
_ROWS_OF_DATA = "swift.dataset.preprocessor.core:RowPreprocessor"
_META = "swift.model.model_meta"
_TRAINER, _MIXIN = "transformers.trainer:Trainer", "swift.trainers.mixin:SwiftMixin"
_ENGINE, _INFER = "swift.infer_engine:TransformersEngine", "swift.pipelines.infer.infer:SwiftInfer"
_DEPLOY = "swift.pipelines.infer.deploy:SwiftDeploy"
_GENERATION = "transformers.generation.utils:GenerationMixin"
_TUNER_MIXIN = "swift.pipelines.train.tuner:TunerMixin"
_ARGUMENTS = "swift.arguments.base_args.base_args"
_PEFT = "peft.tuners.tuners_utils"

TABLE: dict[str, tuple[HostName, ...]] = {
    # recipes/swift_plugins/training.py
    "training": (
        HostName("transformers.trainer:rotate_checkpoints", _NEWEST),
        HostName(_TRAINER, _NEWEST, mentions="rotate_checkpoints"),
        HostName("transformers.trainer_utils:rotate_checkpoints", _NEWEST, mentions="use_mtime"),
        HostName(f"{_DYNAMIC}:get_cached_module_file", _NO_FOREIGN_CODE),
        HostName(
            f"{_DYNAMIC}:get_class_from_dynamic_module",
            _NO_FOREIGN_CODE,
            mentions="get_cached_module_file",
        ),
        HostName(f"{_LOADER}.default_trust_remote_code", _NO_FOREIGN_CODE),
        HostName(_LOADER, _NO_FOREIGN_CODE, mentions="default_trust_remote_code"),
        HostName(
            "swift.callbacks.deepspeed_elastic:GracefulExitCallback",
            _NO_STOP_FILE,
            mentions="shutdown_manager",
        ),
        HostName(
            "swift.utils.shutdown_manager:ShutdownManager", _NO_STOP_FILE, mentions="_stop_file"
        ),
        HostName(f"{_MIXIN}.prepare_logits_to_keep", _LOGITS, mentions="loss_mask"),
        HostName(f"{_ROWS_OF_DATA}.batched_preprocess", _KEPT, mentions="ignore_max_length_error"),
        HostName("swift.dataset.utils:LazyLLMDataset.__getitem__", _LONG, mentions="encode_func"),
        HostName("swift.template.base:MaxLengthError", _LONG),
        HostName(
            "swift.template.base:Template._encode_truncated", _LONG, mentions="truncation_strategy"
        ),
        HostName(f"{_MIXIN}.log", _RATES, mentions="custom_metrics"),
        HostName("swift.optimizers.multimodal:MultimodalOptimizerCallback", _RATES, "aligner_lr"),
        HostName("transformers.training_args:TrainingArguments.get_warmup_steps", _WARM_UP),
        HostName(_TRAINER, _WARM_UP, mentions="get_warmup_steps"),
        HostName(f"{_META}:get_matched_model_types", _TYPE),
        HostName(f"{_META}:_get_model_info", _TYPE, mentions="get_matched_model_types"),
        HostName(f"{_META}:ModelMeta", _TYPE, mentions="candidate_templates"),
        HostName(
            "swift.template.register:get_template_meta", _TYPE, mentions="candidate_templates"
        ),
    ),
    # recipes/swift_plugins/inference.py and recipes/baselines/mr_lora/swift_plugin.py
    "inference": (
        HostName("accelerate:PartialState._reset_state", _ALL_RANKS),
        HostName(f"{_INFER}.infer_dataset", _ALL_RANKS),
        HostName(_INFER, _ANSWERS, mentions="infer"),
        HostName(_INFER, _ADAPTER_ON, mentions="prepare_model_template"),
        HostName("swift.pipelines.infer.infer:prepare_model_template", _ADAPTER_ON),
        HostName(_ENGINE, _ANSWERS, mentions="strict"),
        HostName(f"{_ENGINE}._infer", _ROWS, mentions="pre_infer_hook"),
        HostName(f"{_ENGINE}._update_metrics", _ANSWERS),
        HostName(f"{_GENERATION}.generate", _ROWS, mentions="custom_generate"),
    ),
    # recipes/swift_plugins/serving.py and recipes/baselines/mr_lora/swift_plugin.py
    "serving": (
        HostName(f"{_DEPLOY}._install_auth_middleware", _KEY, mentions="api_key"),
        HostName(f"{_DEPLOY}._prepare_request_media", _FORM),
        HostName(_DEPLOY, _FORM, mentions="_prepare_request_media"),
        HostName(f"{_DEPLOY}.create_chat_completion", _LIMIT),
        HostName(f"{_DEPLOY}.create_error_response", _LIMIT),
        HostName("swift.template.vision_utils:load_file", _FORM),
        HostName(_DEPLOY, _POOL, mentions="infer_async"),
    ),
    # recipes/swift_plugins/row_generation.py
    "row_generation": (
        HostName(f"{_GENERATION}._prefill", _ROWS),
        HostName(f"{_GENERATION}._update_model_kwargs_for_generation", _ROWS),
        HostName(
            f"{_GENERATION}.prepare_inputs_for_generation", _ROWS, mentions="next_sequence_length"
        ),
        HostName(_GENERATION, _ROWS, mentions="_pad_token_tensor"),
        HostName("transformers.cache_utils:DynamicCache.reorder_cache", _ROWS),
        *(
            HostName(f"transformers.models.{m}.modeling_{m}:{name}", _QWEN, mentions="rope_deltas")
            for m, name in (("qwen2_5_vl", "Qwen2_5_VLModel"), ("qwen3_vl", "Qwen3VLModel"))
        ),
    ),
    # recipes/swift_plugins/resident_models.py and recipes/processes/resident/server.py
    "resident": (
        HostName(f"{_ARGUMENTS}:get_model_processor", _MODELS),
        HostName(
            f"{_ARGUMENTS}:BaseArguments.get_model_processor",
            _MODELS,
            mentions="get_model_processor",
        ),
        HostName("swift.model.utils:get_default_device_map", _MODELS),
        HostName(_TRAINER, _MODELS, mentions="hf_device_map"),
        HostName("swift.utils.logger:logger", "only the first process writes into the log"),
        HostName("swift.utils.logger:ms_logger", "only the first process writes into the log"),
        HostName("atexit:_run_exitfuncs", "a job of the resident host writes what it has to"),
    ),
    # swift_plugins/unread_options.py
    "unread_options": (
        HostName("swift.arguments.tuner_args:TunerArguments", _UNREAD),
        HostName("swift.pipelines.train.tuner:prepare_adapter", _UNREAD),
    ),
    # swift_plugins/routed_tuners.py
    "routed_tuners": (
        HostName("swift.template:TEMPLATE_MAPPING", "the instruction is found in a prompt"),
        HostName(f"{_TUNER_MIXIN}.prepare_model", _TUNER, mentions="prepare_model"),
        HostName(f"{_TUNER_MIXIN}.prepare_model", _TUNER, mentions="from_pretrained"),
        HostName("swift.pipelines.utils:prepare_adapter", _TUNER, mentions="from_pretrained"),
        HostName("swift.tuner_plugin:PeftTuner.save_pretrained", _TUNER, mentions="state_dict"),
        HostName(f"{_ARGUMENTS}:BaseArguments._init_model_kwargs", _OPTIONS, mentions="upper"),
        HostName(f"{_TRAINER}.get_batch_samples", _TOKENS),
        HostName(f"{_TRAINER}._inner_training_loop", _TOKENS),
        HostName(_TRAINER, _TOKENS, mentions="get_batch_samples"),
        HostName(_MIXIN, _METRICS, mentions="custom_metrics"),
        HostName("accelerate:Accelerator", _SCALE, mentions="scaler"),
    ),
    # swift_plugins/master_weights.py
    "master_weights": (
        HostName(f"{_TUNER_MIXIN}.prepare_model", _MASTERS),
        HostName("peft.utils:ModulesToSaveWrapper.update", _MASTERS, mentions="modules_to_save"),
        HostName("transformers.integrations.deepspeed:deepspeed_config", _MASTERS),
    ),
    "step_memory": (
        HostName("transformers:PreTrainedModel.from_pretrained", _SHAPES),
        HostName("transformers:PreTrainedModel._from_config", _SHAPES),
        HostName("torch.utils:swap_tensors", _SHAPES),
        HostName(f"{_MIXIN}._compute_acc", _SHAPES),
    ),
    # methods/ewc/swift_plugin.py
    "ewc": (
        HostName("swift.dataset:LazyLLMDataset", _FISHER),
        HostName("swift.template:Template.forward_context", _FISHER),
        HostName(f"{_TRAINER}._prepare_inputs", _FISHER),
        HostName(f"{_TRAINER}.compute_loss_context_manager", _FISHER),
        HostName(_MIXIN, _METRICS, mentions="custom_metrics"),
        HostName("accelerate:Accelerator", _SCALE, mentions="scaler"),
    ),
    # methods/lwf/swift_plugin.py
    "lwf": (
        HostName(
            "swift.trainers.seq2seq_trainer:Seq2SeqTrainer.compute_loss",
            _FOLLOWED,
            mentions="compute_sft_loss",
        ),
        HostName(_MIXIN, _METRICS, mentions="custom_metrics"),
    ),
    # Both, and only where DeepSpeed runs.
    "deepspeed": (
        HostName(
            "deepspeed.runtime.engine:DeepSpeedEngine.forward",
            _MASTERS,
            mentions="autocast_if_enabled",
        ),
        HostName("deepspeed.runtime.engine:DeepSpeedEngine.backward", _FISHER, "scale_wrt_gas"),
        HostName("deepspeed.runtime.zero.partition_parameters:Init", _SHARDED, mentions="ds_id"),
        HostName("deepspeed.runtime.zero.partition_parameters:Init", _SHARDED, mentions="ds_shape"),
        HostName("deepspeed:zero.GatheredParameters", _SHARDED),
    ),
    # The tuner itself, also without ms-swift: hooks of PEFT that we override.
    "peft": (
        HostName(f"{_PEFT}:BaseTuner._pre_injection_hook", _PROMPT),
        HostName(f"{_PEFT}:BaseTuner._post_injection_hook", _PROMPT),
        HostName(f"{_PEFT}:BaseTuner.inject_adapter", _LAYERS),
        HostName(f"{_PEFT}:BaseTuner._check_new_adapter_config", _LAYERS),
        HostName(f"{_PEFT}:BaseTuner._create_and_replace", _LAYERS),
        HostName(f"{_PEFT}:BaseTuner._replace_module", _LAYERS),
        HostName(f"{_PEFT}:BaseTuner._prepare_model", _CHECKED),
        HostName(f"{_PEFT}:check_target_module_exists", _CHECKED),
        HostName(f"{_PEFT}:_ExcludedModule", _CHECKED),
        HostName(f"{_PEFT}:BaseTunerLayer._freeze_non_trainable_peft_weights", _FROZEN),
        HostName(f"{_PEFT}:BaseTunerLayer._move_adapter_to_device_of_base_layer", _LAYERS),
        HostName("peft:PeftConfig.from_peft_type", _UNKNOWN, mentions="config_cls"),
        HostName("transformers:PreTrainedModel._load_pretrained_model", _INSIDE),
        HostName(
            "transformers:PreTrainedModel.load_adapter", _INSIDE, mentions="_load_pretrained_model"
        ),
        HostName("transformers.modeling_utils:LoadStateDictInfo", _INSIDE),
        HostName("transformers.modeling_utils:load_state_dict", _INSIDE),
    ),
}


def check(*groups: str) -> None:
    """Returns if the installed host has all names of these groups of :data:`TABLE`.

    Raises:
        ImportError: names the versions, every name that is missing, and what it protects.
    """
    names = [name for group in groups for name in TABLE[group]]
    missing = [name for name in names if not _present(name)]
    if missing:
        raise ImportError(
            f"the installed host ({_versions()}) lacks names that this project needs:\n  "
            + "\n  ".join(map(str, missing))
            + "\nInstall the versions of requirements.txt: python -m pip install -r "
            "requirements.txt"
        )


def replace(path: str, value: Any) -> Any:
    """Puts `value` in the place of a name of the host; returns what was there, None for nothing.

    Args:
        path: that of an entry of :data:`TABLE`; or `path.mentions` of one, for a name that a class
            gets from its instances (`SwiftInfer.infer`): it is set on the class.
        value: what the host shall use.

    Raises:
        KeyError: the table does not have the name, so that no :func:`check` protects it.
        ImportError: the host does not have it.
    """
    names = [name for group in TABLE.values() for name in group]
    chosen = [name for name in names if path in (name.path, f"{name.path}.{name.mentions}")]
    if not chosen:
        raise KeyError(f"{path} is not in the table of {__name__}: add it there first")
    if not all(map(_present, chosen)):
        raise ImportError(f"the installed host ({_versions()}) lacks {chosen[0]}")
    module, _, inside = path.partition(":")
    owner, _, last = inside.rpartition(".")
    holder = resolve_name(f"{module}:{owner}")
    before = getattr(holder, last, None)
    setattr(holder, last, value)
    return before


def _present(name: HostName) -> bool:
    try:
        found = resolve_name(name.path)
    except (ImportError, AttributeError):
        return False
    return not name.mentions or name.mentions in set(_words(found))


def _words(found: Any) -> Iterator[str]:
    """Yields the names that the code of a function, or of all methods of a class, mentions."""
    if inspect.isclass(found):
        for kind in found.__mro__[:-1]:
            for member in vars(kind).values():
                if not inspect.isclass(member):
                    yield from _words(member)
        return
    function = getattr(found, "fget", None) or inspect.unwrap(getattr(found, "__func__", found))
    # A decorator that does not say what it wraps (DeepSpeed's) holds it in a closure.
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    for code in [getattr(part, "__code__", None) for part in (function, *cells)]:
        if isinstance(code, CodeType):
            yield from _words_of_code(code)


def _words_of_code(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_varnames, *code.co_cellvars, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _words_of_code(constant)
        elif isinstance(constant, tuple):  # names of keyword arguments
            yield from (word for word in constant if isinstance(word, str))


def _versions() -> str:
    return ", ".join(f"{name} {_version(name)}" for name in PACKAGES)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
