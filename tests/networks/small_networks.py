"""Small networks for tests: some that cannot be tiled, and a strategy for random ones that can."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fcnpipe.networks.base import Reach

WIDTH = 2


def symmetric_reach(reach: int, stride: int = 1, cell: int | None = None) -> Reach:
    """Return a reach that is the same on all four sides."""
    return Reach(reach, reach, reach, reach, stride, stride, reach if cell is None else cell)


def conv(kernel: int = 3, inner: int = WIDTH, outer: int = WIDTH, **options: object) -> nn.Conv2d:
    options = {"padding": "same", **options}
    return nn.Conv2d(inner, outer, kernel, **options)  # type: ignore[arg-type]


def after_conv(layer: nn.Module) -> nn.Module:
    return nn.Sequential(conv(1, 1), layer).eval()


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = conv(1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(WIDTH, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        mixed = self.heads(pixels, pixels, pixels, need_weights=False)[0]
        return mixed.transpose(1, 2).reshape(x.shape)


class RowAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x)


class Position(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.linspace(-1, 1, x.shape[-1])


class CoordinateBands(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones(1, 1, *x.shape[2:])], dim=1)


class Flip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(3)


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class SegNetLike(nn.Module):
    """Convolutions around a max-pooling and a max-unpooling with its indices."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between, self.after = conv(3, 1, 4), conv(7, 4, 4), conv(7, 4, 1)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        pooled, indices = self.pool(self.before(x))
        return self.after(self.unpool(self.between(pooled), indices))


class ChannelsLast(nn.Module):
    """LayerNorm and Linear over channels, as ConvNeXt has them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.mix = conv(7, 1, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.norm(self.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class AlignCorners(nn.Module):
    """Interpolation at positions that depend on the image's size, which a NaN probe cannot show."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.max_pool2d(self.conv(x), 2)
        return functional.interpolate(pooled, scale_factor=2, mode="bilinear", align_corners=True)


class ResizeToInput(nn.Module):
    """Resizes by a factor that depends on the size of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x[..., 5:, 5:], size=x.shape[2:])


class AddsInPlace(nn.Module):
    """Overwrites an array in place and returns it, so its reach is that of the in-place sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3)

    def forward(self, x: Tensor) -> Tensor:
        total = x * 2
        total.add_(self.conv(x))
        return total


class Level(nn.Module):
    """Subsampling, layers at the coarser scale, upsampling, and a skip connection if ``joined``."""

    def __init__(self, down: nn.Module, inside: nn.Module, up: nn.Module, joined: bool) -> None:
        super().__init__()
        self.down, self.inside, self.up, self.joined = down, inside, up, joined

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.inside(self.down(x)))
        return x + y if self.joined else y


class Shift(nn.Module):
    """A shift by a few pixels: one side is cropped and the other padded."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[..., self.rows :, self.columns :], (0, self.columns, 0, self.rows))


class Branches(nn.Module):
    """Parallel branches, concatenated: grouped, dilated, averaging, and the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.wide = conv(3, groups=2), conv(3, dilation=2)
        self.mean, self.mix = nn.AvgPool2d((3, 5), 1, padding=(1, 2)), conv(1, 4 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([self.near(x), self.wide(x), self.mean(x), x], dim=1)) + x


class Padded(nn.Module):
    """A convolution without padding, then a padding in one of torch's modes."""

    def __init__(self, mode: str, sides: tuple[int, int, int, int]) -> None:
        super().__init__()
        rows, columns = sides[2] + sides[3] + 1, sides[0] + sides[1] + 1
        self.conv, self.mode, self.sides = conv((rows, columns), padding=0), mode, sides  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(self.conv(x), self.sides, self.mode)


class Cropped(nn.Module):
    """A transposed convolution, cropped by negative padding and by slices."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(WIDTH, WIDTH, 4, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(self.up(x), (-2, -1, 0, 0))[:, :, 1:-5, :-3]


class Unpooled(nn.Module):
    """Max-pooling and max-unpooling with its indices, as in SegNet."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(size, return_indices=True)
        self.inside, self.unpool = conv(3), nn.MaxUnpool2d(size)

    def forward(self, x: Tensor) -> Tensor:
        pooled, indices = self.pool(x)
        return self.unpool(self.inside(pooled), indices, x.shape[2:])


def _subsamplings(factor: int) -> list[Callable[[], nn.Module]]:
    return [
        lambda: nn.MaxPool2d(factor),
        lambda: nn.AvgPool2d(factor, ceil_mode=True),
        lambda: nn.MaxPool2d(factor + 1, factor, padding=1, ceil_mode=factor == 3),
        lambda: nn.Conv2d(WIDTH, WIDTH, factor + 2, stride=factor, padding=1),
        lambda: nn.Conv2d(WIDTH, WIDTH, factor, stride=factor),
        lambda: nn.Conv2d(WIDTH, WIDTH, 3, stride=factor, padding=2, dilation=2, groups=2),
        lambda: nn.AvgPool2d(factor + 1, factor, padding=1, count_include_pad=False),
        lambda: nn.Sequential(nn.PixelUnshuffle(factor), conv(1, WIDTH * factor**2)),
    ]


def _upsamplings(factor: int) -> list[Callable[[], nn.Module]]:
    return [
        lambda: nn.Upsample(scale_factor=factor),
        lambda: nn.Upsample(scale_factor=factor, mode="nearest-exact"),
        lambda: nn.Upsample(scale_factor=factor, mode="bilinear"),
        lambda: nn.Upsample(scale_factor=factor, mode="bicubic"),
        lambda: nn.ConvTranspose2d(WIDTH, WIDTH, factor, stride=factor),
        lambda: nn.ConvTranspose2d(WIDTH, WIDTH, factor + 2, stride=factor, padding=1),
        lambda: nn.ConvTranspose2d(
            WIDTH, WIDTH, factor + 1, stride=factor, padding=1, output_padding=1
        ),
        lambda: nn.ConvTranspose2d(WIDTH, WIDTH, factor, stride=factor, groups=2),
        lambda: nn.Sequential(conv(1, WIDTH, WIDTH * factor**2), nn.PixelShuffle(factor)),
    ]


_SAME_SCALE: list[Callable[[], nn.Module]] = [
    lambda: conv(3),
    lambda: conv(4),
    lambda: conv((2, 5)),  # type: ignore[arg-type]
    lambda: conv(3, dilation=3),
    lambda: conv(3, padding=1, padding_mode="reflect"),
    lambda: conv(3, padding=1, padding_mode="replicate"),
    lambda: nn.Sequential(conv(1), nn.BatchNorm2d(WIDTH), nn.Dropout(), nn.PReLU()),
    lambda: nn.LocalResponseNorm(3),
    lambda: nn.MaxPool2d(3, 1, padding=1),
    lambda: Branches(),
    lambda: Padded("reflect", (2, 1, 0, 1)),
    lambda: Padded("replicate", (0, 3, 1, 1)),
    lambda: Padded("constant", (1, 1, 4, 2)),
    lambda: Cropped(),
    lambda: Shift(0, 2),
    lambda: Shift(1, 0),
    lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=2, dilation=2),
    lambda: nn.Softmax(dim=1),
]


def _same_size(down: nn.Module, up: nn.Module) -> bool:
    with torch.no_grad():
        return up(down(torch.zeros(1, WIDTH, 24, 36))).shape[2:] == (24, 36)


@st.composite
def networks(draw: st.DrawFn, depth: int = 2) -> nn.Module:
    """Draw a network of at most two levels of subsampling, in evaluation mode."""
    torch.manual_seed(draw(st.integers(0, 100)))
    layers: Sequence[nn.Module] = [conv(1, 1), *draw(_layers(depth)), conv(1)]
    return nn.Sequential(*layers).eval()


@st.composite
def _layers(draw: st.DrawFn, depth: int) -> list[nn.Module]:
    layers = [
        make() for make in draw(st.lists(st.sampled_from(_SAME_SCALE), min_size=1, max_size=2))
    ]
    if depth and draw(st.booleans()):
        factor = draw(st.sampled_from([2, 3]))
        down, up = (
            draw(st.sampled_from(_subsamplings(factor)))(),
            draw(st.sampled_from(_upsamplings(factor)))(),
        )
        if _same_size(down, up):
            inside = nn.Sequential(*draw(_layers(depth - 1)))
            layers.append(Level(down, inside, up, draw(st.booleans())))
    return layers
