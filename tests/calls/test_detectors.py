"""torchvision's detectors and segmenters whole: their answers, one detection's score, the units of their trunk."""

from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models import detection
from torchvision.ops import MultiScaleRoIAlign

import deconvviz
from deconvviz import targets
from deconvviz.calls import called

QUIET = {"progress": False}
SIZE = (40, 52)  # neither what the detector wants nor a multiple of 32


class Trunk(nn.Module):
    """A small backbone in the form of torchvision's."""

    def __init__(self, channels=8):
        super().__init__()
        self.out_channels = channels
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU()
        )
        self.fpn = nn.Conv2d(8, channels, 1)

    def forward(self, x):
        return OrderedDict([("0", self.fpn(self.body(x)))])


def make(name):
    torch.manual_seed(0)
    sides, anchors = {"min_size": 48, "max_size": 64}, detection.rpn.AnchorGenerator(((16,),), ((0.5, 1.0),))
    pool = MultiScaleRoIAlign(["0"], 5, 2)
    head = {
        "rpn_anchor_generator": anchors,
        "box_roi_pool": pool,
        "box_score_thresh": 0.0,
        "rpn_post_nms_top_n_test": 8,
    }
    head |= {
        "box_head": detection.faster_rcnn.TwoMLPHead(8 * 25, 12),
        "box_predictor": detection.faster_rcnn.FastRCNNPredictor(12, 3),
    }
    if name == "faster":
        model = detection.FasterRCNN(Trunk(), **sides, **head)
    elif name == "mask":
        masks = {
            "mask_roi_pool": MultiScaleRoIAlign(["0"], 6, 2),
            "mask_head": detection.mask_rcnn.MaskRCNNHeads(8, (8,), 1),
        }
        masks["mask_predictor"] = detection.mask_rcnn.MaskRCNNPredictor(8, 8, 3)
        model = detection.MaskRCNN(Trunk(), **sides, **head, **masks)
    elif name == "retina":
        model = detection.RetinaNet(Trunk(), 3, **sides, anchor_generator=anchors, score_thresh=0.0, topk_candidates=20)
    elif name == "fcos":
        one = detection.rpn.AnchorGenerator(((16,),), ((1.0,),))
        model = detection.FCOS(Trunk(32), 3, **sides, anchor_generator=one, score_thresh=0.0, topk_candidates=20)
    else:
        boxes = detection.anchor_utils.DefaultBoxGenerator([[2]], scales=[0.2, 0.4])
        trunk = Trunk()
        trunk.out_channels = [8]
        model = detection.ssd.SSD(trunk, boxes, (48, 48), 3, score_thresh=0.0, topk_candidates=20)
    return model.eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["faster", "mask", "retina", "fcos", "ssd"])
def test_a_batch_is_answered_as_the_list_of_its_images(name, images):
    model = make(name)
    with torch.no_grad():
        expected, found = model(list(images)), called(model)(images)
    assert all(len(one["scores"]) for one in expected)
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["faster", "mask", "retina", "ssd"])
def test_occlusion_of_one_detections_score(name, images):
    model = make(name)
    with torch.no_grad():
        best = model(list(images))[0]
    left, top, right, bottom = best["boxes"][0].tolist()
    target = targets.detection((top, left, bottom, right), int(best["labels"][0]))
    found = deconvviz.occlude(model, images[:1], target=target, size=20, stride=20, fill=0.0, **QUIET)
    assert found.unoccluded["logit"] == pytest.approx(float(best["scores"][0]), rel=1e-5)
    for i, row in enumerate(found.rows.tolist()):
        for j, col in enumerate(found.cols.tolist()):
            covered = images[0].clone()
            covered[:, row : row + 20, col : col + 20] = 0
            with torch.no_grad():
                expected = float(target(model([covered]))[0])
            assert float(found.logit[i, j]) == pytest.approx(expected, abs=1e-5)
    assert found.label.eq(-1).all()


def by_hand(model, images):
    """What the trunk makes of images, written with plain operations."""
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (model.transform.image_mean, model.transform.image_std))
    scale = min(48 / 40, 64 / 52)
    x = F.interpolate((images - mean) / std, scale_factor=scale, mode="bilinear", recompute_scale_factor=True)
    return F.pad(x, (0, 64 - x.shape[3], 0, 64 - x.shape[2]))


def test_units_of_the_trunk_and_the_pyramid_are_followed_to_the_callers_pixels(images):
    model = make("faster")
    x = images.clone().requires_grad_()
    maps = model.backbone.body(by_hand(model, x))
    best = deconvviz.top(model, images, layers=["backbone.body.4", "backbone.fpn"], k=1, **QUIET)
    assert torch.allclose(best["backbone.body.4"].values[:, 0], maps.amax((0, 2, 3)), rtol=0, atol=1e-5)
    pyramid = model.backbone.fpn(maps)
    assert torch.allclose(best["backbone.fpn"].values[:, 0], pyramid.amax((0, 2, 3)), rtol=0, atol=1e-5)
    peak = pyramid[:, 3].flatten(1)
    (expected,) = torch.autograd.grad((peak.amax(1) * peak.amax(1).detach()).sum(), x)
    found = deconvviz.deconv(model, images, layer="backbone.fpn", unit=3, rule="backprop")
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    shown = deconvviz.project(model, images, layer="backbone.fpn", units=[3], k=2, **QUIET)
    assert shown.boxes.shape == (1, 2, 4) and int(shown.boxes[..., 2].max()) <= SIZE[0]
    assert "backbone.fpn" in deconvviz.layers(model, SIZE).numbered[-1].aliases


def test_methods_are_compared_on_a_detections_score(images):
    pytest.importorskip("captum")
    model = make("faster")
    with torch.no_grad():
        left, top, right, bottom = model(list(images))[0]["boxes"][0].tolist()
    target = targets.detection((top, left, bottom, right))
    found = deconvviz.compare_methods(model, images[:1], target=target, methods=["gradient"], stages=0, **QUIET)
    x = images[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(target(model([x])).sum(), x)
    assert torch.allclose(found["gradient"], expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    with pytest.raises(deconvviz.UnsupportedOp, match="leave the method out"):
        deconvviz.compare_methods(model, images[:1], target=target, methods=["deconvnet"], stages=0, **QUIET)


def test_a_class_inside_a_region_of_a_segmenters_map(images):
    torch.manual_seed(0)
    model = (
        torchvision.models.segmentation.FCN(
            torchvision.models._utils.IntermediateLayerGetter(Trunk().body, {"4": "out"}), nn.Conv2d(8, 4, 1)
        )
        .double()
        .eval()
    )
    image = images[:1].double()
    target = targets.region(2, (5, 8, 20, 30))
    found = deconvviz.occlude(model, image, target=target, size=10, stride=10, fill=0.0, **QUIET)
    assert found.method == "incremental"
    with torch.no_grad():
        for i, row in enumerate(found.rows.tolist()):
            for j, col in enumerate(found.cols.tolist()):
                covered = image.clone()
                covered[:, :, row : row + 10, col : col + 10] = 0
                expected = float(model(covered)["out"][0, 2, 5:20, 8:30].mean())
                assert float(found.logit[i, j]) == pytest.approx(expected, abs=1e-12)


def test_the_detector_is_left_as_it_was_also_after_an_error(images):
    model = make("faster")
    own = model.transform
    model.rpn.forward = None
    with pytest.raises(TypeError):
        deconvviz.occlude(model, images[:1], target=targets.detection((0, 0, 9, 9)), size=20, **QUIET)
    assert model.transform is own and not model.training
