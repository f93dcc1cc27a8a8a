"""Run folders of earlier versions: the plug-in files that their adapters name have moved since.

The host writes into every adapter and checkpoint (args.json) which plug-ins it was made with, and
imports those when it loads one without `--external_plugins`: a user's own `swift infer --adapters`.
The orchestrator always names the plug-ins itself.
"""

from __future__ import annotations

from data_prep.files import read_json, write_json
from recipes import REPO
from recipes.run_folder.layout import RunLayout

# Where a plug-in was in earlier versions -> where it is.
MOVED_PLUGINS = {
    "strlora_tuner/strlora_swift_plugin.py": "strlora_tuner/swift_plugins/routed_tuners.py",
    "strlora_tuner/ewc_swift_plugin.py": "strlora_tuner/methods/ewc/swift_plugin.py",
    "recipes/strlora_host_plugin.py": "recipes/swift_plugins/training.py",
    "recipes/strlora_infer_plugin.py": "recipes/swift_plugins/inference.py",
    "recipes/strlora_pool_plugin.py": "recipes/baselines/mr_lora/swift_plugin.py",
}


def migrate_plugin_paths(layout: RunLayout) -> None:
    """Name today's plug-in files in every args.json of a run folder; repeating it is harmless.

    Only files of ours that moved are renamed: also those of another clone, which had them at the
    same places.
    """
    patterns = ("chunks/*/*/args.json", "chunks/*/*/checkpoint-*/args.json")
    for path in (found for pattern in patterns for found in layout.root.glob(pattern)):
        arguments = read_json(path)
        plugins = arguments.get("external_plugins") or []
        today = [_moved(plugin) for plugin in plugins]
        if today != plugins:
            write_json(path, {**arguments, "external_plugins": today}, allow_nan=True)


def _moved(plugin: str) -> str:
    for before, now in MOVED_PLUGINS.items():
        if plugin.endswith(f"/{before}"):
            return str(REPO / now)
    return plugin
