"""Which files are models that can be used, and what the others are called. Names and shapes are those of real files."""

from pathlib import Path

import pytest
import torch

from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone.kinds import refuse_folder, refuse_other_kinds
from lib_custom_diffusion.standalone.weights import Weights, read_weights

U = "model.diffusion_model."


def unet(channels: int = 4, width: int = 768, out: int = 4) -> dict[str, tuple[int, ...]]:
    return {
        f"{U}input_blocks.0.0.weight": (320, channels, 3, 3),
        f"{U}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, width),
        f"{U}middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
        f"{U}out.2.weight": (out, 320, 3, 3),
    }


def with_vector(width: int) -> dict[str, tuple[int, ...]]:
    return unet(width=width) | {f"{U}label_emb.0.0.weight": (1280, 2816)}


OTHERS = {
    "Stable Diffusion 3": {f"{U}joint_blocks.0.x_block.attn.qkv.weight": (1, 1), f"{U}x_embedder.proj.weight": (1, 1)},
    "FLUX": {f"{U}double_blocks.0.img_attn.qkv.weight": (1, 1)},
    "FLUX; only Stable": {
        f"{U}double_blocks.0.img_attn.qkv.weight": (1, 1),
        f"{U}single_blocks.0.linear1.weight": (1, 1),
    },
    "FLUX;": {"double_blocks.0.img_attn.norm.key_norm.scale": (1,)},
    "FLUX; only": {"transformer_blocks.0.attn.to_q.weight": (1, 1), "single_transformer_blocks.0.proj_mlp.bias": (1,)},
    "Chroma": {"distilled_guidance_layer.in_proj.bias": (1,), "double_blocks.0.img_attn.qkv.weight": (1, 1)},
    "HunyuanVideo or": {"txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias": (1,)},
    "Wan, a video model": {f"{U}head.modulation": (1, 2, 3), f"{U}blocks.0.self_attn.q.weight": (1, 1)},
    "Wan, a video": {"condition_embedder.time_embedder.linear_1.weight": (1, 1), "blocks.0.attn2.to_k.weight": (1, 1)},
    "Kandinsky 5": {"visual_transformer_blocks.0.cross_attention.to_key.weight": (1, 1)},
    "Kandinsky 2": {"add_embedding.image_norm.weight": (1,), "down_blocks.0.x": (1,), "mid_block.x": (1,)},
    "Cosmos-Predict2": {"net.blocks.0.adaln_modulation_cross_attn.1.weight": (1, 1)},
    "Lumina or OmniGen2": {"time_caption_embed.caption_embedder.0.weight": (1, 1)},
    "LTX-Video": {f"{U}patchify_proj.weight": (1, 1)},
    "Stable Video Diffusion": unet(8) | {f"{U}input_blocks.1.0.time_stack.in_layers.0.weight": (1,)},
    "PixArt or Sana": {"adaln_single.linear.weight": (1, 1), "transformer_blocks.0.attn1.to_q.weight": (1, 1)},
    "Hunyuan-DiT": {"mlp_t5.0.weight": (1, 1), "blocks.0.attn1.Wqkv.weight": (1, 1)},
    "Stable Diffusion 3, or": {"transformer_blocks.0.attn.add_k_proj.weight": (1, 1), "pos_embed.proj.bias": (1,)},
    "Kolors": with_vector(2048) | {"encoder_hid_proj.weight": (2048, 4096)},
    "Kolors or DeepFloyd IF; only": {
        "encoder_hid_proj.bias": (2048,),
        "down_blocks.0.resnets.0.conv1.bias": (1,),
        "mid_block.x": (1,),
    },
    "Qwen-Image": {"transformer_blocks.0.img_mod.1.weight": (1, 1)},
    "Stable Cascade": {"clip_txt_mapper.weight": (1, 1)},
    "AuraFlow": {"double_layers.0.attn.w2q.weight": (1, 1)},
    "an inpainting model: its UNet takes 9 channels": unet(9),
    "an InstructPix2Pix model": unet(8),
    "an upscaler": unet(7) | {f"{U}label_emb.weight": (1000, 1)},
    "a depth model": unet(5),
    "gives 8 channels": unet(out=8),
    "takes 16 channels": unet(16),
    "SDXL's refiner": with_vector(1280),
    "a distilled SDXL": {name: shape for name, shape in with_vector(2048).items() if "middle_block" not in name},
    "an unCLIP model": unet(width=1024) | {"embedder.model.visual.proj": (1, 1)},
    "an unCLIP model, of pictures' variations, or": with_vector(1024) | {"cond_stage_model.model.ln_final.bias": (1,)},
    "has no text encoders, which would tell": with_vector(320),
    "AltDiffusion": unet() | {"cond_stage_model.roberta.embeddings.word_embeddings.weight": (1, 1)},
    "Playground 2.5": with_vector(2048) | {"edm_mean": (4,)},
    "a distilled Stable Diffusion, such as small-sd": {
        name: shape for name, shape in unet().items() if "middle_block" not in name
    },
    "CosXL, or another model of EDM's noise": with_vector(2048) | {"edm_vpred.sigma_max": ()},
    "a latent consistency model": unet() | {f"{U}time_embed.cond_proj.weight": (1280, 256)},
    "a latent consistency model;": {"time_embedding.cond_proj.weight": (1280, 256), "down_blocks.0.x": (1,)},
    "a LoRA, not a model": {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 4)},
    "a LoRA": {"unet.down_blocks.0.attentions.0.attn1.to_k.lora_A.weight": (4, 4)},
    "LoHa": {"layer.hada_w1_a": (4, 4)},
    "an OFT": {"oft_unet_down_blocks_0_attentions_0_proj_in.oft_blocks": (4, 4, 4)},
    "an embedding, not a model": {"emb_params": (2, 768)},
    "an embedding": {"clip_l": (2, 768), "clip_g": (2, 1280)},
    "an embedding, or another small file": {"<cat-toy>": (768,)},
    "a delta, not a model": {f"{U}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight.US": (320, 4)},
    "only a VAE": {"decoder.conv_in.weight": (512, 4, 3, 3), "encoder.conv_in.weight": (128, 3, 3, 3)},
    "has no UNet, only other parts": {
        "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77),
    },
    "only a text encoder": {"text_model.encoder.layers.0.mlp.fc1.weight": (1, 1)},
    "only the UNet of a diffusers folder": {"down_blocks.0.resnets.0.conv1.weight": (1,), "mid_block.x": (1,)},
    "only a UNet, without": {"input_blocks.0.0.weight": (320, 4, 3, 3), "output_blocks.0.0.out_layers.0.bias": (1,)},
    "only a UNet, without a text": {
        "diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        "diffusion_model.out.0.bias": (1,),
    },
    "only a text encoder;": {"clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (1, 1)},
    "it has no UNet .*, but model.embed": {
        "model.embed.weight": (1, 1),
        "vae.x": (1, 1),
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (1, 1),
    },
    "only averaged": {"model_ema.diffusion_modelinput_blocks00weight": (320, 4, 3, 3)},
    "a ControlNet": {"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
    "a ControlNet,": {"lora_controlnet": (), "input_hint_block.0.weight": (16, 3, 3, 3), "input_blocks.0.0.x": (1,)},
    "a ControlNet .LLLite": {"lllite_unet_input_blocks_4_1_attn1_to_q.conditioning1.0.weight": (4, 4)},
    "a T2I-Adapter": {"adapter.body.0.resnets.0.block1.weight": (4, 4, 3, 3)},
    "a T2I-Adapter,": {"body.0.in_conv.weight": (4, 4, 1, 1), "conv_in.weight": (4, 4, 3, 3), "body.0.x": (1,)},
    "only a text encoder .T5": {"encoder.block.0.layer.0.SelfAttention.q.weight": (1, 1, 1)},
    "only an encoder of pictures": {"vision_model.embeddings.class_embedding": (4, 1, 1)},
    "an AnimateDiff motion module": {"down_blocks.0.motion_modules.0.temporal_transformer.norm.bias": (1,)},
    "an IP-Adapter": {"ip_adapter.1.to_k_ip.weight": (1, 1)},
    "an upscaler, not a model to train": {"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.bias": (1,)},
    "holds no weights": {},
    "it has no UNet .*, but foo.bar": {"foo.bar": (1, 2, 3)},
}


def weights(shapes: dict[str, tuple[int, ...]]) -> Weights:
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return Weights(Path("model.safetensors"), tensors, frozenset(tensors))


@pytest.mark.parametrize("said", OTHERS)
def test_every_other_kind_is_refused_by_its_name_in_one_sentence(said: str) -> None:
    with pytest.raises(UserError, match=f"^model.safetensors .*{said}") as error:
        refuse_other_kinds(weights(OTHERS[said]))
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_a_webui_embedding_is_told_by_its_entries() -> None:
    with pytest.raises(UserError, match="is an embedding, not a model"):
        refuse_other_kinds(Weights(Path("a.pt"), {}, frozenset({"string_to_token", "string_to_param", "name"})))


IP_ADAPTER = {"image_proj": {"proj.weight": torch.zeros(2)}, "ip_adapter": {"1.to_k_ip.weight": torch.zeros(2)}}
OLDER_HYPERNETWORK = {768: [{"linear1.weight": torch.zeros(2), "linear2.weight": torch.zeros(2)}], "step": 1}
HYPERNETWORK = {768: [{"linear.0.weight": torch.zeros(2)}], "layer_structure": [1, 2, 1], "activation_func": "relu"}
ESRGAN = {"params_ema": {"conv_first.weight": torch.zeros(2), "body.0.rdb1.conv1.weight": torch.zeros(2)}}


@pytest.mark.parametrize(
    ("content", "said"),
    [(IP_ADAPTER, "is an IP-Adapter"), (HYPERNETWORK, "is a hypernetwork"),
     (OLDER_HYPERNETWORK, "is a hypernetwork"), (ESRGAN, "is an upscaler"),
     ({"model": {"layers": [{"a": torch.zeros(2)}]}}, "is not a Stable Diffusion checkpoint: .*, but model"),
     ({}, "holds no weights")],
)  # fmt: skip
def test_a_file_of_dicts_in_dicts_is_told_by_the_names_in_them(content: dict, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=f"a.pth {said}"):
        refuse_other_kinds(read_weights(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("unet", "scheduler", "said"),
    [({}, "EDMDPMSolverMultistepScheduler", "Playground 2.5"),
     ({"time_cond_proj_dim": 256}, "LCMScheduler", "a latent consistency model"),
     ({"cross_attention_dim": 1280}, "EulerDiscreteScheduler", "SDXL's refiner"),
     ({"mid_block_type": None}, "EulerDiscreteScheduler", "a distilled SDXL"),
     ({"reverse_transformer_layers_per_block": [10, 2, 1]}, "EulerDiscreteScheduler", "a distilled SDXL"),
     ({"in_channels": 9}, "EulerDiscreteScheduler", "an inpainting model")],
)  # fmt: skip
def test_folders_of_another_kind_in_sdxls_pipeline_are_refused(unet: dict, scheduler: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^folder is {said}"):
        refuse_folder("folder", True, unet, scheduler)


def test_folders_of_sdxl_and_its_turbo_pass_and_small_ones_of_stable_diffusion_1() -> None:
    whole = {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 2048, "time_cond_proj_dim": None}
    refuse_folder("folder", True, whole | {"mid_block_type": "UNetMidBlock2DCrossAttn"}, "EulerAncestralDiscrete")
    refuse_folder("folder", False, {"cross_attention_dim": 768, "mid_block_type": None}, "PNDMScheduler")


def test_a_delta_of_the_first_extension_is_told_by_its_metadata() -> None:
    tensors = {f"{U}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.empty(4, 4, device="meta")}
    metadata = {"json": '{"meta": {"version": "0.2.0"}, "entries": {}}'}
    with pytest.raises(UserError, match="is a delta, not a model"):
        refuse_other_kinds(Weights(Path("a.delta.safetensors"), tensors, frozenset(tensors), metadata))


@pytest.mark.parametrize("shapes", [unet(width=768), unet(width=1024), with_vector(2048)])
def test_stable_diffusion_1_2_and_xl_pass(shapes: dict[str, tuple[int, ...]]) -> None:
    refuse_other_kinds(weights(shapes))
