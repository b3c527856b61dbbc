"""The ready targets against numbers worked out by hand or by other code."""

import math

import pytest
import torch
import torchvision

from deconvviz import OptionError, targets


def test_a_class_by_number_and_name_of_whatever_holds_scores():
    scores = torch.randn(4, 5)
    for output in (scores, {"logits": scores, "loss": torch.tensor(1.0)}, (scores, None), {"out": scores}):
        assert torch.equal(targets.score(3)(output), scores[:, 3])
    names = ["a", "b", "c, sea", "d", "e"]
    assert torch.equal(targets.score("sea", names)(scores), scores[:, 2])
    assert torch.equal(targets.named(targets.score("sea"), names)(scores), scores[:, 2])
    assert targets.score("sea").name == "sea" and targets.score(1, names).name == "b"


@pytest.mark.parametrize("where", [None, (1, 0, 3, 4), "mask"])
def test_a_region_is_the_mean_of_its_class_inside(where):
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mask = torch.zeros(4, 5)
    mask[1:3, 0:4] = 1
    if where is None:
        mask[:] = 1
    found = targets.region(2, mask if where == "mask" else where)({"out": maps})
    by_hand = [sum(float(maps[n, 2, i, j]) for i, j in mask.nonzero().tolist()) / float(mask.sum()) for n in (0, 1)]
    assert found.tolist() == pytest.approx(by_hand, rel=1e-13)


def test_the_detection_that_overlaps_most_is_found_as_torchvision_measures_overlap():
    torch.manual_seed(0)
    corners = torch.rand(30, 2) * 50
    boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(30, 2)], 1)
    found = {"boxes": boxes, "scores": torch.rand(30), "labels": torch.randint(1, 4, (30,))}
    box = (20, 15, 45, 40)  # top, left, bottom, right
    overlap = torchvision.ops.box_iou(boxes, torch.tensor([[15.0, 20, 40, 45]]))[:, 0]
    assert targets.detection(box)([found]).item() == found["scores"][overlap.argmax()]
    of_two = overlap.where(found["labels"] == 2, torch.tensor(-1.0))
    assert targets.detection(box, 2)([found, found]).tolist() == [found["scores"][of_two.argmax()].item()] * 2
    assert targets.detection(box, "b", names="0abc")([found]).item() == found["scores"][of_two.argmax()]
    nothing = {name: value[:0] for name, value in found.items()}
    assert targets.detection(box)([nothing]).tolist() == [0]
    assert targets.detection((200, 200, 210, 210))([found]).tolist() == [0]
    least = float(overlap.max())
    assert targets.detection(box, least=least + 1e-4)([found]).tolist() == [0]


def test_similarity_is_the_cosine():
    torch.manual_seed(0)
    own, other = torch.randn(3, 7, dtype=torch.float64), torch.randn(1, 7, dtype=torch.float64)
    expected = torch.nn.functional.cosine_similarity(own, other)
    assert torch.allclose(targets.similarity(other)(own), expected, rtol=0, atol=1e-15)
    held = {"last_hidden_state": torch.zeros(3, 2, 7), "pooler_output": own}
    assert torch.allclose(targets.similarity({"pooler_output": other})(held), expected, rtol=0, atol=1e-15)
    angle = math.acos(targets.similarity(torch.tensor([1.0, 0]))(torch.tensor([[1.0, 1.0]])).item())
    assert angle == pytest.approx(math.pi / 4, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: targets.score(7)(torch.zeros(2, 5)), "class 7 is out of range: the model has 5 classes"),
        (lambda: targets.score(True), "expected a number, 0 or more, or a name"),
        (lambda: targets.score("dog")(torch.zeros(2, 5)), "names of this model's classes are not known"),
        (lambda: targets.score(1)({"a": torch.zeros(2, 5)}), "with 'a', expected scores"),
        (lambda: targets.score(1)(torch.zeros(2, 5, 3, 3)), r"shape \(2, 5, 3, 3\), expected \(N, classes\)"),
        (lambda: targets.region(1)(torch.zeros(2, 5)), r"expected \(N, classes, height, width\)"),
        (lambda: targets.region(1, (0, 0, 9, 9))(torch.zeros(1, 2, 4, 4)), "is not inside the map of 4×4"),
        (lambda: targets.region(1, torch.ones(3, 3))(torch.zeros(1, 2, 4, 4)), r"the mask has \(3, 3\) pixels"),
        (lambda: targets.region(1, torch.zeros(3, 3)), "a mask .* that is not empty"),
        (lambda: targets.region(1, (3, 0, 3, 4)), "top < bottom"),
        (lambda: targets.detection((0, 0, 5)), "expected .top, left, bottom, right"),
        (lambda: targets.detection((0, 0, 5, 5))(torch.zeros(2, 5)), "no list of mappings"),
        (lambda: targets.detection((0, 0, 5, 5), least=2), "a share from 0 to 1"),
        (lambda: targets.similarity(torch.zeros(5)), "all zero"),
        (lambda: targets.similarity(torch.ones(5))(torch.zeros(2, 4)), "4 numbers, the other image's 5"),
    ],
)
def test_what_has_no_meaning_is_refused(call, message):
    with pytest.raises(OptionError, match=message):
        call()
