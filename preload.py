"""The WebUI's flag hook."""

import argparse
import os

from modules import paths
from modules.paths_internal import normalized_filepath


def preload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--deltas-dir",
        type=lambda path: normalized_filepath(os.path.expanduser(path)),
        default=os.path.join(paths.models_path, "deltas"),
        help="Folder of Custom Diffusion deltas (NAME.delta.safetensors)",
    )
