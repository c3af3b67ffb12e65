from types import SimpleNamespace

model_path = "/nowhere"
model_data = SimpleNamespace(sd_model=None)


def list_models():
    pass
