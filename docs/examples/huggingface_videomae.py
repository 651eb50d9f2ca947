"""Pre-train a small VideoMAE with learned tubes: huggingface_videomae.py [FOLDER of train/*/*]."""

import sys

import torch
from torchvision import datasets, transforms
from transformers import (
    Trainer,
    TrainingArguments,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    set_seed,
)

from amn_masking import AdversarialMasking
from amn_masking.adapters.huggingface import MaskedTrainerMixin, masked_forward
from amn_masking.meters import adversarial_gain
from amn_masking.strategies import TubeMasking


class MaskedTrainer(MaskedTrainerMixin, Trainer): ...


set_seed(0)
small = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
sizes = dict(num_frames=8, image_size=64, tubelet_size=2, patch_size=8, norm_pix_loss=False)
config = VideoMAEConfig(**sizes, **small, **{f"decoder_{key}": small[key] for key in small})
model = VideoMAEForPreTraining(config)
# One mask of the 8 x 8 places, from all 8 frames, for each of the model's 4 time slots.
model.masking = TubeMasking(AdversarialMasking(0.5, (8, 8, 8), random_share=0.5), slots=4)

to_tensor = [transforms.Resize((92, 92)), transforms.ToTensor()]
to_tensor.append(transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
folder = [*sys.argv, "data/photos"][1] + "/train"
photos = datasets.ImageFolder(folder, transforms.Compose(to_tensor))
# A camera that pans to the right, by 4 pixels a frame: (T, C, H, W).
pans = [photo[:, 14:78].unfold(2, 64, 4).permute(2, 0, 1, 3).contiguous() for photo, _ in photos]
args = TrainingArguments("work_dirs/videomae", max_steps=80, per_device_train_batch_size=16)
args.learning_rate, args.logging_steps = 2e-3, 20
MaskedTrainer(model, args, train_dataset=[{"pixel_values": clip} for clip in pans]).train()

model.eval()
clips = torch.stack(pans[::4]).to(model.device)
outputs, loss, error, patch_mask = masked_forward(model, clips, model.masking)
gain = adversarial_gain(lambda mask: masked_forward(model, clips, mask).error, patch_mask)
print(f"loss {loss:.3f}, adversarial gain {gain:.3f}")
