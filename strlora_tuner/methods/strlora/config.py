"""The StrLoRA adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from strlora_tuner.core.config import RoutedConfig, option_field
from strlora_tuner.options import AdapterOptions, TunerOptions
from strlora_tuner.register import register


def _option(name: str) -> Any:
    return option_field(TunerOptions, name)


@dataclass
class StrLoraConfig(RoutedConfig):
    """Configuration of a StrLoRA adapter; :class:`TunerOptions` explains the options.

    Raises:
        ValueError: an option out of its bounds, with its value and what is allowed.
    """

    method: ClassVar[str] = "strlora"
    options_class: ClassVar[type[AdapterOptions]] = TunerOptions

    num_experts: int = _option("num_experts")
    top_k: int = _option("top_k")
    token_top_k: int = _option("token_top_k")
    unused_expert_gradient: bool = _option("unused_expert_gradient")
    router_dim: int = _option("router_dim")
    task_router: str = _option("task_router")
    instruction_norm: str = _option("instruction_norm")
    gate_scale: str = _option("gate_scale")
    ema_decay: float = _option("ema_decay")
    stability_weight: float = _option("stability_weight")
    stability_temperature: float = _option("stability_temperature")
    stability_reduction: str = _option("stability_reduction")
    padding: str = _option("padding")
    freeze_routers: bool = _option("freeze_routers")
    compile_routing: str = _option("compile_routing")

    @property
    def side_loss_reduction(self) -> str:
        """How the stability loss adds up, see the option `stability_reduction`."""
        return self.stability_reduction


register()
