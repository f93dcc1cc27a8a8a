"""Fixed gates: a float64 loop, the map's seed, plain LoRA as the limit, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from strlora_tuner.methods.strlora.instruction_statistics import InstructionStatistics
from strlora_tuner.methods.strlora_signed.gate_map import (
    check_number,
    draw_map,
    fixed_gates,
)
from strlora_tuner.methods.strlora_signed.layer import SignedExperts
from strlora_tuner.methods.strlora_signed.options import Options
from strlora_tuner.saved import WEIGHTS
from strlora_tuner.training_loop import tuner_of
from tests.strlora_tuner.methods import methods_reference as reference
from tests.strlora_tuner.methods.test_methods_reference import HIDDEN, SAMPLES, TOKENS, Layer
from tests.strlora_tuner.models import (
    END,
    USER,
    adapted,
    base_model,
    config,
    logits,
    prompts,
    text_model,
)

METHOD = "strlora_signed"


@pytest.mark.parametrize(
    ("gate", "expert_rank", "kept", "norm"),
    [
        ("sign", 1, None, "running"),
        ("sign", 4, None, "running"),
        ("topk", 1, 4, "running"),
        ("topk", 2, 2, "running"),
        ("sign", 1, None, "none"),
    ],
)
def test_a_layer_against_a_loop_in_float64(
    gate: str, expert_rank: int, kept: int | None, norm: str
) -> None:
    options = dict(gate=gate, expert_rank=expert_rank, instruction_norm=norm)
    layer = Layer(METHOD, r=8, lora_alpha=16, **options)
    ids = torch.tensor([[3, 4, 5, 0, 0], [6, 7, 8, 9, 0], [2, 4, 6, 1, 7]])
    embeddings = torch.randn(SAMPLES, TOKENS, HIDDEN)
    statistics = InstructionStatistics(HIDDEN)
    statistics.count.fill_(5)
    # Where nothing is centred, a mean that would turn signs over if it were taken off.
    statistics.mean.normal_(std=0.2 if norm == "running" else 1.0)
    statistics.spread.fill_(40.0)
    layer.context.statistics = {"default": statistics}
    layer.context.on_prompt(ids, embeddings)

    # u = (t - w m) / sigma with 8 zero vectors counted before; every real token counts.
    mean = statistics.mean.double()
    weight = 5 / 13
    variance = (40 + float(mean @ mean) * weight * 8) / (13 * HIDDEN)
    vectors = torch.stack([
        embeddings[row][ids[row] != 0].double().mean(0) for row in range(SAMPLES)
    ])  # fmt: skip
    if norm == "running":
        vectors = (vectors - weight * mean) / variance**0.5
    signs = layer.bank.gate_map().double()
    assert signs.shape == (8 // expert_rank, HIDDEN)
    layer.check(lambda w, x: reference.strlora_signed(x, w, signs, vectors, kept, 2.0))
    found = {tuple(reference.fixed_gates(signs, vector, kept)) for vector in vectors}
    assert len(found) > 1, "the instructions of this test must differ in their gates"


def test_no_value_is_a_plus_and_ties_go_to_the_first() -> None:
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.int8)
    nothing, one = torch.zeros(1, 2), torch.tensor([[1.0, 1.0]])
    assert fixed_gates(signs, nothing, None).tolist() == [[1, 1, 1, 1]]
    assert fixed_gates(signs, one, None).tolist() == [[1, 1, 1, -1]]
    assert fixed_gates(signs, nothing, 1).tolist() == [[4, 0, 0, 0]]
    assert fixed_gates(signs, one, 2).tolist() == [[2, 2, 0, 0]]


@pytest.mark.parametrize("gate", ["sign", "topk"])
def test_the_record_tells_instructions_apart(gate: str) -> None:
    """Every expert of a sign is used; the ones with +1 are recorded, so that tasks differ."""
    model = adapted(base_model("text"), METHOD, gate=gate).eval()
    tuner_of(model).routing.recording = True
    with torch.no_grad():
        model(input_ids=torch.tensor([[USER, 11, 12, END, 30], [USER, 40, 41, END, 31]]))
    for _, bank in tuner_of(model).mixtures():
        for gates, used, kept in zip(bank.last_gates.tolist(), *bank.recorded[:2], strict=True):
            plus = [1.0 if value > 0 else 0.0 for value in gates]
            assert kept.tolist() == [bool(value) for value in plus]
            wanted = torch.tensor(plus if any(plus) else [1.0] * len(plus))
            torch.testing.assert_close(used, (wanted / wanted.sum()).expand_as(used))


@pytest.mark.parametrize(("turns", "found"), [(1, 1), (2, 2)])
def test_an_answer_s_tokens_find_no_gates_anew(
    turns: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for what is read: the prompt and, where it has several turns, the answer to the last."""
    model = adapted(base_model("text"), METHOD).eval()
    banks = [bank for _, bank in tuner_of(model).mixtures()]
    shapes, gates = [], SignedExperts.gates
    monkeypatch.setattr(
        SignedExperts, "gates", lambda bank, u: shapes.append(u.shape) or gates(bank, u)
    )
    turn = [USER, 31, 32, 33, END, 7]
    ids = torch.tensor([[5, 6, *turn * turns]])
    model.generate(input_ids=ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert len(shapes) == found * len(banks)


def test_a_layer_refuses_the_rows_of_another_batch() -> None:
    layer = Layer(METHOD, r=8)
    layer.context.statistics = {"default": InstructionStatistics(HIDDEN)}
    layer.context.on_prompt(torch.tensor([[3, 4], [6, 7]]), torch.randn(2, 2, HIDDEN))
    assert layer.context.instruction("default", torch.randn(2, 2, HIDDEN)).shape == (2, HIDDEN)
    with pytest.raises(RuntimeError, match=r"a prompt of 2 rows but routes .*\(3, 2, "):
        layer.context.instruction("default", torch.randn(3, 2, HIDDEN))


def test_a_map_is_known_by_its_seed() -> None:
    """Whole numbers: these stand for the file format, on every machine."""
    drawn = draw_map(7, 4, 16)
    assert drawn.dtype == torch.int8
    assert sorted(drawn.unique().tolist()) == [-1, 1]
    assert check_number(drawn) == check_number(draw_map(7, 4, 16)) == CHECK_OF_SEED_7
    assert check_number(draw_map(8, 4, 16)) != CHECK_OF_SEED_7
    flipped = drawn.clone()
    flipped[2, 3] *= -1
    assert check_number(flipped) != CHECK_OF_SEED_7
    whole = draw_map(3, 64, 4096).float()
    assert abs(float(whole.mean())) < 4 / whole.numel() ** 0.5, "as many of either sign"
    overlap = (whole @ whole.t() / 4096).fill_diagonal_(0)
    assert float(overlap.abs().max()) < 6 / 64, "and rows of their own"


CHECK_OF_SEED_7 = -196000588


def test_every_layer_has_a_map_of_its_own() -> None:
    banks = [bank for _, bank in tuner_of(adapted(text_model(), METHOD)).mixtures()]
    assert len({int(bank.map_seed) for bank in banks}) == len(banks) > 4
    assert len({bank.gate_map().numpy().tobytes() for bank in banks}) == len(banks)


def test_the_layers_of_a_block_may_share_a_map(tmp_path: Path) -> None:
    model = adapted(text_model(), METHOD, map_scope="block")
    model.add_adapter("second", config(METHOD, map_scope="block"))
    for adapter in ("default", "second"):
        blocks: dict[str, set[int]] = {}
        for name, bank in tuner_of(model).mixtures(adapter):
            blocks.setdefault(name.rpartition(".")[0], set()).add(int(bank.map_seed))
        assert [len(seeds) for seeds in blocks.values()] == [1] * len(blocks), adapter
    assert {name.rpartition(".")[2] for name in blocks} == {"self_attn", "mlp"}
    assert len(set.union(*blocks.values())) == len(blocks) > 2
    found = logits(model)
    gates = {}
    for name, bank in tuner_of(model).mixtures():
        gates.setdefault(name.rpartition(".")[0], []).append(bank.last_gates)
    for block in gates.values():
        assert len(block) > 1
        assert all(torch.equal(block[0], other) for other in block)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(text_model(), tmp_path)
    torch.testing.assert_close(logits(loaded), found, rtol=0, atol=0)


def test_without_an_instruction_it_is_plain_lora() -> None:
    """The same A and B in PEFT's own LoRA give the same logits, bit for bit but for rounding."""
    torch.manual_seed(0)
    model = adapted(text_model(), METHOD)
    tuner, plain = tuner_of(model), get_peft_model(text_model(), lora_of(model))
    for (name, bank), (_, layer) in zip(tuner.mixtures(), lora_layers(plain), strict=True):
        layer.lora_A.default.weight.data.copy_(bank.A)
        layer.lora_B.default.weight.data.copy_(bank.B)
        assert name
    batch = {"input_ids": torch.tensor([[USER, END, 5, 6], [USER, END, 9, 7]])}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    found, wanted = logits(model, batch), logits(plain, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    told = logits(model)
    assert float((told - logits(plain, prompts())).abs().max()) > 1e-2


def lora_of(model) -> LoraConfig:
    config = model.peft_config["default"]
    targets = [name for name, _ in tuner_of(model).mixtures()]
    return LoraConfig(r=config.r, lora_alpha=config.lora_alpha, target_modules=targets)


def lora_layers(model):
    return [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_A")]


def test_two_instructions_leave_each_other_s_update_alone_on_average() -> None:
    """Opposite vectors differ in every sign, vectors at a right angle in half of them."""
    signs = draw_map(1, 4096, 64)
    u = torch.randn(64, generator=torch.Generator().manual_seed(2))
    v = torch.randn(64, generator=torch.Generator().manual_seed(3))
    v -= (v @ u) / (u @ u) * u  # at a right angle
    gates = fixed_gates(signs, torch.stack([u, -u, v]), None)
    assert float((gates[0] * gates[1]).mean()) == -1
    # The agreement of signs of vectors at angle a is 1 - 2 a / pi: 0 at a right angle (Goemans and
    # Williamson 1995, for Gaussian rows).
    assert abs(float((gates[0] * gates[2]).mean())) < 0.06


def test_a_file_with_another_seed_is_refused(tmp_path: Path) -> None:
    model = adapted(text_model(), METHOD)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(text_model(), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    tensors = load_file(tmp_path / WEIGHTS)
    name = next(name for name in tensors if name.endswith("map_seed"))
    save_file({**tensors, name: tensors[name] + 1}, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match="gives another random map here"):
        PeftModel.from_pretrained(text_model(), tmp_path)


@pytest.mark.parametrize("statistics", ["count", "hold"])
def test_the_mean_of_instructions_moves_or_rests_in_later_chunks(statistics: str) -> None:
    model = adapted(text_model(), METHOD, instruction_statistics=statistics).train()
    tuner, batch = tuner_of(model), prompts()

    def counted() -> int:
        model(**batch).loss.backward()
        tuner.after_optimizer_step()
        return int(tuner.statistics().count)

    start = int(tuner.statistics().count)
    assert counted() == start + 3
    tuner.begin_chunk()
    assert counted() == start + (6 if statistics == "count" else 3)


def test_the_mean_of_instructions_rests_after_so_many() -> None:
    """Three instructions a step, at most five: the second step still counts, the third does not."""
    model = adapted(text_model(), METHOD, instruction_count=5).train()
    tuner, found = tuner_of(model), []
    for step in range(4):
        if step == 3:
            tuner.begin_chunk()  # it stays so in later chunks
        model(**prompts(seed=step)).loss.backward()
        tuner.after_optimizer_step()
        found.append((int(tuner.statistics().count), tuner.statistics().mean.clone()))
    counts, means = zip(*found, strict=True)
    assert [count - counts[0] for count in counts] == [0, 3, 3, 3]
    assert not torch.equal(means[0], means[1])
    assert torch.equal(means[1], means[3])


@pytest.mark.parametrize(
    ("given", "experts", "message"),
    [
        ({"rank": 16}, 16, None),
        ({"rank": 64}, 32, None),
        ({"rank": 128}, 32, None),
        ({"rank": 48, "expert_rank": 1}, 48, None),
        ({"rank": 16, "expert_rank": 3}, None, "does not divide rank = 16"),
        ({"rank": 16, "gate": "topk", "keep": 0.99}, None, "keeps every expert of 16"),
        ({"rank": 16, "gate": "topk", "expert_rank": 16}, None, "keeps every expert of 1 "),
        ({"rank": 33}, 33, None),  # no divisor but 1 and 11 up to the 2 rows that keep 32
        ({"rank": 80}, 40, None),  # 3 rows would keep 27, and do not divide it
        ({"rank": 64, "expert_rank": 1}, 64, None),
        ({"rank": 16, "map_scope": "model"}, None, "one of 'layer', 'block'"),
        ({"rank": 16, "keep": 1.0}, None, "keep = 1.0"),
        ({"rank": 16, "gate": "soft"}, None, "one of 'sign', 'topk'"),
    ],
)
def test_any_number_of_experts_up_to_the_rank(
    given: dict[str, object], experts: int | None, message: str | None
) -> None:
    from strlora_tuner.methods.strlora_signed.config import Config

    if message is not None:
        with pytest.raises(ValueError, match=message):
            Options(**given)
        return
    config = Config.from_options(Options(**given))
    assert config.num_experts == config.kept_experts == experts
    assert Config.from_options(Options(gate="topk", **given)).kept_experts == experts // 2
