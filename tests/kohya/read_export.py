"""Loads a LoRA by sd-scripts' own code, whose folder is the current one, and runs its network with it.

The network is SDXL with few channels. Arguments: the LoRA, the weights of diffusers' UNet, the inputs, and the file to
write, which holds the network's output, and the adapter's matrices by their names in the file.
"""

import json
import sys

sys.path.insert(0, ".")

import torch
from library import sdxl_model_util, sdxl_original_unet
from networks import lora
from safetensors.torch import load_file, save_file

adapter, base, inputs, result, channels = sys.argv[1:]
sdxl_original_unet.MODEL_CHANNELS = int(channels)
sdxl_original_unet.TIME_EMBED_DIM = 4 * int(channels)
unet = sdxl_original_unet.SdxlUNet2DConditionModel().eval()
unet.load_state_dict(sdxl_model_util.convert_diffusers_unet_state_dict_to_sdxl(load_file(base)))
given = load_file(inputs)
with torch.no_grad():
    before = unet(given["x"], given["time"], given["context"], given["y"])
    network, weights = lora.create_network_from_weights(1.0, adapter, None, [], unet)
    network.apply_to([], unet, apply_text_encoder=False)
    outcome = network.load_state_dict(weights, False)
    after = unet(given["x"], given["time"], given["context"], given["y"])
save_file({"before": before, "after": after, **{f"lora.{k}": v for k, v in network.state_dict().items()}}, result)
layers = len(network.unet_loras)
print(json.dumps({"missing": outcome.missing_keys, "unexpected": outcome.unexpected_keys, "layers": layers}))
