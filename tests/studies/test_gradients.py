"""Gradients against plain autograd, module by module; what they show of depth, squashing and auxiliary heads."""

import copy
import dataclasses

import pytest
import reference_studies as slow
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from deconvviz import zoo
from deconvviz.errors import LayerError, ModelError, OptionError
from deconvviz.studies.gradients import gradient_std

QUIET = {"progress": False}
LABELS = [0, 1, 2, 0, 1, 2]


def images(count=6, size=10, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(act=nn.ReLU, norm=True, depth=1, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 4, 3)]
        for _ in range(depth):
            layers += [nn.BatchNorm2d(4)] * norm + [act(), nn.Conv2d(4, 4, 3, padding=1)]
        return nn.Sequential(*layers, act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double().eval()


def by_hand(model, x, labels, steps, lr, momentum):
    """Per step the gradient of the sum of the losses at the first norm's and the last convolution's output."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum)
    found = []
    for _ in range(steps):
        first = model[1](model[0](x))
        last = model[3](model[2](first))
        loss = cross_entropy(model[4:](last), labels)
        found.append([g * len(x) for g in torch.autograd.grad(loss, [first, last], retain_graph=True)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [torch.stack(grads) for grads in zip(*found, strict=True)]


def test_it_is_what_autograd_says_step_by_step():
    model, x = network(), images()
    before = copy.deepcopy(model.state_dict())
    options = {"iterations": 3, "batch_size": 6, "lr": 0.3, "momentum": 0.5}
    result = gradient_std(model, x, labels=LABELS, **options, **QUIET)
    wanted = by_hand(model, x, torch.tensor(LABELS), 3, 0.3, 0.5)
    assert result.names == ("0", "3") and result.measured == ("1", "3") and result.count == 18
    for n, grads in enumerate(wanted):
        assert result.std[n].item() == pytest.approx(slow.two_pass_std(grads.flatten().tolist()), rel=1e-9)
        each = [slow.two_pass_std(step.flatten().tolist()) for step in grads]
        assert result.each[:, n].tolist() == pytest.approx(each, rel=1e-9)
        units = [slow.two_pass_std(unit.tolist()) for unit in grads.movedim(2, 0).flatten(1)]
        assert result.unit_std(result.names[n]).tolist() == pytest.approx(units, rel=1e-9)
    assert result.losses[0].item() > result.losses[-1].item()  # it trained
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # a copy, that is


class Beside(nn.Module):
    """Takes a number beside the images, by keyword, and returns a mapping."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x, *, gain):
        return {"scores": self.body(x * gain), "gain": gain}


def test_a_call_says_how_the_network_is_called():
    model, x = Beside().eval(), images()
    call = lambda model, images: model(images, gain=0.5)["scores"]  # noqa: E731
    before = copy.deepcopy(model.state_dict())
    options = {"labels": LABELS, "iterations": 2, "batch_size": 6, "lr": 0.3, **QUIET}
    found, wanted = gradient_std(model, x, call=call, **options), gradient_std(model.body, x * 0.5, **options)
    assert found.names == tuple(f"body.{name}" for name in wanted.names)
    assert found.std.tolist() == pytest.approx(wanted.std.tolist(), rel=1e-9)
    assert found.losses.tolist() == pytest.approx(wanted.losses.tolist(), rel=1e-9)
    assert found.losses[0] != found.losses[1]  # the copy was trained
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(OptionError, match="call="):
        gradient_std(model, x, call="gain", **options)


def test_an_activation_in_place_changes_nothing():
    plain, in_place = network(), network(lambda: nn.ReLU(inplace=True))
    one, other = (gradient_std(m, images(), labels=LABELS, iterations=2, **QUIET) for m in (plain, in_place))
    assert torch.equal(one.std, other.std) and torch.equal(one.losses, other.losses)


def test_it_does_not_depend_on_the_batch_size():
    model = network(norm=False)
    whole = gradient_std(model, images(), labels=LABELS, iterations=1, lr=0, **QUIET)
    parts = gradient_std(model, images(), labels=LABELS, iterations=3, batch_size=2, lr=0, **QUIET)
    assert whole.count == parts.count == 6
    assert torch.allclose(whole.std, parts.std, rtol=1e-10)


def test_gradients_die_behind_sigmoids_and_less_so_behind_relus():
    dying, living = (
        gradient_std(network(act, norm=False, depth=6), images(), labels=LABELS, iterations=1, **QUIET).std
        for act in (nn.Sigmoid, nn.ReLU)
    )
    assert (dying[1:] > 3 * dying[:-1]).all()  # at most a quarter passes each
    assert dying[0] / dying[-1] < 0.01 * living[0] / living[-1]


class Headed(nn.Module):
    """Two convolutions; in training mode a head on the first of them, too."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.head, self.fc = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        y = self.one(x)
        scores = self.fc(self.two(y.relu()).mean((2, 3)))
        return (scores, self.head(y.mean((2, 3)))) if self.training else scores


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_heads_count_by_their_weight(weight):
    torch.manual_seed(0)
    model, x, labels = Headed().double(), images(), torch.tensor(LABELS)
    result = gradient_std(model, x, labels=labels, iterations=1, auxiliary=weight, **QUIET)
    y = model.one(x)
    loss = cross_entropy(model.fc(model.two(y.relu()).mean((2, 3))), labels)
    loss = loss + weight * cross_entropy(model.head(y.mean((2, 3))), labels)
    (grad,) = torch.autograd.grad(loss * len(x), [y])
    assert result.std[0].item() == pytest.approx(slow.two_pass_std(grad.flatten().tolist()), rel=1e-10)
    assert result.losses[0].item() == pytest.approx(loss.item(), rel=1e-12)


class Sometimes(nn.Module):
    """Leaves its second convolution out of every other pass in training mode."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.fc, self.calls = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3), 0

    def forward(self, x):
        self.calls += self.training
        y = self.one(x)
        return self.fc((y if self.training and self.calls % 2 else y + self.two(y)).mean((2, 3)))


def test_a_block_that_is_left_out_of_some_steps_counts_in_the_others():
    result = gradient_std(Sometimes().double(), images(), labels=LABELS, iterations=4, **QUIET)
    assert result.each[:, 1].isnan().tolist() == [True, False, True, False]
    assert result.values.tolist() == [4 * 6 * 64, 2 * 6 * 64] and result.std.isfinite().all()
    with pytest.raises(LayerError, match="no gradient of the loss reaches layer 'two'"):
        gradient_std(Sometimes().double(), images(), labels=LABELS, iterations=1, **QUIET)


def test_a_frozen_network_is_measured_and_not_trained():
    model = network().requires_grad_(False)
    result = gradient_std(model, images(), labels=LABELS, iterations=2, lr=1.0, **QUIET)
    assert result.std.gt(0).all() and result.losses[0].item() == pytest.approx(result.losses[1].item(), rel=1e-12)


def test_names_are_classes_in_their_order_and_results_add_up():
    model, names = network(), [("ant", "bee", "cat")[label] for label in LABELS]
    result = gradient_std(model, images(), labels=names, iterations=1, **QUIET)
    assert result == gradient_std(model, images(), labels=LABELS, iterations=1, **QUIET)
    both = result.merge(result)
    assert both.count == 12 and torch.allclose(both.std, result.std, rtol=1e-12) and both.each.shape == (2, 2)
    order = result.std.argsort(descending=True)
    assert torch.equal(result.sorted().each, result.each[:, order])
    assert dataclasses.replace(result, losses=result.losses + 1) != result


def test_powers_of_ten_are_written_as_numbers():
    result = gradient_std(network(), images(), labels=LABELS, iterations=1, **QUIET)
    figure = dataclasses.replace(result, unit_squares=result.unit_squares * torch.linspace(1e-6, 1, 8)).plot()
    figure.draw_without_rendering()
    labels = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels(which="both")]
    assert any(labels) and not any("$" in label for label in labels)


def test_a_network_of_the_zoo_with_dropout_is_the_same_each_time():
    options = {"labels": [0, 1, 0, 1], "iterations": 2, "batch_size": 2, **QUIET}
    model, x = zoo.create("zfnet64", num_classes=3), torch.randn(4, 3, 64, 64)
    assert gradient_std(model, x, **options) == gradient_std(model, x, **options)
    assert gradient_std(model, x, **options) != gradient_std(model, x, **options, seed=1)


def test_what_has_no_meaning_is_refused():
    model, x = network(), images()
    for options, match in (
        ({"labels": None}, "the images come without labels"),
        ({"labels": [0, 1, 2, 3, 0, 0]}, "label 3 is out of range: the model has 3 classes"),
        ({"labels": [0, 1, 2, -1, 0, 0]}, "label -1: expected numbers of classes"),
        ({"labels": LABELS, "lr": -1}, "lr=-1: expected a number of at least 0"),
        ({"labels": LABELS, "kind": "big"}, "kind='big'"),
        ({"labels": LABELS, "iterations": 0}, "iterations"),
    ):
        with pytest.raises(OptionError, match=match):
            gradient_std(model, x, **options, **QUIET)
    with pytest.raises(ModelError, match=r"the model's output is \(6, 4, 8, 8\), expected \(N, classes\)"):
        gradient_std(model[:1], x, labels=LABELS, **QUIET)
    with pytest.raises(ModelError, match=r"the loss became .* at iteration \d.*lower lr"):
        gradient_std(network(norm=False), x, labels=LABELS, lr=1e200, **QUIET)
    model.kept = model[0](x)  # of a graph: cannot be copied
    with pytest.raises(ModelError, match="cannot be copied"):
        gradient_std(model, x, labels=LABELS, **QUIET)
