"""What these tests need to mean the same in any order."""

from __future__ import annotations

import pytest
from peft.config import PeftConfigMixin


@pytest.fixture(autouse=True)
def _peft_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes what ms-swift replaces in PEFT where another test of this process has imported it."""
    # The oracle's table of texts and tasks, which the orchestrator writes: three tasks by length.
    table = "strlora_tuner.methods.oracle.model.task_label"
    monkeypatch.setattr(table, lambda text: f"{len(text) % 3} a task")
    own = getattr(PeftConfigMixin, "from_pretrained_origin", None)
    if own is not None:
        monkeypatch.setattr(PeftConfigMixin, "from_pretrained", classmethod(own.__func__))
