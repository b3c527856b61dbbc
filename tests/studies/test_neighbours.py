"""The search against sorting all distances in plain Python, in any batches."""

import pytest
import reference_studies as slow
import torch
from pictures import noise
from torch import nn

from deconvviz.errors import ImageError, LayerError, OptionError
from deconvviz.images import Preprocess
from deconvviz.studies import neighbours as module
from deconvviz.studies.neighbours import nearest

PIXELS = Preprocess((4, 4), 4, (0.5,) * 3, (0.5,) * 3)


def images(count=11, seed=0, low=-3, high=4):
    """Small integers, so that sums are exact and ties are many."""
    return torch.randint(low, high, (count, 3, 4, 4), generator=torch.Generator().manual_seed(seed)).float()


def network():
    model = nn.Sequential(nn.Conv2d(3, 2, 2, stride=2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    weights = torch.randint(-1, 2, (2, 3, 2, 2), generator=torch.Generator().manual_seed(5))
    model[0].weight.data = weights.float()
    return model.eval()


def features(x, last=3):
    with torch.no_grad():
        return network()[:last](x).flatten(1).tolist()


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("k", [1, 4, 20])
def test_search_equals_sorting_everything(metric, batch_size, k):
    x, queries = images(), images(3, seed=1)
    x[7] = x[2]  # a tie
    result = nearest(network(), x, query=queries, k=k, metric=metric, batch_size=batch_size, progress=False)
    expected = slow.neighbours(features(queries), features(x), k, metric)
    assert result.layer == "2" and result.query_ids.tolist() == [-1] * 3
    for row, distances, truth in zip(result.image_ids.tolist(), result.distances.tolist(), expected, strict=True):
        assert distances == pytest.approx([d for d, _ in truth], abs=1e-6)
        if metric == "l2":  # exact, so ties are, too
            assert row == [i for _, i in truth]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_an_image_is_not_its_own_neighbour(batch_size):
    x = images(6)
    x[4] = x[1]
    result = nearest(network(), x, query=[1, 5], k=10, batch_size=batch_size, progress=False)
    assert result.query_ids.tolist() == [1, 5] and result.image_ids.shape == (2, 5)
    assert result.image_ids[0, 0] == 4 and result.distances[0, 0] == 0
    assert all(q not in row for q, row in zip([1, 5], result.image_ids.tolist(), strict=True))


def test_equal_images_are_at_distance_zero_and_come_in_their_order():
    x = images(1).expand(5, -1, -1, -1).clone() * 1000.5
    result = nearest(network(), x, query=x[:1], k=5, progress=False)
    assert result.distances.eq(0).all() and result.image_ids.tolist() == [[0, 1, 2, 3, 4]]


def test_the_cosine_does_not_see_size_and_zero_is_far_from_everything():
    x = images(4).abs() + 1
    model = network()
    model[0].weight.data.abs_()
    x[1], x[2] = 3 * x[0], -1
    result = nearest(model, x, query=[0], metric="cosine", progress=False)
    assert result.image_ids[0, 0] == 1 and result.distances[0, 0].item() == pytest.approx(0, abs=1e-12)
    assert result.image_ids[0, -1] == 2 and result.distances[0, -1] == 1


def test_queries_are_compared_in_blocks(monkeypatch):
    x = images()
    whole = nearest(network(), x, query=list(range(11)), progress=False)
    monkeypatch.setattr(module, "_CHUNK", 1)
    blocks = nearest(network(), x, query=list(range(11)), progress=False)
    assert whole.image_ids.equal(blocks.image_ids) and whole.distances.equal(blocks.distances)


def test_any_layer_may_be_compared():
    x, queries = images(), images(2, seed=1)
    result = nearest(network(), x, query=queries, layer="0", progress=False)
    expected = slow.neighbours(features(queries, 1), features(x, 1), 6, "l2")
    assert result.layer == "0" and result.image_ids.tolist() == [[i for _, i in row] for row in expected]


def test_captions_are_labels_and_pictures_are_the_first_sixteen(tmp_path):
    for number in range(18):
        folder = tmp_path / "abc"[number % 3]
        folder.mkdir(exist_ok=True)
        noise((5, 5), 10 * number + 5, number).convert("RGB").save(folder / f"{number:02}.png")
    result = nearest(network(), tmp_path, query=list(range(18)), k=2, preprocess=PIXELS, progress=False)
    assert len(result.names) == 18 and set(sum(result.names, ())) <= set("abc")
    assert result.pictures.shape == (16, 3, 3, 4, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, OptionError, "k=0: expected a whole number of at least 1"),
        ({"metric": "l1"}, OptionError, "one of 'l2', 'cosine'"),
        ({"query": [11]}, ImageError, r"query=\[11\]: expected indices of images, 0 to 10"),
        ({"query": []}, ImageError, "expected indices of images"),
        ({"query": None, "images": images(1), "ids": 0}, ImageError, "there is 1 image and it is the query"),
        ({"query": torch.zeros(1, 3, 6, 6)}, ImageError, "image 0 gives"),
        ({"layer": "x"}, LayerError, "there is no layer 'x'"),
    ],
)
def test_mistakes_are_told(options, error, message):
    options = dict(options)
    x, only = options.pop("images", images()), options.pop("ids", None)
    query = only if only is not None else options.pop("query", [0])
    options.pop("query", None)
    with pytest.raises(error, match=message):
        nearest(network(), x, query=query, **options, progress=False)


def test_the_picture_has_a_row_per_query():
    figure = nearest(network(), images(), query=[0, 3], k=3, progress=False).plot()
    assert len(figure.axes) == 2 * (4 + 1)  # and a gap beside each query
