"""`export`: a run's adapter, or base model and adapter in one, as a folder for others."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from PIL import Image

from data_prep.files import read_json, write_json, write_text
from eval.report.model_card import Published, card_after
from recipes import REPO
from recipes.processes.command import Arguments, Command, flags
from recipes.processes.host_process import HostProcess
from recipes.processes.log_errors import cause_of, exit_text
from recipes.processes.machine import versions
from recipes.run.commands import HOST_PLUGIN
from recipes.run_folder.manifest import read_manifest
from recipes.run_folder.whole_folder import whole_folder
from recipes.use.ask import ask
from recipes.use.finished_adapter import FinishedAdapter, UseError
from recipes.use.instruction_scope import pictures_of, scope, scope_text
from strlora_tuner.methods import LORA
from strlora_tuner.options import LORA_FOLDER
from strlora_tuner.saved import CONFIG, WEIGHTS

SIGNED = "strlora_signed"
LICENCE_NAMES = ("licen", "notice", "copying")
VERSIONS = "versions.json"


def export(
    adapter: FinishedAdapter,
    target: Path,
    merged: bool = False,
    base_name: str | None = None,
    licence: str | None = None,
    instruction: str | None = None,
) -> list[str]:
    """Writes the folder, whole or not at all; returns lines that say what is in it.

    Args:
        adapter: a chunk's.
        target: a folder that is not there yet, or is empty.
        merged: one whole model instead of the adapter.
        base_name: how others get the base model; None: the hub's id, else its folder's name.
        instruction: of method strlora_signed, the plain LoRA that the adapter is for prompts of
            exactly this text, with <image> marks where their pictures stand.
        licence: of the base model; None: what the model's own card says.

    Raises:
        UseError: there is nothing to export, the folder is not empty, or the method cannot be
            merged.
    """
    _check(adapter, target, merged, instruction)
    model = Path(adapter.recipe.model.path)
    local = adapter.recipe.model.is_local
    name = base_name or (model.name if local else str(model))
    licence = licence or _licence(model)
    with whole_folder(target) as folder:
        if merged:
            _merge(adapter, folder)
        else:
            _copy_adapter(adapter, folder, name, instruction)
        for file in model.iterdir() if model.is_dir() else ():
            if file.is_file() and file.name.lower().startswith(LICENCE_NAMES):
                shutil.copyfile(file, folder / file.name)
        prompts = None if instruction is None else scope(adapter, instruction)
        published = Published(name, licence, merged, prompts)
        write_text(folder / "README.md", card_after(adapter.layout.root, adapter.chunk, published))
        recorded = read_manifest(adapter.layout).get("versions", {})
        write_json(folder / VERSIONS, {"trained_with": recorded, "exported_with": versions()})
    lines = _summary(adapter, target, name, licence, local and not base_name and not merged)
    return lines + ([] if instruction is None else [scope_text(adapter, instruction)])


def _check(adapter: FinishedAdapter, target: Path, merged: bool, instruction: str | None) -> None:
    recipe = adapter.recipe
    if adapter.chunk == 0:
        raise UseError("nothing to export: no chunk is trained, and the base model is not ours")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UseError(f"--to {target}: it is not empty; name a new folder")
    if instruction is not None and (merged or recipe.tuner_type != SIGNED):
        found = "--merged" if merged else f"method {recipe.method}"
        raise UseError(
            f"--instruction with {found}: only an adapter of {SIGNED}, whose gates depend on the "
            "instruction alone, is a plain LoRA for one instruction, and it is written unmerged; "
            "leave --instruction out"
        )
    if merged and recipe.tuner_type != LORA:
        raise UseError(
            f"--merged: a {recipe.method} adapter cannot be merged. Its experts get other weights "
            "for every question and token, and merged weights are the same for all. Leave --merged "
            "out and serve the adapter (`run_stream.sh serve`), or train method=lora to merge"
        )
    if recipe.pool is not None and (merged or adapter.chunk > 1):
        raise UseError(
            f"{recipe.method} answers with {adapter.chunk} adapters and a router that chooses one "
            "for each question: one of them alone is another model. Serve the run "
            "(`run_stream.sh serve`) or pass on its whole folder"
        )


def _copy_adapter(
    adapter: FinishedAdapter, folder: Path, base: str, instruction: str | None
) -> None:
    source = adapter.layout.adapter(adapter.chunk)
    if instruction is not None:
        source = folder / ".lora"
        _write_lora(adapter, source, instruction)
    shutil.copyfile(source / WEIGHTS, folder / WEIGHTS)
    # A folder of this machine is of no use to others.
    write_json(folder / CONFIG, {**read_json(source / CONFIG), "base_model_name_or_path": base})
    if instruction is not None:
        shutil.rmtree(source)


def _write_lora(adapter: FinishedAdapter, folder: Path, instruction: str) -> None:
    """Has the host read one prompt of the instruction, and keeps the LoRA that it then is."""
    count = pictures_of(adapter, instruction)
    with tempfile.TemporaryDirectory() as place:
        blank = Path(place) / "blank.png"
        Image.new("RGB", (64, 64), "white").save(blank)
        # One token at most: by the first the prompt has been read, which is all that is asked for.
        ask(adapter, instruction, [blank] * count, 1, {LORA_FOLDER: str(folder.resolve())})
    if not (folder / WEIGHTS).is_file():
        raise UseError("the host read the instruction, but left no adapter")


def _merge(adapter: FinishedAdapter, folder: Path) -> None:
    """Has the host write base model, adapter merged in, and processor into an empty folder."""
    recipe = adapter.alone
    folder.rmdir()  # the host makes it
    arguments: Arguments = {
        "model": recipe.model.path,
        "torch_dtype": recipe.model.dtype,
        "adapters": str(adapter.layout.adapter(adapter.chunk)),
        "merge_lora": True,
        "output_dir": str(folder),
        "external_plugins": str(HOST_PLUGIN),
    }
    environment = {"PYTHONPATH": str(REPO), "HF_HUB_DISABLE_TELEMETRY": "1"}
    if recipe.model.is_local:
        environment["HF_HUB_OFFLINE"] = "1"
    if recipe.launcher.cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with adapter.beside() as layout:
        log = layout.eval_log(adapter.chunk)
        code = HostProcess(Command("export", flags(arguments), environment), log).wait()
        if code or not (folder / "config.json").is_file():
            raise UseError(f"the host {exit_text(code)} while merging:\n{cause_of(log)}")
    for left in ("args.json", "README.md"):  # of this machine, and the base model's own card
        (folder / left).unlink(missing_ok=True)


def _licence(model: Path) -> str | None:
    """What the front matter of a local model's own card says of its licence."""
    from huggingface_hub import metadata_load

    card = model / "README.md"
    named = (metadata_load(card) or {}).get("license") if card.is_file() else None
    return named if isinstance(named, str) else None


def _summary(
    adapter: FinishedAdapter, target: Path, name: str, licence: str | None, nameless: bool
) -> list[str]:
    files = sorted(target.iterdir())
    size = sum(file.stat().st_size for file in files) / 2**20
    lines = [
        f"{target}: chunk {adapter.chunk} of {adapter.recipe.name}, {size:.1f} MiB: "
        + ", ".join(file.name for file in files),
        f"base model: {name}; its licence: {licence or 'not known here, --licence NAME tells it'}",
    ]
    if nameless:
        lines.append(
            "The base model is a folder of this machine: --base-name OWNER/NAME tells others where "
            "to get it, else they set BASE in the card's code to their own copy"
        )
    config = read_json(target / CONFIG) if (target / CONFIG).is_file() else {}
    if config.get("peft_type") == "LORA" and (whole := config.get("modules_to_save")):
        lines.append(
            f"beside LoRA it holds {', '.join(whole)} whole (modules_to_save): PEFT and ms-swift "
            "load that, vLLM does not"
        )
    return lines
