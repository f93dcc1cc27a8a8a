"""The optimizer's state from chunk to chunk: what the orchestrator keeps, names and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.run.commands import OPTIMIZER_STATE, train_command
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import load_state
from recipes.tools.clean import clean
from recipes.tools.status import verify
from tests.recipes.fake_run import finish
from tests.recipes.toy import recipe_values, write_model, write_recipe, write_stream


def write(folder: Path, **changes: Any) -> Path:
    if not (folder / "stream").is_dir():
        write_stream(folder / "stream")
        write_model(folder / "model")
    values = recipe_values(folder / "stream", folder / "run", folder / "model", method="lora")
    values["schedule"]["later"]["optimizer_state"] = "keep"
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return write_recipe(folder / "recipe.yaml", values)


def named(recipe: Any, chunk: int, resume: Path | None = None) -> str | None:
    layout = RunLayout(Path(recipe.folder))
    command = train_command(recipe, layout, Path("c.jsonl"), chunk, resume)
    assert "keep_optimizer_state" in command.arguments
    return command.environment.get(OPTIMIZER_STATE)


def test_the_state_lies_beside_the_adapter(tmp_path: Path) -> None:
    path = write(tmp_path)
    code, _, err = finish(path)
    assert code == 0, err
    recipe, run = load_recipe(str(path)), tmp_path / "run"
    states = [run / f"chunks/00{chunk}/adapter/optimizer.pt" for chunk in (1, 2)]
    assert named(recipe, 1) is None
    assert named(recipe, 2) == str(states[0])
    assert named(recipe, 2, Path("checkpoint-1")) is None, "a checkpoint has a state of its own"
    assert "optimizer.pt" in load_state(run / "state.json").record(1).adapter_sha256
    assert not (run / "chunks/001/adapter/scheduler.pt").exists()
    assert list(verify(recipe)) == []

    content = states[1].read_bytes()
    states[1].write_bytes(content[:-3])
    assert [text for text in verify(recipe) if f"{states[1]} was changed after" in text]
    states[1].write_bytes(content)
    list(clean(recipe, remove=True, old_adapters=True))
    assert [state.exists() for state in states] == [False, True]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"launcher": {"deepspeed": "zero2"}}, "launcher.deepspeed: each process holds a part"),
        ({"swift": {"fsdp": "fsdp2"}}, "swift.fsdp: each process holds a part"),
        ({"method": "olora"}, "method = olora, where no chunk goes on"),
        ({"method": "joint"}, "method = joint, where no chunk goes on"),
        ({"method": "strlora_released"}, "routers that freeze from chunk 5 on"),
        ({"slow_weights": {"start_next_from": "slow"}}, "slow_weights.start_next_from = slow"),
    ],
)
def test_where_it_cannot_be_had_it_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(str(write(tmp_path, **changes)))
    assert f"schedule.later.optimizer_state = keep does not go with {reason}" in str(error.value)
