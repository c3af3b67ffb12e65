"""The VAE that is chosen in the settings."""


def get_loaded_vae_hash():
    return None
