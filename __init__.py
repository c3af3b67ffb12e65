"""ComfyUI's hook, for a clone in its custom_nodes; holds no logic."""

import sys

if "folder_paths" in sys.modules:  # ComfyUI's own; pytest, which imports this file too, has none
    from .lib_custom_diffusion.comfyui import NODE_CLASS_MAPPINGS as NODE_CLASS_MAPPINGS
    from .lib_custom_diffusion.comfyui import NODE_DISPLAY_NAME_MAPPINGS as NODE_DISPLAY_NAME_MAPPINGS
