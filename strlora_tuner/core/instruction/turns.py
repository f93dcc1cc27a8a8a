"""A conversation read from its token ids: the user's turns, and the segments that they route.

Segment k runs from the end of answer k - 1 to the end of answer k. Its instruction is that of the
user's turns up to k, so that what a cache holds of earlier segments stays right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from strlora_tuner.core.config import RoutedConfig

GENERATED = -1  # stands for the id of a token that was generated: no turn begins there


def starts_of(ids: Tensor, pattern: list[int], also: list[list[int]] | None = None) -> Tensor:
    """Returns (B, L) bool: True where `pattern` begins in a row of ids (B, L).

    `also` holds, for each id of the pattern, others that may stand in its place.
    """
    found = torch.ones_like(ids, dtype=torch.bool)
    for offset, token in enumerate(pattern):
        here = ids[:, offset:] == token
        if also and also[offset]:
            here = here | torch.isin(ids[:, offset:], torch.tensor(also[offset], device=ids.device))
        found = found & F.pad(here, (0, ids.shape[1] - here.shape[1]))
    return found


def openings(ids: Tensor, config: RoutedConfig) -> Tensor:
    """Returns (B, L) bool: True where a user's turn opens in a row of ids (B, L)."""
    return starts_of(ids, config.turn_start, config.turn_start_also)


@dataclass
class Turns:
    """What stands where in rows of F tokens.

    Attributes:
        inside: (B, F) bool, the user's turns without their markers, image placeholders included.
        numbers: (B, F), the number of each token's segment in its row, from 0.
        samples: (B, F), the number of each token's sample in its row; None: rows are one sample.
        count: how many segments the row with the most has.
    """

    inside: Tensor
    numbers: Tensor
    samples: Tensor | None
    count: int

    def up_to(self, mask: Tensor, wanted: Tensor) -> Tensor:
        """Returns (B, K, F) bool: of a mask (B, F) what comes no later than each of K segments.

        Args:
            mask: the tokens that can count.
            wanted: (B, K), numbers of segments. Another sample's tokens never count.
        """
        if self.count == 1:
            return mask[:, None]
        found = mask[:, None] & (self.numbers[:, None] <= wanted[..., None])
        return found if self.samples is None else found & self.same_sample(wanted)

    def same_sample(self, wanted: Tensor) -> Tensor:
        """Returns (B, K, F) bool: the tokens of the sample that segment `wanted` (B, K) is of."""
        if self.samples is None:
            return torch.ones_like(self.numbers[:, None] >= wanted[..., None])
        owners = torch.full((len(wanted), self.count), -1, device=wanted.device)
        owners = owners.scatter(1, self.numbers, self.samples)
        return self.samples[:, None] == owners.gather(1, wanted)[..., None]


def _before(values: Tensor) -> Tensor:
    """Returns values (B, L) moved right by one position; zero or False comes in."""
    return F.pad(values[:, :-1], (1, 0))


def read_turns(ids: Tensor, config: RoutedConfig, starts: Tensor | None = None) -> Turns:
    """Reads ids (B, L), padded on either side, by the turn markers of an adapter.

    Without markers every token counts as the user's and a sample is one segment. A position is
    inside a turn when the last opening marker that ended before it comes after the last closing
    marker that began before it. A segment begins with an opening marker that follows an answer.

    Args:
        ids: prompt or training ids; :data:`GENERATED` is an answer's token and never the user's.
        config: gives the markers, and whether turns open segments.
        starts: (B, L) bool, where a packed sample begins; None: each row is one sample.
    """
    first = torch.zeros_like(ids, dtype=torch.bool) if starts is None else starts.clone()
    first[:, 0] = True
    inside, boundary = ids >= 0, first
    if config.turn_start:
        inside, opens = _marked(ids, config, first)
        if config.instruction_turns == "so_far":
            boundary = first | opens
    numbers = boundary.cumsum(1) - 1
    # The number is fetched from the device, which waits: only where it can be more than one.
    can_be_many = starts is not None or boundary is not first
    count = int(numbers[:, -1].max()) + 1 if can_be_many else 1
    return Turns(inside, numbers, None if starts is None else first.cumsum(1) - 1, count)


def _marked(ids: Tensor, config: RoutedConfig, first: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the inside of the user's turns and where a turn follows an answer, (B, L) bool."""
    position = torch.arange(1, ids.shape[1] + 1, device=ids.device).expand_as(ids)
    # Running maxima give each position the last marker before it: no loop over positions, and
    # nothing that waits for the device.
    opens, closes = openings(ids, config), starts_of(ids, config.turn_end)
    # `opened` holds, once a marker has begun, the (1-based) position of its last token.
    opened = (opens * (position + len(config.turn_start) - 1)).cummax(1).values
    closed = (closes * position).cummax(1).values
    sample = (first * position).cummax(1).values
    # A turn that an earlier sample of a packed row left open is not this sample's.
    known = (opened > 0) & (opened - len(config.turn_start) >= sample - 1)
    inside = known & (position > opened) & (closed <= opened) & (ids >= 0)
    ending = closes & known & (position > opened) & (_before(closed) <= opened)
    ended = (ending * (position + len(config.turn_end) - 1)).cummax(1).values
    answer = known & (ended > opened) & (position > ended)
    return inside, opens & _before(answer) & ~first


def instruction_mask(ids: Tensor, config: RoutedConfig, inside: Tensor | None = None) -> Tensor:
    """Marks the tokens of the user's turns, (B, L) bool, without those of `ignored_ids`."""
    inside = read_turns(ids, config).inside if inside is None else inside
    if config.ignored_ids:
        inside = inside & ~torch.isin(ids, torch.tensor(config.ignored_ids, device=ids.device))
    return inside


def sample_starts(arguments: dict[str, object], length: int) -> Tensor | None:
    """Returns where the samples of a packed row begin, (1 or B, L) bool; None if rows are not.

    Read as transformers reads it: from the lengths that a host gives to flash attention, or from
    positions that do not go on by one, in a pass without padding.

    Args:
        arguments: what the model is called with.
        length: L.
    """
    bounds, positions = arguments.get("cu_seq_lens_q"), arguments.get("position_ids")
    if isinstance(bounds, Tensor):
        starts = torch.zeros(1, length + 1, dtype=torch.bool, device=bounds.device)
        return starts.index_fill(1, bounds.long(), True)[:, :length]
    if not isinstance(positions, Tensor) or positions.shape[-1] != length:
        return None
    if positions.dim() == 3 and positions.shape[0] == 3:  # time, height, width of a Qwen-VL
        return (positions == 0).all(0)
    positions = positions[0] if positions.dim() == 3 else positions  # of four, the text's own
    return positions != _before(positions) + 1


def mean_embedding(embeddings: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean over marked positions, (B, H) float32; zero for a row without any.

    Args:
        embeddings: (B, L, H).
        mask: (B, L) bool.
    """
    return weighted_sums(embeddings, mask[:, None]) / mask.sum(1, keepdim=True).clamp_min(1)


def weighted_sums(values: Tensor, mask: Tensor) -> Tensor:
    """Returns sums (B * K, H) float32 of values (B, L, H) over masks (B, K, L)."""
    weights = mask.to(torch.float32)
    if mask.shape[1] == 1:
        return torch.einsum("blh,bl->bh", values.float(), weights[:, 0])
    return torch.bmm(weights, values.float()).flatten(0, 1)


def marked_ids(ids: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
    """Returns of each of the B K segments the ids (B, L) that mask (B, K, L) marks."""
    return [
        tuple(token for token, marked in zip(row, marks, strict=True) if marked)
        for row, segments in zip(ids.tolist(), mask.tolist(), strict=True)
        for marks in segments
    ]
