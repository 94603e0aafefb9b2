"""The networks of `benchmarks.pruning_coverage`, by set: how to build each, and inputs that fit it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.architectures import (
    DECODER,
    ENCODER,
    GEMMA,
    OPTIONS,
    PATCHES,
    QUIET,
    TRANSFORMERS,
    Architecture,
    hugging,
    image,
    timm_model,
    tokens,
    torchvision_model,
)

SIDE, TIMM_SIDE = 64, 128
SIDES = {"googlenet": 96, "inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56} | {
    **dict.fromkeys(("csatv2", "sam2_hiera_tiny", "halonet_h1"), 256),
    **dict.fromkeys(("nasnetalarge", "pnasnet5large", "inception_resnet_v2", "inception_v4"), 160),
    **dict.fromkeys(("gemma4_vit_167m", "qwen3_vit_88m"), 192),
}
"""Pixels of an image's side, which says nothing of channels; others get `SIDE` or `TIMM_SIDE`, unless they insist."""


def classification() -> Iterator[tuple[str, Architecture]]:
    """Every classifier of torchvision."""
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        side = SIDES.get(name, SIDE)
        options = dict(OPTIONS.get(name, {}))
        if name.startswith("vit_"):
            options["image_size"] = side
        yield f"torchvision/{name}", Architecture(torchvision_model(name, **options), image(side))


def segmentation() -> Iterator[tuple[str, Architecture]]:
    """Every segmentation network of torchvision."""
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models.segmentation):
        feed = image(SIDE, name="input" if name.startswith("lraspp") else "x")
        yield f"segmentation/{name}", Architecture(torchvision_model(name, weights_backbone=None), feed)


class Dense(nn.Module):
    """A detector without what is no network: no resizing, anchors, sorting of boxes, or suppression.

    Where regions are cut out of a feature map, the whole map, pooled to the size of a region, stands for one.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.heads = nn.ModuleDict()
        for name, part in (("head", detector), ("rpn", getattr(detector, "rpn", None))):
            if part is not None and hasattr(part, "head"):
                self.heads[name] = part.head
        self.regions = nn.ModuleList()
        for kind in ("box", "mask", "keypoint"):
            head = getattr(getattr(detector, "roi_heads", None), f"{kind}_head", None)
            if head is not None:
                self.regions.append(nn.ModuleList([head, getattr(detector.roi_heads, f"{kind}_predictor")]))

    def forward(self, x: Tensor) -> list[Any]:
        features = list(self.backbone(x).values())
        found = [head(features) for head in self.heads.values()]
        for head, predictor in self.regions:
            side = 7 if isinstance(predictor, type(self.regions[0][1])) else 14
            found.append(predictor(head(nn.functional.adaptive_avg_pool2d(features[0], side))))
        return found


def detector(name: str) -> Callable[[], nn.Module]:
    """Return what builds the dense part of a detector."""
    return lambda: Dense(torchvision_model(name, weights_backbone=None)())


def detection() -> Iterator[tuple[str, Architecture]]:
    """The dense part of every detector of torchvision."""
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models.detection):
        yield f"detection/{name}", Architecture(detector(name), image(320 if "ssd" in name else 128))


def pixels(side: int = 32) -> Callable[[], dict[str, Tensor]]:
    """Make images as transformers calls them."""
    return image(side, name="pixel_values")


def sound() -> dict[str, Tensor]:
    """Make sound waves."""
    return {"input_values": torch.randn(2, 400)}


def pairs() -> dict[str, Tensor]:
    """Make images and texts."""
    return {"input_ids": torch.randint(5, 90, (2, 10)), "pixel_values": torch.randn(2, 3, 32, 32)}


NINETEEN = (
    *("bert", "bert-classifier", "gpt2", "llama", "llama-gqa", "t5", "vit", "swin", "mobilebert", "distilbert"),
    *("whisper", "mistral", "qwen2", "qwen3", "gemma", "phi", "opt", "bloom", "mixtral"),
)
"""The first set of transformers, which the targets are about."""

LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
TEXT = {**ENCODER, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MORE: dict[str, tuple[str, str, Callable[[], dict[str, Tensor]], dict[str, Any]]] = {
    "swin": ("SwinModel", "SwinConfig", pixels(), SWIN),
    "deit": ("DeiTModel", "DeiTConfig", pixels(), {**PATCHES, "image_size": 32, "patch_size": 8}),
    "beit": ("BeitModel", "BeitConfig", pixels(), {**PATCHES, "image_size": 32, "patch_size": 8}),
    "dinov2": (
        "Dinov2Model",
        "Dinov2Config",
        pixels(),
        {"hidden_size": 32, **LAYERS, "image_size": 32, "patch_size": 8},
    ),
    "convnext": ("ConvNextModel", "ConvNextConfig", pixels(64), STAGES),
    "segformer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        pixels(64),
        {**STAGES, "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 32},
    ),
    "resnet": ("ResNetModel", "ResNetConfig", pixels(64), {**STAGES, "embedding_size": 16}),
    "roberta": ("RobertaModel", "RobertaConfig", tokens(), {**TEXT, **QUIET}),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaConfig", tokens(), {**TEXT, **QUIET}),
    "electra": ("ElectraModel", "ElectraConfig", tokens(), {**ENCODER, **QUIET, "embedding_size": 16}),
    "albert": ("AlbertModel", "AlbertConfig", tokens(), {**ENCODER, **QUIET, "embedding_size": 16}),
    "deberta-v2": ("DebertaV2Model", "DebertaV2Config", tokens(), {**ENCODER, **QUIET}),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", tokens(), ENCODER),
    "falcon": ("FalconForCausalLM", "FalconConfig", tokens(), {"vocab_size": 96, "hidden_size": 32, **LAYERS}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", tokens(), {**DECODER, "pad_token_id": 0}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", tokens(), GEMMA),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", tokens(), GEMMA),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", tokens(), DECODER),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        tokens(),
        {**DECODER, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "wav2vec2": (
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        sound,
        {**PATCHES, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "apply_spec_augment": False}
        | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 32},
    ),
}


def clip() -> nn.Module:
    """Build a small CLIP."""
    import transformers

    sides = {"hidden_size": 32, "intermediate_size": 64, **LAYERS}
    config = transformers.CLIPConfig(
        text_config={**sides, "vocab_size": 96, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
        vision_config={**sides, "image_size": 32, "patch_size": 8},
        projection_dim=24,
        attn_implementation="eager",
    )
    module: nn.Module = transformers.CLIPModel(config)
    return module


def transformers_models() -> Iterator[tuple[str, Architecture]]:
    """Tiny configurations of transformers: first those that the targets are about, then others."""
    more = {
        name: Architecture(hugging(model, config, **options), feed)
        for name, (model, config, feed, options) in MORE.items()
    }
    known = {name.partition("/")[2]: each for name, each in TRANSFORMERS.items()} | more
    known["clip"] = Architecture(clip, pairs)
    for name in (*NINETEEN, *(name for name in known if name not in NINETEEN)):
        first = "transformers" if name in NINETEEN else "transformers-more"
        yield f"{first}/{name}", known[name]


def timm_models(*, every: bool = False) -> Iterator[tuple[str, Architecture]]:
    """One network of each of timm's families, or every network it has."""
    import timm

    for name in timm.list_models() if every else FAMILIES.split():
        config = timm.get_pretrained_cfg(name)
        rigid = config is None or config.fixed_input_size or config.min_input_size
        side = SIDES.get(name, max(config.input_size[1:]) if config is not None and rigid else TIMM_SIDE)
        yield f"timm/{name}", Architecture(timm_model(name), image(side))


FAMILIES = """
beit_base_patch16_224 halonet_h1 gernet_s cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 convnext_atto
cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121
dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_lite0 efficientvim_m1
efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny
gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t
inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 mambaout_femto
coatnet_pico_rw_224 poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvitv2_tiny
naflexvit_base_patch16_gap nasnetalarge nest_tiny nextvit_small nfnet_l0 pit_ti_224 pnasnet5large pvt_v2_b0
qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnet10t resnetv2_18 rexnet_100
selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224
tresnet_m twins_svt_small vgg11 visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224
samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw xception41 legacy_xception
xcit_nano_12_p16_224
"""


def networks(*, every_timm: bool = False) -> dict[str, Architecture]:
    """Return every network by its name, which begins with its set."""
    sets = (classification(), detection(), segmentation(), transformers_models(), timm_models(every=every_timm))
    return {name: architecture for found in sets for name, architecture in found}
