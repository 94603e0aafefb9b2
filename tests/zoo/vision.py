"""Small vision transformers: global attention with a class token, and shifted windows with patch merging."""

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10


class ViT(nn.Module):
    """Patches of 4x4 from `[batch, 3, 16, 16]`, a class token, learned positions, layer scale."""

    def __init__(self, width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.blocks = nn.Sequential(*[ViTBlock(width, 4) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(image.shape[0], -1, -1), patches), 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = FusedAttention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale1, self.scale2 = (nn.Parameter(torch.full((width,), 0.5)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attention(self.norm1(x))
        return x + self.scale2 * self.down(functional.gelu(self.up(self.norm2(x))))


class FusedAttention(nn.Module):
    """timm's layout: one matrix for qkv, cut by a reshape to `[3, batch, heads, tokens, each]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        weights = (scores if bias is None else scores + bias).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Swin(nn.Module):
    """Windows of 4x4 over 8x8 places, one block plain and one shifted, then patch merging and one more block."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.blocks = nn.Sequential(SwinBlock(width, 8, 0), SwinBlock(width, 8, 2))
        self.merge_norm, self.merge = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)
        self.last = SwinBlock(2 * width, 4, 0)
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.patches(image).permute(0, 2, 3, 1))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        x = self.last(self.merge(self.merge_norm(torch.cat(corners, -1))))
        return self.head(self.norm(x).mean((1, 2)))


class SwinBlock(nn.Module):
    """Attention inside windows of `[batch, side, side, width]`, rolled by `shift` first and back afterwards."""

    WINDOW = 4

    def __init__(self, width: int, side: int, shift: int, heads: int = 4) -> None:
        super().__init__()
        self.side, self.shift = side, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = FusedAttention(width, heads)
        tokens = self.WINDOW**2
        self.table = nn.Parameter(torch.randn((2 * self.WINDOW - 1) ** 2, heads) * 0.02)
        self.register_buffer("index", relative(self.WINDOW))
        self.tokens = tokens
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))

    def attend(self, x: Tensor) -> Tensor:
        moved = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        bias = self.table[self.index.view(-1)].view(self.tokens, self.tokens, -1).permute(2, 0, 1)
        mixed = self.joined(self.attention(self.windows(moved), bias[None]))
        return torch.roll(mixed, (self.shift, self.shift), (1, 2)) if self.shift else mixed

    def windows(self, x: Tensor) -> Tensor:
        width, count = x.shape[3], self.side // self.WINDOW
        cut = x.view(-1, count, self.WINDOW, count, self.WINDOW, width).permute(0, 1, 3, 2, 4, 5)
        return cut.reshape(-1, self.tokens, width)

    def joined(self, x: Tensor) -> Tensor:
        width, count = x.shape[2], self.side // self.WINDOW
        cut = x.view(-1, count, count, self.WINDOW, self.WINDOW, width).permute(0, 1, 3, 2, 4, 5)
        return cut.reshape(-1, self.side, self.side, width)


def relative(window: int) -> Tensor:
    """For each pair of places in a window, the row of the bias table: `[tokens, tokens]`."""
    places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    apart = (places[:, :, None] - places[:, None, :]) + window - 1
    return apart[0] * (2 * window - 1) + apart[1]
