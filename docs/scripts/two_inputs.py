"""A model that takes something beside the images: `call` says how."""

import torch

import deconvviz


class Beside(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.maps, self.numbers, self.head = torch.nn.Conv2d(3, 6, 5), torch.nn.Linear(2, 6), torch.nn.Linear(12, 4)

    def forward(self, images, age):
        return {"scores": self.head(torch.cat([self.maps(images).relu().mean((2, 3)), self.numbers(age)], 1))}


model, images, age = Beside().eval(), torch.rand(5, 3, 32, 32), torch.tensor([[40.0, 1.0]])
call = lambda model, images: model(images, age=age.expand(len(images), -1))["scores"]  # noqa: E731
result = deconvviz.occlude(model, images[:1], target=2, size=8, stride=8, call=call)
best = deconvviz.top(model, images, layers=[1], k=2, call=call)
print(result.logit, best[1].values[:, 0])
