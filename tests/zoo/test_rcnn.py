"""Fast and Faster R-CNN: the papers' numbers, regions against pooling by hand, training and detection at small size."""

import pytest
import torch
from torch import nn

import deconvviz
from deconvviz import zoo


def small(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return zoo.create(name, num_classes=3, hidden=16, **options)


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def on_meta(name):
    with torch.device("meta"):
        return zoo.create(name)


@pytest.mark.parametrize(("trunk", "maps"), [("zf", 256), ("vgg", 512)])
def test_proposals_cost_what_section_3_1_says(trunk, maps):
    rpn = on_meta(f"faster-rcnn-{trunk}").rpn
    weights = [p.numel() for n, p in rpn.named_parameters() if n.endswith("weight")]
    assert sorted(weights) == sorted([9 * maps * maps, maps * 2 * 9, maps * 4 * 9])
    if trunk == "vgg":
        assert weights[1] + weights[2] == 512 * (4 + 2) * 9 == 27_648  # 2.8 × 10⁴
        assert round(sum(weights) / 1e6, 1) == 2.4


@pytest.mark.parametrize(("trunk", "field"), [("zf", 171), ("vgg", 228)])
def test_a_proposal_sees_as_far_as_the_paper_says(trunk, field):
    model = on_meta(f"faster-rcnn-{trunk}")
    both = nn.Sequential(model.features, model.rpn.head.conv)
    row = deconvviz.layers(both, (3, 320, 320))["1"]
    assert row.receptive_field == (field, field) and row.stride == (16, 16)


def test_an_image_of_1000_by_600_has_about_20000_anchors():
    from torchvision.models.detection.image_list import ImageList

    model = on_meta("faster-rcnn-vgg")
    maps = model.features(torch.zeros(1, 3, 600, 1000, device="meta"))
    assert maps.shape == (1, 512, 38, 63)
    images = ImageList(torch.zeros(1, 3, 600, 1000), [(600, 1000)])
    anchors = model.rpn.anchor_generator(images, [torch.zeros(1, 512, 38, 63)])[0]
    assert len(anchors) == 38 * 63 * 9 == 21_546
    sides = (anchors[:9, 2:] - anchors[:9, :2]).prod(1).sqrt()
    assert sorted(round(s / 64) * 64 for s in sides.tolist()) == [128] * 3 + [256] * 3 + [512] * 3


def test_fast_r_cnn_has_vgg_s_parameters_and_two_outputs():
    model = on_meta("fast-rcnn-vgg")
    vgg = on_meta("vgg-d")
    shared = count(vgg) - count(vgg.classifier[-1])
    assert count(model) == shared + 4_097 * 21 + 4_097 * 84
    zf = on_meta("fast-rcnn-zf")
    assert zf.features(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 256, 14, 14)


@pytest.mark.parametrize("name", ["fast-rcnn-zf", "faster-rcnn-vgg"])
def test_a_region_that_is_the_whole_map_is_the_image_by_itself(name):
    model = small(name).eval()
    x = torch.randn(2, 3, 96, 128)
    maps = model.features(x)
    height, width = (16 * n for n in maps.shape[2:])
    whole = torch.tensor([[0.0, 0.0, width - 16, height - 16]])  # roi_pool counts both edges' positions
    pooled = model.regions.box_roi_pool({"0": maps}, [whole, whole], None)
    torch.testing.assert_close(pooled, model.regions.box_roi_pool(maps))
    scores, _ = model.regions.box_predictor(model.regions.box_head(pooled))
    torch.testing.assert_close(scores, model(x))


def test_regions_are_pooled_by_their_largest_responses():
    model = small("fast-rcnn-zf")
    maps = torch.randn(1, 5, 12, 16)
    box = torch.tensor([[32.0, 16.0, 32 + 16 * 11, 16 + 16 * 5]])  # columns 2 to 13, rows 1 to 6
    pooled = model.regions.box_roi_pool({"0": maps}, [box], None)
    wanted = maps[:, :, 1:7, 2:14].unflatten(3, (6, 2)).amax(4)
    torch.testing.assert_close(pooled, wanted)


@pytest.mark.parametrize("name", ["fast-rcnn-vgg", "faster-rcnn-zf"])
def test_it_trains_on_boxes_and_detects(name):
    model = small(name).train()
    x = torch.randn(2, 3, 64, 96)
    boxes = torch.tensor([[8.0, 8.0, 56.0, 40.0], [30.0, 10.0, 90.0, 60.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])}, {"boxes": boxes[:1], "labels": torch.tensor([2])}]
    torch.manual_seed(0)
    losses = model.losses(x, targets)
    assert len(losses) == (4 if "faster" in name else 2)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.training and model.regions.training
    model.eval()
    with torch.no_grad():
        regions = model.propose(x) if "faster" in name else [boxes, boxes]
        found = model.detect(x, regions)
        again = model.detect(x) if "faster" in name else found
    assert len(found) == 2 and all(set(one) == {"boxes", "labels", "scores"} for one in found)
    for one, same, given in zip(found, again, regions, strict=True):
        assert torch.equal(one["boxes"], same["boxes"]) and len(given) <= 300
        inside = (one["boxes"] >= 0).all() and (one["boxes"][:, 2] <= 96).all() and (one["boxes"][:, 3] <= 64).all()
        assert inside and (one["scores"] > 0.05).all() and (one["labels"] >= 1).all()


def test_two_scores_of_an_anchor_are_a_softmax():
    head = small("faster-rcnn-zf").rpn.head
    x = torch.randn(1, 256, 4, 5)
    objectness, boxes = head([x])
    scores = head.scores(head.relu(head.conv(x))).view(1, 2, 9, 4, 5)
    torch.testing.assert_close(objectness[0].sigmoid(), scores.softmax(1)[:, 1])
    assert boxes[0].shape == (1, 36, 4, 5)
