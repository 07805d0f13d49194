"""Draw toaster.jpg, which opens notebook 01: a cat, a change, and the same cat as a toaster.

Usage: python data/images/toaster.py
"""

from __future__ import annotations

import torch

from trustml_helpers import attacks, data, figures, models


def main() -> None:
    images, _, names = data.load_photos()
    network = models.load("imagenet_efficientnet_lite0")
    cat, toaster = images[:1], torch.tensor([names.index("toaster")])
    fooled = attacks.pgd(network, cat, toaster, 2 / 255, targeted=True, steps=20,
                         step_size=0.4 / 255, random_start=False, keep="last")  # fmt: skip
    row = [cat[0], (0.5 + 60 * (fooled - cat)[0]).clamp(0, 1), fooled[0]]
    shares, answers = network(torch.cat([cat, fooled])).softmax(1).max(1)
    first, last = (f"{names[k]}, {p:.0%}" for p, k in zip(shares, answers.tolist(), strict=True))
    titles = [first, "the change, 60 times", last]
    figure = figures.pictures([row], [titles], width=2.4)
    figure.savefig(
        data.data_folder() / "images" / "toaster.jpg", dpi=90, bbox_inches="tight",
        pil_kwargs={"quality": 55, "optimize": True},
    )  # fmt: skip
    print(titles)


if __name__ == "__main__":
    main()
