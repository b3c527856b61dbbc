"""What one detection's score depends on, and the strongest regions of the trunk's units."""

import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as build

import deconvviz
from deconvviz import targets

torch.manual_seed(0)
model = build(weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64, box_score_thresh=0.0).eval()
images = torch.rand(3, 3, 64, 64)
left, top, right, bottom = model(list(images))[0]["boxes"][0].tolist()
score = targets.detection((top, left, bottom, right))
result = deconvviz.occlude(model, images[:1], target=score, size=32, stride=32)
regions = deconvviz.project(model, images, layer="backbone.body.4", units=[0, 1], k=2).boxes
print(result.attribution().shape, regions.shape)
