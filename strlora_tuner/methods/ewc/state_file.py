"""The file that EWC leaves beside an adapter, and the check that it is whole; imports no torch."""

from __future__ import annotations

from pathlib import Path

from strlora_tuner.saved import FIX, AdapterError, check_finite, read_shapes

FILE = "ewc.safetensors"
FISHER, ANCHOR = "fisher.", "anchor."


def check_state_file(folder: Path, fisher: bool) -> None:
    """Checks the state of EWC that lies beside an adapter.

    Args:
        folder: the adapter's.
        fisher: whether it must hold Fisher information, or must not.

    Raises:
        AdapterError: the file is missing, cut short, not finite, without a value for some
            parameter, or of the other form.
    """
    path = folder / FILE
    if not path.is_file():
        raise AdapterError(f"{path} is missing, but the recipe uses ewc; {FIX}")
    names = read_shapes(path)
    check_finite(path)
    anchor, values = (
        {name.removeprefix(kind) for name in names if name.startswith(kind)}
        for kind in (ANCHOR, FISHER)
    )
    if not anchor or values != (anchor if fisher else set()):
        raise AdapterError(
            f"{path} holds {len(anchor)} weights and {len(values)} values of Fisher information, "
            f"expected {'one for each' if fisher else 'weights only'}; {FIX}"
        )
