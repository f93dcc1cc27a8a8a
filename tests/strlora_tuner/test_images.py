"""Batches of several images, one, and none: every row routes as it does alone."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from tests.strlora_tuner.models import END, IMAGE, MODELS, PAD, USER, adapted

PICTURE = [93, *[IMAGE] * 4, 94]
ROWS = [
    ([USER, *PICTURE, 20, 21, *PICTURE, 22, END], 2),
    ([USER, 30, 31, 32, END, 33], 0),
    ([USER, *PICTURE, 40, 41, END, 42], 1),
]


def inputs(name: str, rows: list, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns what the model's processor would; images is (N, 3, 28, 28)."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row, _ in rows])
    batch = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    kinds = (ids == IMAGE).long()
    if name == "gemma3":
        batch["token_type_ids"] = kinds
    if name == "qwen_vl":
        batch["mm_token_type_ids"] = kinds
    if len(images) == 0:
        return batch
    if name == "qwen_vl":  # 4 x 4 patches of 7 x 7, in groups of 2 x 2 that become one token
        cut = images.reshape(-1, 3, 2, 2, 7, 2, 2, 7).permute(0, 2, 5, 3, 6, 1, 4, 7)
        grid = torch.tensor([[1, 4, 4]] * len(images))
        return {**batch, "pixel_values": cut.reshape(-1, 147), "image_grid_thw": grid}
    return {**batch, "pixel_values": images}


@pytest.mark.parametrize("name", ["internvl", "gemma3", "qwen_vl"])
def test_rows_of_a_mixed_batch_equal_themselves_alone(name):
    model = adapted(MODELS[name](), instruction_norm="none").eval()
    images = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = model(**inputs(name, ROWS, images)).logits
    first = 0
    for index, (ids, count) in enumerate(ROWS):
        own = images[first : first + count]
        first += count
        with torch.no_grad():
            alone = model(**inputs(name, [(ids, count)], own)).logits[0]
        torch.testing.assert_close(together[index, : len(ids)], alone, rtol=1e-4, atol=1e-4)
    others = images.clone()
    others[2] = -others[2]
    with torch.no_grad():
        changed = model(**inputs(name, ROWS, others)).logits
    assert torch.equal(changed[1, :6], together[1, :6])
    assert not torch.allclose(changed[2], together[2])


@pytest.mark.parametrize("name", ["internvl", "gemma3", "qwen_vl"])
def test_placeholders_never_enter_the_instruction(name):
    model = adapted(MODELS[name]()).eval()
    images = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(**inputs(name, ROWS, images))
    routing = model.base_model.routing
    found = routing.instruction("default", torch.zeros(3, 1, 32))
    texts = torch.tensor([[20, 21, 22], [30, 31, 32], [40, 41, 41]])
    texts[2, 2] = PAD
    embedding = model.get_input_embeddings()
    means = torch.stack([embedding(row[row != PAD]).mean(0) for row in texts])
    wanted = model.base_model.statistics().normalise(means)
    torch.testing.assert_close(found, wanted)


ALIGNERS = {
    "internvl": "model.multi_modal_projector",
    "gemma3": "model.multi_modal_projector",  # a bare parameter inside
    "qwen_vl": "model.visual.merger",
}


@pytest.mark.parametrize("name", list(ALIGNERS))
def test_an_aligner_trains_in_full_and_is_saved_with_the_adapter(name, tmp_path):
    images = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    batch = inputs(name, ROWS, images)
    model = adapted(MODELS[name](), modules_to_save=[ALIGNERS[name]]).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=10.0)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    aligner = {key for key in before if f"{ALIGNERS[name]}.modules_to_save." in key}
    assert aligner <= moved
    assert all("strlora_" in key or key in aligner for key in moved)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(MODELS[name](), str(tmp_path), is_trainable=True)
    for key in aligner:
        assert torch.equal(loaded.state_dict()[key], model.state_dict()[key]), key
        assert loaded.get_parameter(key).requires_grad
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch).logits, model.eval()(**batch).logits)
