"""Random networks of everything that real ones do to their maps, and what brute force makes of them."""

import random

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """One operation on maps (N, C, H, W); `kind` names a method below, `make_<kind>` its weights."""

    def __init__(self, kind, channels, size, dice):
        super().__init__()
        self.kind, self.channels, self.size = kind, channels, size
        self.dice = dice.randrange(1000)
        self.out = channels
        made = getattr(self, f"make_{kind}", None)
        if made is not None:
            made(dice)

    def forward(self, x):
        return getattr(self, self.kind)(x)

    # ---- kernels ----

    def make_conv(self, dice):
        groups = dice.choice([1, 1, 2]) if self.channels % 2 == 0 else 1
        self.out = 2 * dice.randint(1, 4)
        kernel = [dice.randint(1, 3) for _ in range(2)]
        stride = [dice.choice([1, 1, 2]) for _ in range(2)]
        padding = [dice.randint(0, 2) for _ in range(2)]
        dilation = [dice.choice([1, 1, 2]) for _ in range(2)]
        self.f = nn.Conv2d(self.channels, self.out, kernel, stride, padding, dilation, groups)

    def conv(self, x):
        return self.f(x)

    def make_named_padding(self, dice):
        mode = dice.choice(["zeros", "circular", "reflect", "replicate"])
        self.f = nn.Conv2d(self.channels, self.channels, 3, 1, 1 if mode != "zeros" else "same", padding_mode=mode)

    def named_padding(self, x):
        return self.f(x) if min(x.shape[2:]) > 2 else x

    def make_spread(self, dice):
        self.f = nn.ConvTranspose2d(self.channels, self.channels, 2, dice.choice([1, 2]))

    def spread(self, x):
        return self.f(x)

    def max_pool(self, x):
        return F.max_pool2d(x, 2 + self.dice % 2, 1 + self.dice % 3, self.dice % 2, 1, bool(self.dice % 5 == 0))

    def avg_pool(self, x):
        return F.avg_pool2d(x, 2, 1 + self.dice % 2, self.dice % 2, bool(self.dice % 3 == 0), bool(self.dice % 4))

    def adaptive(self, x):
        return F.adaptive_avg_pool2d(x, (max(1, x.shape[2] - 1), max(1, x.shape[3] // 2)))

    def unfolded(self, x):
        n, c, h, w = x.shape
        return x + F.unfold(x, 3, padding=1).view(n, c, 9, h, w).amax(2)

    # ---- element by element ----

    def relu(self, x):
        return F.relu(x)

    def relu_in_place(self, x):
        return F.relu(x + 0, inplace=True)

    def relu_of_a_view(self, x):
        a, b = x[:, :1], x
        return F.relu(a) * 0.5 + b

    def relu_in_place_of_a_view(self, x):
        y = x * 1
        a = y[:, :1]
        return torch.cat([F.relu(a), y], 1)[:, : x.shape[1]]

    def dropped(self, x):
        y = F.dropout(x, 0.5, self.training)
        return F.relu(y) - x

    def h_swish(self, x):
        return x * F.relu6(x + 3) / 6

    def swish(self, x):
        return x * torch.sigmoid(x)

    def squared(self, x):
        return x * x / 4

    def cubed(self, x):
        return x**3 / 8 + x.pow(2) / 4

    def make_gate(self, dice):
        self.f = nn.Conv2d(self.channels, 2 * self.channels, 1)

    def gate(self, x):
        a, b = self.f(x).chunk(2, 1)
        return a * b

    def make_glu(self, dice):
        self.f = nn.Conv2d(self.channels, 2 * self.channels, 1)

    def glu(self, x):
        return F.glu(self.f(x), 1)

    def softplus_and_more(self, x):
        return F.softplus(x) + torch.tanh(x) - F.elu(x) + x.abs().sqrt()

    def bounded(self, x):
        low = torch.linspace(-1, 0, x.shape[-1], dtype=x.dtype)
        return torch.clamp(x, low, low + 1.5)

    def where(self, x):
        return torch.where(x > 0.1, x, 0.3 * x)

    def masked(self, x):
        return x.masked_fill(torch.eye(*x.shape[-2:]).bool(), 0.25)

    def in_place(self, x):
        y = x.clone()
        y += 1
        y *= 0.5
        y[:, 0] = 0.1
        return y

    def written(self, x):
        y = torch.zeros_like(x)
        y[:, :1] = x[:, :1]
        y[..., 1:] += x[..., :-1]
        return y

    # ---- maps and constants of places ----

    def make_place(self, dice):
        h, w = self.size
        shape = dice.choice([(1, self.channels, h, w), (h, w), (1, 1, 1, w), (self.channels, h, 1), (w,)])
        self.place_map = nn.Parameter(torch.randn(shape))

    def place(self, x):
        return x + self.place_map

    make_weighed = make_place

    def weighed(self, x):
        return x * self.place_map

    def coordinates(self, x):
        n, _, h, w = x.shape
        rows = torch.linspace(-1, 1, h, dtype=x.dtype).view(1, 1, h, 1).expand(n, 1, h, w)
        return torch.cat([rows, x], 1)[:, : x.shape[1]] + torch.cat([x[:, 1:], rows], 1)

    # ---- crops and borders ----

    def cropped(self, x):
        return F.pad(x, (-1, -1, -1, 0)) if min(x.shape[2:]) > 3 else x

    def moved(self, x):
        return F.pad(x, (-1, 2, 1, -1), value=0.5) if min(x.shape[2:]) > 3 else x

    def padded(self, x):
        return F.pad(x, (1, 0, 2, 1), value=-0.3)

    def reflected(self, x):
        return F.pad(x, (1, 1, 1, 1), mode="reflect") if min(x.shape[2:]) > 2 else x

    def sliced(self, x):
        return x[:, :, 1:, :-1] if min(x.shape[2:]) > 3 else x

    def subsampled(self, x):
        return x[..., ::2, :]

    def halves(self, x):
        return torch.cat([x[..., : x.shape[-1] // 2], x], 3)

    # ---- other orders ----

    def shuffled(self, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w) if c % 2 == 0 else x

    def listed(self, x):
        return x[:, list(range(x.shape[1]))[::-1]]

    def flipped(self, x):
        return x.flip(self.dice % 2 + 2) + x

    def flipped_channels(self, x):
        return x.flip(1)

    def rolled(self, x):
        return x.roll(1, 2 + self.dice % 2)

    def rolled_around(self, x):
        return x.roll(x.shape[3], 3)

    def swapped(self, x):
        return F.max_pool2d(x.transpose(2, 3), (2, 1), 1).transpose(2, 3) if x.shape[3] > 1 else x

    def swapped_for_good(self, x):
        return x.transpose(2, 3)

    def pixels_to_channels(self, x):
        h, w = (n // 2 * 2 for n in x.shape[2:])
        return F.pixel_shuffle(F.pixel_unshuffle(x[:, :, :h, :w], 2), 2) if min(h, w) else x

    def resized(self, x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=bool(self.dice % 2))[:, :, ::2]

    def channels_last(self, x):
        y = x.permute(0, 2, 3, 1)
        return F.layer_norm(y, y.shape[-1:]).permute(0, 3, 1, 2)

    # ---- norms and gates ----

    def make_norm(self, dice):
        self.f = nn.BatchNorm2d(self.channels)
        self.f.running_mean.normal_()
        self.f.running_var.uniform_(0.5, 2)

    def norm(self, x):
        return self.f(x)

    def batch_norm_of_its_own(self, x):
        return F.batch_norm(x, None, None, training=True) if x[0, 0].numel() > 1 else x

    def group_norm(self, x):
        return F.group_norm(x, 1)

    def instance_norm(self, x):
        return F.instance_norm(x) if x[0, 0].numel() > 1 else x

    def local_norm(self, x):
        return F.local_response_norm(x, 3, 0.1, 0.75, 2.0)

    def squeezed(self, x):
        return x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1))

    def looked_at(self, x):
        return x * torch.sigmoid(x.mean(1, keepdim=True) + x.amax(1, keepdim=True))

    def softmax(self, x):
        return x.softmax(1) * 3

    def softmax_of_places(self, x):
        return x * x.flatten(2).softmax(-1).view_as(x) * x[0, 0].numel()

    def sorted(self, x):
        return x.sort(1).values + x.topk(1, 1).values

    def attention(self, x):
        t = x.flatten(2).transpose(1, 2)
        return (((t @ t.transpose(1, 2)) / 4).softmax(-1) @ t).transpose(1, 2).view_as(x)

    def sums(self, x):
        return x + x.cumsum(3) / 8 + torch.einsum("nchw->nch", x)[..., None] / 8

    # ---- what sees the whole batch, or the numbers themselves ----

    def normalized(self, x):
        return (x - x.mean()) / (x.std() + 1)

    def stretched(self, x):
        return x / (x.amax((0, 1, 2, 3), keepdim=True) + 1)

    def centred(self, x):
        return x - x.mean(0, keepdim=True) * 0.5

    def branched(self, x):
        if x.max() > 1.5:
            x = x / 2
        return x

    def scaled_by_a_number(self, x):
        return x / (1 + abs(float(x.detach().mean())))

    def counted(self, x):
        return x / (1 + len(torch.unique(x.round())))

    def first_of_the_batch(self, x):
        return x - 0.3 * x[:1]

    def last_of_the_batch(self, x):
        return x - 0.3 * x[-1:]

    def by_index(self, x):
        best = x.flatten(1).argmax(1) % x.shape[1]
        return x + x[torch.arange(len(x)), best][:, None]

    def make_recurrent(self, dice):
        kind = dice.choice([nn.LSTM, nn.GRU, nn.RNN])
        self.f = kind(self.channels, self.channels, batch_first=dice.random() < 0.5)

    def recurrent(self, x):
        line = x.mean(2).transpose(1, 2)
        line = line if self.f.batch_first else line.transpose(0, 1)
        out = self.f(line)[0]
        out = out if self.f.batch_first else out.transpose(0, 1)
        return x + out.transpose(1, 2)[:, :, None]

    def folded(self, x):
        n, c, h, w = x.shape
        return F.softmax(x.reshape(n * c, 1, h * w), -1).reshape(n, c, h, w) * 4


KINDS = sorted(
    name
    for name, method in vars(Block).items()
    if callable(method) and not name.startswith(("make_", "_")) and name != "forward"
)


class Network(nn.Module):
    """Some blocks, with a branch that is added or joined now and then; returns (N, 4)."""

    def __init__(self, seed, kinds=KINDS):
        super().__init__()
        dice = random.Random(seed)
        torch.manual_seed(seed)
        self.side = dice.randint(6, 18), dice.randint(6, 18)
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        x = self.first(torch.zeros(1, 2, *self.side))
        self.blocks, self.joins = nn.ModuleList(), []
        with torch.no_grad():
            for _ in range(dice.randint(1, 5)):
                block = Block(dice.choice(("conv", "relu", *[dice.choice(kinds)] * 3)), x.shape[1], x.shape[2:], dice)
                y = self.attempt(block, x)
                if y is None:
                    continue
                self.blocks.append(block)
                self.joins.append(dice.choice(["", "", "", "add", "join"]) if y.shape[2:] == x.shape[2:] else "")
                x = self.join(len(self.joins) - 1, x, y)
        self.flat = dice.random() < 0.5 and x[0].numel() < 2000
        self.head = nn.Linear(x[0].numel() if self.flat else x.shape[1], 4)

    @staticmethod
    def attempt(block, x):
        try:
            y = block.eval()(torch.randn_like(x))
        except RuntimeError:  # too small a map for this block
            return None
        return y if y.dim() == 4 and y.numel() and y.shape[1] <= 64 else None

    def join(self, i, x, y):
        if self.joins[i] == "add" and x.shape == y.shape:
            return x + y
        return torch.cat([x, y], 1) if self.joins[i] == "join" else y

    def forward(self, x):
        x = self.first(x)
        for i, block in enumerate(self.blocks):
            x = self.join(i, x, block(x))
        return self.head(x.flatten(1) if self.flat else x.mean((2, 3)))

    def __repr__(self):
        return f"{self.side}: " + ", ".join(
            f"{b.kind} {j}".strip() for b, j in zip(self.blocks, self.joins, strict=True)
        )


def case(seed, kinds=KINDS):
    """A network, its image, and the options of an occlusion."""
    dice = random.Random(seed + 1)
    network = Network(seed, kinds).double().eval()
    image = torch.randn(1, 2, *network.side, dtype=torch.float64)
    size = [dice.randint(1, n) for n in network.side]
    stride = [dice.randint(max(1, s // 3), s) for s in size]
    return network, image, {"size": tuple(size), "stride": tuple(stride), "fill": dice.choice([0.0, -2.0, "mean"])}


def one_by_one(network, result):
    """The output (R, C, 4) for every occluded image alone."""
    rows = []
    for top in result.rows.tolist():
        for left in result.cols.tolist():
            image = result.image.clone()
            high, wide = result.size
            image[:, top : top + high, left : left + wide] = result.fill[:, top : top + high, left : left + wide]
            rows.append(network(image[None])[0])
    return torch.stack(rows).view(len(result.rows), len(result.cols), -1)
