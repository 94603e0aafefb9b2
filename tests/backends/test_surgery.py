"""A module that was edited answers as its optimized graph does, and stays what it was in every other way."""

import copy
import pickle
from functools import cache
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import bevel  # noqa: E402
from bevel.backends.torch.surgery import NarrowMultiheadAttention  # noqa: E402
from bevel.errors import EditRefused, UsageError  # noqa: E402
from bevel.frontends.torch import load  # noqa: E402
from bevel.ir.edit import select  # noqa: E402
from bevel.ir.plan import Plan, plan  # noqa: E402
from bevel.ir.record import Cut  # noqa: E402
from bevel.modules import apply  # noqa: E402
from tests.graphs import mlp  # noqa: E402
from tests.zoo import language  # noqa: E402

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HALF = "prune-channels{ratio=0.5}"


class Residual(nn.Module):
    """Plain, grouped and depthwise convolutions, two kinds of normalization, a residual stream."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.inner = nn.BatchNorm2d(24)
        self.project = nn.Conv2d(24, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.groupnorm = nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.act = nn.PReLU(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.project(self.inner(self.grouped(x)).relu())
        x = self.groupnorm(self.depthwise(x)).relu()
        return self.head(self.act(self.up(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attend = nn.MultiheadAttention(24, 4, **options)
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        return self.head(self.attend(x, x, x, need_weights=False)[0])


class HardCoded(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x):
        return self.down(self.up(x).relu().reshape(-1, 2, 4)).sum(1)


class Pieces(nn.Module):
    """States sizes under names that do not say so."""

    def __init__(self):
        super().__init__()
        self.a, self.b = 4, 6
        self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 3)

    def forward(self, x):
        return self.down(self.up(x).reshape(-1, self.a, self.b).softmax(-1).flatten(1))


class Heads(nn.Module):
    """Two attentions that share a configuration, as the layers of published models do."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(hidden=24, num_heads=4, num_layers=4)
        self.layers = nn.ModuleList([Head(self.config) for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


class Head(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.num_heads = config, config.num_heads
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.num_heads, 6)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def fresh(make, seed=0, **options):
    torch.manual_seed(seed)
    module = make(**options).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.1, 0.3)
            nn.init.constant_(part.bias, 1.0)
        if isinstance(part, nn.MultiheadAttention) and part.in_proj_bias is not None:
            nn.init.normal_(part.in_proj_bias)
    return module


def optimized(module, example, passes=HALF):
    model = load(module, example)
    bevel.optimize(model, passes)
    return model


@cache
def loaded():
    return load(fresh(Residual), IMAGE)


def pruned(passes=HALF):
    """The graph of `fresh(Residual)`, exported once, after passes."""
    model = loaded().clone()
    bevel.optimize(model, passes)
    return model


def answer(module, example):
    with torch.no_grad():
        return module(*example) if isinstance(example, tuple) else module(example)


def everything(module):
    """What must not change where an edit is refused."""
    state = {name: (id(tensor), tensor.clone()) for name, tensor in module.state_dict(keep_vars=True).items()}
    plain = [
        (type(part), {k: v for k, v in vars(part).items() if isinstance(v, int | tuple | str)})
        for part in module.modules()
    ]
    return {name: (key, tensor.tolist()) for name, (key, tensor) in state.items()}, plain


MODULES = {
    "residual": (Residual, IMAGE),
    "llama": (language.Llama, IDS),
    "llama, fused and tied": (lambda: language.Llama(fused=True, tied=True), IDS),
    "lstm": (language.Recurrent, IDS),
    "gru": (lambda: language.Recurrent(nn.GRU), IDS),
    "encoder": (language.Encoder, IDS),
    "attention": (Attention, torch.randn(5, 2, 24)),
    "attention without biases": (lambda: Attention(bias=False, batch_first=True), torch.randn(2, 5, 24)),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_answers_as_its_graph_after_half_is_pruned(name):
    make, example = MODULES[name]
    module = fresh(make)
    names = list(module.state_dict())
    before = sum(tensor.numel() for tensor in module.parameters())
    done = apply(module, optimized(module, example), example_inputs=example)
    assert done.tensors
    assert done.error <= 1e-5
    assert not done.constant
    assert list(module.state_dict()) == names
    assert sum(tensor.numel() for tensor in module.parameters()) < 0.8 * before


def test_attributes_follow_the_tensors():
    module = fresh(Residual)
    done = apply(module, pruned(), example_inputs=IMAGE)
    texts = set(map(str, done.attributes))
    assert {
        "grouped.groups: 4 -> 2",
        "grouped.in_channels: 16 -> 8",
        "grouped.out_channels: 24 -> 12",
        "depthwise.groups: 16 -> 8",
        "groupnorm.num_groups: 4 -> 2",
        "inner.num_features: 24 -> 12",
        "up.out_channels: 8 -> 4",
        "act.num_parameters: 8 -> 4",
        "head.in_features: 8 -> 4",
    } <= texts
    assert "verified, error" in str(done)


def test_inputs_are_made_up_where_there_are_none():
    module = fresh(language.Llama)
    done = apply(module, optimized(module, IDS))
    assert done.error <= 1e-5
    assert (module.blocks[0].heads, module.blocks[0].parts) == (4, [32, 16, 16])


def test_a_plan_does_the_same_to_another_checkpoint():
    second = fresh(Residual, 1)
    made = plan(pruned())
    done = apply(second, made, example_inputs=IMAGE)
    assert done.error <= 1e-5
    expected = made.take(fresh(Residual, 1).state_dict())
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    # Pruning that checkpoint itself in the same way gives the same module.
    other = load(fresh(Residual, 1), IMAGE)
    keeps = {
        group.name: kept(made, group.members[0])
        for group in bevel.groups(other)
        if kept(made, group.members[0]) is not None
    }
    select(other, keeps)
    third = fresh(Residual, 1)
    apply(third, other, example_inputs=IMAGE)
    torch.testing.assert_close(answer(third, IMAGE), answer(second, IMAGE), **CLOSE)


def kept(made, member):
    """Return what a plan keeps of a group, read from a member that holds nothing else on that axis."""
    tensors = {name: tensor for tensor in made.tensors for name in tensor.names}
    cut = tensors[member.value.name].cuts.get(member.axis) if member.value.name in tensors else None
    if cut is None:
        return None
    if not member.path:
        return cut.kept
    inner = cut.changes[0].parts[1].before  # [groups, channels of one]: the groups were pruned
    return np.unique(cut.kept // inner) if member.path == (0,) else None


def test_a_plan_without_inputs_runs_nothing_and_says_so():
    module = fresh(Residual)
    done = apply(module, plan(pruned()))
    assert np.isnan(done.error)
    assert "not verified" in str(done)
    assert answer(module, IMAGE).shape == (2, 5)


@pytest.mark.parametrize("by_plan", [False, True])
def test_a_planted_wrong_place_is_caught_and_taken_back(by_plan):
    module = fresh(Residual)
    model = pruned()
    if by_plan:
        source = plan(model)
        tensors = list(source.tensors)
        (place,) = [index for index, tensor in enumerate(tensors) if tensor.names == ("project.weight",)]
        tensors[place] = replaced(tensors[place])
        source = Plan(tuple(tensors))
    else:
        source = model
        weight = model.graph.initializers["project.weight"]
        weight.const_value = ir.tensor(weight.const_value.numpy()[::-1].copy(), name=weight.name)
        source = Swapped(model)
    before = everything(module)
    with pytest.raises(EditRefused, match="its outputs differ by"):
        apply(module, source.model if isinstance(source, Swapped) else source, example_inputs=IMAGE)
    assert everything(module) == before


def replaced(tensor):
    """Keep another input channel than the others keep."""
    cut = tensor.cuts[1]
    wrong = cut.kept.copy()
    wrong[0] = next(place for place in range(cut.size) if place not in cut.kept)
    return type(tensor)(tensor.names, tensor.shape, {**tensor.cuts, 1: Cut(cut.size, wrong, cut.changes)}, True)


class Swapped:
    """A model whose graph answers otherwise than its initializers' names say: two parameters' provenance swapped."""

    def __init__(self, model):
        self.model = model
        first, second = (model.graph.initializers[name] for name in ("inner.running_mean", "inner.bias"))
        first.metadata_props["bevel.provenance"], second.metadata_props["bevel.provenance"] = (
            second.metadata_props["bevel.provenance"],
            first.metadata_props["bevel.provenance"],
        )


def test_a_size_written_into_a_forward_is_named_and_the_module_left_alone():
    module = fresh(HardCoded)
    x = torch.randn(3, 6)
    model = load(module, x)
    (group,) = [group for group in bevel.groups(model) if group.size == 4 and group.allows("select")]
    select(model, {group.name: np.array([0, 2])})
    before, right = everything(module), answer(module, x)
    with pytest.raises(EditRefused) as caught:
        apply(module, model, example_inputs=x)
    assert "HardCoded.forward, test_surgery.py:" in caught.value.what
    assert "`return self.down(self.up(x).relu().reshape(-1, 2, 4)).sum(1)`" in caught.value.what
    assert "bevel.to_torch(model)" in caught.value.remedy
    assert everything(module) == before
    assert torch.equal(answer(module, x), right)


def test_sizes_under_names_that_do_not_say_so_are_found_by_the_outputs():
    module = fresh(Pieces)
    x = torch.randn(3, 6)
    model = load(module, x)
    (group,) = [group for group in bevel.groups(model) if group.size == 4 and group.allows("select")]
    select(model, {group.name: np.array([0, 2])})
    done = apply(module, model, example_inputs=x)
    assert "a: 4 -> 2" in set(map(str, done.attributes))
    assert (module.a, module.b) == (2, 6)


@pytest.mark.parametrize(("second", "shared"), [(2, 2), (3, 4)])
def test_a_shared_configuration_follows_only_where_all_layers_agree(second, shared):
    module, example = fresh(Heads), torch.randn(2, 5, 24)
    given = module.config
    model = load(module, example)
    first, last = (group.name for group in bevel.groups(model) if group.size == 4 and group.allows("select"))
    select(model, {first: np.arange(2), last: np.arange(second)})
    done = apply(module, model, example_inputs=example)
    assert done.error <= 1e-5
    assert [layer.num_heads for layer in module.layers] == [2, second]
    assert vars(module.config) == {"hidden": 24, "num_heads": shared, "num_layers": 4}
    assert all(layer.config is module.config for layer in module.layers)
    assert given.num_heads == 4  # for other modules may be made of it


def test_hooks_modes_gradients_and_classes_survive():
    module = fresh(Residual)
    module.stem.weight.requires_grad_(False)
    model = pruned()
    module.train()
    module.norm.eval()
    seen = []
    module.grouped.register_forward_hook(lambda part, given, result: seen.append(result.shape[1]))
    apply(module, model, example_inputs=IMAGE)
    seen.clear()
    module(IMAGE)
    assert seen == [12]
    assert type(module) is Residual
    assert (module.training, module.norm.training) == (True, False)
    assert not module.stem.weight.requires_grad
    assert module.stem.bias.requires_grad
    assert isinstance(module.stem.weight, nn.Parameter)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_types_survive(kind):
    made = plan(pruned())
    module = fresh(Residual).to(kind)
    done = apply(module, made, example_inputs=IMAGE.to(kind))
    assert done.error <= 1e-4
    assert {tensor.dtype for tensor in module.parameters()} == {kind}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_a_hook_computes_is_refused_with_what_to_use_instead(norm):
    module = nn.Sequential(norm(nn.Conv1d(6, 32, 3)), nn.ReLU(), nn.Conv1d(32, 4, 3)).eval()
    x = torch.randn(2, 6, 9)
    before = answer(module, x)
    with pytest.raises(EditRefused, match="if a hook computes one, as"):
        apply(module, optimized(module, x), example_inputs=x)
    assert torch.equal(answer(module, x), before)


def test_half_precision_inside_is_rounding():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(8, 32), nn.Linear(32, 4).half()

        def forward(self, x):
            return self.outer(self.inner(x).half()).float()

    module, x = fresh(Mixed), torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    assert apply(module, optimized(module, x), example_inputs=x).error < 1e-4
    assert module.inner.out_features == 16


def test_a_step_of_training_then_saving_and_loading(tmp_path):
    module = fresh(language.Encoder)
    model = optimized(module, IDS)
    apply(module, model, example_inputs=IDS)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
    before = answer(module, IDS)
    module.train()
    module(IDS).square().mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    optimizer.step()
    module.eval()
    trained = answer(module, IDS)
    assert not torch.allclose(trained, before)
    torch.save(module.state_dict(), tmp_path / "small.pt")
    twin = fresh(language.Encoder, 5)
    apply(twin, plan(model))
    twin.load_state_dict(torch.load(tmp_path / "small.pt"))
    torch.testing.assert_close(answer(twin, IDS), trained, **CLOSE)
    again = pickle.loads(pickle.dumps(copy.deepcopy(module)))
    torch.testing.assert_close(answer(again, IDS), trained, **CLOSE)


def test_training_does_not_reach_back_into_the_optimized_model():
    module = fresh(Residual)
    model = optimized(module, IMAGE)
    apply(module, model, example_inputs=IMAGE)
    values = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    for name, value in model.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), values[name], err_msg=name)


def test_tied_parameters_stay_one():
    module = fresh(language.Llama, tied=True)
    model = load(module, IDS)
    (group,) = [group for group in bevel.groups(model) if group.size == 192][:1]
    select(model, {group.name: np.arange(100)})
    apply(module, model, example_inputs=IDS)
    assert module.head.weight is module.tokens.weight
    assert len(list(module.parameters())) == len({id(p) for p in module.parameters()})


def test_a_wrong_module_is_refused_by_name():
    model = pruned()
    other = fresh(Residual)
    other.project = nn.Conv2d(24, 20, 1)
    with pytest.raises(UsageError, match=r"'project.bias' is \[20\], the plan has \[16\]"):
        apply(other, model)
    with pytest.raises(UsageError, match="is missing"):
        apply(fresh(language.Llama), model)


def test_a_module_that_was_edited_is_not_edited_twice():
    module = fresh(Residual)
    model = pruned()
    apply(module, model, example_inputs=IMAGE)
    with pytest.raises(UsageError, match="the tensors are not those the plan was made of"):
        apply(module, model, example_inputs=IMAGE)
    # But pruned once more, it is.
    done = apply(module, optimized(module, IMAGE), example_inputs=IMAGE)
    assert done.error <= 1e-5
    assert module.grouped.out_channels == 6


def test_what_fold_took_away_is_named():
    module = fresh(Residual)
    model = pruned("fold,prune-channels{ratio=0.5}")
    before = everything(module)
    with pytest.raises(EditRefused, match="fold"):
        apply(module, model, example_inputs=IMAGE)
    with pytest.raises(EditRefused, match=r"no longer has .*norm.weight"):
        apply(module, model, verify=False)
    assert everything(module) == before


def test_an_onnx_model_of_nobody_is_refused():
    with pytest.raises(UsageError, match="knows no parameter of the module"):
        apply(fresh(Residual), mlp())


def test_what_is_no_plan_is_refused():
    with pytest.raises(UsageError, match="the second argument is a str"):
        apply(fresh(Residual), "plan.json")


def test_constant_outputs_are_told():
    module = fresh(Residual)
    nn.init.zeros_(module.head.weight)
    nn.init.zeros_(module.head.bias)
    model = load(module, IMAGE)
    bevel.optimize(model, HALF, verify=False)
    done = apply(module, model, example_inputs=IMAGE)
    assert done.constant
    assert "hardly any error could show" in str(done)


def narrow(module):
    """Make an attention of PyTorch a narrow one, with all its heads."""
    other = copy.deepcopy(module)
    other.__class__ = NarrowMultiheadAttention
    other.scale = other.head_dim**-0.5
    return other


ATTENTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "learned key": {"add_bias_kv": True},
    "zero key": {"add_zero_attn": True},
    "both keys": {"add_bias_kv": True, "add_zero_attn": True},
    "other widths": {"kdim": 10, "vdim": 14},
}


@pytest.mark.parametrize("options", ATTENTIONS.values(), ids=ATTENTIONS)
@pytest.mark.parametrize("mask", ["none", "padding", "attention", "float", "per head", "causal"])
@pytest.mark.parametrize("weights", ["none", "mean", "each"])
def test_a_narrow_attention_is_pytorchs_own(options, mask, weights):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(24, 4, **options).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    q, k, v = torch.randn(5, 2, 24), torch.randn(7, 2, module.kdim), torch.randn(7, 2, module.vdim)
    if mask == "causal":
        k, v = k[:5], v[:5]
    if options.get("batch_first"):
        q, k, v = (tensor.transpose(0, 1) for tensor in (q, k, v))
    given = {
        "none": {},
        "padding": {"key_padding_mask": torch.tensor([[False] * 5 + [True] * 2, [False] * 7])},
        "attention": {"attn_mask": torch.ones(5, 7, dtype=torch.bool).triu(3)},
        "float": {"attn_mask": torch.randn(5, 7)},
        "per head": {"attn_mask": torch.randn(8, 5, 7)},
        "causal": {"attn_mask": nn.Transformer.generate_square_subsequent_mask(5), "is_causal": True},
    }[mask]
    given |= {"need_weights": weights != "none", "average_attn_weights": weights != "each"}
    expected, found = module(q, k, v, **given), narrow(module)(q, k, v, **given)
    torch.testing.assert_close(found[0], expected[0], **CLOSE)
    assert (found[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        torch.testing.assert_close(found[1], expected[1], **CLOSE)


def test_a_narrow_attention_takes_unbatched_inputs():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(24, 4).eval()
    x, hidden = torch.randn(5, 24), torch.tensor([False, False, False, True, True])
    expected, found = (each(x, x, x, key_padding_mask=hidden) for each in (module, narrow(module)))
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_narrow_attention_keeps_its_place():
    module = fresh(Attention, batch_first=True)
    example = torch.randn(2, 5, 24)
    apply(module, optimized(module, example), example_inputs=example)
    assert isinstance(module.attend, nn.MultiheadAttention)
    assert type(module.attend) is NarrowMultiheadAttention
    assert (module.attend.num_heads, module.attend.head_dim, module.attend.embed_dim) == (2, 6, 24)
    assert list(module.attend.state_dict()) == ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    wide = functional.linear(example, module.attend.in_proj_weight)
    assert wide.shape[-1] == 36
