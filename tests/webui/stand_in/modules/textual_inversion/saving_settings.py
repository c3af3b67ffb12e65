import json
import os


def save_settings_to_file(log_directory, all_params):
    with open(os.path.join(log_directory, "settings-now.json"), "w") as file:
        json.dump(all_params, file)
