"""Architectures of torchvision, timm and transformers, small inputs, random weights; and some written out here."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """How to build a module, and keyword arguments that fit it; `double` says whether it runs in double precision."""

    build: Callable[[], nn.Module]
    feed: Callable[[], dict[str, Tensor]] = field(repr=False)
    double: bool = True


def image(size: int = 64, batch: int = 2, name: str = "x") -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randn(batch, 3, size, size)}


def torchvision_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        module: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return module

    return build


VISION = {
    **dict.fromkeys(("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"), 64),
    **dict.fromkeys(("densenet121", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"), 64),
    **dict.fromkeys(("mnasnet0_5", "mnasnet1_0", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"), 64),
    **dict.fromkeys(("squeezenet1_0", "squeezenet1_1", "vgg11", "vgg13_bn", "alexnet"), 64),
    **dict.fromkeys(("efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "regnet_x_400mf"), 64),
    **dict.fromkeys(("convnext_tiny", "swin_t", "swin_v2_t"), 64),
    "googlenet": 96,
    "inception_v3": 96,
    "vit_b_32": 64,
    "maxvit_t": 224,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
    "vit_b_32": {"image_size": 64},
}
TORCHVISION = {
    f"torchvision/{name}": Architecture(torchvision_model(name, **OPTIONS.get(name, {})), image(size))
    for name, size in VISION.items()
} | {
    "torchvision/fcn_resnet50": Architecture(torchvision_model("fcn_resnet50", weights_backbone=None), image()),
    "torchvision/lraspp_mobilenet": Architecture(
        torchvision_model("lraspp_mobilenet_v3_large", weights_backbone=None), image(name="input")
    ),
    "torchvision/r3d_18": Architecture(torchvision_model("r3d_18"), lambda: {"x": torch.randn(1, 3, 4, 32, 32)}),
}


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        module: nn.Module = timm.create_model(name, pretrained=False, **options)
        return module

    return build


TIMM = {
    f"timm/{name}": Architecture(timm_model(name), image(size))
    for name, size in {
        "resnetv2_50": 64,
        "ghostnet_100": 64,
        "repvgg_a0": 64,
        "hardcorenas_a": 64,
        "mixer_s32_224": 224,
        "gmlp_ti16_224": 224,
        "poolformer_s12": 64,
        "edgenext_xx_small": 64,
        "mobilevit_xxs": 64,
        "deit_tiny_patch16_224": 224,
        "dla34": 64,
        "res2net50_26w_4s": 64,
    }.items()
}


def tokens(name: str = "input_ids", batch: int = 2, length: int = 10) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randint(5, 90, (batch, length))}


def hugging(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        settings = getattr(transformers, config)(**options)
        settings._attn_implementation = "eager"
        module: nn.Module = getattr(transformers, model)(settings)
        module.config.use_cache = False
        return module

    return build


DECODER = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ENCODER = {key: value for key, value in DECODER.items() if key != "num_key_value_heads"}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GEMMA = {**DECODER, "head_dim": 8}
T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
WHISPER = {
    "vocab_size": 96,
    "num_mel_bins": 16,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_source_positions": 16,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
PATCHES = {**{k: v for k, v in ENCODER.items() if k not in ("vocab_size", "max_position_embeddings")}, **QUIET}


def seq2seq() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(5, 90, (2, 10)), "decoder_input_ids": torch.randint(5, 90, (2, 6))}


def speech() -> dict[str, Tensor]:
    return {"input_features": torch.randn(2, 16, 32), "decoder_input_ids": torch.randint(5, 90, (2, 6))}


TRANSFORMERS = {
    f"transformers/{name}": architecture
    for name, architecture in {
        "bert": Architecture(hugging("BertModel", "BertConfig", **ENCODER, **QUIET), tokens()),
        "bert-classifier": Architecture(
            hugging("BertForSequenceClassification", "BertConfig", **ENCODER, **QUIET), tokens()
        ),
        "distilbert": Architecture(
            hugging(
                "DistilBertModel",
                "DistilBertConfig",
                vocab_size=96,
                dim=32,
                hidden_dim=64,
                n_layers=2,
                n_heads=4,
                dropout=0.0,
                attention_dropout=0.0,
            ),
            tokens(),
        ),
        "gpt2": Architecture(
            hugging(
                "GPT2LMHeadModel",
                "GPT2Config",
                vocab_size=96,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=64,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            ),
            tokens(),
        ),
        "llama": Architecture(
            hugging("LlamaForCausalLM", "LlamaConfig", **{**DECODER, "num_key_value_heads": 4}), tokens()
        ),
        "llama-gqa": Architecture(hugging("LlamaForCausalLM", "LlamaConfig", **DECODER), tokens()),
        "mistral": Architecture(hugging("MistralForCausalLM", "MistralConfig", **DECODER), tokens()),
        "qwen2": Architecture(hugging("Qwen2ForCausalLM", "Qwen2Config", **DECODER), tokens()),
        "qwen3": Architecture(hugging("Qwen3ForCausalLM", "Qwen3Config", **DECODER, head_dim=8), tokens()),
        "gemma": Architecture(hugging("GemmaForCausalLM", "GemmaConfig", **GEMMA), tokens()),
        "gemma2": Architecture(hugging("Gemma2ForCausalLM", "Gemma2Config", **GEMMA), tokens()),
        "phi": Architecture(
            hugging("PhiForCausalLM", "PhiConfig", **DECODER, resid_pdrop=0.0, embd_pdrop=0.0, attention_dropout=0.0),
            tokens(),
        ),
        "opt": Architecture(
            hugging(
                "OPTForCausalLM",
                "OPTConfig",
                vocab_size=96,
                hidden_size=32,
                ffn_dim=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=64,
                word_embed_proj_dim=32,
                dropout=0.0,
            ),
            tokens(),
        ),
        "bloom": Architecture(
            hugging("BloomForCausalLM", "BloomConfig", vocab_size=96, hidden_size=32, n_layer=2, n_head=4), tokens()
        ),
        "mixtral": Architecture(
            hugging("MixtralForCausalLM", "MixtralConfig", **DECODER, num_local_experts=4, num_experts_per_tok=2),
            tokens(),
            double=False,  # torch has no products over groups of rows in it
        ),
        "t5": Architecture(hugging("T5ForConditionalGeneration", "T5Config", **T5, decoder_start_token_id=0), seq2seq),
        "whisper": Architecture(hugging("WhisperForConditionalGeneration", "WhisperConfig", **WHISPER), speech),
        "vit": Architecture(
            hugging("ViTModel", "ViTConfig", **PATCHES, image_size=32, patch_size=8), image(32, name="pixel_values")
        ),
        "mobilebert": Architecture(
            hugging(
                "MobileBertModel",
                "MobileBertConfig",
                **{**ENCODER, "intra_bottleneck_size": 16, "embedding_size": 16},
                **QUIET,
            ),
            tokens(),
        ),
    }.items()
}


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU] | type[nn.RNN], *, both: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 16)
        self.layers = kind(16, 24, 2, batch_first=True, bidirectional=both)
        self.head = nn.Linear(48 if both else 24, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(ids))[0])


class Step(nn.Module):
    """A residual block of a diffusion network: the step's embedding shifts and scales the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, width), nn.GroupNorm(4, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(32, 2 * width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.time(F.silu(time))[:, :, None, None].chunk(2, 1)
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))


class Diffusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.fine, self.coarse, self.last = Step(16), Step(32), Step(16)
        self.down, self.up = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Conv2d(32, 16, 3, padding=1)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.join = nn.Conv2d(32, 16, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.exp(-torch.arange(8) * 0.5)
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        fine = self.fine(self.stem(x), time)
        h = self.coarse(self.down(fine), time)
        flat = h.flatten(2).transpose(1, 2)
        h = h + self.attention(flat, flat, flat, need_weights=False)[0].transpose(1, 2).reshape(h.shape)
        h = self.up(F.interpolate(h, scale_factor=2.0))
        return self.out(self.last(self.join(torch.cat([h, fine], 1)), time))


class Selective(nn.Module):
    """A selective state space (as in Mamba), its scan written as a loop over a fixed length."""

    def __init__(self, width: int = 16, state: int = 4) -> None:
        super().__init__()
        self.width, self.state = width, state
        self.embed, self.inward = nn.Embedding(96, width), nn.Linear(width, 2 * width)
        self.conv = nn.Conv1d(width, width, 3, groups=width, padding=2)
        self.select, self.step = nn.Linear(width, 2 * state + 1), nn.Linear(1, width)
        self.decay = nn.Parameter(torch.log(torch.arange(1.0, state + 1).repeat(width, 1)))
        self.skip, self.out = nn.Parameter(torch.ones(width)), nn.Linear(width, 96)

    def forward(self, ids: Tensor) -> Tensor:
        x, gate = self.inward(self.embed(ids)).chunk(2, -1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : ids.shape[1]].transpose(1, 2))
        delta, b, c = self.select(x).split([1, self.state, self.state], -1)
        delta = F.softplus(self.step(delta))
        decay = torch.exp(delta[..., None] * -torch.exp(self.decay))
        drive = delta[..., None] * b[:, :, None, :] * x[..., None]
        h, outputs = torch.zeros_like(drive[:, 0]), []
        for t in range(ids.shape[1]):
            h = decay[:, t] * h + drive[:, t]
            outputs.append((h * c[:, t, None, :]).sum(-1))
        return self.out((torch.stack(outputs, 1) + x * self.skip) * F.silu(gate))


class Ranking(nn.Module):
    """A recommender (DLRM): embeddings of categories and dense features, all pairs multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(50, 8, mode="sum") for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(14, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())
        self.register_buffer("pairs", torch.tril_indices(4, 4, -1))

    def forward(self, dense: Tensor, categories: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        rows = [bottom, *(F.embedding(categories[:, k], table.weight) for k, table in enumerate(self.tables))]
        stacked = torch.stack(rows, 1)
        products = stacked @ stacked.transpose(1, 2)
        return self.top(torch.cat([bottom, products[:, self.pairs[0], self.pairs[1]]], 1))


class Causal(nn.Module):
    """A gated, dilated, causal convolution over time (as in WaveNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 16, 1)
        self.gates = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=2**k) for k in range(4))
        self.skips = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(4))
        self.out = nn.Conv1d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, total = self.stem(x), torch.zeros(1)
        for k, (gate, skip) in enumerate(zip(self.gates, self.skips, strict=True)):
            a, b = gate(F.pad(h, (2**k, 0))).chunk(2, 1)
            part = skip(torch.tanh(a) * torch.sigmoid(b))
            h, total = h + part, total + part
        return self.out(F.relu(total))


class Points(nn.Module):
    """A network over a set of points (as PointNet): shared layers, a maximum over the set."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 1))
        self.head = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, points: Tensor) -> Tensor:
        return self.head(self.each(points).amax(-1))


class Variational(nn.Module):
    """An autoencoder with transposed convolutions; the mean code is decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(3, 16, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2048, 20),
        )
        self.decode = nn.Sequential(
            nn.Linear(10, 2048),
            nn.ReLU(),
            nn.Unflatten(1, (32, 8, 8)),
            nn.ConvTranspose2d(32, 16, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 3, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(x).chunk(2, 1)
        return self.decode(mean), mean, log_variance


def recurrent_feed() -> dict[str, Tensor]:
    return {"ids": torch.randint(96, (2, 8))}


OWN = {
    "lstm": Architecture(partial(Recurrent, nn.LSTM, both=True), recurrent_feed),
    "gru": Architecture(partial(Recurrent, nn.GRU, both=False), recurrent_feed),
    "rnn": Architecture(partial(Recurrent, nn.RNN, both=True), recurrent_feed),
    "diffusion-unet": Architecture(Diffusion, lambda: {"x": torch.randn(2, 3, 16, 16), "t": torch.rand(2)}),
    "mamba": Architecture(Selective, recurrent_feed),
    "dlrm": Architecture(Ranking, lambda: {"dense": torch.randn(4, 5), "categories": torch.randint(50, (4, 3))}),
    "wavenet": Architecture(Causal, lambda: {"x": torch.randn(2, 1, 40)}),
    "pointnet": Architecture(Points, lambda: {"points": torch.randn(4, 3, 30)}),
    "autoencoder": Architecture(Variational, lambda: {"x": torch.randn(2, 3, 32, 32)}),
    "transformer-encoder": Architecture(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True), 2),
        lambda: {"src": torch.randn(2, 9, 32)},
    ),
    "transformer": Architecture(
        lambda: nn.Transformer(32, 4, 1, 1, 64, 0.0, batch_first=True),
        lambda: {"src": torch.randn(2, 9, 32), "tgt": torch.randn(2, 7, 32)},
    ),
}

INSTALLED = {
    "torchvision": TORCHVISION,
    "timm": TIMM,
    "transformers": TRANSFORMERS,
}
ARCHITECTURES: dict[str, Architecture] = {
    **{
        key: value
        for name, group in INSTALLED.items()
        if importlib.util.find_spec(name)
        for key, value in group.items()
    },
    **OWN,
}
