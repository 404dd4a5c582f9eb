"""What people write to classify a picture with timm: the peer of `coldstart.py`.

python benchmarks/timm_predict.py WEIGHTS.safetensors PICTURE
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from torchvision_shim import peer

timm = peer("timm")
weights, picture = sys.argv[1:]
model = timm.create_model("resnet50", pretrained=False)
model.load_state_dict(load_file(weights), strict=True)
model.eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
with torch.inference_mode():
    logits = model(transform(Image.open(picture).convert("RGB")).unsqueeze(0))
print(logits.softmax(1).topk(5))
