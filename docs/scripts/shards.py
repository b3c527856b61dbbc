"""Ten thousand generated pictures in tar shards, scanned by all processes: torchrun --nproc-per-node=2 shards.py FOLDER."""

import sys

import torch

import deconvviz
from deconvviz.images import Preprocess

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU()).eval()
how = Preprocess((8, 8), None, mean=(0.5,) * 3, std=(0.25,) * 3)
shards, out = f"{sys.argv[1]}/part-{{0..3}}.tar", f"{sys.argv[1]}/best"
best = deconvviz.top(model, shards, layers=[1], k=5, preprocess=how, batch_size=256, out=out)
