"""Train the checkpoint photo_denoiser on crops of a folder of photographs.

Ours: 19 pictures, none of them among the twelve of data/images/photos: 16 of the CC0 photographs
of github.com/BuddiesOfBudgie/budgie-backgrounds at 82067426 (all but the otters, the spiral and
Saturn), and astronaut, rocket and motorcycle_left of scikit-image 0.26. A run that is killed goes
on by the same command.

Usage: python data/checkpoints/photo_denoiser.py FOLDER
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import v2

from trustml_helpers import models, objectives, training

SIGMA, CROPS, SIDE, EPOCHS = 0.5, 8000, 112, 8


def crops(folder: Path) -> torch.Tensor:
    """Squares of 112 pixels, of pictures whose shorter side is 200 to 500 pixels long."""
    pictures = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
    for picture in pictures:
        picture.thumbnail((1200, 1200))
    look = v2.Compose([
        v2.RandomShortestSize(range(200, 501)), v2.RandomCrop(SIDE), v2.RandomHorizontalFlip(),
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip
    return torch.stack([look(pictures[k % len(pictures)]) for k in range(CROPS)])


def main(folder: Path) -> None:
    torch.manual_seed(0)
    x = crops(folder)
    model, generator = models.build("PhotoDenoiser"), torch.Generator().manual_seed(0)
    path = models.checkpoint_folder() / "photo_denoiser.safetensors"
    state = path.with_suffix(".training")
    adam = partial(torch.optim.Adam, lr=0.003)
    goal = objectives.denoising(SIGMA, generator=generator)
    history = training.fit(
        model.to(memory_format=torch.channels_last), (x, torch.zeros(CROPS).long()), goal,
        epochs=EPOCHS, batch_size=32, optimizer=adam, scheduler=training.triangular(0.003),
        checkpoint=state, generators=[generator], about=f"squared error up to {SIGMA}",
    )  # fmt: skip
    models.save(
        model, path, dtype=torch.int8, objective="denoiser, squared error, noise uniform up to "
        f"sigma, sigma {SIGMA}", sigma=SIGMA, seed=0, data=f"{CROPS} crops of 19 CC0 photographs",
        command="python data/checkpoints/photo_denoiser.py FOLDER",
        training_seconds=round(history["seconds"].sum()),
        squared_error=round(float(history["loss"].iloc[-1]), 6),
    )  # fmt: skip
    state.unlink()
    print(history)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
