"""The ms-swift side of our tuners: `--external_plugins <this file> --tuner_type strlora`.

It registers a tuner for StrLoRA and each folder of methods/ (prepare, save, load), and a callback
(`--callbacks strlora`, for all of them: moving averages, statistics, loss scale, metrics, and the
checks that refuse a run in which the adapter would do nothing).
"""

from __future__ import annotations

import json
import os
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model
from swift.callbacks import callbacks_map
from swift.callbacks.base import TrainerCallback
from swift.template import TEMPLATE_MAPPING
from swift.tuner_plugin import PeftTuner, tuners_map
from swift.utils import get_logger, get_multimodal_target_regex
from torch import Tensor, nn

from strlora_tuner import host_api
from strlora_tuner.core.carry import carried_config, check_teacher, options_from_environment
from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.core.expert_bank import several_processes, sum_over_processes
from strlora_tuner.core.instruction.joined_text import picture_ids
from strlora_tuner.core.instruction.marks import TurnMarks, turn_marks
from strlora_tuner.core.routing_metrics import StepMetrics
from strlora_tuner.core.sharded import whole
from strlora_tuner.methods import config_class, folders
from strlora_tuner.methods.strlora.ablation import ablate
from strlora_tuner.methods.strlora_signed.one_instruction import write_after_prompt
from strlora_tuner.options import ABLATION, LORA_FOLDER, ROUTING_FILE, options_from_host
from strlora_tuner.routing_record.file import record_routing
from strlora_tuner.swift_plugins import master_weights as master_weights
from strlora_tuner.swift_plugins.unread_options import refuse_unread_options
from strlora_tuner.training_loop import after_optimizer_step, tuner_of

host_api.check("routed_tuners")
logger = get_logger()


def _refuse_sequence_parallel(args: Any) -> None:
    if (getattr(args, "sequence_parallel_size", 1) or 1) > 1:
        raise ValueError(
            f"--sequence_parallel_size {args.sequence_parallel_size}: a rank would see only "
            "part of the instruction; a routed tuner needs 1"
        )


def _refuse_vision(args: Any, model: Any) -> None:
    if model.model_meta.is_multimodal and not getattr(args, "freeze_vit", True):
        raise ValueError(
            "--freeze_vit false: the vision tower sees no instruction, so its layers cannot be "
            "routed; keep it frozen, or train it in full with --modules_to_save"
        )


def _turn_marks(args: Any, tokenizer: Any) -> TurnMarks:
    """Returns the token ids that open and close a user's turn in the host's chat template."""
    meta = TEMPLATE_MAPPING[args.template]

    def written(pieces: Any) -> str:
        return "".join(piece for piece in pieces or () if isinstance(piece, str))

    text = written(meta.prompt)
    if "{{QUERY}}" not in text:
        raise ValueError(
            f"--template {args.template}: its prompt {meta.prompt} marks no place for the user's "
            "text, so the instruction cannot be found; use a chat template"
        )
    before, after = text.split("{{QUERY}}", 1)
    marker = after.split("\n", 1)[0] or after
    system = written(meta.system_prefix).replace("{{SYSTEM}}", "a")
    marks = turn_marks(tokenizer, before, marker, (system, f"a{written(meta.chat_sep)}"))
    if not marks.start or not marks.end:
        raise ValueError(
            f"--template {args.template}: nothing stands before or after the user's text "
            f"({before!r}, {marker!r}), so that instruction and answer cannot be separated; use a "
            "chat template"
        )
    return marks


def _ignored_ids(tokenizer: Any, model: Any) -> list[int]:
    """Returns ids that are never instruction text: special tokens and image placeholders."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    ids = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    return sorted(ids | picture_ids(model.config))


def _full_modules(args: Any, model: Any) -> list[str]:
    """Returns the modules to train in full: --modules_to_save, and with --freeze_aligner false."""
    named = list(getattr(args, "modules_to_save", None) or [])
    if getattr(args, "freeze_aligner", True) or not model.model_meta.is_multimodal:
        return named
    names = set(model.model_meta.model_arch.aligner)
    modules = dict(model.named_modules())
    missing = sorted(names - modules.keys())
    if missing:
        raise ValueError(f"--freeze_aligner false: the model has no modules {missing}")
    return sorted({*names, *named})


def _report(model: nn.Module, what: str) -> None:
    tuner = tuner_of(model)
    layers = sum(1 for _ in tuner.routed_layers())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info(
        f"{tuner.own_config.method}: {what}, {layers} layers routed, {trainable:,} parameters train"
    )


def _interrupted(checkpoint: Path) -> bool:
    """Whether `checkpoint` was saved inside a chunk, which the host now resumes."""
    path = checkpoint / "trainer_state.json"
    if not path.is_file():
        return False
    state = json.loads(path.read_text(encoding="utf-8"))
    return bool(state["global_step"] < state["max_steps"])


class RoutedTuner(PeftTuner):
    """Creates, saves and loads adapters of one method for the host."""

    config_class: type[RoutedConfig]

    @classmethod
    def prepare_model(cls, args: Any, model: Any) -> nn.Module:  # type: ignore[override]
        """Returns `model` with a fresh adapter on the linear layers of its language model."""
        _refuse_sequence_parallel(args)
        _refuse_vision(args, model)
        refuse_unread_options(args)
        options = options_from_host(
            args.model_kwargs,
            cls.config_class.options_class,
            rank=args.lora_rank,
            alpha=args.lora_alpha,
            dropout=args.lora_dropout,
        )
        processor = args.get_model_processor(load_model=False)[1]
        tokenizer = getattr(processor, "tokenizer", processor)
        marks = _turn_marks(args, tokenizer)
        targets = args.target_modules
        if isinstance(targets, list) and "all-linear" in targets:
            targets = get_multimodal_target_regex(model) if model.model_meta.is_multimodal else None
        if targets is None:
            targets = r".*\.(?:[qkvo]_proj|gate_proj|up_proj|down_proj)"
        config = cls.config_class.from_options(
            options,
            task_type=args.task_type.upper(),
            target_modules=targets,
            modules_to_save=_full_modules(args, model) or None,
            turn_start=marks.start,
            turn_start_also=marks.also,
            turn_end=marks.end,
            ignored_ids=_ignored_ids(tokenizer, model),
            pad_id=tokenizer.pad_token_id,
        )
        wrapped = get_peft_model(model, config)
        _report(wrapped, "new adapter")
        return wrapped

    @staticmethod
    def save_pretrained(
        model: Any,
        save_directory: str,
        state_dict: dict[str, Tensor] | None = None,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Saves the adapter; `state_dict` holds gathered tensors under ZeRO-3 and must be used."""
        kwargs.setdefault("selected_adapters", ["default"])
        model.save_pretrained(
            save_directory, state_dict=state_dict, safe_serialization=safe_serialization, **kwargs
        )

    @classmethod
    def from_pretrained(cls, model: Any, model_id: str, **kwargs: Any) -> nn.Module:  # type: ignore[override]
        """Returns `model` with the saved adapter; in training with this run's schedule applied."""
        config = cls.config_class.from_pretrained(model_id)
        trainable = bool(kwargs.get("is_trainable", False))
        require_teacher = False
        if trainable:
            options = options_from_environment(os.environ, config.options_class, config.r)
            config, require_teacher = carried_config(config, options, model_id)
        wrapped = PeftModel.from_pretrained(model, model_id, config=config, **kwargs)
        tuner = tuner_of(wrapped)
        if require_teacher:
            check_teacher(tuner, model_id)
        # A chunk that is resumed has begun before: its adapter holds what that adds.
        if trainable and not _interrupted(Path(model_id)):
            tuner.begin_chunk()
        if not trainable and os.environ.get(ABLATION):
            ablate(wrapped, os.environ[ABLATION])
            logger.info(f"ablation {os.environ[ABLATION]}")
        if not trainable and os.environ.get(ROUTING_FILE):
            record_routing(wrapped, os.environ)
        if not trainable and os.environ.get(LORA_FOLDER):
            write_after_prompt(wrapped, Path(os.environ[LORA_FOLDER]))
        _report(wrapped, f"adapter loaded from {model_id}")
        return wrapped


class RoutedCallback(TrainerCallback):
    """Keeps the carried state, scales the stability term like the main loss, logs, and refuses."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(args, trainer)
        self._collect = trainer.get_batch_samples
        trainer.get_batch_samples = self._get_batch_samples
        self._checked = False
        self._metrics = StepMetrics()

    def _tuner(self) -> Any:
        return tuner_of(self.trainer.model)

    def _get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The host's own, plus a count of the tokens that one optimizer step will average over."""
        samples, items = self._collect(*args, **kwargs)
        tuner = self._tuner()
        config = tuner.own_config
        world = self.args.world_size
        total = None
        if config.side_loss_reduction == "mean" and samples:
            masks = [_counted(sample, config.padding) for sample in samples]
            count = torch.stack([mask.sum() for mask in masks]).sum().to(self.args.device).float()
            # Gradients are averaged over processes, and the mean is over all tokens.
            total = sum_over_processes(count) / world
        tuner.routing.step_tokens = total
        # A sum loses its number of processes in that average, and gets it back here.
        tuner.routing.loss_scale = self._loss_scale() * (world if total is None else 1)
        return samples, items

    def _loss_scale(self) -> float:
        accelerator = self.trainer.accelerator
        if getattr(self.args, "fp16", False) and self.trainer.is_deepspeed_enabled:
            raise ValueError(
                "--fp16 true with DeepSpeed: its dynamic loss scale cannot be applied to the "
                "stability term; use --bf16 true or --torch_dtype float32"
            )
        # Every gradient is divided by it before the step, also those that the layers inject.
        scaler = getattr(accelerator, "scaler", None)
        return float(scaler.get_scale()) if scaler is not None else 1.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the carried buffers equal on all ranks: DeepSpeed broadcasts parameters only."""
        if self.trainer.is_deepspeed_enabled:
            host_api.check("deepspeed")
        tuner = self._tuner()
        tuner.model.register_forward_hook(self._after_forward)
        if several_processes():
            for name, buffer in tuner.named_buffers():
                if ".strlora_" in f".{name}":
                    dist.broadcast(buffer, 0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Records the gates in the steps that will be logged."""
        self._tuner().routing.recording = self._logs(state.global_step + 1)

    def _after_forward(self, *_: Any) -> None:
        # Of the whole model: layers run again under checkpointing, this does not.
        tuner = self._tuner()
        routing, adapter = tuner.routing, tuner.active_adapters[0]
        if routing.recording and routing.training and routing.has_routed(adapter):
            self._metrics.add(tuner, routing.tokens("mask"))

    def _logs(self, step: int) -> bool:
        every = self.args.logging_steps
        return step == 1 or (every >= 1 and step % int(every) == 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer step: moves the teacher, merges statistics, logs, checks once."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if not self._checked:
            self._check_alive()
            self._checked = True
        tuner = self._tuner()
        moves, banks = tuner.moves_parameters, [bank for _, bank in tuner.mixtures()]
        read = chain.from_iterable(b.parameters() if moves else b.routers() for b in banks)
        with whole(read, modifier_rank=0 if moves else None):
            after_optimizer_step(model)
        if self._logs(state.global_step):
            metrics = self.trainer.custom_metrics["train"]
            for name, value in self._metrics.take().items():
                metrics[name].update(value)

    def _check_alive(self) -> None:
        tuner = self._tuner()
        adapter = tuner.active_adapters[0]
        if not tuner.routing.has_routed(adapter):
            raise RuntimeError(
                "the first training step ran without the adapter: no routed layer was called; "
                "check that target_modules names layers of this model's language model"
            )
        tuner.check_alive()


def _counted(sample: dict[str, Any], padding: str) -> Tensor:
    mask = sample.get("attention_mask")
    if padding == "mask" and isinstance(mask, Tensor) and mask.dim() == 2:
        return mask
    return torch.ones_like(sample["input_ids"])


for method in folders():
    own = {"config_class": config_class(method)}
    tuners_map[method] = type(f"{method.capitalize()}Tuner", (RoutedTuner,), own)
callbacks_map["strlora"] = RoutedCallback
