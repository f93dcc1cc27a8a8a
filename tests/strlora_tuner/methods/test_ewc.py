"""EWC against float64: Fisher information, pull, what is carried, and what is refused."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from strlora_tuner.methods.ewc.ewc import (
    EwcState,
    FisherEstimate,
    Penalty,
    drawn_samples,
    load_state,
    next_state,
    save_state,
)
from strlora_tuner.methods.ewc.options import Options
from strlora_tuner.methods.ewc.state_file import FILE


class Net(nn.Module):
    """Two trained layers around a frozen one, and a buffer that must not count as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.frozen.requires_grad_(False)
        self.register_buffer("ema_first", torch.zeros(4, 3))

    def forward(self, x: Tensor, reentrant: bool | None = None) -> Tensor:
        block = lambda h: torch.tanh(self.frozen(torch.tanh(self.first(h))))  # noqa: E731
        if reentrant is None:
            return self.last(block(x))
        return self.last(checkpoint(block, x.requires_grad_(), use_reentrant=reentrant))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in trained(net).items()}


def state_of(net: nn.Module, fisher: bool = True) -> EwcState:
    torch.manual_seed(1)
    anchor = {name: torch.randn(p.shape) for name, p in trained(net).items()}
    return EwcState(anchor, {n: torch.rand_like(v) for n, v in anchor.items()} if fisher else None)


def samples(count: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(count, 3), torch.randint(0, 2, (count,))


def test_fisher_is_the_mean_of_squares_sample_by_sample(net: Net) -> None:
    inputs, targets = samples(7)
    estimate = FisherEstimate(trained(net))
    for x, y in zip(inputs, targets, strict=True):
        estimate.add(nn.functional.cross_entropy(net(x[None]), y[None]))
    found = estimate.mean()

    exact = copy.deepcopy(net).double()
    expected = {name: torch.zeros_like(p) for name, p in trained(exact).items()}
    for x, y in zip(inputs.double(), targets, strict=True):
        exact.zero_grad()
        nn.functional.cross_entropy(exact(x[None]), y[None]).backward()
        for name, parameter in trained(exact).items():
            expected[name] += parameter.grad**2 / 7
    assert found.keys() == expected.keys() == trained(net).keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-9)
    assert all(p.grad is None for p in net.parameters()), "the optimizer's gradients must stay"

    batch = torch.autograd.grad(
        nn.functional.cross_entropy(net(inputs), targets), list(trained(net).values())
    )
    assert not torch.allclose(batch[0] ** 2, found["first.weight"], rtol=0.1)


def test_gradients_read_inside_a_backward_pass_are_the_same(net: Net) -> None:
    """ZeRO-3 has whole gradients nowhere else; tests/host/zero3_ewc.py runs it."""
    inputs, targets = samples(4)
    inside, after = FisherEstimate(trained(net)), FisherEstimate(trained(net))
    for place, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        loss = nn.functional.cross_entropy(net(x[None]), y[None])
        counts = place < 3  # the last one only keeps other processes company
        inside.add_from(partial(loss.backward, retain_graph=True), counts)
        if counts:
            after.add(loss)
    assert inside.count == after.count == 3
    for name, value in after.mean().items():
        assert torch.equal(inside.mean()[name], value)
    before = inside.mean()
    net.first.weight.sum().backward()
    assert torch.equal(inside.mean()["first.weight"], before["first.weight"]), "hooks are off"


def test_two_processes_sum_to_what_one_finds(net: Net) -> None:
    inputs, targets = samples(5)
    parts = [FisherEstimate(trained(net)) for _ in range(2)]
    whole = FisherEstimate(trained(net))
    for place, (x, y) in enumerate(zip(inputs, targets, strict=True)):  # 3 and 2 samples
        for estimate in (parts[place % 2], whole):
            estimate.add(nn.functional.cross_entropy(net(x[None]), y[None]))
    gathered: list[list[Tensor]] = [[], []]
    for part, values in zip(parts, gathered, strict=True):
        part.mean(lambda value, values=values: values.append(value.clone()))
    both = [a + b for a, b in zip(*gathered, strict=True)]
    assert float(both[0]) == 5
    for value, expected in zip(both[1:], whole.mean().values(), strict=True):
        torch.testing.assert_close(value / both[0], expected)


@pytest.mark.parametrize("fisher", [True, False])
@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("micro", [1, 3])
def test_the_pull_is_the_gradient_of_the_written_penalty(
    net: Net, fisher: bool, reentrant: bool | None, micro: int
) -> None:
    state = state_of(net, fisher)
    inputs, targets = samples(6)
    exact = copy.deepcopy(net).double()
    penalty = sum(
        (
            (1 if state.fisher is None else state.fisher[n].double()) * (p - state.anchor[n]) ** 2
        ).sum()
        for n, p in trained(exact).items()
    )
    main = nn.functional.cross_entropy(exact(inputs.double()), targets)
    (main + 30 / 2 * penalty).backward()

    pull = Penalty(trained(net), state, weight=30)
    for _ in range(2):  # a second step must be pulled as the first was
        net.zero_grad()
        value = pull.begin_step()
        for x, y in zip(inputs.chunk(micro), targets.chunk(micro), strict=True):
            (nn.functional.cross_entropy(net(x.clone(), reentrant), y) / micro).backward()
        assert float(value) == pytest.approx(float(15 * penalty.detach()), rel=1e-5)
        for name, parameter in trained(net).items():
            expected = dict(exact.named_parameters())[name].grad
            torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-4, atol=1e-5)
    pull.remove()
    net.zero_grad()
    nn.functional.cross_entropy(net(inputs), targets).backward()
    assert not torch.allclose(net.first.weight.grad.double(), exact.first.weight.grad, rtol=1e-2)


def test_a_penalty_without_a_gradient_leaves_training_as_it_is(net: Net) -> None:
    """As published: half the squared distance, weight 1, in the log; AdamW's steps to the bit."""
    state, (inputs, targets) = state_of(net, fisher=False), samples(6)
    alone, logged = copy.deepcopy(net), net
    penalty = Penalty(trained(logged), state, weight=1, acts=False)
    steps = [torch.optim.AdamW(trained(one).values(), lr=0.1) for one in (alone, logged)]
    for _ in range(4):
        distances = [
            (p.detach().double() - state.anchor[n]) ** 2 for n, p in trained(logged).items()
        ]
        wanted = sum(float(value.sum()) for value in distances) / 2
        assert float(penalty.begin_step()) == pytest.approx(wanted, rel=1e-6)
        for one, optimizer in zip((alone, logged), steps, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(one(inputs), targets).backward()
            optimizer.step()
        for name, parameter in trained(alone).items():
            assert torch.equal(parameter, trained(logged)[name])
    assert not torch.equal(net.last.bias, state.anchor["last.bias"])
    assert not penalty.pulls


def test_a_scaled_loss_is_pulled_as_much(net: Net) -> None:
    state, (inputs, targets) = state_of(net), samples(4)
    pull = Penalty(trained(net), state, weight=2)
    found = []
    for scale in (1.0, 1024.0):
        net.zero_grad()
        pull.begin_step(scale)
        (scale * nn.functional.cross_entropy(net(inputs), targets)).backward()
        found.append(net.first.weight.grad / scale)
    torch.testing.assert_close(*found)


def test_fisher_decays_and_the_anchor_moves_on(net: Net) -> None:
    torch.manual_seed(3)
    names = list(trained(net))
    thetas = [{n: torch.randn(s) for n, s in shapes(net).items()} for _ in range(3)]
    fishers = [{n: torch.rand(s) for n, s in shapes(net).items()} for _ in range(3)]
    state = None
    for theta, fisher in zip(thetas, fishers, strict=True):
        state = next_state(state, theta, fisher, decay=0.5)
    assert state is not None
    assert state.fisher is not None
    for name in names:
        first, second, third = (f[name].double() for f in fishers)
        expected = 0.25 * first + 0.5 * second + third
        torch.testing.assert_close(state.fisher[name].double(), expected)
        assert torch.equal(state.anchor[name], thetas[-1][name])

    # Routers that a later chunk freezes keep their information, decayed, and their anchor.
    fewer = {n: v for n, v in thetas[0].items() if n != names[0]}
    frozen = next_state(state, fewer, {n: fishers[0][n] for n in fewer}, decay=0.5)
    assert frozen.fisher is not None
    torch.testing.assert_close(frozen.fisher[names[0]], state.fisher[names[0]] * 0.5)
    assert torch.equal(frozen.anchor[names[0]], state.anchor[names[0]])
    without = next_state(EwcState(thetas[0]), fewer, None, decay=1.0)
    assert without.fisher is None
    assert without.anchor.keys() == thetas[0].keys()


@pytest.mark.parametrize("fisher", [True, False])
def test_the_file_gives_back_every_bit(net: Net, tmp_path, fisher: bool) -> None:
    state = state_of(net, fisher)
    save_state(tmp_path / "new", state)
    found = load_state(tmp_path / "new", shapes(net), fisher)
    for kind in ("anchor", "fisher"):
        one, two = getattr(found, kind), getattr(state, kind)
        assert (one is None) == (two is None)
        assert all(torch.equal(one[name], two[name]) for name in two or {})
    assert [path.name for path in (tmp_path / "new").iterdir()] == [FILE]


def damage(tensors: dict[str, Tensor], how: str) -> None:
    key = "fisher.last.bias"
    if how == "missing":
        del tensors[key]
    elif how == "no anchor":
        del tensors["anchor.last.bias"]
    elif how == "shape":
        tensors[key] = torch.zeros(3)
    elif how == "nan":
        tensors[key][0] = torch.nan
    elif how == "negative":
        tensors[key][0] = -1
    elif how == "half":
        tensors[key] = tensors[key].half()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "fisher.last.bias is missing"),
        ("no anchor", "anchor.last.bias is missing"),
        ("shape", r"fisher.last.bias is \(3,\), expected \(2,\)"),
        ("nan", "fisher.last.bias holds NaN"),
        ("negative", "fisher.last.bias holds negative"),
        ("half", "fisher.last.bias is torch.float16"),
    ],
)
def test_a_damaged_state_is_refused(net: Net, tmp_path, how: str, message: str) -> None:
    path = save_state(tmp_path, state_of(net))
    tensors = load_file(path)
    damage(tensors, how)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=message):
        load_state(tmp_path, shapes(net), fisher=True)


def test_a_missing_cut_or_other_state_is_refused(net: Net, tmp_path) -> None:
    with pytest.raises(ValueError, match="no such file, but this chunk needs it"):
        load_state(tmp_path, shapes(net), fisher=True)
    path = save_state(tmp_path, state_of(net))
    with pytest.raises(ValueError, match=r"holds Fisher .* this run has ewc.fisher = false"):
        load_state(tmp_path, shapes(net), fisher=False)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="damaged"):
        load_state(tmp_path, shapes(net), fisher=True)
    save_state(tmp_path, state_of(net, fisher=False))
    with pytest.raises(ValueError, match=r"holds no Fisher .* this run has ewc.fisher = true"):
        load_state(tmp_path, shapes(net), fisher=True)


def test_samples_are_all_or_a_seeded_draw() -> None:
    assert drawn_samples(5, None, 1) == drawn_samples(5, 9, 1) == [0, 1, 2, 3, 4]
    assert drawn_samples(1000, 10, 1) == drawn_samples(1000, 10, 1)
    assert len(set(drawn_samples(1000, 10, 1))) == 10
    assert drawn_samples(1000, 10, 1) != drawn_samples(1000, 10, 2)


def test_a_fisher_that_is_not_finite_or_of_nothing_is_refused(net: Net) -> None:
    with pytest.raises(ValueError, match="no sample"):
        FisherEstimate(trained(net)).mean()
    estimate = FisherEstimate(trained(net))
    estimate.add(net(torch.full((1, 3), torch.inf)).sum())
    with pytest.raises(ValueError, match="not finite"):
        estimate.mean()


def test_options_as_the_host_exports_them() -> None:
    given = {"EWC_WEIGHT": "100.0", "EWC_FISHER": "False", "EWC_SAMPLES": "7", "OTHER": "x"}
    assert Options.from_environment(given) == Options(weight=100, fisher=False, samples=7)
    for bad, message in (
        ({"EWC_WEIGT": "1"}, "ewc_weigt is no option"),
        ({"EWC_WEIGHT": "much"}, "ewc_weight = 'much' cannot be read"),
        ({"EWC_WEIGHT": "1", "EWC_RELEASED": "True"}, "ewc_released is no option"),
        ({"EWC_DECAY": "1"}, "needs its weight"),
        ({"EWC_WEIGHT": "1", "EWC_DECAY": "1.5"}, "expected a number at least 0 and at most 1"),
        (
            {"EWC_WEIGHT": "1", "EWC_SAMPLES": "0"},
            "ewc_samples = '0' cannot be read: .* at least 1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Options.from_environment(bad)
