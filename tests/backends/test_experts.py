"""Experts in PyTorch modules: what averaging leaves, what growing preserves, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import bevel
from bevel.backends.onnxruntime import Session
from bevel.backends.torch.experts.layers import Dense, find
from bevel.backends.torch.experts.linear import ExpertLinear
from bevel.backends.torch.experts.stacking import SoftExperts
from bevel.errors import UsageError

WIDTH, HIDDEN = 6, 16


class Gated(nn.Module):
    """A gated feed-forward layer, its last product in the middle of the names."""

    def __init__(self):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH), nn.Linear(WIDTH, HIDDEN)

    def forward(self, x):
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        return (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x)


class Net(nn.Module):
    """A feed-forward layer written out, attention, and a gated layer that is a module."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.attention, self.mlp, self.head = Attention(), Gated(), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = x + self.down(functional.gelu(self.up(x)))
        x = x + self.attention(x)
        return self.head(x + self.mlp(x))


PLAIN, GATED = Dense(("up",), "down"), Dense(("mlp.w1", "mlp.w3"), "mlp.w2")


def net(seed=0):
    torch.manual_seed(seed)
    return Net().eval()


@pytest.fixture(scope="module")
def graph():
    return bevel.load(net(), (batch(),))


def batch(seed=0):
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed))


def trained(module, ewa=None, steps=6, data=None):
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    module.train()
    for step in range(steps):
        optimizer.zero_grad()
        module(batch(step) if data is None else data).square().mean().backward()
        optimizer.step()
        if ewa is not None:
            ewa.step()
    return module.eval()


def largest(a, b):
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([("up", "down"), "mlp"], [PLAIN, GATED]),
        (["m*p"], [GATED]),
        (Gated, [GATED]),
        ([("mlp.w3", "mlp.w1", "mlp.w2")], [Dense(("mlp.w3", "mlp.w1"), "mlp.w2")]),
    ],
)
def test_layers_are_found_by_names_and_types(layers, expected):
    assert find(net(), layers) == expected


def test_layers_are_found_in_the_graph(graph):
    assert find(net(), graph) == [PLAIN, GATED]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "no feed-forward layer"),
        ("mlp", "says no layers"),
        (["attention"], "are no feed-forward layer"),
        (["nothing"], "no module 'nothing'"),
        ([("up", "nothing")], "no module of this name"),
        ([("up", "head")], "are no feed-forward layer"),
        ([("down",)], "two linear layers or more"),
        ([("up", "down"), ("up", "down")], "named twice"),
        ([("mlp", "down")], "it is a Gated"),
    ],
)
def test_what_is_no_layer_is_refused(layers, message):
    module = net()
    with pytest.raises(UsageError, match=message):
        bevel.upcycle(module, layers)
    assert not any(isinstance(part, ExpertLinear) for part in module.modules())


def test_tied_and_watched_layers_are_refused():
    tied, watched = net(), net()
    tied.mlp.w1.weight = tied.up.weight
    watched.up.register_forward_hook(lambda *_: None)
    for module, message in ((tied, "several names"), (watched, "hooks")):
        with pytest.raises(UsageError, match=message):
            bevel.upcycle(module, [("up", "down")])


def test_encoder_layers_that_pass_their_linear_layers_by_are_refused():
    module, x = nn.TransformerEncoderLayer(WIDTH, 2, HIDDEN, batch_first=True).eval(), batch()
    expected = module(x)
    with pytest.raises(UsageError, match="set_fastpath_enabled"):
        bevel.upcycle(module, [("linear1", "linear2")])
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        bevel.upcycle(module, [("linear1", "linear2")])
        assert largest(module(x), expected) < 1e-5
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_fresh_experts_compute_what_the_layer_did_however_rows_are_dealt():
    module, x = net(), batch()
    expected = module(x)
    bevel.ExpertWeightAveraging(module, [("up", "down"), "mlp"], experts=3)
    assert torch.equal(module(x), expected)  # in evaluation mode: the mean of equal experts
    assert largest(module.train()(x), expected) < 1e-6


def test_every_expert_gets_as_many_rows_and_both_products_agree_on_which():
    module = net()
    ewa = bevel.ExpertWeightAveraging(module, [("up", "down")], experts=3)
    for part in ewa.experts.values():
        for number, expert in enumerate(part.linears):
            nn.init.zeros_(expert.weight)
            nn.init.constant_(expert.bias, float(number))
    seen = []
    module.up.register_forward_hook(lambda _m, _i, out: seen.append(out[:, 0].detach()))
    module.down.register_forward_hook(lambda _m, _i, out: seen.append(out[..., 0].detach()))
    module.train()(batch())
    torch.manual_seed(1)
    module(batch())
    dealt, given, _, again = seen
    assert dealt.tolist() == [0.0] * 4 + [1.0] * 3 + [2.0] * 3
    assert sorted(given.flatten().tolist()) == dealt.tolist()
    assert not torch.equal(given, again)  # dealt anew


def test_averaging_is_the_formula_and_leaves_the_mean():
    module = net()
    ewa = bevel.ExpertWeightAveraging(module, ["mlp"], experts=4)
    trained(module)
    before = [expert.weight.detach().double().numpy() for expert in module.mlp.w1.linears]
    assert np.ptp(np.stack(before), axis=0).max() > 1e-3  # they have learnt apart
    ewa.average(0.3)
    after = [expert.weight.detach().double().numpy() for expert in module.mlp.w1.linears]
    for number in range(4):
        others = sum(before[other] for other in range(4) if other != number)
        np.testing.assert_allclose(after[number], 0.7 * before[number] + 0.1 * others, atol=1e-7)
    np.testing.assert_allclose(np.mean(after, axis=0), np.mean(before, axis=0), atol=1e-7)
    ewa.average(0.75)
    assert np.ptp(np.stack([each.weight.detach().numpy() for each in module.mlp.w1.linears]), axis=0).max() < 1e-7


def test_converted_weights_are_the_mean_of_the_experts_bit_for_bit(graph):
    module, x = net(), batch()
    names, parameters = list(module.state_dict()), dict(module.named_parameters())
    ewa = bevel.ExpertWeightAveraging(module, graph, experts=3, steps=6, rate=0.5)
    trained(module, ewa)
    held = {
        f"{name}.{key}": [getattr(expert, key).detach().numpy() for expert in part.linears]
        for name, part in ewa.experts.items()
        for key in ("weight", "bias")
    }
    assert len(held) == 10
    before = module(x)
    assert ewa.convert() is module
    for name, arrays in held.items():
        mean = np.mean(np.stack(arrays).astype(np.float64), axis=0).astype(np.float32)
        assert np.array_equal(module.state_dict()[name].numpy(), mean)
        assert not np.array_equal(arrays[0], mean)
    assert torch.equal(module(x), before)
    assert list(module.state_dict()) == names
    assert dict(module.named_parameters()).keys() == parameters.keys()


def test_shares_rise_linearly_and_fine_tuning_calls_back():
    module = net()
    ewa = bevel.ExpertWeightAveraging(module, ["mlp"], experts=2, rate=0.4)
    shares = []
    ewa.average = shares.append
    bevel.finetune(module, net(1), [batch(n) for n in range(4)], loss="mse", epochs=1, progress=ewa)
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4])
    with pytest.raises(UsageError, match="how far"):
        ewa.step()


def test_every_other_layer_counts_from_the_last():
    module = net()
    ewa = bevel.ExpertWeightAveraging(module, [("up", "down"), "mlp"], every=2)
    assert ewa.layers == (GATED,)


def test_copies_of_a_module_deal_by_themselves():
    module, x = net(), batch()
    grown = bevel.upcycle(module, ["mlp"], experts=4)
    module(x)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.mlp.w1.router.weight.add_(torch.randn(4, WIDTH))
        twin.mlp.w2.linears[0].weight.zero_()
    assert twin.mlp.w1.dealer is twin.mlp.w2.dealer is not module.mlp.w1.dealer
    assert twin.mlp.w1.dealer.router is twin.mlp.w1.router
    assert largest(module(x), net()(x)) < 1e-6
    assert grown.balance() >= 0.9


@pytest.mark.parametrize(("experts", "active", "parts"), [(4, 2, 1), (4, 1, 2), (3, 2, 4), (2, 2, 1)])
def test_growing_preserves_the_function(graph, experts, active, parts):
    module, x = net(), batch()
    expected = module(x)
    grown = bevel.upcycle(module, graph, experts=experts, active=active, parts=parts)
    assert largest(module(x), expected) < 2e-6
    assert largest(module(0 * x), net()(0 * x)) < 2e-6  # scores of zero: the first experts, which are one copy
    assert len(module.mlp.w1.linears) == experts * parts
    assert largest(grown.convert()(x), expected) < 1e-6


def test_parts_are_a_copy_only_while_their_rows_of_the_router_are_one():
    module, x = net(), batch()
    bevel.upcycle(module, ["mlp"], experts=2, active=1, parts=2)
    with torch.no_grad():
        module.mlp.w1.router.weight.copy_(torch.randn(4, WIDTH))
    assert largest(module(x), net()(x)) > 1e-3


def test_all_of_a_grown_layer_learns_and_the_router_too():
    module = net()
    grown = bevel.upcycle(module, ["mlp"], experts=3, active=2, seed=4)
    before = copy.deepcopy(module.state_dict())
    trained(module)
    (module.train()(batch()).square().mean() + 0.01 * grown.balance()).backward()
    assert list(grown.routers) == ["mlp.w1.router"]
    assert all(not torch.equal(before[name], tensor) for name, tensor in module.state_dict().items() if "mlp" in name)
    assert module.mlp.w1.router.weight.grad.abs().max() > 0


def test_balance_is_one_where_all_get_the_same():
    module = net()
    grown = bevel.upcycle(module, ["mlp"], experts=4, active=4)
    module(batch())
    assert grown.balance().item() == pytest.approx(1.0, abs=1e-3)
    with torch.no_grad():
        module.mlp.w1.dealer.active = 1
        module.mlp.w1.router.weight.copy_(torch.zeros(4, WIDTH))  # the first of equals takes everything
    module.mlp.w1.router.weight.data[0] = 1
    module(batch().abs())
    assert grown.balance().item() > 2


def test_a_grown_module_goes_to_onnx_and_computes_the_same():
    module = trained(net(), data=batch())
    bevel.upcycle(module, [("up", "down"), "mlp"], experts=4, active=2, parts=2)
    trained(module, steps=3)
    model = bevel.load(module, (batch(),), dynamic_shapes={"x": {0: "batch"}})
    x = torch.cat([batch(1), batch(2)])
    with Session(model) as session:
        (found,) = session.run({"x": x.numpy()}).values()
    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=0, atol=1e-5)


def test_hidden_sizes_that_do_not_divide_are_refused():
    with pytest.raises(UsageError, match="equal parts"):
        bevel.upcycle(net(), ["mlp"], parts=3)
    with pytest.raises(UsageError, match="cannot run"):
        bevel.upcycle(net(), ["mlp"], experts=2, active=3)


def test_stacked_checkpoints_are_experts_and_the_rest_is_their_mean():
    modules, x = [net(seed) for seed in range(3)], batch()
    joined = bevel.stack_experts(modules, [("up", "down"), "mlp"], attention=["attention"], active=2)
    for number, module in enumerate(modules):
        assert torch.equal(joined.module.mlp.w3.linears[number].weight, module.mlp.w3.weight)
        assert torch.equal(joined.module.attention.experts[number].q.weight, module.attention.q.weight)
    mean = np.mean([module.head.weight.detach().double().numpy() for module in modules], axis=0).astype(np.float32)
    assert np.array_equal(joined.module.head.weight.detach().numpy(), mean)
    with torch.no_grad():
        joined.module.attention.router.weight.zero_()
    shares = sum(module.attention(x) for module in modules) / 3
    assert largest(joined.module.attention(x), shares) < 1e-6
    joined.module(x).sum().backward()
    assert joined.module.mlp.w1.router.weight.grad.abs().max() > 0
    assert torch.equal(modules[0](x), net()(x))


def test_one_stacked_checkpoint_twice_is_that_checkpoint():
    module, x = net(), batch()
    joined = bevel.stack_experts([module, net()], ["mlp"], attention=["attention"], active=2)
    assert largest(joined.module(x), module(x)) < 1e-6


def test_what_cannot_be_stacked_is_refused():
    wide = net()
    wide.head = nn.Linear(WIDTH, 4)
    for modules, message in (([net(), wide], "'head"), ([net()], "nothing to stack")):
        with pytest.raises(UsageError, match=message):
            bevel.stack_experts(modules, ["mlp"])
    with pytest.raises(UsageError, match="no module 'other'"):
        bevel.stack_experts([net(), net()], ["mlp"], attention=["other"])
    several = SoftExperts([Several(), Several()], nn.Linear(WIDTH, 2, bias=False))
    with pytest.raises(UsageError, match="more than one tensor"):
        several(batch())


class Several(nn.Module):
    def forward(self, x):
        return x, x
