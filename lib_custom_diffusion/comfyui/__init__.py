"""The host made of ComfyUI: a node that loads a delta."""

from .delta_loader import DeltaLoader, register_folder

NODE_CLASS_MAPPINGS = {"CustomDiffusionDeltaLoader": DeltaLoader}
NODE_DISPLAY_NAME_MAPPINGS = {"CustomDiffusionDeltaLoader": "Load Delta (Custom Diffusion)"}

register_folder()
