"""The strongest images of a Hugging Face ResNet's units in a Hugging Face dataset."""

import datasets
import numpy as np
import transformers

import deconvviz

# from_pretrained("microsoft/resnet-50") gives a trained one, and its processor.
config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 12, 12], depths=[1] * 4, layer_type="basic")
model = transformers.ResNetForImageClassification(config).eval()
processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0)
pictures = list(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))
columns = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
data = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 0, 1, 0, 1]}, features=columns)
best = deconvviz.top(model, data, layers=[2], k=3, preprocess=processor)
near = deconvviz.nearest(model, data, query=0, layer=2, k=2, preprocess=processor)
print(best[2].image_ids[0], near.names)
