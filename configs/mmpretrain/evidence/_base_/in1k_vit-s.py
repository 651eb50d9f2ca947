# The same with ViT-S/16.
_base_ = "./in1k_vit-b.py"

model = dict(backbone=dict(arch="deit-small"), neck=dict(embed_dim=384))
