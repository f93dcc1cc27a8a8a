"""How much memory and time a run takes, by stated formulas. Everything here is an estimate.

The formulas count floating-point operations and bytes; how much of its peak a GPU reaches is
assumed (`UTILISATION`), not measured. plan.py replaces times by measured ones as soon as a
run has finished chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipes.config.model_sizes import Shape
from recipes.config.schema import Recipe
from strlora_tuner.options import Size

GIB = 2**30
UTILISATION = 0.3  # share of the peak that training reaches; assumed
DECODE_SHARE = 0.25  # share of the memory bandwidth that generation reaches; assumed
ANSWER_TOKENS = 16  # length of an answer; assumed, most tasks want a word
START_SECONDS = 60.0  # process start, imports and loading of the model, each time; assumed


@dataclass(frozen=True)
class Gpu:
    """Memory in GiB, dense bfloat16 peak in TFLOP/s and bandwidth in GB/s, by the data sheet."""

    name: str
    memory: float
    tflops: float
    bandwidth: float


GPUS: tuple[Gpu, ...] = (
    Gpu("B200", 179, 2250, 8000),
    Gpu("H200", 139, 989, 4800),
    Gpu("H100", 79, 989, 3350),
    Gpu("A100", 79, 312, 2039),
    Gpu("L40S", 45, 362, 864),
    Gpu("A6000", 47, 155, 768),
    Gpu("4090", 23, 165, 1008),
    Gpu("3090", 23, 71, 936),
)


def find_gpu(name: str) -> Gpu | None:
    """The GPU whose name is in `name` ("NVIDIA H100 80GB HBM3"), or None."""
    wanted = name.lower().replace("-", "").replace(" ", "")
    return next((gpu for gpu in GPUS if gpu.name.lower() in wanted), None)


def memory_parts(recipe: Recipe, shape: Shape, adapter: Size) -> dict[str, float]:
    """GiB that one process needs while it trains, part by part.

    base        parameters x bytes of the dtype; divided by the processes under ZeRO-3
    adapter     4 bytes a trained parameter (float32), divided by the processes under ZeRO-3
    gradients   4 bytes a trained parameter, divided by the processes under ZeRO-2 and 3
    optimizer   8 bytes a trained parameter (two AdamW moments), divided likewise
    activations with checkpointing one hidden state a layer and one layer in full: 34 H bytes a
                token at 2 bytes a number (Korthikanti et al. 2022, eq. 2, without the scores, which
                sdpa does not keep); without it every layer in full
    overhead    CUDA context, kernels' workspaces, fragmentation: 2 GiB on a GPU, assumed
    logits      vocabulary x 4 bytes x 2 for the longest answer, 256 tokens a sample at most
    ewc         4 bytes a trained parameter for each of theta*, the pull and, unless it is the
                released form, the Fisher information
    """
    world = recipe.launcher.nproc * recipe.launcher.nodes
    zero = (recipe.launcher.deepspeed or "").lower()
    sliced = world if "zero3" in zero or "zero2" in zero else 1
    bytes_each = 4 if recipe.model.dtype == "float32" else 2
    rows = recipe.schedule.per_device_batch
    tokens = rows * recipe.model.max_length
    full_layer = tokens * 34 * shape.hidden * bytes_each / 2
    stored = shape.layers * tokens * shape.hidden * bytes_each + full_layer
    checkpointed = recipe.swift.get("gradient_checkpointing", True)
    ewc = 0 if recipe.ewc is None else 8 if recipe.ewc.released else 12
    parts = {
        "base": shape.parameters * bytes_each / (world if "zero3" in zero else 1) / GIB,
        "adapter": adapter.trained * 4 / (world if "zero3" in zero else 1) / GIB,
        "gradients": adapter.trained * 4 / sliced / GIB,
        "optimizer": adapter.trained * 8 / sliced / GIB,
        "activations": (stored if checkpointed else shape.layers * full_layer) / GIB,
        "overhead": 0.0 if recipe.launcher.cpu else 2.0,
        "logits": min(tokens, rows * 256) * shape.vocabulary * 4 * 2 / GIB,
    }
    return {**parts, "ewc": adapter.trained * ewc / GIB} if ewc else parts


def train_flops(recipe: Recipe, shape: Shape, adapter: Size, tokens: float) -> float:
    """Operations that train on `tokens` tokens.

    A frozen base costs 2 P a token forward and 2 P backward (no gradient for its weights), 2 P more
    with gradient checkpointing; the adapter costs 6 P, all experts being computed; the frozen
    tower 2 P for each token of an image, counted as if every token were one.
    """
    base = 6 if recipe.swift.get("gradient_checkpointing", True) else 4
    per_token = base * shape.language + 6 * adapter.trained + 2 * shape.vision
    return per_token * tokens


def train_seconds(recipe: Recipe, shape: Shape, adapter: Size, gpu: Gpu, tokens: float) -> float:
    """Seconds to train one chunk of `tokens` tokens on all GPUs of the recipe, start included."""
    rate = gpu.tflops * 1e12 * UTILISATION * recipe.launcher.nproc * recipe.launcher.nodes
    return START_SECONDS + train_flops(recipe, shape, adapter, tokens) / rate


def evaluation_seconds(
    recipe: Recipe, shape: Shape, gpu: Gpu, prompts: int, tokens: float
) -> float:
    """Seconds to answer `prompts` questions of `tokens` tokens each on one node.

    Reading a prompt costs 2 P a token; each generated token reads all language weights once a
    batch. StrLoRA adds its routers' small kernels to every layer, which is not counted.
    """
    processes = recipe.launcher.nproc
    rate = gpu.tflops * 1e12 * UTILISATION * processes
    reading = 2 * (shape.language + shape.vision) * tokens * prompts / rate
    weights = shape.language * (4 if recipe.model.dtype == "float32" else 2)
    step = weights / (gpu.bandwidth * 1e9 * DECODE_SHARE)
    answers = min(ANSWER_TOKENS, recipe.eval.max_new_tokens)
    batches = prompts / processes / recipe.eval.batch_size
    return START_SECONDS + reading + batches * answers * step
