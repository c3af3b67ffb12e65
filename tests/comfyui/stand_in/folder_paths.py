"""Folders of models by what is in them."""

import os
import tempfile

models_dir = tempfile.mkdtemp()
folder_names_and_paths = {}


def add_model_folder_path(folder_name, full_folder_path):
    paths, _ = folder_names_and_paths.setdefault(folder_name, ([], set()))
    if full_folder_path not in paths:
        paths.append(full_folder_path)


def get_filename_list(folder_name):
    paths, extensions = folder_names_and_paths[folder_name]
    names = {name for path in paths for name in os.listdir(path)}
    return sorted(name for name in names if os.path.splitext(name)[1] in extensions)


def get_full_path(folder_name, filename):
    for path in folder_names_and_paths[folder_name][0]:
        if os.path.isfile(os.path.join(path, filename)):
            return os.path.join(path, filename)
    return None
