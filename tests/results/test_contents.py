"""Results as people use them: units picked and gone through, tables for pandas, empty places, names in HTML."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from saved_results import saved

import deconvviz
from deconvviz.errors import OptionError, UnitError
from deconvviz.plotting.projections import compose


def test_units_are_picked_by_number_and_gone_through_in_order():
    result = saved("projections")
    assert len(result) == 2 and [one.units.tolist() for one in result] == [[0], [2]]
    assert torch.equal(result[2].projections, result.projections[1:]) and result[2].layer == result.layer
    with pytest.raises(UnitError, match=r"unit 1 is not in this result, it holds 2 units \(0, 2\)"):
        _ = result[1]


def silence(result):
    ids = result.image_ids.clone()
    ids[1, 1] = -1
    return dataclasses.replace(result, image_ids=ids)


def test_a_place_that_no_image_excites_is_empty():
    usual, silent = saved("projections"), silence(saved("projections"))
    for before, after in zip(compose(usual), compose(silent), strict=True):
        changed = (before != after).any(2)
        assert changed.any() and (after[changed] == 1).all()
        rows, cols = np.nonzero(changed)
        assert (rows.max() - rows.min() + 1) * (cols.max() - cols.min() + 1) < before.shape[0] * before.shape[1] / 4


def test_without_pandas_a_table_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for name in ("projections", "topk"):
        with pytest.raises(OptionError, match=r"to_dataframe needs pandas.*pip install 'deconvviz\[pandas\]'"):
            saved(name).to_dataframe()


def test_tables_for_pandas_leave_empty_places_out(monkeypatch):
    given = []
    pandas = type("pandas", (), {"DataFrame": staticmethod(lambda columns: given.append(columns) or columns)})
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    result, top = silence(saved("projections")), saved("topk")
    table = result.to_dataframe()
    assert table["unit"].tolist() == [0, 0, 2] and table["rank"].tolist() == [0, 1, 0]
    assert table["activation"].tolist() == result.activations.flatten()[:3].tolist()
    table = top.to_dataframe()
    assert len(table["layer"]) == 2 * 8 and table["layer"][8:] == [top.tops[1].name] * 8
    assert table["value"] == [x for one in top.tops for x in one.values.flatten().tolist()]


TABLES = {
    "correspondence": ("mean", lambda result: result.mean),
    "filter-comparison": ("rms", lambda result: torch.cat([one.rms for one in result.filters])),
    "filters": ("rms", lambda result: result.rms),
    "invariance": ("distance", lambda result: torch.cat([curve.distance.flatten() for curve in result.curves])),
    "method-comparison": ("ssim", lambda result: result.ssim),
    "neighbours": ("distance", lambda result: result.distances),
    "occlusion": ("probability", lambda result: result.probability),
    "occlusion-targets": ("logit of class 1", lambda result: result.logit[1]),
    "probe": ("accuracy", lambda result: result.mean),
    "projections": ("activation", lambda result: result.activations),
    "recording": ("activation", lambda result: torch.cat([t.activations.flatten() for t in result.layers]).double()),
    "responses": ("std", lambda result: result.std),
    "topk": ("value", lambda result: torch.cat([one.values.flatten() for one in result.tops])),
    "training": ("top1", lambda result: torch.tensor([epoch.top1 for epoch in result.history], dtype=torch.float64)),
}


@pytest.mark.parametrize("name", TABLES)
def test_results_are_tables_of_pandas_itself(name):
    pandas = pytest.importorskip("pandas")
    (column, numbers), result = TABLES[name], saved(name)
    table = result.to_dataframe()
    assert isinstance(table, pandas.DataFrame) and not table.isna().all().any()
    assert np.array_equal(table[column].to_numpy(), numbers(result).flatten().numpy())


def test_optimized_images_are_tables():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    quick = {"input_size": (3, 8, 8), "steps": 2, "robust": False, "progress": False}
    found = deconvviz.maximize(net, layer="1", units=[0, 3], n=2, **quick)
    table = found.columns()
    assert table["unit"].tolist() == [0, 0, 3, 3] and table["image"].tolist() == [0, 1, 0, 1]
    assert table["activation"].tolist() == found.activations[..., -1].flatten().tolist()
    assert table["objective"] == ["unit 0", "unit 0", "unit 3", "unit 3"] and "best_photo" not in table
    known = dataclasses.replace(found, best_photo=torch.tensor([1.0, 2.0])).columns()
    assert known["best_photo"].tolist() == [1, 1, 2, 2]
    image = torch.rand(3, 8, 8)
    known = deconvviz.images.Preprocess((8, 8), None, (0.0,) * 3, (1.0,) * 3)
    changed = deconvviz.accentuate(net, image, layer="1", unit=2, steps=2, preprocess=known, progress=False)
    table = changed.columns()
    assert torch.equal(table["activation"], changed.activations)
    assert table["change"].tolist() == [0, *changed.distances.tolist()] and len(table["image"]) == 3
    rebuilt = deconvviz.invert(net, image, layer=["0", "1"], starts=2, steps=2, preprocess=known, progress=False)
    table = rebuilt.columns()
    assert table["layer"] == ["0", "0", "1", "1"] and table["start"].tolist() == [0, 1, 0, 1]
    assert torch.equal(table["distance"], rebuilt.distances.flatten())


def test_maps_class_maps_and_regions_are_tables():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Conv2d(4, 2, 3)
    )
    images = torch.rand(3, 3, 12, 12)
    seen = deconvviz.maps(net, images[0])
    table = seen.columns()
    strongest = [float(m.amax()) for one in seen.layers for m in one.maps]
    assert table["strength"].tolist() == pytest.approx(strongest) and table["unit"].tolist()[:4] == [0, 1, 2, 3]
    dense = deconvviz.ClassMap(
        images[0], torch.rand(2, 2, 3), torch.tensor([1.0, 5]), torch.tensor([2.0, 4, 6]), (4, 2), 1
    )
    table = dense.columns()
    assert table["x"].tolist() == [2, 4, 6, 2, 4, 6] and table["y"].tolist() == [1, 1, 1, 5, 5, 5]
    assert table["score"].tolist() == dense.scores[1].flatten().tolist()
    found = deconvviz.TopRegions(
        *("0", 1, torch.tensor([4, 7]), torch.tensor([[3.0, 2], [1, torch.nan]]), torch.tensor([[1, 0], [2, -1]])),
        *(torch.arange(16).view(2, 2, 4), torch.zeros(2, 2, 3, 4, 4), torch.zeros(2, 2, 4), ("a", "b", "c"), 9),
    )
    table = found.columns()
    assert (
        table["unit"].tolist() == [4, 4, 7] and table["rank"].tolist() == [0, 1, 0] and table["name"] == ["b", "a", "c"]
    )
    assert table["top"].tolist() == [0, 4, 8] and table["right"].tolist() == [3, 7, 11]


def test_a_comparison_without_random_weights_is_no_table():
    bare = dataclasses.replace(saved("method-comparison"), stages=())
    with pytest.raises(OptionError, match="has no rows"):
        bare.columns()


def test_costs_and_evaluations_are_tables_of_pandas_too():
    pytest.importorskip("pandas")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    table = deconvviz.cost(net, input_size=(3, 8, 8)).to_dataframe()
    assert table["parameters"].tolist() == [112, 290] and table["macs"].tolist() == [27 * 4 * 36, 288]
    answers = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]])
    found = deconvviz.Evaluation(
        answers, torch.tensor([0, 1, 1]), ("a", "b", "c"), 1, "whole", class_names=("no", "yes")
    )
    table = found.to_dataframe()
    assert table["predicted class"].tolist() == ["no", "yes", "no"] and table["rank"].tolist() == [0, 0, 1]
    assert table["probability"].tolist() == pytest.approx([0.9, 0.6, 0.2])


def test_a_name_from_a_file_is_no_html(evil='<img src=x onerror="window.PWN=1">'):
    result = saved("topk")
    tops = tuple(dataclasses.replace(one, name=evil) for one in result.tops)
    page = dataclasses.replace(result, tops=tops)._repr_html_()
    assert "<img" not in page and "&lt;img src=x onerror=&quot;window.PWN=1&quot;&gt;" in page
