"""Switches parts of the router off at evaluation, to measure what each stage is worth.

`STRLORA_ABLATION=<name>` in the environment of `swift infer` does it for a loaded adapter; the
adapter's files are never changed.
"""

from __future__ import annotations

import copy
import re

import torch
from torch import nn

from strlora_tuner.methods.strlora.layer import MixtureOfExperts
from strlora_tuner.training_loop import tuner_of

STAGE1_OFF, STAGE2_UNIFORM = "stage1_off", "stage2_uniform"
_WITHOUT = re.compile(r"without_expert_(\d+)")


def ablation_names(num_experts: int) -> list[str]:
    """Returns all ablations of an adapter with `num_experts` experts, numbered from 0."""
    return [STAGE1_OFF, STAGE2_UNIFORM, *(f"without_expert_{e}" for e in range(num_experts))]


@torch.no_grad()
def ablate(model: nn.Module, name: str) -> None:
    """Switches one part of the active adapter's routers off, in memory.

    stage1_off: the instruction chooses nothing: all experts are kept, no prior, stage 2 weighs all
    of them (as softly or as hard as it weighed the kept ones).
    stage2_uniform: tokens choose nothing: every kept expert has the weight 1 / k.
    without_expert_<e>: expert e does not exist: stage 1 keeps the best of the others, gates are
    renormalised over them, so that its gate is 0 and the gates still sum to 1.

    Args:
        model: a model with a StrLoRA adapter.
        name: one of `ablation_names`.

    Raises:
        ValueError: another name, an expert that the adapter does not have, or its only one; an
            adapter of another method.
    """
    mixtures = [mixture for _, mixture in tuner_of(model).mixtures()]
    if not isinstance(mixtures[0], MixtureOfExperts):
        raise ValueError(f"ablation {name!r}: only the stages of a StrLoRA adapter can be switched")
    experts = mixtures[0].config.num_experts
    known = ablation_names(experts)
    if name not in known:
        raise ValueError(f"ablation {name!r}: expected one of {', '.join(known)}")
    match = _WITHOUT.fullmatch(name)
    if match and experts == 1:
        raise ValueError(f"ablation {name!r}: the adapter has no other expert")
    for mixture in mixtures:
        if match:
            mixture.without = int(match[1])
        else:
            _switch_stage_off(mixture, name)


def _switch_stage_off(mixture: MixtureOfExperts, name: str) -> None:
    # A copy: the configuration object is shared with PEFT, which may save it.
    config = copy.copy(mixture.config)
    config.task_router = "frozen"  # no prior: it is stage 1's part in stage 2
    if name == STAGE1_OFF:
        soft = config.token_top_k >= config.top_k
        config.top_k = config.num_experts
        config.token_top_k = config.num_experts if soft else config.token_top_k
    else:
        config.token_top_k = config.top_k
        mixture.query.zero_()  # every score is 0
    mixture.config = config
