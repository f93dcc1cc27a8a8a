"""A linear layer of the language model with its banks of experts, one an adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.core.expert_bank import ExpertBank
from strlora_tuner.core.instruction.context import RoutingContext

CANNOT_MERGE = (
    "a routed adapter cannot be merged into the base weights: its experts get other weights for "
    "every instruction or token; run inference with the adapter loaded"
)


MakeBank = Callable[[int, int], ExpertBank]


class RoutedLinear(nn.Module, BaseTunerLayer):
    """y = W x + the routed update of the active adapter."""

    adapter_layer_names = ("strlora_mixture",)

    def __init__(
        self,
        base_layer: nn.Linear,
        adapter_name: str,
        config: RoutedConfig,
        context: RoutingContext,
        make_bank: MakeBank,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.context = context
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.strlora_mixture = nn.ModuleDict()
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, make_bank)

    def update_layer(self, adapter_name: str, config: RoutedConfig, make_bank: MakeBank) -> None:
        """Adds a fresh bank named `adapter_name`, made from (d_in, d_out)."""
        self.strlora_mixture[adapter_name] = make_bank(self.in_features, self.out_features)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def mixture(self, adapter_name: str) -> Any:
        """Returns this layer's bank of experts of the adapter, an :class:`ExpertBank`."""
        return self.strlora_mixture[adapter_name]

    def _freeze_non_trainable_peft_weights(self, adapter_names: Any = None) -> None:
        # PEFT calls this whenever it has switched gradients on; its own declarations cover whole
        # modules only, ours are single parameters.
        super()._freeze_non_trainable_peft_weights(adapter_names)
        for name in self.strlora_mixture:
            self.mixture(name).freeze_untrained()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises ValueError: a routed mixture has no single weight to merge."""
        raise ValueError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Raises ValueError: nothing was ever merged."""
        raise ValueError(CANNOT_MERGE)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns (batch, tokens, d_out) in the base layer's dtype for x (batch, tokens, d_in)."""
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for name in self.active_adapters:
            # Another active adapter may wrap other layers than these.
            if name not in self.strlora_mixture:
                continue
            result = self.strlora_mixture[name](x, result, self.context, name)
        return result
