"""The parts that made the toy: what a new one starts from, and how its decoder and its critic pull."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from lib_custom_diffusion.standalone import toy
from lib_custom_diffusion.standalone.toy import architecture, train_diffusion, vocabulary
from lib_custom_diffusion.standalone.toy.train_autoencoder import Critic, _Reverse, start_from


def test_a_larger_world_starts_with_the_words_that_are_known(tmp_path) -> None:
    earlier = toy.load()
    vocabulary.write(["zebrafish", "cat", "the"], tmp_path)  # in another order, with a word that is new
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    denoiser = train_diffusion.Denoiser(tokenizer)
    train_diffusion.start_from(denoiser, tokenizer, earlier)
    ours = denoiser.text_encoder.get_input_embeddings().weight
    theirs = earlier.text_encoder.get_input_embeddings().weight
    known, new = (tokenizer.get_vocab()[word] for word in ("cat</w>", "zebrafish</w>"))
    assert torch.equal(ours[known], theirs[earlier.tokenizer.get_vocab()["cat</w>"]])
    assert not (ours[new] == theirs).all(dim=1).any()
    assert torch.equal(denoiser.unet.conv_in.weight, earlier.unet.conv_in.weight)


def test_a_deeper_vae_starts_as_the_earlier_one() -> None:
    torch.manual_seed(0)
    earlier, deeper = AutoencoderKL(**architecture.VAE | {"layers_per_block": 0}), architecture.autoencoder()
    start_from(deeper, earlier)
    pictures = torch.rand(1, 3, 32, 32)
    assert len(deeper.state_dict()) > len(earlier.state_dict())
    assert torch.allclose(deeper(pictures).sample, earlier(pictures).sample, atol=1e-5)
    # What was added is there to learn.
    deeper(pictures).sample.square().mean().backward()
    assert deeper.encoder.down_blocks[0].resnets[0].conv2.weight.grad.any()


def test_what_the_critic_lowers_the_decoder_raises() -> None:
    pictures = torch.rand(1, 3, 32, 32, requires_grad=True)
    critic = Critic()
    critic(pictures)[-1].sum().backward()
    straight, pictures.grad = pictures.grad, None
    critic(_Reverse.apply(pictures, 0.5))[-1].sum().backward()
    assert pictures.grad.flatten().tolist() == pytest.approx((-0.5 * straight).flatten().tolist(), rel=1e-5, abs=1e-9)
