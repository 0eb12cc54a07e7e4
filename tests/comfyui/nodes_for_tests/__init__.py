"""Nodes that the tests need in ComfyUI: prompts that are encoded already, and an SDXL model smaller than any real one.

ComfyUI finds the configuration of SD3 and Wan in their weights, whatever their size; SDXL it knows by its 320 channels.
"""

import json

import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import folder_paths


class Conditioning:
    """Gives embeddings of prompts as they are in a file of the input folder."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING", {})}}

    def load(self, file):
        tensors = comfy.utils.load_torch_file(folder_paths.get_annotated_filepath(file), safe_load=True)
        values = {"pooled_output": tensors["pooled"]} if "pooled" in tensors else {}
        return ([[tensors["embeds"], values]],)


class TinySDXL:
    """Makes an SDXL model of a given configuration from the weights of a UNet of diffusers."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING", {}), "config": ("STRING", {}), "velocity": ("BOOLEAN", {})}}

    def load(self, file, config, velocity):
        config = comfy.supported_models.SDXL(json.loads(config))
        weights = comfy.utils.load_torch_file(folder_paths.get_annotated_filepath(file), safe_load=True)
        names = comfy.utils.unet_to_diffusers(config.unet_config)
        weights = {names[name]: tensor for name, tensor in weights.items()}
        model = config.get_model(dict.fromkeys(("v_pred", "ztsnr")) if velocity else {})
        model.diffusion_model.load_state_dict(weights)
        device = comfy.model_management.get_torch_device()
        return (comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device),)


NODE_CLASS_MAPPINGS = {"TestConditioning": Conditioning, "TestSDXL": TinySDXL}
