"""A delta acts beside the weights, sums with others, and leaves no trace."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lib_custom_diffusion.attention import Projection, projections
from lib_custom_diffusion.delta import Delta, Factors
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.injection import Injection, TrainableDelta
from tiny import TinyUNet


@pytest.fixture
def unet() -> TinyUNet:
    torch.manual_seed(0)
    return TinyUNet().requires_grad_(False)


def output(unet: TinyUNet, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    latents, context = torch.randn(2, 4, 2, 2, generator=generator), torch.randn(2, 5, 6, generator=generator)
    return unet(latents.to(dtype), torch.tensor([10, 20]), context.to(dtype))


def dense(unet: TinyUNet, seed: int) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    layers = projections(unet, "crossattn")
    return Delta({key: 0.3 * torch.randn(layer.shape, generator=generator) for key, layer in layers.items()})


def low_rank(unet: TinyUNet, seed: int) -> Delta:
    rng = torch.Generator().manual_seed(seed)
    return Delta({
        key: Factors(torch.randn(layer.shape[0], 1, generator=rng), torch.randn(1, layer.shape[1], generator=rng))
        for key, layer in projections(unet).items()
    })  # fmt: skip


def rewritten(unet: TinyUNet, deltas: list[tuple[Delta, float]]) -> Tensor:
    """What the UNet says with the deltas added into its weights."""
    copy = TinyUNet().requires_grad_(False)
    copy.load_state_dict(unet.state_dict())
    for delta, weight in deltas:
        for key, layer in projections(copy, "crossattn").items():
            if key in delta.entries:
                entry = delta.entries[key]
                layer.module.weight += weight * (entry.dense() if isinstance(entry, Factors) else entry)
    return output(copy)


@pytest.mark.parametrize("kinds", [[dense], [low_rank], [low_rank, low_rank], [dense, low_rank], [low_rank] * 5])
@pytest.mark.parametrize("gradients", [False, True])
def test_output_is_that_of_the_weights_plus_the_deltas(unet: TinyUNet, kinds: list, gradients: bool) -> None:
    deltas = [(kind(unet, seed), weight) for seed, (kind, weight) in enumerate(zip(kinds, [0.8, -0.5, 1, 2, 0.1]))]
    with torch.set_grad_enabled(gradients), Injection(unet, deltas):
        assert torch.allclose(output(unet), rewritten(unet, deltas), atol=1e-5)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_finite_number_is_refused(unet: TinyUNet, weight: float) -> None:
    before = output(unet)
    with pytest.raises(UserError, match=f"weight of a delta should be a finite number, not {weight}"):
        Injection(unet, [(dense(unet, 1), weight)])
    assert torch.equal(output(unet), before)


@pytest.mark.parametrize("kind", [dense, low_rank])
def test_under_autocast_the_delta_has_the_precision_of_the_layer(unet: TinyUNet, kind) -> None:
    deltas = [(kind(unet, 1), 0.5)]
    exact = rewritten(unet, deltas)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), Injection(unet, deltas):
        near = output(unet)
    assert torch.allclose(near.float(), exact, atol=0.03 * exact.abs().max().item())
    assert not torch.allclose(output(unet), exact, atol=0.3 * exact.abs().max().item())


def test_leaving_restores_outputs_and_weights_bit_for_bit(unet: TinyUNet) -> None:
    before, weights = output(unet), {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with Injection(unet, [(dense(unet, 1), 1.0)]):
        assert not torch.equal(output(unet), before)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in unet.state_dict().items())
    assert torch.equal(output(unet), before)


def test_an_exception_inside_leaves_no_trace(unet: TinyUNet) -> None:
    before = output(unet)
    with pytest.raises(RuntimeError), Injection(unet, [(dense(unet, 1), 1.0)]):
        raise RuntimeError
    assert torch.equal(output(unet), before)


def test_a_delta_that_does_not_fit_changes_nothing(unet: TinyUNet) -> None:
    before, other = output(unet), dense(unet, 1)
    other.entries[next(reversed(other.entries))] = torch.ones(5, 5)
    with pytest.raises(UserError, match="does not fit"):
        Injection(unet, [(dense(unet, 2), 1.0), (other, 1.0)])
    assert torch.equal(output(unet), before)


def test_fixed_delta_follows_the_precision_of_its_input(unet: TinyUNet) -> None:
    with Injection(unet, [(dense(unet, 1), 1.0)]):
        expected = output(unet)
        unet.bfloat16()
        assert torch.allclose(output(unet, torch.bfloat16).float(), expected, atol=0.1)


def test_new_trainable_delta_changes_nothing_and_learns_in_float32(unet: TinyUNet) -> None:
    before = output(unet)
    delta = TrainableDelta(projections(unet), torch.device("cpu"))
    assert torch.equal(output(unet), before)
    with torch.autocast("cpu", torch.bfloat16):
        loss = output(unet).float().pow(2).sum()
    loss.backward()
    for parameter in delta.parameters.values():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32 and parameter.grad.any()
    assert all(weight.grad is None for weight in unet.parameters())
    delta.remove()
    assert torch.equal(output(unet), before)


def test_a_delta_of_factors_changes_nothing_at_first_and_is_the_product_of_what_it_learns(unet: TinyUNet) -> None:
    before, layers = output(unet), projections(unet, "crossattn")
    delta = TrainableDelta(layers, torch.device("cpu"), rank=2, seed=5)
    assert torch.equal(output(unet), before)
    assert set(delta.parameters) == {f"{key}.{part}" for key in layers for part in ("US", "Vh")}
    output(unet).pow(2).sum().backward()
    with torch.no_grad():
        for name, parameter in delta.parameters.items():
            assert parameter.grad is not None and parameter.grad.any() == name.endswith(".US")
            parameter += torch.randn_like(parameter)
    learning = output(unet)
    entries = delta.entries()
    delta.remove()
    assert torch.equal(output(unet), before)
    assert all(isinstance(entry, Factors) and entry.us.shape[1] == 2 for entry in entries.values())
    with Injection(unet, [(Delta(entries), 1.0)]):
        assert torch.allclose(output(unet), learning, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4, 64])
def test_a_first_step_is_as_large_for_factors_of_any_rank_as_for_a_full_matrix(rank: int) -> None:
    module = torch.nn.Linear(512, 512, bias=False)
    layer = Projection("layer", "q", "mid", module)
    delta = TrainableDelta({"layer": layer}, torch.device("cpu"), rank)
    signs = torch.randn(512, rank, generator=torch.Generator().manual_seed(1)).sign()
    with torch.no_grad():
        delta.parameters["layer.US"] += 1e-4 * signs  # Adam's first step: the rate, whatever the gradient's size
    delta.remove()
    change = delta.entries()["layer"].dense()  # type: ignore[union-attr]
    assert change.pow(2).mean().sqrt().item() == pytest.approx(1e-4, rel=0.1)


def test_factors_begin_alike_whether_the_middle_of_the_unet_stands_before_the_output_or_last() -> None:
    """As in LDM's UNets and in diffusers'. What a training learns must not hang on the program that it runs in."""
    sides = ("input_blocks.1", "middle_block.1", "output_blocks.3")
    layers = {
        (key := f"model.diffusion_model.{side}.attn2.to_k.weight"): Projection(key, "k", "mid", nn.Linear(6, 4))
        for side in sides
    }
    middle_last = {key: layers[key] for key in sorted(layers, key=lambda key: "middle" in key)}
    ldm, diffusers = (TrainableDelta(each, torch.device("cpu"), 2, 5) for each in (layers, middle_last))
    assert list(ldm.parameters)[2].startswith("model.diffusion_model.middle_block.")
    for name, parameter in diffusers.parameters.items():
        assert torch.equal(ldm.parameters[name], parameter)


def test_factors_have_no_more_rank_than_their_layer_and_are_drawn_alike_by_a_seed(unet: TinyUNet) -> None:
    layers = projections(unet)
    first, same, other = (TrainableDelta(layers, torch.device("cpu"), 999, seed) for seed in (1, 1, 2))
    for key, layer in layers.items():
        assert first.parameters[f"{key}.US"].shape[1] == min(layer.shape)
        drawn = [delta.parameters[f"{key}.Vh"] for delta in (first, same, other)]
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    for delta in (first, same, other):
        delta.remove()


def test_nothing_is_learned_of_the_start_token_though_the_delta_acts_on_it(unet: TinyUNet) -> None:
    layer = next(iter(projections(unet, "k").values()))
    delta = TrainableDelta({layer.key: layer}, torch.device("cpu"))
    parameter = delta.parameters[layer.key]
    torch.manual_seed(3)
    parameter.data = torch.randn(layer.shape)
    x = torch.randn(2, 5, layer.shape[1])
    keys = layer.module(x)
    assert torch.allclose(keys, x @ (layer.module.weight + parameter).T, atol=1e-6)
    weights = torch.randn(2, 5, layer.shape[0])
    (keys * weights).sum().backward()
    assert torch.allclose(parameter.grad, torch.einsum("bpo,bpi->oi", weights[:, 1:], x[:, 1:]), atol=1e-5)


def test_gradient_of_a_delta_of_what_reads_the_picture_is_that_of_its_weight(unet: TinyUNet) -> None:
    delta = TrainableDelta(projections(unet, "crossattn"), torch.device("cpu"))
    F.mse_loss(output(unet), torch.ones(2, 4, 2, 2)).backward()
    delta.remove()
    layers = {key: layer for key, layer in projections(unet, "crossattn").items() if layer.role in ("q", "out")}
    for layer in layers.values():
        layer.module.weight.requires_grad_(True)
    F.mse_loss(output(unet), torch.ones(2, 4, 2, 2)).backward()
    for key, layer in layers.items():
        assert torch.allclose(delta.parameters[key].grad, layer.module.weight.grad, atol=1e-7)


def test_resuming_acts_as_before_and_removing_again_leaves_no_trace(unet: TinyUNet) -> None:
    bare = output(unet)
    injection = Injection(unet, [(dense(unet, 1), 0.5)])
    acting = output(unet)
    injection.remove()
    injection.resume()
    injection.resume()
    assert torch.equal(output(unet), acting)
    injection.remove()
    assert torch.equal(output(unet), bare)


def test_a_prompt_that_stays_is_multiplied_once(unet: TinyUNet) -> None:
    read = projections(unet)
    delta = Delta({key: entry for key, entry in dense(unet, 1).entries.items() if key in read})
    tokens = 2 * 5
    products = sum(2 * tokens * layer.module.weight.numel() for layer in read.values())

    def operations() -> int:
        with FlopCounterMode(display=False) as counter:
            output(unet)
        return counter.get_total_flops()

    with torch.no_grad():
        bare = operations()
        with Injection(unet, [(delta, 0.5)]) as injection:
            first = output(unet)
            assert torch.equal(output(unet), first) and operations() == bare
            injection.remove()
            injection.resume()
            assert operations() == bare + products and torch.equal(output(unet), first)


def test_prompts_in_turn_and_changed_in_place_are_each_read(unet: TinyUNet) -> None:
    layer = next(iter(projections(unet).values()))
    change = torch.randn(layer.shape)
    prompts = [torch.randn(2, 5, layer.shape[1]) for _ in range(4)]
    expected = [layer.module(prompt) + 0.5 * F.linear(prompt, change) for prompt in prompts]
    with torch.no_grad(), Injection(unet, [(Delta({layer.key: change}), 0.5)]):
        for index in (0, 1, 0, 1, 2, 3, 0):
            assert torch.allclose(layer.module(prompts[index]), expected[index], atol=1e-6)
        prompts[0].copy_(prompts[2])
        assert torch.allclose(layer.module(prompts[0]), expected[2], atol=1e-6)


def test_one_prompt_is_read_in_another_precision_and_in_inference_mode(unet: TinyUNet) -> None:
    layer = next(iter(projections(unet).values()))
    change, prompt = torch.randn(layer.shape), torch.randn(2, 5, layer.shape[1])
    expected = layer.module(prompt) + F.linear(prompt, change)
    with torch.no_grad(), Injection(unet, [(Delta({layer.key: change}), 1.0)]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer.module(prompt).dtype == torch.bfloat16
            assert torch.allclose(layer.module(prompt).float(), expected, atol=0.1)
        assert torch.allclose(layer.module(prompt), expected, atol=1e-6)
        with torch.inference_mode():
            other = torch.randn(prompt.shape)
            layer.module(other)
            other.copy_(prompt)
            assert torch.allclose(layer.module(other), expected, atol=1e-6)


def test_a_prompt_changed_where_torch_does_not_see_it_is_read(unet: TinyUNet) -> None:
    prompt, other = torch.randn(2, 2, 5, 6)
    seen = prompt.numpy()
    with torch.no_grad(), Injection(unet, [(dense(unet, 1), 1.0)]):
        expected = unet(torch.ones(2, 4, 2, 2), torch.tensor([1, 2]), other)
        unet(torch.ones(2, 4, 2, 2), torch.tensor([1, 2]), prompt)
        seen[:] = other.numpy()
        assert torch.equal(unet(torch.ones(2, 4, 2, 2), torch.tensor([1, 2]), prompt), expected)


def test_threads_with_prompts_of_their_own_draw_on_one_unet(unet: TinyUNet) -> None:
    prompts = torch.randn(6, 2, 5, 6)
    latents, timesteps = torch.ones(2, 4, 2, 2), torch.tensor([1, 2])
    with torch.no_grad(), Injection(unet, [(dense(unet, 1), 1.0)]):
        expected = [unet(latents, timesteps, prompt) for prompt in prompts]

        def draw(number: int) -> bool:
            with torch.no_grad():
                return all(torch.equal(unet(latents, timesteps, prompts[number]), expected[number]) for _ in range(40))

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(draw, range(6))) == [True] * 6


def diffusers_unet() -> nn.Module:
    """A small UNet of diffusers."""
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8,), layers_per_block=1, norm_num_groups=2, cross_attention_dim=6, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    ).requires_grad_(False)  # fmt: skip


def test_a_unet_whose_keys_and_values_are_fused_is_refused_before_and_meanwhile() -> None:
    unet = diffusers_unet()
    given = torch.randn(1, 4, 4, 4), torch.tensor([10]), torch.randn(1, 5, 6)
    with torch.no_grad(), Injection(unet, [(dense(unet, 1), 1.0)]):
        acting = unet(*given).sample
        unet.fuse_qkv_projections()
        with pytest.raises(UserError, match="unfuse_qkv_projections"):
            unet(*given)
        unet.unfuse_qkv_projections()
        assert torch.equal(unet(*given).sample, acting)
    unet.fuse_qkv_projections()
    with pytest.raises(UserError, match="unfuse_qkv_projections"):
        Injection(unet, [(dense(unet, 1), 1.0)])


def test_keys_and_values_of_an_attention_processor_are_refused() -> None:
    unet = diffusers_unet()
    delta = dense(unet, 1)
    processors = pytest.importorskip("diffusers.models.attention_processor")
    unet.set_attn_processor({
        name: processors.CustomDiffusionAttnProcessor(hidden_size=8, cross_attention_dim=6) if "attn2" in name
        else processors.AttnProcessor()
        for name in unet.attn_processors
    })  # fmt: skip
    with pytest.raises(UserError, match=r"keys and values of its own \(CustomDiffusionAttnProcessor\)"):
        Injection(unet, [(delta, 1.0)])


def test_a_layer_wrapped_by_peft_is_a_projection_and_its_lora_acts_beside_the_delta() -> None:
    peft = pytest.importorskip("peft")
    unet = diffusers_unet()
    keys = list(projections(unet, "crossattn"))
    given = torch.randn(1, 4, 4, 4), torch.tensor([10]), torch.randn(1, 5, 6)
    change = dense(unet, 1)
    lora = peft.LoraConfig(r=2, target_modules=["attn2.to_k", "attn2.to_v"], init_lora_weights=False)
    with torch.no_grad(), Injection(unet, [(change, 1.0)]):
        alone = unet(*given).sample
    unet.add_adapter(lora)
    assert list(projections(unet, "crossattn")) == keys
    with torch.no_grad(), Injection(unet, [(change, 1.0)]):
        both = unet(*given).sample
        unet.disable_adapters()
        assert torch.allclose(unet(*given).sample, alone, atol=1e-6)
        unet.enable_adapters()
    for key, layer in projections(unet, "crossattn").items():
        layer.module.weight += change.entries[key]
    with torch.no_grad():
        assert torch.allclose(unet(*given).sample, both, atol=1e-4)
        assert not torch.allclose(both, alone, atol=1e-2)
