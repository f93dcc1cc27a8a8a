"""The StrLoRA adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import Self

from strlora_tuner.core.config import RoutedConfig

# What adapters did that were saved before R had an average and these options existed.
OLD_RULE = {"stability_on": "scores", "instruction_statistics": "count"}
OLD_INSTRUCTION = {"instruction_turns": "all", "instruction_text": "prompt"}


@dataclass
class Config(RoutedConfig):
    """Configuration of a StrLoRA adapter; `Options` in options.py explains the options."""

    goes_on: bool = field(
        default=False, metadata={"help": "Whether an earlier chunk has trained the adapter."}
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Notes what adapter_config.json, which alone gives `peft_type`, does not hold."""
        config = super().__new__(cls, *args, **kwargs)
        before = OLD_RULE | OLD_INSTRUCTION if "peft_type" in kwargs else {}
        if missing := {name: value for name, value in before.items() if name not in kwargs}:
            config.__dict__["_before"] = missing
        return config

    def __post_init__(self) -> None:
        """Gives an adapter without these options the rule that it was trained by."""
        for name, value in self.__dict__.pop("_before", {}).items():
            setattr(self, name, value)
        super().__post_init__()

    def was_read(self, name: str) -> None:
        """Says where the saved adapter has no average of R."""
        options = self.options()
        if options.stability_on == "scores" and options.task_router != "frozen":
            logging.getLogger(__name__).warning(
                f"{name} carries no average of R: in training its stability term compares the "
                "scores of stage 2 (stability_on: scores), whatever the recipe asks for"
            )

    def possible(self, given: dict[str, Any]) -> dict[str, Any]:
        """Without an average of R the rule stays what it was: there is nothing to compare with.

        So do options by which the adapter has learnt and that are newer than it may be.
        """
        options = self.options()
        fixed = {*OLD_RULE} if options.stability_on == "scores" else set()
        for name in ("instruction_text", "dropout_masks"):
            own = getattr(options, name)
            if given.get(name, own) != own:
                fixed.add(name)
                logging.getLogger(__name__).warning(
                    f"the adapter was trained with {name}: {own}, and goes on so; this run asks "
                    f"for {given[name]}"
                )
        return {name: value for name, value in given.items() if name not in fixed}

    def begin_chunk(self) -> None:
        """The adapter goes on from a chunk."""
        self.goes_on = True

    @property
    def side_loss_reduction(self) -> str:
        """How the stability loss adds up, see the option `stability_reduction`."""
        return str(self.options().stability_reduction)
