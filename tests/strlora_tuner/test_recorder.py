"""The routing record: counted once, by task, the same in one process as in several."""

from __future__ import annotations

import json

import pytest
import torch

from strlora_tuner.methods.strlora.ablation import ablate, ablation_names
from strlora_tuner.routing_record.file import routing_content
from strlora_tuner.routing_record.format import instruction_key
from strlora_tuner.routing_record.probe import Probe, load_probe
from strlora_tuner.routing_record.recorder import MOST_TEXTS, RoutingRecorder, Sums, set_codes
from strlora_tuner.training_loop import tuner_of
from tests.strlora_tuner.models import END, PAD, USER, adapted, text_model

COLOUR, COUNT, NEITHER = [5, 6, 7], [20, 21, 22, 23], [40, 41]


class Tokenizer:
    """Ids as words: "5 6 7"."""

    def decode(self, ids):
        return " ".join(map(str, ids))


def probe():
    shares = {"5 6 7": [1.0, 0.0, 0.0], "20 21 22 23": [0.25, 0.75, 0.0]}
    return Probe(["colour", "count", "other"], {instruction_key(k): v for k, v in shares.items()})


def prompts(*instructions, length=10):
    """Returns ids and mask, padded on the left; the text behind the turn differs by row."""
    rows = []
    for number, text in enumerate(instructions):
        row = [USER, *text, END, 60 + number]
        rows.append([PAD] * (length - len(row)) + row)
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def model_with_adapter(**options):
    model = adapted(text_model(), turn_start=[USER], turn_end=[END], **options)
    with torch.no_grad():
        for _, mixture in tuner_of(model).mixtures():
            mixture.task.mul_(3)  # stage 1 tells instructions apart
    return model.eval()


def recorded(model, *batches):
    recorder = RoutingRecorder(model, Tokenizer(), probe())
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    return recorder


def by_name(content):
    return {group["name"]: group for group in content["groups"]}


def same_groups(content, expected):
    """Asserts equal counts, and equal shares up to the last written digit."""
    assert len(content["groups"]) == len(expected["groups"])
    for group, other in zip(content["groups"], expected["groups"], strict=True):
        for key in ("name", "rows", "sets"):
            assert group[key] == other[key]
        for key in ("use", "selected", "task_entropy", "token_entropy"):
            torch.testing.assert_close(
                torch.tensor(group[key]), torch.tensor(other[key]), atol=3e-5, rtol=0
            )


def test_sums_against_one_row_at_a_time():
    """Batches with padding, shared instructions, an unknown one; recomputed from the gates."""
    texts = [COLOUR, COUNT, NEITHER, COUNT, COLOUR]
    model = model_with_adapter(num_experts=4, top_k=2)
    recorder = recorded(model, prompts(*texts[:3]), prompts(*texts[3:]))
    content = routing_content(recorder, recorder.sums())
    groups = by_name(content)
    assert content["rows"] == 5
    assert {name: group["rows"] for name, group in groups.items()} == {
        "colour": 2.5, "count": 1.5, "other": 1.0
    }  # fmt: skip

    single = model_with_adapter(num_experts=4, top_k=2)
    tuner_of(single).routing.recording = True
    mixtures = [mixture for _, mixture in tuner_of(single).mixtures()]
    expected = torch.zeros(3, len(mixtures), 4)
    entropies = torch.zeros(3, len(mixtures))
    for number, text in enumerate(texts):
        batch = prompts(text, length=len(text) + 3)
        batch["input_ids"][0, -1] = 60 + (number if number < 3 else number - 3)
        with torch.no_grad():
            single(**batch)
        weights = torch.tensor(probe().weights(Tokenizer().decode(text)))
        for layer, mixture in enumerate(mixtures):
            gates = mixture.recorded[0][0]
            expected[:, layer] += weights[:, None] * gates.mean(0)
            nats = -(gates.clamp_min(1e-30).log() * gates).sum(-1).mean()
            entropies[:, layer] += weights * nats
    for g, name in enumerate(["colour", "count", "other"]):
        rows = groups[name]["rows"]
        torch.testing.assert_close(
            torch.tensor(groups[name]["use"]), expected[g] / rows, atol=2e-5, rtol=0
        )
        torch.testing.assert_close(
            torch.tensor(groups[name]["token_entropy"]), entropies[g] / rows, atol=2e-5, rtol=0
        )
        for sets, selected in zip(groups[name]["sets"], groups[name]["selected"], strict=True):
            assert sum(sets.values()) == pytest.approx(1, abs=1e-5)
            shares = [sum(w for m, w in sets.items() if int(m) >> e & 1) for e in range(4)]
            assert shares == pytest.approx(selected, abs=2e-5)


def test_several_processes_count_what_one_does(tmp_path):
    batches = [prompts(COLOUR, COUNT), prompts(COUNT, NEITHER), prompts(COLOUR, COLOUR)]
    whole = recorded(model_with_adapter(), *batches)
    parts = [recorded(model_with_adapter(), batches[0]),
             recorded(model_with_adapter(), *batches[1:])]  # fmt: skip
    for number, part in enumerate(parts):
        part.sums().save(tmp_path / str(number))
    together = Sums.load(tmp_path / "0") + Sums.load(tmp_path / "1")
    assert routing_content(parts[0], together) == routing_content(whole, whole.sums())


@pytest.mark.parametrize("experts", [52, 53, 64, 128])
def test_a_set_of_any_number_of_experts_has_a_code_of_its_own(experts):
    few = torch.tensor([[True, False, True]])
    assert set_codes(few).tolist() == [5.0]
    generator = torch.Generator().manual_seed(0)
    kept = torch.randint(2, (4000, experts), generator=generator).bool()
    kept[0], kept[1] = True, False
    kept[2 : 2 + experts] = ~torch.eye(experts, dtype=torch.bool)  # all but one
    codes = set_codes(kept)
    assert len(set(codes.tolist())) == len({tuple(row) for row in kept.tolist()}) == 4000
    assert torch.equal(codes, codes.long().double())
    assert float(codes.max()) < 2**53
    assert torch.equal(set_codes(kept[5:6]), codes[5:6])


def test_the_sets_that_every_instruction_keeps():
    """Against the layers' own masks, one prompt at a time; null where rows of a text differ."""
    texts, single = [COLOUR, COUNT, NEITHER], model_with_adapter()
    recorder = recorded(model_with_adapter(), prompts(*texts), prompts(COUNT))
    content = routing_content(recorder, recorder.sums())
    found = {entry["text"]: entry["kept"] for entry in content["instructions"]}
    tuner_of(single).routing.recording = True
    for text in texts:
        with torch.no_grad():
            single(**prompts(text))
        masks = [m.recorded.kept[0].tolist() for _, m in tuner_of(single).mixtures()]
        assert found[Tokenizer().decode(text)] == [
            sum(2**e for e, kept in enumerate(mask) if kept) for mask in masks
        ]
    assert len({tuple(kept) for kept in found.values()}) > 1
    name, mixture = next(tuner_of(recorder.tuner).mixtures())
    with torch.no_grad():
        mixture.task.neg_()  # now the same text keeps the other experts
        recorder.tuner.model(**prompts(COUNT))
    changed = routing_content(recorder, recorder.sums())
    other = {entry["text"]: entry["kept"] for entry in changed["instructions"]}
    place = changed["layers"].index(name)
    wanted = list(found[Tokenizer().decode(COUNT)])
    wanted[place] = None
    assert other == {**found, Tokenizer().decode(COUNT): wanted}


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_does_not_count_twice(reentrant):
    plain = recorded(model_with_adapter(), prompts(COLOUR, COUNT))
    model = model_with_adapter()
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    recorder = RoutingRecorder(model, Tokenizer(), probe())
    for _, mixture in tuner_of(model).mixtures():
        mixture.config.lora_dropout = 0.0
    model.train()
    batch = prompts(COLOUR, COUNT)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert recorder.rows.sum() == 2
    same_groups(routing_content(recorder, recorder.sums()), routing_content(plain, plain.sums()))


def test_decoding_steps_and_repeated_rows_do_not_count():
    batch = prompts(COLOUR, COUNT)
    plain = recorded(model_with_adapter(), batch)
    expected = routing_content(plain, plain.sums())
    generating = model_with_adapter()
    recorder = RoutingRecorder(generating, Tokenizer(), probe())
    generating.generate(**batch, max_new_tokens=5, do_sample=False)
    assert recorder.rows.sum() == 2
    same_groups(routing_content(recorder, recorder.sums()), expected)

    # As in the host: ids are embedded once, then beams repeat the embeddings' rows.
    beams = model_with_adapter()
    recorder = RoutingRecorder(beams, Tokenizer(), probe())
    with torch.no_grad():
        embeddings = beams.get_input_embeddings()(batch["input_ids"])
        repeated = {
            "inputs_embeds": embeddings.repeat_interleave(3, 0),
            "attention_mask": batch["attention_mask"].repeat_interleave(3, 0),
        }
        beams(**repeated)
    assert recorder.rows.sum() == 2
    same_groups(routing_content(recorder, recorder.sums()), expected)


def test_similarity_of_expert_outputs_against_samples():
    """The same number from the tokens' outputs themselves, with no moments and no trick."""
    model = model_with_adapter()
    batch = prompts(COLOUR, NEITHER)
    outputs = {}
    name, layer = next(iter(tuner_of(model).routed_layers()))

    def keep(module, args, output):
        outputs["y"] = output - module.base_layer(args[0])

    layer.register_forward_hook(keep)
    recorder = recorded(model, batch)
    content = routing_content(recorder, recorder.sums())
    rows = [y[mask.bool()].double() for y, mask in
            zip(outputs["y"], batch["attention_mask"], strict=True)]  # fmt: skip
    centre = torch.stack([row.mean(0) for row in rows]).mean(0)
    a, b = ((row - centre) / len(row) ** 0.5 for row in rows)
    expected = (a @ b.T).square().sum() / ((a @ a.T).norm() * (b @ b.T).norm())
    assert [g["name"] for g in content["groups"]] == ["colour", "other"]
    assert content["layers"][0] == name
    assert content["cka"][0][0] == pytest.approx(float(expected), abs=2e-5)
    assert 0 < expected < 1


def test_the_map_of_instructions_is_the_principal_plane():
    model = model_with_adapter(instruction_norm="none")
    recorder = recorded(model, prompts(COLOUR, COUNT), prompts(NEITHER))
    content = routing_content(recorder, recorder.sums())
    embed = model.get_input_embeddings().weight
    means = torch.stack([embed[torch.tensor(t)].mean(0) for t in (COLOUR, COUNT, NEITHER)]).double()
    found = {e["text"]: torch.tensor(e["vector"]) for e in content["instructions"]}
    points = torch.stack([found[Tokenizer().decode(t)] for t in (COLOUR, COUNT, NEITHER)])
    # Three points lie in a plane: two components hold all distances.
    torch.testing.assert_close(
        torch.cdist(points[:, :2], points[:, :2]), torch.cdist(means, means).float(),
        atol=1e-4, rtol=1e-3,
    )  # fmt: skip
    assert sum(content["vector_variance"][:2]) == pytest.approx(1, abs=1e-4)


def test_many_instructions_are_bounded():
    model = model_with_adapter()
    texts = [[1 + n % 80, 2 + n // 80, 3] for n in range(5 * MOST_TEXTS)]
    recorder = recorded(model, *(prompts(*texts[n : n + 16]) for n in range(0, len(texts), 16)))
    content = routing_content(recorder, recorder.sums())
    assert content["rows"] == len(texts)
    assert len(content["instructions"]) == MOST_TEXTS
    json.dumps(content, allow_nan=False)


def _gates(model, batch):
    tuner_of(model).routing.recording = True
    with torch.no_grad():
        model(**batch)
    mixtures = [mixture for _, mixture in tuner_of(model).mixtures()]
    mask = batch["attention_mask"].bool()
    return torch.stack([m.recorded[0][mask] for m in mixtures])  # (layers, tokens, E)


PAPER = dict(task_router="prior", instruction_norm="running", top_k=2, token_top_k=2)
RELEASED = dict(task_router="frozen", instruction_norm="none", top_k=2, token_top_k=1)


@pytest.mark.parametrize("options", [PAPER, RELEASED])
def test_each_ablation_changes_routing_as_it_says(options):
    batch = prompts(COLOUR, COUNT, NEITHER)
    intact = _gates(model_with_adapter(num_experts=4, **options), batch)
    kept = intact > 0
    gates = {}
    for name in ablation_names(4):
        model = model_with_adapter(num_experts=4, **options)
        ablate(model, name)
        gates[name] = _gates(model, batch)
        torch.testing.assert_close(gates[name].sum(-1), torch.ones(gates[name].shape[:-1]))
        assert not torch.allclose(gates[name], intact), name
        assert tuner_of(model).peft_config["default"].top_k == 2, "the saved options must stay"
    hard = options["token_top_k"] == 1
    assert torch.all((gates["stage1_off"] > 0).sum(-1) == (1 if hard else 4))
    uniform = gates["stage2_uniform"]
    assert set(uniform.unique().tolist()) == {0.0, 0.5}
    assert hard or torch.equal(uniform > 0, kept), "stage 1 must choose as before"
    for expert in range(4):
        without = gates[f"without_expert_{expert}"]
        assert torch.all(without[..., expert] == 0)
        assert torch.all((without > 0).sum(-1) == (1 if hard else 2))
        if not hard:  # the other kept expert stays
            others = kept.clone()
            others[..., expert] = False
            assert torch.all((without > 0)[others])


def test_wrong_ablations_and_probes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"without_expert_9.*expected one of stage1_off"):
        ablate(model_with_adapter(num_experts=4), "without_expert_9")
    single = model_with_adapter(num_experts=1, top_k=1, token_top_k=1)
    with pytest.raises(ValueError, match="no other expert"):
        ablate(single, "without_expert_0")
    path = tmp_path / "probe.json"
    path.write_text('{"tasks": ["a"], "texts": {"What?": {"a": 1}, "<image>": {"a": 0.5}}}')
    assert load_probe(path).weights("<image>\n what ? ") == [1.0, 0.0]
    assert load_probe(path).weights("Why?") == [0.0, 1.0]
    assert instruction_key("<image>\nWhat IS it?\n") == "whatisit?"
    assert instruction_key("a  b<|im_end|>") == "ab"
    assert instruction_key("x < y and y > z") == "x<yandy>z"
    path.write_text('{"tasks": ["a"]}')
    with pytest.raises(ValueError, match=r"probe\.json: not a probe file"):
        load_probe(path)
