from types import SimpleNamespace

model_path = "/dev/null/nowhere"
checkpoints_list = {}
model_data = SimpleNamespace(sd_model=None)


def list_models():
    pass


def get_closet_checkpoint_match(search_string):
    return SimpleNamespace(title=search_string)


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    return model_data.sd_model


def rescale_zero_terminal_snr_abar(alphas_cumprod):
    alphas_cumprod -= alphas_cumprod[-1].clone()
    return alphas_cumprod
