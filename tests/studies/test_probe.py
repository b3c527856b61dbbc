"""The probe on features that hold the answer and on features that do not, and its honest cross-validation."""

import sys

import pytest
import torch
from pictures import noise
from torch import nn
from torch.nn import functional as F

pytest.importorskip("sklearn")

from deconvviz.errors import LayerError, ModelError, OptionError
from deconvviz.images import Preprocess
from deconvviz.studies.probe import probe


def network(units=4):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, units, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(*model, nn.Linear(units, 2)).eval()


def coloured(count=40, strength=2.0):
    """Noise, the even ones redder, the odd ones bluer."""
    x = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    x[::2, 0] += strength
    x[1::2, 2] += strength
    return x, [n % 2 for n in range(count)]


def run(x, labels, model=None, **options):
    return probe(model or network(), x, labels=labels, **{"folds": 4, "progress": False, **options})


def test_features_that_hold_the_answer_give_it_and_others_give_chance():
    x, labels = coloured()
    assert run(x, labels, layers=["0"]).mean.item() > 0.95
    assert abs(run(coloured(strength=0.0)[0], labels, layers=["2"]).mean.item() - 0.5) < 0.25


def test_the_classifier_never_sees_what_it_is_tested_on():
    """As many features as images: a fit to all images would be perfect, on noise."""
    x = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    result = run(x, [n % 2 for n in range(40)], layers=["0"])
    assert result.features == (144,) and result.mean.item() < 0.75


def test_accuracies_are_those_of_scikit_learns_own_cross_validation():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, labels = coloured(strength=0.3)
    result = run(x, labels, layers=["0", "2"], seed=3, strength=0.5, batch_size=7)
    with torch.no_grad():
        tables = [network()[:n](x).flatten(1).double().numpy() for n in (1, 3)]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=1000))
    for row, table in zip(result.accuracy.tolist(), tables, strict=True):
        folds = StratifiedKFold(4, shuffle=True, random_state=3)
        assert row == pytest.approx(cross_val_score(pipeline, table, labels, cv=folds).tolist())


@pytest.mark.parametrize(
    ("most", "grid"), [(1024, (6, 6)), (144, (6, 6)), (143, (5, 5)), (36, (3, 3)), (4, (1, 1)), (1, (1, 1))]
)
def test_maps_are_averaged_until_they_are_few_enough(most, grid):
    x, labels = coloured(8)
    result = run(x, labels, layers=["0"], folds=2, most=most)
    assert result.grids == (grid,) and result.features == (4 * grid[0] * grid[1],)


def test_the_table_holds_averages(monkeypatch):
    seen = []
    monkeypatch.setattr(
        sys.modules["deconvviz.studies.probe"],
        "_score",
        lambda table, *_: (seen.append(table), (torch.ones(2), torch.ones(2) > 0))[1],
    )
    x, labels = coloured(8)
    run(x, labels, layers=["0"], folds=2, most=16)
    with torch.no_grad():
        expected = F.adaptive_avg_pool2d(network()[0](x), 2).flatten(1)
    assert torch.allclose(torch.from_numpy(seen[0](None)).float(), expected, atol=1e-6)


def test_the_usual_layers_are_the_numbered_ones_and_the_last_features():
    x, labels = coloured(8)
    assert run(x, labels, folds=2).layers == ("1: 1", "3")


def test_labels_may_come_from_folders(tmp_path):
    for number in range(8):
        folder = tmp_path / ("cat", "dog", "dog")[number % 3]
        folder.mkdir(exist_ok=True)
        noise((6, 6), 20 * number + 5, number).convert("RGB").save(folder / f"{number}.png")
    pixels = Preprocess((6, 6), 6, (0.5,) * 3, (0.5,) * 3)
    result = probe(network(), tmp_path, layers=["2"], folds=2, preprocess=pixels, progress=False)
    assert result.classes == ("cat", "dog") and result.count == 8 and result.chance == 5 / 8


def test_a_fit_that_does_not_end_is_told(monkeypatch):
    from sklearn import linear_model

    real = linear_model.LogisticRegression
    monkeypatch.setattr(linear_model, "LogisticRegression", lambda C, max_iter: real(C=C, max_iter=1))
    x, labels = coloured()
    assert not run(x, labels, layers=["0"]).converged.any()
    monkeypatch.undo()
    assert run(x, labels, layers=["0"]).converged.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds=1: expected a whole number of at least 2"),
        ({"most": 0}, "most=0"),
        ({"strength": 0}, "strength=0"),
        ({"labels": [0] * 39}, "there are 39 labels for 40 images"),
        ({"labels": [0] * 40}, "there are 1 classes"),
        ({"labels": [0] * 38 + [1] * 2}, "the rarest is '1' with 2 images; expected at least 2 classes of at least 4"),
        ({"labels": None}, "the images come without labels"),
    ],
)
def test_mistakes_are_told(options, message):
    x, labels = coloured()
    with pytest.raises(OptionError, match=message):
        run(x, **{"labels": labels, **options})
    with pytest.raises(LayerError, match="there is no layer 7"):
        run(x, labels, layers=[7])


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModelError, match=r'pip install "deconvviz\[studies\]"'):
        run(*coloured())


def test_it_prints_a_line_per_layer_and_draws_a_curve():
    result = run(*coloured(strength=0.5))
    assert result.table().splitlines()[0].startswith("1: 1: ") and "chance: 50.0%" in result.table()
    (axis,) = result.plot().axes
    assert axis.get_ylabel().startswith("accuracy") and len(axis.get_xticks()) == 2
