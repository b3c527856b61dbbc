"""The commands about training: train a network, and look at what its units saw meanwhile."""

from __future__ import annotations

import argparse

from .options import (
    AMP,
    BATCH_SIZE,
    QUIET,
    SEED,
    Command,
    Option,
    animation,
    folder,
    followed,
    load,
    names,
    number_or_name,
    number_or_text,
    out,
    picture,
    unit_list,
    write,
)

RECIPES = (
    *("modern", "paper", "cifar", "cifar-warm", "cifar-short", "alexnet", "vgg", "googlenet", "resnet", "preresnet"),
    "digits",
)


def _recording(command: Command, parsed: argparse.Namespace) -> None:
    import deconvviz

    recording = deconvviz.Recording.load(parsed.file)
    units = None if parsed.units == "all" else parsed.units
    write(parsed.out, recording.plot(layer=parsed.layer, units=units))
    if parsed.convergence:
        write(parsed.convergence, recording.plot_convergence())
    if parsed.animation:
        recording.animate(parsed.animation, layer=parsed.layer)
        print(f"wrote {parsed.animation}")


def _train(command: Command, parsed: argparse.Namespace) -> None:
    import deconvviz

    model, call = parsed.model, None
    if not deconvviz.zoo.knows(model):
        loaded = load(argparse.Namespace(**vars(parsed) | {"device": None}))
        model, call = loaded.model, loaded.call
    result = followed(deconvviz.train(model, call=call, **command.arguments(parsed)))
    print(result.history[-1])
    print(f"wrote {result.weights} and {result.card}")
    if result.page is not None:
        print(f"wrote {result.page}")


COMMANDS = (
    Command(
        "recording",
        "",
        "what units saw over the epochs of a training",
        (
            Option("file", "what train --record wrote, also while it runs", more={"metavar": "FILE"}),
            Option("--layer", "default: six units of every layer", type=number_or_name),
            Option("--units", 'with --layer: "0,5,9" or "0-15"; default: all that were recorded', type=unit_list),
            out("recording.png"),
            Option("--convergence", "the layers' curves", type=picture, more={"metavar": "FILE.png"}),
            Option("--animation", "the units over the epochs", type=animation, more={"metavar": "FILE.gif"}),
        ),
        "deconvviz recording record.safetensors --animation epochs.gif",
        _recording,
    ),
    Command(
        "train",
        "train",
        "train a network on a folder of images",
        (
            Option("model", argument=None, more={"metavar": "MODEL"}),
            Option(
                "--data", "DIR/<class>/*.jpg, or DIR/train/… and DIR/val/…", more={"metavar": "DIR", "required": True}
            ),
            Option("--out", "weights, card and checkpoint", default="training", type=folder, more={"metavar": "DIR"}),
            Option("--recipe", default="modern", more={"choices": RECIPES}),
            Option("--epochs", "default: the recipe's", type=int),
            BATCH_SIZE.but(help="images per step; default: the recipe's"),
            Option("--lr", "highest learning rate; default: the recipe's", type=float),
            Option("--clamp-rms", "limit of a filter's root mean square; the paper: 0.1", type=float),
            SEED,
            Option("--device", "cpu, cuda, cuda:1, mps, … or auto; default: cuda where there is one"),
            AMP,
            Option("--image-size", "default: the network's own", type=int),
            Option("--validation", "a folder, or a share between 0 and 1 to hold out", type=number_or_text),
            Option(
                "--crops",
                "views of each validation image: 1, or 10 (corners and middle, mirrored too)",
                default=1,
                type=int,
                more={"choices": (1, 10)},
            ),
            Option(
                "--restart",
                "do not go on from the checkpoint in --out",
                argument="resume",
                default=False,
                called=lambda restart: not restart,
                more={"action": "store_true"},
            ),
            Option(
                "--record",
                "keep what units see at epochs 1, 2, 5, 10, 20, 30, 40, 64",
                argument="recorder",
                more={"metavar": "FILE"},
            ),
            Option(
                "--render",
                "then draw there what layers 1 to 5 see in the validation images, and a page that links it all",
                type=folder,
                more={"metavar": "DIR"},
            ),
            Option(
                "--freeze",
                "modules that stay as they are, such as features.0,features.3",
                type=names,
                default=(),
                more={"metavar": "NAMES"},
            ),
            Option("--start-from", "weights to begin with", more={"metavar": "FILE.safetensors"}),
            Option("--licence", "of the weights, for the card", default="not stated"),
            Option("--cache", "keep the decoded images there", more={"metavar": "DIR"}),
            Option("--workers", "threads that decode", type=int),
            QUIET,
        ),
        "deconvviz train zfnet64 --data photos-by-class --record record.safetensors --render grids",
        _train,
    ),
)
