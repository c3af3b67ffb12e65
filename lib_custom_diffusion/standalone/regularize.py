"""The regularize command: pictures of a class with captions, drawn by the model or picked among real ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..data import regularization
from ..data.captions import has_listing
from ..data.pictures import check_usable
from ..errors import UserError, check_range
from ..storage import check_writable
from ..tokens import file_name
from .follow_up import quoted
from .generate import sampling_of
from .models import load_model
from .train import draw_regularization


def regularize(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    sampling = sampling_of(options)
    folder: Path = options.class_data_dir or Path("regularization") / file_name(options.class_prompt)
    check_range(options, "num_class_images", 1, 1_000_000, "--{}".format)
    check_writable(folder)
    if not options.class_prompt.strip():
        raise UserError("--class_prompt is empty; say what to draw or pick, such as cat")
    if options.pick_from is not None:
        check_usable([path for path, _ in regularization.to_pick_from(options.pick_from)])
    elif not has_listing(folder):
        regularization.check_same_prompt(folder, options.class_prompt)
    backend = load_model(options.model, vae=options.vae, prediction_type=options.prediction_type)
    if options.pick_from is None:
        draw_regularization(backend, options.class_prompt, folder, options.num_class_images, sampling, options.seed)
    else:
        picked = regularization.pick(backend, options.pick_from, options.class_prompt, options.num_class_images)
        regularization.write_listing(picked, folder)
        print(f"picked {len(picked)} pictures, nearest {picked[0].caption!r}, furthest {picked[-1].caption!r}")
    flags = quoted("--with_prior_preservation", "--class_prompt", options.class_prompt, "--class_data_dir", folder)
    print(f"use it: {flags}")
    return 0
