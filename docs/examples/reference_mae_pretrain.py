"""The reference MAE's interface, learned masks: reference_mae_pretrain.py [FOLDER of train/*/*]."""

import sys
from functools import partial

import torch
from torchvision import datasets, transforms

from amn_masking import AdversarialMasking
from amn_masking.adapters.reference_mae import MaskedAutoencoderMixin
from amn_masking.meters import adversarial_gain

# With the reference's code or a fork instead: from models_mae import MaskedAutoencoderViT
from tests.helpers.reference_model import SmallMaskedAutoencoder as MaskedAutoencoderViT


class Learned(MaskedAutoencoderMixin, MaskedAutoencoderViT): ...


def crops(count):  # (count, 3, 64, 64)
    return transforms.RandomCrop(64)(photos[torch.randint(len(photos), (count,))])


normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
prepare = transforms.Compose([transforms.Resize(128), transforms.ToTensor(), normalise])
folder = datasets.ImageFolder(f"{[*sys.argv, 'data/photos'][1]}/train", prepare)
photos = torch.stack([photo for photo, _ in folder])
model = Learned(img_size=64, patch_size=8, embed_dim=64, norm_pix_loss=True)
model.masking = AdversarialMasking(mask_ratio=0.25, patch_size=8, network=dict(downsample=4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)  # the masking network's too
for step in range(251):
    model.masking.set_progress(step / 251)  # moves schedules
    loss, _, _ = model(crops(16))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 0:
        error = partial(model.error_under, images := crops(64))
        gain = adversarial_gain(error, model.masking(images))
        print(f"step {step:3d}  loss {loss.item():.2f}  adversarial gain {gain.item():.2f}")
