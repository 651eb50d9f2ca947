"""MONAI's masked autoencoder of volumes, learned masks: python monai_pretrain.py"""

from functools import partial

import numpy as np
import torch
from monai.data import create_test_image_3d
from monai.networks.nets import MaskedAutoEncoderViT

from amn_masking import AdversarialMasking
from amn_masking.adapters.monai import MaskGivenMixin
from amn_masking.meters import adversarial_gain
from amn_masking.patches import masked_mean, patchify


class Learned(MaskGivenMixin, MaskedAutoEncoderViT): ...


draw = np.random.RandomState(0)  # balls of several intensities, with noise
scans = [create_test_image_3d(32, 32, 32, 6, 8, 4, random_state=draw)[0] for _ in range(128)]
volumes = torch.tensor(np.stack(scans), dtype=torch.float32)[:, None]
volumes = (volumes - volumes.mean()) / volumes.std()
size = dict(hidden_size=96, mlp_dim=192, num_layers=2, num_heads=4)
decoder = dict(
    decoder_hidden_size=48, decoder_mlp_dim=96, decoder_num_layers=1, decoder_num_heads=4
)
model = Learned(1, 32, 8, **size, **decoder)
masking = AdversarialMasking(0.5, patch_size=(8, 8, 8), network=dict(in_channels=1))
optimizer = torch.optim.AdamW([*model.parameters(), *masking.parameters()], lr=1e-3)


def patch_error(batch, patch_mask):  # (B, 64), of each patch
    prediction, _ = model(batch, patch_mask)
    return (prediction - patchify(batch, (8, 8, 8))).square().mean(-1)


for step in range(151):
    batch = volumes[torch.randint(len(volumes), (8,))]
    error = patch_error(batch, patch_mask := masking(batch))
    loss = masked_mean(error, patch_mask.predicted)
    masking.total_loss(loss, error, patch_mask).backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 0:
        gain = adversarial_gain(partial(patch_error, volumes[:64]), masking(volumes[:64]))
        print(f"step {step:3d}  loss {loss.item():.2f}  adversarial gain {gain.item():.2f}")
