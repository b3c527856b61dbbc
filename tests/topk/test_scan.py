"""The scan against a brute-force search, in pieces, interrupted, resumed."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from deconvviz.errors import ImageError, LayerError, ModelError, OptionError, StoreError
from deconvviz.images import Preprocess
from deconvviz.results.store import save
from deconvviz.scan import engine
from deconvviz.scan.state import StateFile
from deconvviz.topk.merging import absorb, empty
from deconvviz.topk.result import LayerTop, TopK
from deconvviz.topk.scan import top

PIXELS = Preprocess((8, 8), 8, (0.0,) * 3, (1.0,) * 3)


def small_integers(seed, *shape, low=-2, high=3):
    """Integers as floats: every sum is exact and ties are many."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).float()


def network(seed=0):
    """Two convolutions with integer weights, so that any order of summation gives the same numbers."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU())
    for i, parameter in enumerate(model.parameters()):
        parameter.data = small_integers(seed + i, *parameter.shape, low=-1, high=2)
    return model.eval()


def excited(answer):
    """Empty the places at the end of each unit's that hold nothing but zeros, as a result does."""
    return [[(0.0, -1, (0, 0)) if v == 0 and unit[-1][0] == 0 else (v, i, p) for v, i, p in unit] for unit in answer]


def brute_force(responses, k):
    """Sort every unit's images by (value falling, image, row, column rising), in plain Python."""
    answer = []
    for unit in range(responses.shape[1]):
        peaks = []
        for image, plane in enumerate(responses[:, unit].tolist()):
            cells = [(-v, r, c) for r, line in enumerate(plane) for c, v in enumerate(line)]
            value, row, col = min(cells)
            peaks.append((value, image, row, col))
        answer.append([(-v, i, (r, c)) for v, i, r, c in sorted(peaks)[:k]])
    return answer


def listed(layer):
    """Put a LayerTop in the form of `brute_force`."""
    rows = zip(layer.values.tolist(), layer.image_ids.tolist(), layer.positions.tolist(), strict=True)
    return [[(v, i, tuple(p)) for v, i, p in zip(*row, strict=True)] for row in rows]


def scanned(responses, batch_sizes, k, first=0, look=True):
    """Feed responses to the streaming part in batches of these sizes."""
    places, start = empty(responses), 0
    for size in itertools.cycle(batch_sizes):
        if start >= len(responses):
            layer = LayerTop("layer", None, places.values, places.ids, places.positions)
            return TopK((layer,), k, len(responses)).shifted(first)
        batch = responses[start : start + size]
        places = absorb(places, batch, batch, start, k, look)
        start += size


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(1, 14), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
)
def test_streamed_equals_brute_force(seed, shape, batch_sizes, k, channels_last, look):
    responses = small_integers(seed, *shape)
    if channels_last:
        responses = responses.contiguous(memory_format=torch.channels_last)
    assert listed(scanned(responses, batch_sizes, k, look=look)["layer"]) == brute_force(responses, k)


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 5), min_size=2, max_size=5),
    st.integers(1, 6),
    st.randoms(),
)
def test_merge_gives_the_same_in_any_order_and_grouping(seed, parts, k, random):
    responses = small_integers(seed, sum(parts), 3, 2, 3)
    starts = [sum(parts[:i]) for i in range(len(parts))]
    results = [scanned(responses[s : s + n], [2], k, first=s) for s, n in zip(starts, parts, strict=True)]
    while len(results) > 1:
        a, b = (results.pop(random.randrange(len(results))) for _ in range(2))
        results.insert(random.randrange(len(results) + 1), a.merge(b))
    assert listed(results[0]["layer"]) == brute_force(responses, k)
    assert results[0].count == len(responses)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_top_equals_brute_force(batch_size):
    model, images = network(), small_integers(1, 23, 3, 8, 8)
    result = top(model, images, layers=[1, "4"], k=5, batch_size=batch_size, progress=False)
    with torch.no_grad():
        first = model[1](model[0](images))
        second = model(images)
    assert listed(result[1]) == excited(brute_force(first, 5))
    assert listed(result["4"]) == excited(brute_force(second, 5))
    assert result.layers == ("1", "4") and result[2] is result["4"] and result.count == 23


def test_default_layers_and_fewer_images_than_k():
    result = top(network(), small_integers(1, 3, 3, 8, 8), progress=False)
    assert [t.number for t in result.tops] == [1, 2]
    assert result[1].values.shape == (4, 3) and result[2].positions.shape == (5, 3, 2) and result.k == 9


def test_float64_stays_float64_and_the_model_decides():
    images = small_integers(1, 5, 3, 8, 8)
    result = top(network().double(), images, layers=1, progress=False)
    assert result[1].values.dtype == torch.float64
    assert listed(result[1]) == listed(top(network(), images.double(), layers=1, progress=False)[1])


def test_a_model_that_views_its_maps_is_scanned():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Linear(144, 3)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)).view(len(x), -1))

    model = Viewing().eval()
    result = top(model, small_integers(1, 5, 3, 8, 8), layers=[1, "second"], progress=False)
    assert result["second"].values.shape == (3, 5) and (result["second"].positions == 0).all()


class Interrupting(nn.Module):
    """Passes images through and raises at the n-th batch, as Ctrl-C would."""

    def __init__(self, network):
        super().__init__()
        self.network, self.left = network, 10**9

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.network(x)


@pytest.mark.parametrize("stops", [[1], [3], [2, 1, 4], [5, 1, 1, 1]])
def test_interrupted_and_resumed_is_the_same_bytes(tmp_path, stops):
    model, images = (
        Interrupting(network()),
        torch.randn(21, 3, 8, 8, generator=torch.Generator().manual_seed(3)),
    )
    asked = {"layers": [1, 2], "k": 4, "batch_size": 2, "progress": False}
    whole = top(model, images, out=tmp_path / "whole", **asked)
    for stop in stops:
        # One pass finds the layers, a fresh scan compares the first image alone with itself in a batch.
        model.left = stop + 1 + (not (tmp_path / "parts").exists())
        with pytest.raises(KeyboardInterrupt):
            top(model, images, out=tmp_path / "parts", **asked)
        with pytest.raises(StoreError, match=r"of 21 images"):
            TopK.load(tmp_path / "parts")
    model.left = 10**9
    resumed = top(model, images, out=tmp_path / "parts", **asked)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts", "whole"]
    assert listed(resumed[2]) == listed(whole[2]) == listed(TopK.load(tmp_path / "whole")[2])


def test_state_is_written_while_the_scan_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "SAVE_EVERY", -1.0)
    seen = []
    monkeypatch.setattr(StateFile, "write", lambda self, progress: seen.append(progress.count))
    top(network(), torch.randn(6, 3, 8, 8), batch_size=2, out=tmp_path / "file", progress=False)
    assert seen[:4] == [0, 2, 4, 6]


def test_a_finished_file_is_loaded_without_a_scan(tmp_path):
    model, images = Interrupting(network()), torch.randn(6, 3, 8, 8)
    first = top(model, images, layers=1, out=tmp_path / "file", progress=False)
    model.left = 1
    again = top(model, images, layers=1, out=tmp_path / "file", progress=False)
    assert listed(first[1]) == listed(again[1])


def test_another_scan_is_refused(tmp_path):
    model, images, path = network(), torch.randn(6, 3, 8, 8), tmp_path / "file"
    top(model, images, layers=1, out=path, progress=False)
    before = path.read_bytes()
    for change in ({"layers": 2}, {"k": 3}, {"batch_size": 2}):
        with pytest.raises(StoreError, match=r"holds another scan"):
            top(model, images, out=path, progress=False, **({"layers": 1} | change))
    with pytest.raises(StoreError, match=r"holds another scan"):
        top(model, images + 1, layers=1, out=path, progress=False)
    model[0].weight.data[0, 0, 0, 0] += 1
    with pytest.raises(StoreError, match=r"holds another scan"):
        top(model, images, layers=1, out=path, progress=False)
    assert path.read_bytes() == before
    save(path, {}, {"kind": "projections"})
    with pytest.raises(StoreError, match=r"holds 'projections', expected 'topk'"):
        top(model, images, layers=1, out=path, progress=False)


def test_workers_do_not_change_a_byte(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(11):
        Image.fromarray(small_integers(i, 10, 12, 3, low=0, high=256).byte().numpy()).save(folder / f"{i:02}.png")
    for workers in (0, 1, 2):
        out = tmp_path / str(workers)
        top(network(), folder, preprocess=PIXELS, batch_size=3, workers=workers, out=out, progress=False)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_save_load_and_show(tmp_path):
    result = top(network(), torch.randn(4, 3, 8, 8), progress=False)
    result.save(tmp_path / "file")
    loaded = TopK.load(tmp_path / "file")
    assert loaded.layers == result.layers and (loaded.k, loaded.count) == (9, 4)
    assert all(listed(loaded[name]) == listed(result[name]) for name in result)
    assert "top 9 of 4 images" in loaded._repr_html_() and "1: 1" in loaded._repr_html_()
    assert len(loaded.plot().axes) == 2


def test_no_bar_unless_asked(capsys):
    top(network(), torch.randn(4, 3, 8, 8), progress=False)
    assert capsys.readouterr().err == ""
    top(network(), torch.randn(4, 3, 8, 8))
    assert "images/s" in capsys.readouterr().err


def test_negative_zero_is_zero():
    responses = torch.tensor([-0.0, 0.0, -0.0]).view(3, 1, 1, 1)
    result = scanned(responses, [1], 3)["layer"]
    assert result.image_ids.tolist() == [[0, 1, 2]] and not torch.signbit(result.values).any()


def test_errors_say_what_to_do(tmp_path):
    model, images = network(), torch.randn(5, 3, 8, 8)
    with pytest.raises(OptionError, match=r"k=0: expected a whole number of at least 1"):
        top(model, images, k=0)
    with pytest.raises(OptionError, match=r"layers is empty"):
        top(model, images, layers=[])
    with pytest.raises(OptionError, match=r"batch_size=-1: expected a whole number of at least 1"):
        top(model, images, batch_size=-1, progress=False)
    with pytest.raises(LayerError, match=r"there is no layer 7"):
        top(model, images, layers=7)
    with pytest.raises(LayerError, match=r"no layer 3 in this result, it has '1' \(1\)"):
        top(model, images, layers=1, progress=False)[3]
    with pytest.raises(StoreError, match=r"cannot write"):
        (tmp_path / "file").touch()
        top(model, images, out=tmp_path / "file" / "below", progress=False)
    with pytest.raises(StoreError, match=r"not a file that deconvviz wrote"):
        top(model, images, out=tmp_path / "file", progress=False)
    result = top(model, images, layers=1, progress=False)
    with pytest.raises(OptionError, match=r"image 0 is in both results"):
        result.merge(result)
    with pytest.raises(OptionError, match=r"the same layers and k"):
        result.merge(top(model, images, layers=2, progress=False))


def test_not_a_number_is_named(tmp_path):
    class Dividing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1, bias=False)

        def forward(self, x):
            return torch.relu(self.conv(x / x.amax((1, 2, 3), keepdim=True)))

    images = torch.rand(7, 3, 4, 4)
    images[4] = 0
    out = tmp_path / "file"
    with pytest.raises(ModelError, match=r"layer '.*', unit 0 gives nan for image 4 \(image 4\), whose pixels"):
        top(Dividing(), images, batch_size=2, out=out, progress=False)
    with pytest.raises(StoreError, match=r"saw 4 of 7 images"):
        TopK.load(out)

    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return torch.full((3, 8, 8), float("nan") if i == 2 else 0.0)

    with pytest.raises(ImageError, match=r"image 2 \(image 2\) holds NaN"):
        top(network(), Items(), progress=False)


def test_the_model_is_left_as_it_was(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout())
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(5, 3, 8, 8)
    kept, random = images.clone(), torch.get_rng_state()
    top(model, images, layers=1, progress=False)
    failing = Interrupting(model).train()
    failing.left = 3
    with pytest.raises(KeyboardInterrupt):
        top(failing, images, layers=1, batch_size=1, out=tmp_path / "file", progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in failing.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in failing.modules())
    assert torch.equal(images, kept) and torch.equal(random, torch.get_rng_state())


def test_a_scan_that_fails_at_once_leaves_no_file(tmp_path):
    model = Interrupting(network())
    model.left = 1
    with pytest.raises(KeyboardInterrupt):
        top(model, torch.randn(5, 3, 8, 8), out=tmp_path / "file", progress=False)
    assert list(Path(tmp_path).iterdir()) == []


def test_images_of_several_sizes_are_refused():
    class Growing(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return torch.zeros(3, 8 + 2 * i, 8)

    with pytest.raises(
        ImageError, match=r"images of \(10, 8\) pixels give layer '1' maps of \(4, 10, 8\), image 0 gives \(4, 8, 8\)"
    ):
        top(network(), Growing(), batch_size=1, progress=False)
    with pytest.raises(ImageError, match=r"one size after preprocessing: item 0 has \(3, 8, 8\), item 1 has"):
        top(network(), Growing(), progress=False)
