"""Branches and shortcuts against plain calls of the blocks; the sums of pre-activation networks add up."""

import pytest
import reference_studies as slow
import torch
from matplotlib.figure import Figure
from pictures import noise
from torch import nn

import deconvviz
from deconvviz import zoo
from deconvviz.cli import main as cli
from deconvviz.errors import LayerError
from deconvviz.studies.residuals import residual_share

QUIET = {"progress": False}


def lively(name):
    """A network whose normalizations do something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.create(name)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 2)
    return model.double()


def images(count=4):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def blocks(model):
    return [block for stage in (model.layer1, model.layer2, model.layer3) for block in stage]


def branch(block, x):
    return block.conv2(block.relu2(block.bn2(block.conv1(block.relu1(block.bn1(x.clone()))))))


@torch.no_grad()
def test_both_sides_of_every_addition_are_measured():
    model, x = lively("resnet-14"), images()
    result = residual_share(model, x, batch_size=3, **QUIET)
    y, wanted = model.relu1(model.bn1(model.conv1(x))), []
    for block in blocks(model):
        sides = block.shortcut(y), block.residual(y)
        wanted.append([slow.two_pass_std(v.flatten().tolist()) for v in (*sides, sides[0] + sides[1])])
        y = block(y)
    found = torch.stack([result.shortcut, result.branch, result.total], 1)
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9)
    assert torch.equal(result.share, result.branch / result.shortcut)
    assert result.identity == (True, True, False, True, False, True) and result.count == 4


def test_in_pre_activation_networks_the_branches_add_up_forward_and_backward():
    model = lively("preresnet-26")
    result = residual_share(model, images(), **QUIET)
    assert result.identity == (True,) * 4 + (False, True, True, True) * 2
    start = model.layer1(model.relu1(model.bn1(model.conv1(images())))).detach()
    first = model.layer2[0](start).detach().requires_grad_()  # x_l, behind the one shortcut that is none
    x, total = first, 0
    for block in model.layer2[1:]:
        total = total + branch(block, x)
        x = block(x)
    assert (x - (first + total)).abs().max() < 1e-10
    grad = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (through,) = torch.autograd.grad(x, first, grad, retain_graph=True)
    (beside,) = torch.autograd.grad(total, first, grad)
    assert (through - (grad + beside)).abs().max() < 1e-10
    assert beside.abs().max() > 1e-3


class Sums(nn.Module):
    """Three sums: of two branches alike, of an input with two readings of it, and a residual one in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        x = self.a(x) + self.b(x)
        x = x + x.relu()
        y = self.c(x)
        y += x
        return y


def test_only_sums_of_a_value_and_of_what_convolutions_make_of_it_count():
    model, x = Sums().double(), images(2)
    result = residual_share(model, x, **QUIET)
    assert len(result.names) == 1 and result.identity == (True,)
    with torch.no_grad():
        before = model.a(x) + model.b(x)
        before = before + before.relu()
        assert result.branch[0].item() == pytest.approx(model.c(before).std(correction=0).item(), rel=1e-9)
        assert result.shortcut[0].item() == pytest.approx(before.std(correction=0).item(), rel=1e-9)


def test_a_network_without_blocks_is_refused():
    with pytest.raises(LayerError, match="no residual additions"):
        residual_share(zoo.create("plain-20"), torch.randn(2, 3, 32, 32), **QUIET)


def test_the_result_is_kept_drawn_and_resumed(tmp_path):
    model, x = lively("resnet-8"), images(2)
    result = residual_share(model, x, out=tmp_path / "kept.safetensors", **QUIET)
    assert deconvviz.ResidualShares.load(tmp_path / "kept.safetensors") == result
    assert residual_share(model, x, out=tmp_path / "kept.safetensors", **QUIET) == result
    figure = Figure()
    assert result.plot(figure, others={"other": result}) is figure
    assert "F / x" in result.table() and repr(result) == "ResidualShares of 3 additions: 2 images"


@pytest.mark.parametrize("raises", [False, True])
def test_the_model_is_left_as_it_was_found(raises):
    model = lively("resnet-8").train()
    model.bn1.eval()
    model.fc.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, wanted = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    if raises:
        handle = model.layer3.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            residual_share(model, images(2), **QUIET)
        handle.remove()
    else:
        residual_share(model, images(2), **QUIET)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted and torch.equal(torch.get_rng_state(), random)
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_command(tmp_path, capsys):
    out = tmp_path / "a.png"
    noise((40, 36), 50).convert("RGB").save(tmp_path / "photo.png")
    asked = ["residual-share", "resnet-8", "--images", str(tmp_path / "photo.png"), "--out", str(out)]
    assert cli.main([*asked, "--json", "--quiet"]) == 0
    assert out.exists() and '"branch"' in capsys.readouterr().out
