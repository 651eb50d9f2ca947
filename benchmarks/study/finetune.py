"""A short fine-tune: the encoder and a linear head on it, trained with few labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.study.data import Data
from benchmarks.study.training import InMemoryImages

# The least at which a tuning seed of the shapes gains from pretraining (0.40, from scratch 0.33):
# with all labels it gains nothing at this scale, and with a third of the rate it is not yet there.
LABELLED, EPOCHS, BATCH, LR = 1024, 6, 64, 3e-3


def finetune(model: Any, data: Data, seed: int) -> float:
    """Accuracy on the test images after ``EPOCHS`` over ``LABELLED`` training images, in
    [0, 1].

    AdamW with a one-cycle learning rate, random crops, nothing masked; the features are those of
    the probe. The model is trained in place.
    """
    torch.manual_seed(seed)
    device = data.train.pixels.device
    labels = torch.from_numpy(data.train.labels).to(device)
    crops = InMemoryImages(data.train, seed)
    head = nn.Linear(model.backbone.embed_dims, int(labels.max()) + 1).to(device)
    parameters = [*model.backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.05, fused=True)
    order = np.random.default_rng(seed)
    labelled = order.permutation(len(crops))[:LABELLED]
    steps = EPOCHS * (len(labelled) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)

    def logits(pixels: Tensor) -> Tensor:
        return head(model.extract_feat(pixels)[0][:, 1:].mean(1))

    model.train()
    for _ in range(EPOCHS):
        for ids in order.permutation(labelled)[: steps // EPOCHS * BATCH].reshape(-1, BATCH):
            loss = F.cross_entropy(logits(crops.__getitems__(ids.tolist())["inputs"]), labels[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        found = torch.cat([logits(part).argmax(1) for part in data.test.centre().split(250)])
    return float((found.cpu().numpy() == data.test.labels).mean())
