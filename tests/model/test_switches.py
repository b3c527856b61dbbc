"""Max-pools below a layer are counted along every path, whatever their spelling, and once each."""

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import deconvviz


class Branches(nn.Module):
    """One branch pools twice, one once more beside it, one not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same, self.join = nn.Conv2d(3, 4, 3, padding=1), nn.Identity(), nn.Identity()
        self.plain = nn.Conv2d(3, 4, 1, 4)

    def forward(self, x):
        first = F.max_pool2d(self.same(self.stem(x)).relu(), 2)
        both = F.max_pool2d(first, 2) + F.adaptive_max_pool2d(first, first.shape[-1] // 2) + self.plain(x)
        return self.join(both)


def test_layers_count_them():
    table = deconvviz.layers(Branches(), 16)
    assert [table[name].switches for name in ("stem", "same", "plain", "join")] == [0, 0, 0, 3]
    assert "max-pools below" in str(table).splitlines()[0] and str(table).splitlines()[-1].endswith("3")


def test_known_networks():
    alexnet = deconvviz.layers(torchvision.models.alexnet(weights=None))
    assert [row.switches for row in alexnet.numbered] == [0, 1, 2, 2, 2]
    assert {row.switches for row in deconvviz.layers(torchvision.models.mobilenet_v2(weights=None))} == {0}


def test_the_audit_counts_them():
    report = deconvviz.audit(Branches(), torch.randn(1, 3, 16, 16))
    rows = {row.operation.rpartition(".")[2]: row for row in report}
    assert rows["relu"].switches == 0 and rows["max_pool2d"].switches == 2 and rows["max_pool2d"].calls == 2
    assert "max-pools below" in str(report)
