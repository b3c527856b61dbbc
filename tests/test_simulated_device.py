"""The simulated device against plain torch: the same values, and what CUDA refuses is refused."""

import copy

import pytest
import torch
import torchvision
from simulated_device import OnDevice, rounded, simulated
from torch import nn
from torch.nn import functional as F


def alexnet(place):
    torch.manual_seed(0)
    model = torchvision.models.alexnet(num_classes=5).to(place)
    x = torch.randn(2, 3, 64, 64).to(place).requires_grad_()
    model.eval()(x).sum().backward()
    return [x.grad, *(p.grad for p in model.parameters())]


def one_step(place):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).to(place)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, 0.1, 0.9, weight_decay=0.01)
    for seed in (1, 2):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(place)
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.tensor([0, 1, 2, 1], device=place)).backward()
        optimizer.step()
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    return [*model.state_dict().values()]


def autocast(place):
    x = torch.linspace(-3, 3, 48).view(2, 24).to(place)
    weight = torch.linspace(-1, 1, 72).view(3, 24).to(place)
    with torch.autocast(torch.device(place).type, torch.bfloat16):
        out = F.linear(x, weight)
        assert out.dtype == torch.bfloat16
        loss = F.cross_entropy(out, torch.tensor([0, 2], device=place))
    assert loss.dtype == torch.float32
    return [out, loss]


def indexing(place):
    x = torch.arange(24.0).view(4, 6).to(place)
    x[torch.tensor([0, 2])] = -1
    x[:, 3] += 5
    x[x > 20] = 0
    best = x.topk(2, 1)
    pooled, where = F.max_pool2d(x[None, None], 2, return_indices=True)
    spread = torch.zeros(4, 6, device=place).scatter_(1, best.indices, best.values)
    return [x, best.values, best.indices, x.sort(0)[1], x.unfold(1, 3, 2), pooled, where, spread, x.unique()]


def views(place):
    x = torch.arange(12.0).to(place)
    x.view(3, 4)[1].mul_(2)
    flat = torch.empty(12, device=place)
    torch.add(x, 1, out=flat)
    part = x.view(3, 4).t()
    part.zero_()
    assert part._base is not None and x._version > 0
    return [x, flat, part, x.new_zeros(2), x.new_tensor([1.0]), torch.zeros_like(x), x.double(), x.half()]


def attention(place):
    q = torch.linspace(-1, 1, 48).view(1, 2, 6, 4).to(place)
    with torch.inference_mode():
        return [F.scaled_dot_product_attention(q, q, q), F.layer_norm(q, (4,)), F.gelu(q)]


@pytest.mark.parametrize("work", [alexnet, one_step, autocast, indexing, views, attention])
def test_values_are_the_cpu_s(work):
    expected = work("cpu")
    with simulated() as device:
        found = work("cuda")
        assert all(type(x) is OnDevice or isinstance(x, nn.Parameter) for x in found)
        assert all(x.device == torch.device("cuda", 0) and x.is_cuda and not x.is_cpu for x in found)
        found = [x.cpu() for x in found]
    assert device.kernels and all(type(x) is torch.Tensor for x in found)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=0)


def test_scaled_gradients():
    with simulated():
        model = nn.Linear(4, 2).to("cuda")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cuda", init_scale=4.0)
        before = model.weight.detach().clone()
        for value in (1.0, torch.inf):
            optimizer.zero_grad()
            scaler.scale(model(torch.full((1, 4), value, device="cuda")).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        torch.testing.assert_close((before - model.weight.detach()).cpu(), torch.full((2, 4), 0.1))
        assert scaler.get_scale() == 2.0  # an infinity halved it, and left the weights alone


def test_copies_and_files(tmp_path):
    with simulated():
        model = nn.Linear(3, 2).to("cuda")
        twin = copy.deepcopy(model)
        assert twin.weight is not model.weight and isinstance(twin.weight, nn.Parameter) and twin.weight.is_cuda
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        stored = torch.load(tmp_path / "weights.pt", weights_only=True)
        assert torch.equal(stored["weight"], model.weight.detach().cpu())
        weight = model.weight
        assert model.to("cpu").weight is weight and type(weight) is nn.Parameter and weight.is_cpu


CPU, GPU = torch.device("cpu"), torch.device("cuda")
MIXED = {
    "add": lambda a, b: a + b,
    "in place": lambda a, b: a.add_(b),
    "in place on the CPU": lambda a, b: b.add_(a),
    "cat": lambda a, b: torch.cat([a, b]),
    "stack": lambda a, b: torch.stack([a, b]),
    "convolution": lambda a, b: F.conv2d(a[None, None], b[None, None]),
    "product": lambda a, b: a @ b,
    "batch norm": lambda a, b: F.batch_norm(a, b[0], b[1].abs()),
    "index_select": lambda a, b: a.index_select(0, b[0].long()),
    "gather": lambda a, b: a.gather(0, b.long()),
    "scatter": lambda a, b: a.scatter(0, b.long(), 1.0),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "equal": lambda a, b: torch.equal(a, b),
    "allclose": lambda a, b: torch.allclose(a, b),
    "loss": lambda a, b: F.cross_entropy(a, b[0].long()),
    "an index of the device": lambda a, b: b[a.long()],
}


@pytest.mark.parametrize("name", MIXED)
def test_two_devices_in_one_operation_are_refused(name):
    with simulated():
        a, b = torch.ones(4, 4, device="cuda"), torch.ones(4, 4)
        with pytest.raises(RuntimeError, match="same device"):
            MIXED[name](a, b)


def test_what_only_the_cpu_has():
    with simulated():
        x = torch.ones(3, device="cuda")
        for call in (x.numpy, x.__array__):
            with pytest.raises(TypeError, match="cuda:0 device type tensor to numpy"):
                call()
        with pytest.raises(RuntimeError, match="cannot pin"):
            x.pin_memory()
        # Single numbers and the CPU's indices may come along, as on CUDA.
        assert (x + torch.tensor(2.0)).cpu().tolist() == [3, 3, 3] and x[torch.tensor([0])].is_cuda


def test_a_copy_that_nobody_waited_for_is_garbage():
    with simulated():
        x = torch.ones(3, device="cuda")
        early = x.to("cpu", non_blocking=True)
        assert early.isnan().all()
        torch.cuda.synchronize()
        assert early.tolist() == [1, 1, 1]
        into = torch.zeros(3)
        into.copy_(x, non_blocking=True)
        assert into.isnan().all() and float(x.sum()) == 3 and into.tolist() == [1, 1, 1]


def test_kernels_and_waits_are_counted():
    with simulated() as device:
        x = torch.ones(3, 3).to("cuda")
        assert [what for _, what in device.waits] == ["a copy to the device"]
        device.clear()
        y = (x + 1).mul_(2)
        assert device.kernels == {"add": 1, "mul_": 1} and not device.waits
        assert y.sum().item() == 36 and bool((y > 0).any())
        assert y.nonzero().shape == (9, 2) and torch.equal(y, y.clone())
        assert device.waits.total() == 4
        device.clear()
        x.to("cuda", non_blocking=True), torch.ones(2).to("cuda", non_blocking=True)
        assert not device.waits


@pytest.mark.parametrize("place", ["convolution", "product"])
def test_tf32(place):
    x = torch.full((1, 1, 1, 1), 1 + 2.0**-10 + 2.0**-12)
    work = {
        "convolution": lambda x: F.conv2d(x, torch.ones_like(x)),
        "product": lambda x: x[0, 0] @ torch.ones_like(x[0, 0]),
    }
    assert rounded(x).item() == 1 + 2.0**-10 and rounded(-x).item() == -1 - 2.0**-10
    assert rounded(torch.tensor(1 + 3 * 2.0**-11)).item() == 1 + 2.0**-9  # a tie goes to the even one
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (True, False):
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
            with simulated(tf32=True):
                assert work[place](x.to("cuda")).item() == (rounded(x) if allowed else x).item()
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_limits():
    with simulated(limit=4000) as device:
        assert torch.ones(1000, device="cuda").view(10, 100).expand(20, 10, 100).shape == (20, 10, 100)
        with pytest.raises(torch.OutOfMemoryError, match="wants more than 4000 bytes"):
            torch.ones(1001, device="cuda")
        assert torch.cuda.mem_get_info()[0] == device.free
    with simulated("mps") as device:
        x = torch.ones(2, device="mps")
        assert x.device.type == "mps" and not x.is_cuda and x.half().cpu().dtype == torch.float16
        with pytest.raises(TypeError, match="float64"):
            x.double()


def test_nothing_stays():
    names = ("is_available", "mem_get_info", "_lazy_init", "synchronize")
    before = [getattr(torch.cuda, name) for name in names]
    with pytest.raises(KeyError), simulated():
        raise KeyError
    assert [getattr(torch.cuda, name) for name in names] == before
    assert not torch.__future__.get_swap_module_params_on_conversion()
    assert torch.zeros(2, device="meta").is_meta and torch.zeros(2).numpy().sum() == 0
