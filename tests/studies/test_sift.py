"""SIFT beside the layers: descriptors, Fisher vectors, search and classifier against scikit's parts put together plainly."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("sklearn")

from skimage.color import rgb2gray
from skimage.feature import SIFT
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deconvviz.errors import ImageError, ModelError, OptionError
from deconvviz.images import Preprocess
from deconvviz.studies import sift
from deconvviz.studies.neighbours import nearest
from deconvviz.studies.probe import Probe, probe

HOW = Preprocess((32, 32), 32, (0.5,) * 3, (0.25,) * 3)
COUNT = 12
QUIET = {"preprocess": HOW, "progress": False}


def pictures():
    """Blots: every second picture has finer ones; one is flat and has no keypoint."""
    random, found = np.random.default_rng(0), []
    for i in range(COUNT):
        coarse = random.integers(0, 256, ((8, 12)[i % 2],) * 2 + (3,), dtype=np.uint8)
        found.append(Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC))
    found[3] = Image.new("RGB", (32, 32), (90, 90, 90))
    return found


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        ).eval()


@pytest.fixture(scope="module")
def tables():
    found = []
    for picture in pictures():
        detector = SIFT()
        try:
            detector.detect_and_extract(rgb2gray(np.asarray(picture)))
            found.append(detector.descriptors)
        except RuntimeError:
            found.append(np.zeros((0, 128), np.uint8))
    assert len(found[3]) == 0 and sum(map(len, found)) > 150
    return found


def fisher(tables, learnt, seed=0):
    """Perronnin's vectors from their formula, with the mixture of the images `learnt`."""
    every = np.concatenate([tables[i] for i in learnt]) / 512
    components = PCA(64, svd_solver="full").fit(every)
    mixture = GaussianMixture(16, covariance_type="diag", random_state=seed).fit(components.transform(every))
    weights, deviations = mixture.weights_, np.sqrt(mixture.covariances_)
    rows = np.zeros((len(tables), 2064))
    for row, table in zip(rows, tables, strict=True):
        if len(table):
            x = components.transform(table / 512)
            shares = mixture.predict_proba(x)
            away = (x[:, None] - mixture.means_) / deviations  # (keypoints, modes, components)
            first = np.einsum("tk,tkd->kd", shares, away) / (len(x) * np.sqrt(weights)[:, None])
            second = np.einsum("tk,tkd->kd", shares, away**2 - 1) / (len(x) * np.sqrt(2 * weights)[:, None])
            zeroth = (shares.mean(0) - weights) / np.sqrt(weights)
            vector = np.concatenate([zeroth, first.ravel(), -second.ravel()])  # the sign is scikit-image's
            vector = np.sign(vector) * np.sqrt(np.abs(vector))
            row[:] = vector / np.linalg.norm(vector)
    return rows


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_the_nearest_are_those_of_plain_fisher_vectors(tables, metric):
    result = nearest(network(), pictures(), query=[0, 5, 3], sift=True, k=4, metric=metric, batch_size=5, **QUIET)
    rows = fisher(tables, range(COUNT))
    assert result.layer == "SIFT" and result.query_ids.tolist() == [0, 5, 3]
    for number, query in enumerate((0, 5, 3)):
        distances = np.linalg.norm(rows - rows[query], axis=1)
        if metric == "cosine":  # of rows of length 1, but for the flat picture's, which is zero
            distances = np.where(rows.any(1) & rows[query].any(), distances**2 / 2, 1.0)
        distances[query] = np.inf
        assert result.distances[number].tolist() == pytest.approx(np.sort(distances)[:4].tolist(), abs=1e-6)
        if query != 3:  # a flat picture is as far from all
            assert result.image_ids[number].tolist() == np.argsort(distances, kind="stable")[:4].tolist()


def test_a_picture_from_elsewhere_finds_itself_and_a_stopped_search_goes_on(tmp_path):
    options = {"sift": True, "k": 2, "batch_size": 5, **QUIET}
    result = nearest(network(), pictures(), query=[pictures()[7]], out=tmp_path / "near", **options)
    assert result.image_ids[0, 0] == 7 and result.distances[0, 0] == 0 and result.query_ids.tolist() == [-1]
    assert nearest(network(), pictures(), query=[pictures()[7]], out=tmp_path / "near", **options) == result


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_probe_s_row_learns_from_the_training_folds_alone(tables, tmp_path):
    labels = [n % 2 for n in range(COUNT)]
    options = {"labels": labels, "layers": ["0"], "folds": 2, "seed": 1, "strength": 0.5, **QUIET}
    result, plain = probe(network(), pictures(), sift=True, **options), probe(network(), pictures(), **options)
    assert result.layers == (*plain.layers, "SIFT")
    assert result.features[1] == 2064 and result.grids[1] == (1, 1)
    assert torch.equal(result.accuracy[0], plain.accuracy[0])
    wanted = []
    for train, test in StratifiedKFold(2, shuffle=True, random_state=1).split(labels, labels):
        rows, y = fisher(tables, train, seed=1), np.array(labels)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=1000)).fit(
            rows[train], y[train]
        )
        wanted.append(classifier.score(rows[test], y[test]))
    assert result.accuracy[1].tolist() == wanted
    result.save(tmp_path / "probe")
    assert Probe.load(tmp_path / "probe") == result
    (axis,) = result.plot().axes
    assert [text.get_text() for text in axis.get_xticklabels()][1] == "SIFT"


def test_a_state_that_was_written_down_is_taken_back(tables):
    layer = None
    found = tuple((i, torch.from_numpy(table)) for i, table in enumerate(tables))
    whole = sift.Descriptors(layer, None, found)
    again = sift.Descriptors(layer, None).from_state(*whole.state())
    assert [n for n, _ in again.found] == list(range(COUNT))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(again.found, found, strict=True))
    parts = sift.Descriptors(layer, None, found[::2]), sift.Descriptors(layer, None, found[1::2])
    assert [n for n, _ in parts[1].merge(parts[0]).found] == list(range(COUNT))
    empty = sift.Descriptors(layer, None)
    assert empty.from_state(*empty.state()).found == ()


def test_what_has_no_meaning_is_refused(monkeypatch):
    with pytest.raises(OptionError, match="two kinds of features"):
        nearest(network(), pictures(), query=0, layer="0", sift=True, **QUIET)
    flat = [Image.new("RGB", (32, 32), (shade,) * 3) for shade in (10, 90, 200)]
    with pytest.raises(ImageError, match="SIFT finds 0 keypoints in 3 images, expected at least 64"):
        nearest(network(), flat, query=0, sift=True, **QUIET)
    broken = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    broken[1, 0, 0, 0] = torch.nan
    with pytest.raises(ImageError, match="image 1"):
        nearest(network(), broken, query=0, sift=True, progress=False)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModelError, match=r"pip install \"deconvviz\[studies\]\""):
        nearest(network(), pictures(), query=0, sift=True, **QUIET)


class Changing(nn.Module):
    """Changes its input in place."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x):
        x -= 0.25
        return self.body(x + 0.25)


def test_a_network_that_changes_its_input_in_place_changes_no_picture():
    options = {"labels": [n % 2 for n in range(COUNT)], "folds": 2, "sift": True, **QUIET}
    result = probe(Changing().eval(), pictures(), layers=["body.0"], **options)
    assert result.accuracy[1].tolist() == probe(network(), pictures(), layers=["0"], **options).accuracy[1].tolist()
