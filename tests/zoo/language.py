"""Small language models, each in the manner of a family: their layouts are what tests want, their weights are random.

All take token numbers `[batch, sequence]` and use rotary, learned or no positions as their family does.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY, WIDTH, LENGTH = 96, 64, 32


class GPT(nn.Module):
    """Pre-norm decoder: fused qkv, learned positions, tanh GELU, head tied to the embedding."""

    def __init__(self, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList([GPTBlock(heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class GPTBlock(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    def attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).split(width, dim=2)
        q, k, v = (t.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for t in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Bert(nn.Module):
    """Post-norm encoder: separate q, k and v, an additive padding mask, erf GELU, a pooled classifier.

    Its parameters carry the published names, so that a released checkpoint loads into it. With `classes=None` it
    returns the mean of the last states over the unmasked positions, as sentence encoders do.
    """

    def __init__(
        self,
        *,
        vocabulary: int = VOCABULARY,
        width: int = WIDTH,
        hidden: int = 4 * WIDTH,
        layers: int = 2,
        heads: int = 4,
        length: int = LENGTH,
        classes: int | None = 3,
    ) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(vocabulary, width, length)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([BertLayer(width, hidden, heads) for _ in range(layers)])})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})
        self.classifier = nn.Linear(width, classes) if classes else None

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        x = self.embeddings(ids, types)
        unseen = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.encoder["layer"]:
            x = layer(x, unseen)
        if self.classifier is not None:
            return self.classifier(torch.tanh(self.pooler["dense"](x[:, 0])))
        weights = mask[:, :, None].to(x.dtype)
        return (x * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


class BertEmbeddings(nn.Module):
    def __init__(self, vocabulary: int, width: int, length: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width)
        self.position_embeddings = nn.Embedding(length, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])[None]
        parts = self.word_embeddings(ids) + self.token_type_embeddings(types) + self.position_embeddings(places)
        return self.LayerNorm(parts)


class BertLayer(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.each = heads, width // heads
        norm = {"LayerNorm": nn.LayerNorm(width, eps=1e-12)}
        projections = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        output = nn.ModuleDict({"dense": nn.Linear(width, width), **norm})
        self.attention = nn.ModuleDict({"self": projections, "output": output})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = nn.ModuleDict({"dense": nn.Linear(hidden, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})

    def forward(self, x: Tensor, unseen: Tensor) -> Tensor:
        output = self.attention["output"]
        x = output["LayerNorm"](output["dense"](self.attend(x, unseen)) + x)
        hidden = functional.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](self.output["dense"](hidden) + x)

    def attend(self, x: Tensor, unseen: Tensor) -> Tensor:
        q, k, v = (self.split(self.attention["self"][name](x)) for name in ("query", "key", "value"))
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.each)
        mixed = torch.softmax(scores + unseen, -1) @ v
        return mixed.permute(0, 2, 1, 3).contiguous().view(x.shape)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.each).permute(0, 2, 1, 3)


class Llama(nn.Module):
    """Pre-norm decoder: RMSNorm, rotary positions by halves, grouped queries by expand, SwiGLU, no biases."""

    def __init__(
        self, layers: int = 2, heads: int = 8, shared: int = 4, *, fused: bool = False, tied: bool = False
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([LlamaBlock(heads, shared, fused) for _ in range(layers)])
        self.norm = RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        each = WIDTH // heads
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(0, each, 2) / each))

    def forward(self, ids: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(ids.shape[1]).float(), self.frequencies)
        angles = torch.cat((angles, angles), -1)
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin())
        return self.head(self.norm(x))


class LlamaBlock(nn.Module):
    """`shared` key-value heads serve `heads` queries; `fused` makes qkv, and gate and up, one matrix each."""

    def __init__(self, heads: int, shared: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.shared, self.each = heads, shared, WIDTH // heads
        self.norm1, self.norm2 = RMSNorm(WIDTH), RMSNorm(WIDTH)
        self.parts = [heads * self.each, shared * self.each, shared * self.each]
        self.qkv = Fused(WIDTH, self.parts) if fused else Apart(WIDTH, self.parts)
        self.out = nn.Linear(heads * self.each, WIDTH, bias=False)
        hidden = 3 * WIDTH
        self.gate_up = Fused(WIDTH, [hidden, hidden]) if fused else Apart(WIDTH, [hidden, hidden])
        self.down = nn.Linear(hidden, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x), cos, sin)
        gate, up = self.gate_up(self.norm2(x))
        return x + self.down(functional.silu(gate) * up)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (t.view(batch, length, -1, self.each).transpose(1, 2) for t in self.qkv(x))
        q, k = (t * cos + rotated(t) * sin for t in (q, k))
        k, v = (self.repeat(t) for t in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, self.heads * self.each))

    def repeat(self, x: Tensor) -> Tensor:
        batch, shared, length, each = x.shape
        wide = x[:, :, None].expand(batch, shared, self.heads // shared, length, each)
        return wide.reshape(batch, self.heads, length, each)


class Apart(nn.Module):
    def __init__(self, width: int, parts: list[int]) -> None:
        super().__init__()
        self.weights = nn.ModuleList([nn.Linear(width, part, bias=False) for part in parts])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(weight(x) for weight in self.weights)


class Fused(nn.Module):
    def __init__(self, width: int, parts: list[int]) -> None:
        super().__init__()
        self.parts = parts
        self.weight = nn.Linear(width, sum(parts), bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.weight(x).split(self.parts, dim=-1)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


class Encoder(nn.Module):
    """PyTorch's own encoder layer, which merges the batch with the heads inside its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, activation="relu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layers(self.tokens(ids).transpose(0, 1)).mean(0)


class Recurrent(nn.Module):
    """Two recurrent layers (`nn.LSTM` or `nn.GRU`), both directions, and a classifier of the mean of their states."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU] = nn.LSTM) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 24)
        self.layers = kind(24, 32, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(64, 5)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.layers(self.tokens(ids))
        return self.head(states.mean(1))
