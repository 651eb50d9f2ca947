"""Pre-train a small ViT of timm on a folder of images: python timm_pretrain.py data/photos/train"""

import sys
from functools import partial

import timm
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from amn_masking import AdversarialMasking
from amn_masking.adapters.timm import MaskedAutoencoder
from amn_masking.meters import adversarial_gain

folder = sys.argv[1] if len(sys.argv) > 1 else "data/photos/train"
crop = transforms.RandomResizedCrop(64, scale=(0.2, 1.0))
normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
augment = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalise])
images = DataLoader(ImageFolder(folder, augment), batch_size=32, shuffle=True, drop_last=True)

encoder = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, depth=4, num_classes=0)
masking = AdversarialMasking(mask_ratio=0.25, patch_size=8)
model = MaskedAutoencoder(encoder, masking, decoder_dim=96, decoder_depth=1, decoder_heads=4)
