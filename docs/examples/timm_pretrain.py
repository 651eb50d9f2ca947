"""Pre-train a small ViT of timm with learned masks: timm_pretrain.py [FOLDER of train/*/*]."""

import sys
from functools import partial

import timm
import torch
from safetensors.torch import save_file
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from amn_masking import AdversarialMasking
from amn_masking.adapters.timm import MaskedAutoencoder
from amn_masking.meters import adversarial_gain

folder = [*sys.argv, "data/photos"][1] + "/train"
crop = T.RandomResizedCrop(64, scale=(0.2, 1.0))
photos = ImageFolder(folder, T.Compose([crop, T.ToTensor(), T.Normalize(0.5, 0.5)]))
loader = torch.utils.data.DataLoader(photos, batch_size=16, shuffle=True, drop_last=True)
name, shape = "vit_tiny_patch16_224", dict(img_size=64, patch_size=8, depth=4, num_classes=0)
encoder = timm.create_model(name, **shape)
masking = AdversarialMasking(mask_ratio=0.25, patch_size=8, network=dict(downsample=2))
model = MaskedAutoencoder(encoder, masking, decoder_dim=96, decoder_depth=1, decoder_heads=4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

for step in range(1, 81):
    images, _ = next(iter(loader))
    out = model(images)
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    if step % 20 == 0:
        gain = adversarial_gain(partial(model.error_under, images), out.patch_mask)
        print(f"step {step}: loss {out.loss:.3f}, adversarial gain {gain:.3f}", flush=True)

masking.eval()  # the masks that the network likes best, without exploration noise
views = [next(iter(loader))[0] for _ in range(8)]
gains = [adversarial_gain(partial(model.error_under, x), masking(x)) for x in views]
save_file(encoder.state_dict(), "encoder.safetensors")
print(f"adversarial gain {sum(gains) / len(gains):.3f} without noise; wrote encoder.safetensors")
