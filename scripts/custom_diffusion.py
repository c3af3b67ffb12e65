"""What the WebUI loads: hands the extension's parts to it."""

from modules import extra_networks, script_callbacks, ui_extra_networks

from lib_custom_diffusion.webui import api, own_vocabulary, reopened_page, train_tab, utils_tab
from lib_custom_diffusion.webui.cards import DeltaCards
from lib_custom_diffusion.webui.compare import add_axes
from lib_custom_diffusion.webui.delta_library import library
from lib_custom_diffusion.webui.extra_network import DeltaNetwork

network = DeltaNetwork(library)


def before_ui() -> None:
    library.folder.mkdir(parents=True, exist_ok=True)
    library.refresh()
    extra_networks.register_extra_network(network)
    ui_extra_networks.register_page(DeltaCards(library))
    add_axes(library)


own_vocabulary.make_known()
script_callbacks.on_before_ui(before_ui)
script_callbacks.on_model_loaded(own_vocabulary.follow_model)
script_callbacks.on_model_loaded(network.follow_model)
script_callbacks.on_cfg_denoiser(network.before_step)
script_callbacks.on_infotext_pasted(network.restore_names)
script_callbacks.on_ui_train_tabs(train_tab.build)
script_callbacks.on_ui_tabs(utils_tab.build)
script_callbacks.on_app_started(api.register)
script_callbacks.on_app_started(reopened_page.register)
script_callbacks.on_script_unloaded(network.acting.clear)
