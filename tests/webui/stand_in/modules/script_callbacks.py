class CFGDenoiserParams:
    pass


class UiTrainTabParams:
    def __init__(self, txt2img_preview_params):
        self.txt2img_preview_params = txt2img_preview_params


registered = {}


def _remember(kind, callback):
    registered.setdefault(kind, []).append(callback)


def on_app_started(callback, *, name=None):
    _remember("app_started", callback)


def on_model_loaded(callback, *, name=None):
    _remember("model_loaded", callback)


def on_ui_tabs(callback, *, name=None):
    _remember("ui_tabs", callback)


def on_ui_train_tabs(callback, *, name=None):
    _remember("ui_train_tabs", callback)


def on_cfg_denoiser(callback, *, name=None):
    _remember("cfg_denoiser", callback)


def on_infotext_pasted(callback, *, name=None):
    _remember("infotext_pasted", callback)


def on_script_unloaded(callback, *, name=None):
    _remember("script_unloaded", callback)


def on_before_ui(callback, *, name=None):
    _remember("before_ui", callback)
