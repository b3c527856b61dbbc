"""The blocks of a vision transformer: what excites a token's units, where, and what the answer depends on."""

import torch
import torchvision

import deconvviz

torch.manual_seed(0)
size = {"num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 5}
model = torchvision.models.VisionTransformer(image_size=32, patch_size=8, **size).eval()
images = torch.randn(4, 3, 32, 32)
print([(row.number, row.name, row.height, row.width) for row in deconvviz.layers(model).numbered])
best = deconvviz.top(model, images, layers=[3, "encoder.layers.encoder_layer_2:class"], k=2)
evidence = deconvviz.evidence(model, images, layer=3, units=[0, 5], k=1, size=16, stride=16, fill=0.0)
print(best[3].positions[0], evidence.maps.shape)
