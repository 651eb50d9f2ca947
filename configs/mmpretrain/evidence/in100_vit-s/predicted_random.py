# ImageNet-100, ViT-S/16: 0.25 seen, 0.25 predicted, drawn at random.
_base_ = "../_base_/in100_vit-s.py"

model = dict(masking=_base_.base_predicted_random)
# As many FLOPs as the 400 epochs of random masks.
max_epochs = 694
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_epochs - 40, end=max_epochs)
