"""Pre-train a small ViTMAE with learned masks: huggingface_pretrain.py [FOLDER of train/*/*]."""

import sys

import torch
from torchvision import datasets, transforms
from transformers import Trainer, TrainingArguments, ViTMAEConfig, ViTMAEForPreTraining, set_seed

from amn_masking import AdversarialMasking
from amn_masking.adapters.huggingface import MaskedTrainerMixin, masked_forward
from amn_masking.meters import adversarial_gain


class MaskedTrainer(MaskedTrainerMixin, Trainer): ...


set_seed(0)
small = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
config = ViTMAEConfig(image_size=64, patch_size=8, **small)
config.update({f"decoder_{name}": value for name, value in small.items()})
model = ViTMAEForPreTraining(config)
model.masking = AdversarialMasking(0.25, 8, network=dict(downsample=4), random_share=0.5)

to_tensor = [transforms.Resize((64, 64)), transforms.ToTensor(), transforms.Normalize(0.5, 0.25)]
folder = [*sys.argv, "data/photos"][1] + "/train"
photos = datasets.ImageFolder(folder, transforms.Compose(to_tensor))
images = torch.stack([image for image, _ in photos])
args = TrainingArguments(
    "work_dirs/huggingface", max_steps=100, per_device_train_batch_size=32, learning_rate=1e-3
)
args.logging_steps = 20  # loss, reconstruction, adversarial_gain, mask_ratio, ...
MaskedTrainer(model, args, train_dataset=[{"pixel_values": image} for image in images]).train()

model.eval()
images = images.to(model.device)
outputs, loss, error, patch_mask = masked_forward(model, images, model.masking)
gain = adversarial_gain(lambda mask: masked_forward(model, images, mask).error, patch_mask)
print(f"loss {loss:.3f}, adversarial gain {gain:.3f}")
