from types import SimpleNamespace

model_path = "/nowhere"
model_data = SimpleNamespace(sd_model=None)


def list_models():
    pass


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    return model_data.sd_model
