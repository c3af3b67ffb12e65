"""Files that diffusers and peft read and write themselves."""

import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save
from small_models import WIDTH, output, small_pipeline, small_unet
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lib_custom_diffusion import formats
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.delta import Delta, Factors, Provenance
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.formats.base import Base
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.standalone.toy import TOY
from tiny import TinyUNet

pytest.importorskip("peft")


def random_delta(unet: torch.nn.Module, select: str = "crossattn_kv", rank: int = 3, words: bool = True) -> Delta:
    torch.manual_seed(1)
    entries = {
        key: Factors(torch.randn(layer.shape[0], rank) / 4, torch.randn(rank, layer.shape[1]) / 4)
        for key, layer in projections(unet, select).items()
    }
    vectors = {"<new1>": torch.randn(2, WIDTH)} if words else {}
    return Delta(entries, vectors, Provenance("sd1"))  # type: ignore[arg-type]


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def saved(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / next(iter(files))


@pytest.mark.parametrize("select", ["crossattn_kv", "crossattn"])
def test_diffusers_loads_our_export_and_draws_the_same(tmp_path: Path, select: str) -> None:
    unet = small_unet()
    before, delta = output(unet), random_delta(unet, select)
    with Injection(unet, [(delta, 1.0)]):
        ours = output(unet)
    saved(tmp_path, formats.write(delta, "diffusers", Base.of(unet)))
    pipeline = small_pipeline(unet)
    unet.load_attn_procs(
        str(tmp_path),
        weight_name="pytorch_custom_diffusion_weights.safetensors",
        use_safetensors=True,
        _pipeline=pipeline,
    )
    assert relative(output(unet), ours) < 1e-4
    assert relative(ours, before) > 0.01


@pytest.mark.parametrize("safe", [True, False])
def test_what_diffusers_saves_is_read(tmp_path: Path, safe: bool) -> None:
    """Processors as diffusers' training script makes them, saved by diffusers, read by us, injected into the base."""
    from diffusers.models.attention_processor import CustomDiffusionAttnProcessor

    unet, base_unet = small_unet(), small_unet()
    torch.manual_seed(5)
    processors = {}
    for name in unet.attn_processors:
        attention = unet.get_submodule(name.removesuffix(".processor"))
        cross = name.endswith("attn2.processor")
        processors[name] = CustomDiffusionAttnProcessor(
            train_kv=cross, train_q_out=False, hidden_size=attention.to_q.in_features, cross_attention_dim=WIDTH
        )
        if cross:
            for role in ("k", "v"):
                weight = getattr(attention, f"to_{role}").weight
                getattr(processors[name], f"to_{role}_custom_diffusion").weight.data = (
                    weight + torch.randn_like(weight) / 3
                )
    unet.set_attn_processor(processors)
    unet.save_attn_procs(str(tmp_path), safe_serialization=safe)
    (path,) = tmp_path.iterdir()
    found = formats.read(path, Base.of(base_unet))
    assert found.dropped == []
    with Injection(base_unet, [(found.delta, 1.0)]):
        assert relative(output(base_unet), output(unet)) < 1e-4
    assert relative(output(base_unet), output(unet)) > 0.01


@pytest.mark.parametrize(("words", "resnets"), [(False, 2), (True, 2), (True, 1)])
def test_diffusers_and_peft_load_our_lora_and_draw_the_same(tmp_path: Path, words: bool, resnets: int) -> None:
    unet = small_unet(resnets)
    delta = random_delta(unet, "crossattn", words=words)
    with Injection(unet, [(delta, 1.0)]):
        ours = output(unet)
    before = output(unet)
    path = saved(tmp_path, formats.write(delta, "lora-diffusers", Base.of(unet)))
    small_pipeline(unet).load_lora_weights(str(tmp_path), weight_name=path.name)
    assert relative(output(unet), ours) < 1e-3
    assert relative(ours, before) > 0.01


@pytest.mark.parametrize("ranks", [(2, 8), (1, 3, 5), (64, 4)])
def test_layers_of_different_ranks_act_in_peft_as_they_do_here(tmp_path: Path, ranks: tuple[int, ...]) -> None:
    unet = small_unet()
    delta = random_delta(unet, words=False)
    torch.manual_seed(2)
    for index, (key, entry) in enumerate(delta.entries.items()):
        rank = ranks[index % len(ranks)]
        delta.entries[key] = Factors(torch.randn(entry.shape[0], rank) / 8, torch.randn(rank, entry.shape[1]) / 8)
    before = output(unet)
    with Injection(unet, [(delta, 1.0)]):
        ours = output(unet)
    path = saved(tmp_path, formats.write(delta, "lora-diffusers", Base.of(unet)))
    again = formats.read(path).delta
    small_pipeline(unet).load_lora_weights(str(tmp_path), weight_name=path.name)
    assert relative(output(unet) - before, ours - before) < 2e-3  # the file is in float16
    for key, entry in delta.entries.items():
        assert relative(again.entries[key].dense(), entry.dense()) < 2e-3


@pytest.mark.parametrize(
    ("settings", "by"),
    [
        ({"r": 2, "lora_alpha": 2}, "diffusers, without its settings"),
        ({"r": 2, "lora_alpha": 8}, "diffusers"),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, "diffusers"),
        ({"r": 2, "lora_alpha": 8, "alpha_pattern": {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": 3}},
         "diffusers"),
        ({"r": 4, "lora_alpha": 6, "alpha_pattern": {"attn2.to_v": 1}}, "peft"),
    ],
)  # fmt: skip
def test_what_peft_saves_is_read(settings: dict[str, Any], by: str, tmp_path: Path) -> None:
    """With its scale, which stands in settings beside the tensors."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet, base_unet = small_unet(), small_unet()
    config = LoraConfig(target_modules=["attn2.to_k", "attn2.to_v"], **settings)
    unet.add_adapter(config)
    torch.manual_seed(2)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2)  # large ones amplify the last digit from layer to layer
    layers = get_peft_model_state_dict(unet)
    if by == "peft":
        path = saved(
            tmp_path, {"adapter_model.safetensors": save({f"base_model.model.{n}": v for n, v in layers.items()})}
        )
        config.save_pretrained(tmp_path)
    else:
        told = {"unet_lora_adapter_metadata": config.to_dict()} if by == "diffusers" else {}
        layers = convert_state_dict_to_diffusers(layers)
        StableDiffusionPipeline.save_lora_weights(str(tmp_path), unet_lora_layers=layers, **told)
        (path,) = tmp_path.iterdir()
    found = formats.read(path)
    assert found.dropped == []
    assert relative(output(base_unet), output(unet)) > 1e-3
    with Injection(base_unet, [(found.delta, 1.0)]):
        assert relative(output(base_unet), output(unet)) < 1e-5


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "full"])
def test_a_network_of_lycoris_is_read_as_it_acts(tmp_path: Path, algorithm: str, decomposed: bool) -> None:
    """All of a UNet by LyCORIS' own wrapper, and the file that it saves."""
    lycoris = pytest.importorskip("lycoris")
    unet = small_unet()
    before = output(unet)
    lycoris.LycorisNetwork.apply_preset({"target_module": [], "target_name": [".*attn2.to_k", ".*attn2.to_v"]})
    options = {"dora_wd": decomposed} if algorithm != "full" else {}
    network = lycoris.create_lycoris(unet, 1.0, linear_dim=4, linear_alpha=2, algo=algorithm, factor=2, **options)
    network.apply_to()
    torch.manual_seed(2)
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter) / 5
    network.eval()
    theirs = output(unet)
    network.save_weights(str(tmp_path / "a.safetensors"), torch.float32, None)
    network.restore()
    assert torch.equal(output(unet), before)
    found = formats.read(tmp_path / "a.safetensors", Base.of(unet))
    assert found.dropped == []
    with Injection(unet, [(found.delta, 1.0)]):
        assert relative(output(unet) - before, theirs - before) < 1e-4
    assert relative(theirs, before) > 0.01


def test_transformers_side_of_diffusers_reads_our_embeddings(tmp_path: Path) -> None:
    from diffusers.loaders.textual_inversion import load_textual_inversion_state_dicts

    delta = Delta({}, {"<new1>": torch.randn(1, WIDTH)})
    path = saved(tmp_path, formats.write(delta, "embedding-diffusers"))
    (state,) = load_textual_inversion_state_dicts([str(tmp_path)], weight_name=path.name)
    assert torch.equal(state["<new1>"], delta.embeddings["<new1>"][0])


def test_a_file_without_any_cross_attention_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a.safetensors": save({"x.processor.other_custom_diffusion.weight": torch.ones(2, 2)})})
    with pytest.raises(UserError, match="no weights of cross-attention"):
        formats.read(path, Base.of(small_unet()))


@pytest.mark.parametrize(("count", "resnets"), [(2, 2), ([1, 2, 2], 1)])
def test_resnets_of_ldm_are_one_number_or_one_a_level(count: int | list[int], resnets: int) -> None:
    unet = TinyUNet()
    unet.num_res_blocks = count
    assert Base.of(unet).resnets == resnets


def test_diffusers_takes_its_lora_without_a_warning_of_its_layers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unet = small_unet()
    files = formats.write(random_delta(unet, words=True), "lora-diffusers", Base.of(unet))
    saved(tmp_path, files)
    pipeline, logger = small_pipeline(unet), logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        pipeline.load_lora_weights(str(tmp_path), weight_name="pytorch_lora_weights.safetensors")
    finally:
        logger.removeHandler(caplog.handler)
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    unchanged = "found with the prefix='text_encoder'. This is safe to ignore"  # said of any LoRA of a UNet alone
    assert [message for message in warned if unchanged not in message] == []
    assert list(files) == ["pytorch_lora_weights.safetensors", "new1.safetensors"]


def test_the_printed_lines_give_diffusers_pipeline_a_word_for_both_text_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encoder(kind: type[CLIPTextModel | CLIPTextModelWithProjection], width: int) -> Any:
        sizes = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        return kind(CLIPTextConfig(vocab_size=4096, **sizes))

    first, second = encoder(CLIPTextModel, 768), encoder(CLIPTextModelWithProjection, 1280)
    tokenizers = [CLIPTokenizer.from_pretrained(TOY.config / "tokenizer") for _ in range(2)]
    pipeline = StableDiffusionXLPipeline(None, first, second, *tokenizers, None, None, add_watermarker=False)
    vectors = torch.randn(2, 2048, generator=torch.Generator().manual_seed(0))
    layer = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    factors = Factors(torch.ones(4, 1), torch.ones(1, 2048))
    delta = Delta({layer: factors}, {"<new1>": vectors}, Provenance(architecture="sdxl"))
    files = formats.write(delta, "lora-diffusers")
    (tmp_path / "new1.safetensors").write_bytes(files["new1.safetensors"])
    monkeypatch.chdir(tmp_path)
    _, line = formats.how_to_use(delta, "lora-diffusers", "lora.safetensors")
    exec(line.removeprefix("diffusers: "), {"safetensors": safetensors, "pipeline": pipeline})
    for text_encoder, tokenizer, part in zip((first, second), tokenizers, vectors.split([768, 1280], 1), strict=True):
        numbers = tokenizer(pipeline.maybe_convert_prompt("<new1>", tokenizer))["input_ids"][1:-1]
        learned = text_encoder.get_input_embeddings().weight[numbers]
        torch.testing.assert_close(learned, part, atol=2e-3, rtol=0)  # the file is of half precision
