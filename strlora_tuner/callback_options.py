"""Options of the callbacks that go beside any tuner: EWC, LwF, slow weights. Imports no torch.

Each is declared once, in `methods/NAME/options.py`. A field made by `option` is a key of the
recipe's block of that name; the others say where a chunk begins, and only the run gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from strlora_tuner.options import bounds_of, expected_value, fits

OptionsT = TypeVar("OptionsT", bound="CallbackOptions")


@dataclass
class CallbackOptions:
    """The options of one chunk."""

    # The callback's name for the host; `ewc_weight` is its option weight in `--model_kwargs`.
    name: ClassVar[str]

    @classmethod
    def from_environment(cls: type[OptionsT], environment: Mapping[str, str]) -> OptionsT:
        """Reads the options that ms-swift exported from `--model_kwargs '{"NAME_option": ...}'`.

        Raises:
            ValueError: an option is missing, unknown, cannot be read or is out of bounds.
        """
        known = {f"{cls.name}_{item.name}": item for item in fields(cls)}
        kinds = get_type_hints(cls)
        given: dict[str, Any] = {}
        for variable, text in environment.items():
            if not variable.startswith(f"{cls.name.upper()}_"):
                continue
            key = variable.lower()
            if key not in known:
                raise ValueError(f"{key} is no option; there are: {', '.join(known)}")
            item = known[key]
            kind, bounds = _without_none(kinds[item.name]), bounds_of(item)
            given[item.name] = _value(text, kind)
            if not fits(given[item.name], kind, bounds):
                expected = expected_value(kind, bounds)
                raise ValueError(f"{key} = {text!r} cannot be read: expected {expected}")
        for item in fields(cls):
            if item.default is MISSING and item.name not in given:
                kwargs = f"--model_kwargs '{{\"{cls.name}_{item.name}\": ...}}'"
                raise ValueError(f"callback {cls.name} needs its {item.name}: {kwargs}")
        return cls(**given)


def _without_none(kind: Any) -> Any:
    """The type of `int | None` is int; any other is itself."""
    return (*get_args(kind), kind)[0]


def _value(text: str, kind: Any) -> Any:
    """The value that `text` stands for; the text itself where it stands for none."""
    if kind is bool:
        return {"True": True, "False": False}.get(text, text)
    try:
        return kind(text)
    except ValueError:
        return text
