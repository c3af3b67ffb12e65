"""For tests: the toys in reForge, which knows models by their shapes and not by the .yaml beside them."""

import json
from functools import partial
from pathlib import Path
from typing import ClassVar

from ldm_patched.modules import sd1_clip, sdxl_clip, supported_models, supported_models_base
from modules import sd_models, sd_models_config
from modules_forge import forge_clip, forge_loader
from omegaconf import OmegaConf

VAE = forge_loader.VAE


class Toy(supported_models.SD15):
    """The toy's UNet has 4 heads, its latents are not scaled, and its text encoder has its own vocabulary."""

    unet_config = supported_models.SD15.unet_config | {"context_dim": 128, "model_channels": 64}
    unet_extra_config: ClassVar = {"num_heads": 4, "num_head_channels": -1}

    def __init__(self, unet_config):
        super().__init__(unet_config)
        self.latent_format.scale_factor = 1.0

    def clip_target(self, state_dict=None):
        tokenizer_folder = Path(settings().cond_stage_config.params.version)
        text = json.loads((tokenizer_folder.parent / "text_encoder" / "config.json").read_text())
        special = {"start": text["bos_token_id"], "end": text["eos_token_id"], "pad": text["pad_token_id"]}
        tokenizer = partial(sd1_clip.SDTokenizer, tokenizer_path=str(tokenizer_folder), embedding_size=128)
        encoder = partial(
            sd1_clip.SDClipModel,
            textmodel_json_config=text,
            special_tokens=special,
            return_projected_pooled=False,
        )
        return supported_models_base.ClipTarget(
            partial(sd1_clip.SD1Tokenizer, tokenizer=tokenizer), partial(sd1_clip.SD1ClipModel, clip_model=encoder)
        )


class ToyXL(supported_models.SDXL):
    """The toy in SDXL's layout: likewise, with two small text encoders."""

    unet_config: ClassVar = {
        "model_channels": 64, "use_linear_in_transformer": True, "context_dim": 256, "adm_in_channels": 1664,
        "use_temporal_attention": False,
    }  # fmt: skip
    unet_extra_config: ClassVar = {"num_heads": 4, "num_head_channels": -1}

    def __init__(self, unet_config):
        super().__init__(unet_config)
        self.latent_format.scale_factor = 1.0

    def clip_target(self, state_dict=None):
        tokenizer_folder = Path(settings("toy-xl").conditioner_config.params.emb_models[0].params.version)

        class Tokenizer:
            def __init__(self, **options):
                made = partial(sd1_clip.SDTokenizer, tokenizer_path=str(tokenizer_folder), embedding_size=128)
                self.clip_l = made(embedding_directory=options.get("embedding_directory"))
                self.clip_g = made(embedding_directory=options.get("embedding_directory"), embedding_key="clip_g")

        class Encoder(sdxl_clip.SDXLClipModel):
            def __init__(self, device="cpu", dtype=None, model_options=None):
                sdxl_clip.torch.nn.Module.__init__(self)
                for name, folder in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
                    text = json.loads((tokenizer_folder.parent / folder / "config.json").read_text())
                    special = {"start": text["bos_token_id"], "end": text["eos_token_id"], "pad": text["pad_token_id"]}
                    encoder = sd1_clip.SDClipModel(
                        device=device, textmodel_json_config=text, dtype=dtype, special_tokens=special,
                        layer_norm_hidden_state=False,
                    )  # fmt: skip
                    encoder.layer, encoder.layer_idx = "hidden", -2  # of two layers, which reForge asserts are more
                    setattr(self, name, encoder)
                self.dtypes = set()

        return supported_models_base.ClipTarget(Tokenizer, Encoder)


class OpenClip(forge_clip.CLIP_SD_XL_G):
    """SDXL's second text encoder, whose tokens' numbers reForge takes for those of CLIP's vocabulary."""

    def __init__(self, wrapped, hijack):
        super().__init__(wrapped, hijack)
        self.id_start, self.id_end = wrapped.tokenizer.bos_token_id, wrapped.tokenizer.eos_token_id


def settings(name="toy"):
    """A toy's .yaml."""
    [toy] = [each for each in sd_models.checkpoints_list.values() if each.model_name == name]
    return OmegaConf.load(sd_models_config.find_checkpoint_config_near_filename(toy)).model.params


def vae(sd=None, **options):
    """The toy's autoencoder by its own description, any other by its shapes."""
    if sd and sd["decoder.conv_in.weight"].shape[0] == settings().first_stage_config.params.ddconfig.ch:
        described = OmegaConf.to_container(settings().first_stage_config.params)
        options["config"] = {"params": {"ddconfig": described["ddconfig"], "embed_dim": described["embed_dim"]}}
    return VAE(sd=sd, **options)


supported_models.models[:0] = [Toy, ToyXL]
forge_clip.CLIP_SD_XL_G = OpenClip
forge_loader.VAE = vae
