"""Pre-train a small Swin as SimMIM does, with learned masks: huggingface_mim.py [FOLDER]."""

import sys

import torch
from torchvision import datasets, transforms
from transformers import (
    SwinConfig,
    SwinForMaskedImageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)

from amn_masking import AdversarialMasking
from amn_masking.adapters.huggingface import MaskedTrainerMixin, masked_forward
from amn_masking.meters import adversarial_gain


class MaskedTrainer(MaskedTrainerMixin, Trainer): ...


set_seed(0)
small = dict(embed_dim=24, depths=[1, 1], num_heads=[2, 2], window_size=4)
sizes = dict(image_size=64, patch_size=4, encoder_stride=8)
model = SwinForMaskedImageModeling(SwinConfig(**sizes, **small))
# Masks are of 8 x 8 pixels, four of the model's patches.
model.masking = AdversarialMasking(0.5, 8, network=dict(downsample=4), random_share=0.5)

to_tensor = [transforms.Resize((64, 64)), transforms.ToTensor(), transforms.Normalize(0.5, 0.25)]
folder = [*sys.argv, "data/photos"][1] + "/train"  # as ImageNet's: train/CLASS/*
photos = datasets.ImageFolder(folder, transforms.Compose(to_tensor))
images = torch.stack([image for image, _ in photos])
args = TrainingArguments("work_dirs/mim", max_steps=80, per_device_train_batch_size=32)
args.learning_rate, args.logging_steps = 2e-3, 20
MaskedTrainer(model, args, train_dataset=[{"pixel_values": image} for image in images]).train()

model.eval()
images = images.to(model.device)
outputs, loss, error, patch_mask = masked_forward(model, images, model.masking)
gain = adversarial_gain(lambda mask: masked_forward(model, images, mask).error, patch_mask)
print(f"loss {loss:.3f}, adversarial gain {gain:.3f}")
