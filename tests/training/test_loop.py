"""The training loop on a model of a few thousand numbers: what it changes, and how it goes on after being stopped."""

import csv
import math
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.data.concepts import Concept, ConceptExamples, Example
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import NotSaved, UserError
from lib_custom_diffusion.formats import read_words
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.training import checkpoints, loop
from lib_custom_diffusion.training.config import TrainingConfig
from lib_custom_diffusion.training.loop import Progress, Trainer
from lib_custom_diffusion.training.parametrisation import parametrisation
from tiny import TinyBackend
from train_tiny import CONCEPT, Trainings, examples, trainer


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    program = Trainings()
    yield program
    program.close()


def denoising_error(backend: TinyBackend, vectors: dict[str, Tensor]) -> float:
    """Error on the training pictures at one timestep, averaged over fixed noises."""
    latents = torch.stack([example.mean for example in examples().instance])
    noise = torch.randn(20, *latents.shape, generator=torch.Generator().manual_seed(9))
    timesteps = torch.full((len(latents),), 60)
    conditioning = backend.encode_captions(["photo of a <new1> cat"] * len(latents), vectors)
    errors = []
    for each in noise:
        noisy = parametrisation(backend).add_noise(latents, each, timesteps)
        errors.append((backend.predict(noisy, timesteps, conditioning) - each).pow(2).mean())
    return torch.stack(errors).mean().item()


def test_training_lowers_the_denoising_error_of_the_concept(tmp_path: Path) -> None:
    backend = TinyBackend()
    run = trainer(tmp_path, backend=backend, max_train_steps=150)
    before = denoising_error(backend, {token: vectors.detach() for token, vectors in run.vectors.items()})
    result = run.run()
    with Injection(backend.unet, [(result.delta, 1.0)]):
        assert denoising_error(backend, result.delta.embeddings) < 0.8 * before


def test_nothing_of_the_model_changes_and_the_new_vectors_and_deltas_do(tmp_path: Path) -> None:
    backend = TinyBackend()
    weights, words = {k: v.clone() for k, v in backend.unet.state_dict().items()}, backend.words.clone()
    start = backend.token_vectors("ktn")
    delta = trainer(tmp_path, backend=backend).run().delta
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backend.unet.state_dict().items())
    assert torch.equal(backend.words, words)
    assert list(delta.entries) == list(projections(backend.unet))
    assert all(entry.any() for entry in delta.entries.values())
    assert not torch.equal(delta.embeddings["<new1>"], start)
    assert all(not module._forward_hooks for module in backend.unet.modules())


@pytest.mark.parametrize(
    ("class_prompt", "kept"),
    [("cat", "cat"), ("photo of a cat", "cat"), ("An image of the Cat", "Cat"), ("dog", ""), ("", "")],
)
def test_a_class_word_goes_with_the_word_if_captions_say_it_so(tmp_path: Path, class_prompt: str, kept: str) -> None:
    concept = Concept("photo of a <new1> cat", Path("pictures"), class_prompt)
    run = Trainer(TinyBackend(), [concept], [examples()], TrainingConfig(), tmp_path, "tiny")
    assert run.class_words == {"<new1>": kept}


def test_files_left_behind(tmp_path: Path) -> None:
    result = trainer(tmp_path).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-14", "checkpoint-20", "checkpoint-7", "loss.csv", "new1.pt", "tiny.delta.safetensors"
    ]  # fmt: skip
    saved = Delta.load(tmp_path / "tiny.delta.safetensors")
    assert saved.provenance.steps == 20
    assert saved.provenance.tokens == {"<new1>": "cat"}
    assert torch.equal(read_words(tmp_path / "new1.pt")["<new1>"], result.delta.embeddings["<new1>"])
    assert sorted(path.name for path in (tmp_path / "checkpoint-14").iterdir()) == [
        "new1.pt", "state.safetensors", "tiny.delta.safetensors"
    ]  # fmt: skip


def test_every_step_is_in_the_csv_though_the_loss_is_read_back_every_ten(tmp_path: Path) -> None:
    seen: list[Progress] = []
    trainer(tmp_path, learning_rate="1e-2:5, 1e-3").run(seen.append)
    with (tmp_path / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    assert [float(row["learning_rate"]) for row in rows] == [1e-2] * 5 + [1e-3] * 15
    losses = [float(row["loss"]) for row in rows]
    parts = [[float(row[part]) for part in ("instance_loss", "prior_loss", "text_prior_loss")] for row in rows]
    assert losses == pytest.approx(list(map(sum, parts)), rel=1e-4) and parts[0][2] == 0 < 1e-3 < parts[-1][2]
    told = {p.step: p.loss for p in seen if p.loss == p.loss}
    since = {7: losses[:7], 10: losses[7:10], 14: losses[10:14], 20: losses[14:]}  # saves, tens and the end
    assert told == pytest.approx({step: sum(part) / len(part) for step, part in since.items()}, rel=1e-4)


def test_captions_without_the_new_word_are_encoded_once(tmp_path: Path) -> None:
    backend = TinyBackend()
    trainer(tmp_path, backend=backend, max_train_steps=10, prior="none").run()
    assert (
        backend.captions_encoded == 1 + 10
    )  # "photo of a cat" once; the learned caption once a step, not once a picture


def final_bytes(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "tiny.delta.safetensors").read_bytes(), (folder / "new1.pt").read_bytes()


def test_interrupted_run_saves_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    trainer(tmp_path / "whole").run()
    steps: list[int] = []
    result = trainer(tmp_path / "cut").run(lambda p: steps.append(p.step), interrupted=lambda: len(steps) >= 9)
    assert (result.interrupted, result.step) == (True, 10)  # the step under way is finished
    resume = checkpoints.resolve_checkpoint(tmp_path / "cut", "latest")
    assert resume is not None and resume.name == "checkpoint-10"
    result = trainer(tmp_path / "cut", resume).run()
    assert (result.interrupted, result.step) == (False, 20)
    assert final_bytes(tmp_path / "cut") == final_bytes(tmp_path / "whole")
    assert (tmp_path / "cut" / "loss.csv").read_text() == (tmp_path / "whole" / "loss.csv").read_text()


@pytest.mark.parametrize(("meanwhile", "step"), [("on_pictures", 5), ("on_save", 7)])
def test_a_stop_that_is_asked_for_while_it_draws_or_saves_comes_before_another_step(
    tmp_path: Path, meanwhile: str, step: int
) -> None:
    asked: list[int] = []
    settings = {"validation_prompt": "a <new1>", "validation_steps": 5}
    trainer(tmp_path / "whole", **settings).run()
    cut = trainer(tmp_path / "cut", **settings)
    on_pictures = {"on_pictures": lambda step, _: asked.append(step)} if meanwhile == "on_pictures" else {}
    cut.on_save = asked.append if meanwhile == "on_save" else cut.on_save
    result = cut.run(interrupted=lambda: bool(asked), **on_pictures)
    assert (result.interrupted, result.step, cut.saves, asked) == (True, step, 1, [step])
    resume = checkpoints.resolve_checkpoint(tmp_path / "cut", "latest")
    assert resume is not None and resume.name == f"checkpoint-{step}"
    assert len((tmp_path / "cut" / "loss.csv").read_text().splitlines()) == 1 + step
    trainer(tmp_path / "cut", resume, **settings).run()
    assert final_bytes(tmp_path / "cut") == final_bytes(tmp_path / "whole")
    assert (tmp_path / "cut" / "loss.csv").read_text() == (tmp_path / "whole" / "loss.csv").read_text()


def test_a_stop_that_is_asked_for_during_a_step_does_not_wait_for_pictures(tmp_path: Path) -> None:
    drawn: list[int] = []
    run = trainer(tmp_path, validation_prompt="a <new1>", validation_steps=5)
    result = run.run(interrupted=lambda: run.step == 5, on_pictures=lambda step, _: drawn.append(step))
    assert (result.step, drawn) == (5, [])


@pytest.mark.parametrize("removed", ["folder", "loss.csv"])
def test_what_is_removed_while_it_trains_is_there_in_the_end(
    tmp_path: Path, removed: str, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path / "whole").run()

    def remove(progress: Progress) -> None:
        if progress.step == 11:  # after the first save
            shutil.rmtree(tmp_path / "cut") if removed == "folder" else (tmp_path / "cut" / "loss.csv").unlink()

    trainer(tmp_path / "cut").run(remove)
    assert final_bytes(tmp_path / "cut") == final_bytes(tmp_path / "whole")
    assert (tmp_path / "cut" / "loss.csv").read_bytes() == (tmp_path / "whole" / "loss.csv").read_bytes()
    assert caplog.text.count("loss.csv was removed or replaced; it is written again") == 1


def test_killed_run_leaves_valid_files_and_resumes_to_the_same_bytes(tmp_path: Path, trainings: Trainings) -> None:
    settings = {"max_train_steps": 60, "train_batch_size": 2}
    whole = trainings.start(tmp_path / "whole", **settings)
    cut = tmp_path / "cut"
    for kill in range(3):
        (process,) = trainings.start(cut, pause=0.01, **settings)
        before = len(list(cut.glob("checkpoint-*")))
        deadline = time.monotonic() + 300
        while len(list(cut.glob("checkpoint-*"))) <= before and time.monotonic() < deadline:
            time.sleep(0.003 * (kill + 1))
        os.kill(process, signal.SIGKILL)
        assert trainings.exit_codes([process]) == [-signal.SIGKILL]
        found = list(cut.glob("checkpoint-*"))
        assert len(found) > before
        for checkpoint in found:
            Delta.load(checkpoint / "tiny.delta.safetensors")
            assert (
                checkpoints.load_state(checkpoint).identity.settings["max_train_steps"] == settings["max_train_steps"]
            )
    assert trainings.exit_codes([*trainings.start(cut, **settings), *whole]) == [0, 0]
    assert final_bytes(cut) == final_bytes(tmp_path / "whole")
    assert (cut / "loss.csv").read_text() == (tmp_path / "whole" / "loss.csv").read_text()


@pytest.mark.parametrize("concepts", [1, 2])
def test_two_processes_learn_what_one_learns_from_the_same_batch(
    tmp_path: Path, trainings: Trainings, concepts: int
) -> None:
    """With two concepts and batches of one, each word is unknown to one of the processes in every step."""
    settings = {"max_train_steps": 10, "concepts": concepts}
    divisions = {"one": (1, 4, 1), "two": (2, 2, 1), "parts": (2, 1, 2)}
    processes = [
        process
        for name, (ranks, batch, parts) in divisions.items()
        for process in trainings.start(
            tmp_path / name, ranks, train_batch_size=batch, gradient_accumulation_steps=parts, **settings
        )
    ]
    assert trainings.exit_codes(processes) == [0] * 5
    one, *others = (Delta.load(tmp_path / name / "tiny.delta.safetensors") for name in divisions)
    losses = [losses_in(tmp_path / name) for name in divisions]
    assert torch.isfinite(losses[0]).all() and losses[0][:, 2].gt(0).all()
    for number, other in enumerate(others, start=1):
        assert torch.allclose(losses[number], losses[0], rtol=1e-3)
        for key, entry in one.entries.items():
            assert entry.any()
            assert torch.allclose(other.entries[key].float(), entry.float(), rtol=1e-2, atol=1e-4), key
        for token, vectors in one.embeddings.items():
            assert torch.allclose(other.embeddings[token].float(), vectors.float(), rtol=1e-3, atol=1e-3), token


def losses_in(folder: Path) -> Tensor:
    """loss, instance_loss and prior_loss of each step."""
    with (folder / "loss.csv").open() as file:
        return torch.tensor([[float(cell) for cell in row[1:4]] for row in list(csv.reader(file))[1:]])


def gradients(run: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the first step would give to the optimizer, which itself forgets how large it is."""
    kept: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: object, **__: object) -> None:
        if not kept:
            kept.extend(each.grad.clone() for group in optimizer.param_groups for each in group["params"])

    monkeypatch.setattr(torch.optim.AdamW, "step", keep)
    run.run()
    return kept


def test_the_gradient_scaler_goes_on_from_a_save_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("this torch has none for a CPU")
    monkeypatch.setattr(loop, "gradient_scaler", lambda *_: torch.amp.GradScaler("cpu", 8.0, growth_interval=6))
    whole, cut = trainer(tmp_path / "whole"), trainer(tmp_path / "cut")
    scaled = whole.run().delta.entries
    cut.run(interrupted=lambda: cut.step == 10)
    resumed = trainer(tmp_path / "cut", tmp_path / "cut" / "checkpoint-10")
    resumed.run()
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    assert whole.scaler.get_scale() == 8.0 * 2**3
    monkeypatch.undo()
    plain = trainer(tmp_path / "plain").run().delta.entries
    assert all(torch.allclose(scaled[key], entry, atol=1e-5) for key, entry in plain.items())


def test_accumulated_batches_have_the_gradients_of_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"max_train_steps": 1, "concepts": 2, "max_grad_norm": None, "prior_loss_weight": 0.5}
    whole = gradients(trainer(tmp_path / "a", train_batch_size=4, **settings), monkeypatch)
    assert any(each.any() for each in whole)
    for size in (1, 2):
        divided = trainer(
            tmp_path / str(size), train_batch_size=size, gradient_accumulation_steps=4 // size, **settings
        )
        for part, all_at_once in zip(gradients(divided, monkeypatch), whole, strict=True):
            assert torch.allclose(part, all_at_once, rtol=1e-4, atol=1e-6)


def test_a_word_that_a_step_does_not_have_is_known_to_the_optimizer_all_the_same(tmp_path: Path) -> None:
    trainer(tmp_path, concepts=2, train_batch_size=1, max_train_steps=1).run()
    resume = checkpoints.resolve_checkpoint(tmp_path, "latest")
    assert trainer(tmp_path, resume, concepts=2, train_batch_size=1, max_train_steps=3).run().step == 3


def test_accumulated_batches_learn_what_one_batch_learns(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "a", train_batch_size=4).run().delta
    parts = trainer(tmp_path / "b", train_batch_size=2, gradient_accumulation_steps=2).run().delta
    for key, entry in whole.entries.items():
        assert torch.allclose(parts.entries[key], entry, atol=1e-4)


def test_weight_decay_pulls_deltas_and_leaves_words(tmp_path: Path) -> None:
    def after(steps: int, decay: float) -> Delta:
        folder = tmp_path / f"{steps}-{decay}"
        return trainer(folder, max_train_steps=steps, adam_weight_decay=decay, prior="none").run().delta

    loose, held = after(1, 0.0), after(1, 50.0)  # in the first step there is nothing of a delta to pull at
    assert torch.equal(loose.embeddings["<new1>"], held.embeddings["<new1>"])
    assert all(torch.equal(entry, held.entries[key]) for key, entry in loose.entries.items())
    loose, held = after(2, 0.0), after(2, 50.0)  # 1e-2 of 50 is half of the delta, which the first step made 1e-2
    assert all(
        torch.allclose(entry - held.entries[key], after_one / 2, atol=1e-4)
        for (key, entry), after_one in zip(loose.entries.items(), after(1, 0.0).entries.values())
    )


def test_a_model_whose_attention_goes_round_its_keys_and_values_is_refused(tmp_path: Path) -> None:
    backend = TinyBackend()
    backend.unet.middle_block[1].transformer_blocks[0].attn2.processor = type("FusedAttnProcessor2_0", (), {})()
    with pytest.raises(UserError, match="unfuse_qkv_projections"):
        trainer(tmp_path, backend=backend)


class Broken(TinyBackend):
    """Predicts nan from a step on."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    def predict(self, *arguments: object) -> Tensor:
        self.good -= 1
        return super().predict(*arguments) * (1.0 if self.good >= 0 else float("nan"))  # type: ignore[arg-type]


def test_a_loss_that_is_no_number_at_the_first_step_is_not_laid_to_the_learning_rate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nan at the first step: the model or its VAE is damaged"):
        trainer(tmp_path, backend=Broken(good=0), prior="none").run()


def test_loss_that_is_no_number_stops_the_training_and_keeps_the_last_good_save(tmp_path: Path) -> None:
    backend = Broken(good=12)
    with pytest.raises(UserError, match=r"nan at step 13; lower the learning rates \(now 1e-2"):
        trainer(tmp_path, backend=backend, prior="none").run()
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-7"]
    assert Delta.load(tmp_path / "checkpoint-7" / "tiny.delta.safetensors").provenance.steps == 7
    assert all(not module._forward_hooks for module in backend.unet.modules())
    assert backend.checkpointing[-1] is False


def test_what_no_file_can_hold_stops_the_training_too_and_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"by step 7 is too large for a file; lower the learning rates \(now 900"):
        trainer(tmp_path, prior="none", learning_rate="900", optimizer="sgd", max_grad_norm=None).run()
    assert [path.name for path in tmp_path.iterdir()] == ["loss.csv"]


def test_full_disk_at_a_save_keeps_the_save_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_disk_after_first_save(progress: Progress) -> None:
        if progress.step == 8:
            monkeypatch.setattr(os, "fsync", no_space)

    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(
        UserError, match=r"cannot save \S+/checkpoint-14: No space left .* resume from \S+/checkpoint-7$"
    ):
        trainer(tmp_path).run(fill_disk_after_first_save)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-7", "loss.csv"]
    monkeypatch.undo()
    assert trainer(tmp_path, checkpoints.resolve_checkpoint(tmp_path, "latest")).run().step == 20


@pytest.mark.parametrize("closed", [False, True])
def test_what_was_learned_since_the_last_save_is_kept_somewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """There is room for a delta where there is none for a save, or in the system's own folder."""
    output, elsewhere, full = tmp_path / "out", tmp_path / "elsewhere", []

    def no_room(*_: object) -> None:
        raise NotSaved(output / "checkpoint-9", "No space left on device")

    def fill_disk(progress: Progress) -> None:
        if progress.step == 8:  # when the person stops it, too, which is after the step that follows
            monkeypatch.setattr(checkpoints, "save_checkpoint", no_room)
            full.append(True)
            if closed:
                (output / "tiny-9.delta.safetensors").mkdir()  # a name that is taken, as root may write anywhere

    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    stopped = trainer(output)
    with pytest.raises(
        UserError, match=r"learned in 9 steps is in \S+\. Once that is fixed, resume from \S+-7$"
    ) as told:
        stopped.run(fill_disk, interrupted=lambda: bool(full))
    path = Path(str(told.value).partition("9 steps is in ")[2].partition(". Once")[0])
    assert path.parent == (elsewhere if closed else output)
    kept = Delta.load(path)
    assert kept.provenance.steps == 9 and set(kept.embeddings) == {"<new1>"}
    learned = stopped.learned().entries
    assert all(torch.allclose(entry.float(), learned[key], atol=1e-3) for key, entry in kept.entries.items())


def test_where_only_the_result_cannot_be_written_the_last_save_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny.delta.safetensors").mkdir()  # what no file can replace
    with pytest.raises(UserError, match=r"cannot save \S+safetensors: .*\. What was learned is in \S+/checkpoint-20$"):
        trainer(tmp_path).run()
    assert Delta.load(tmp_path / "checkpoint-20" / "tiny.delta.safetensors").provenance.steps == 20


def test_what_was_learned_so_far_stays_as_it_was_while_the_training_goes_on(tmp_path: Path) -> None:
    run, kept = trainer(tmp_path), {}
    run.on_save = lambda step: kept.setdefault(step, run.learned())
    run.run()
    saved = Delta.load(tmp_path / "checkpoint-7" / "tiny.delta.safetensors")
    assert torch.equal(kept[7].embeddings["<new1>"].half(), saved.embeddings["<new1>"].half())
    assert all(torch.equal(entry.half(), saved.entries[key].half()) for key, entry in kept[7].entries.items())


def test_a_deltas_file_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a red cat\na small dog\n")
    result = trainer(tmp_path / "out", max_train_steps=1, prior_captions=str(tmp_path / "captions.txt")).run()
    told = result.delta.provenance.settings
    assert (told["prior_captions"], told["max_train_steps"]) == ("captions.txt", 1) and "seed" in told
    assert "checkpointing_steps" not in told
    assert str(tmp_path).encode() not in result.files[0].read_bytes()


def test_the_delta_is_kept_where_there_is_no_room_for_the_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(*_: object) -> None:
        raise NotSaved(tmp_path / "checkpoint-20", "No space left on device")

    def fill_disk(progress: Progress) -> None:
        if progress.step == 20:
            monkeypatch.setattr(checkpoints, "save_checkpoint", no_room)

    result = trainer(tmp_path).run(fill_disk)
    assert Delta.load(result.files[0]).provenance.steps == 20 and "No space left" in caplog.text
    assert not (tmp_path / "checkpoint-20").exists()


def test_the_end_of_a_training_is_drawn_whatever_the_interval(tmp_path: Path) -> None:
    for every, at in ((15, [15, 20]), (50, [20])):
        drawn: dict[int, list[Image.Image]] = {}
        training = trainer(tmp_path / str(every), validation_prompt="a <new1>", validation_steps=every)
        training.run(on_pictures=drawn.__setitem__)
        assert list(drawn) == at


def test_validation_pictures_are_of_fixed_seeds_and_do_not_change_the_training(tmp_path: Path) -> None:
    drawn: dict[int, list[Image.Image]] = {}
    trainer(tmp_path / "a").run()
    trainer(tmp_path / "b", validation_prompt="photo of a <new1> cat", validation_steps=10).run(
        on_pictures=drawn.__setitem__
    )
    assert {step: len(pictures) for step, pictures in drawn.items()} == {10: 2, 20: 2}
    assert [picture.getpixel((0, 0))[1] for picture in drawn[20]] == [42, 43]  # TinyBackend paints the seed green
    assert Delta.load(tmp_path / "a" / "tiny.delta.safetensors").entries.keys()
    a, b = (Delta.load(tmp_path / folder / "tiny.delta.safetensors") for folder in "ab")
    assert all(torch.equal(a.entries[key], b.entries[key]) for key in a.entries)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    trainer(tmp_path, checkpoints_total_limit=2).run()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-14", "checkpoint-20"]


def test_gradient_checkpointing_is_turned_on_and_off_again(tmp_path: Path) -> None:
    backend = TinyBackend()
    trainer(tmp_path, backend=backend, gradient_checkpointing=True).run()
    assert backend.checkpointing == [True, False]


def test_gradients_are_clipped(tmp_path: Path) -> None:
    for number, limit in enumerate([{"max_grad_norm": 1e-20}, {"max_grad_value": 1e-20}]):
        delta = trainer(tmp_path / str(number), **limit).run().delta
        assert all(entry.abs().max() < 1e-12 for entry in delta.entries.values())


def sized(count: int, size: tuple[int, int], caption: str = "photo of a <new1> cat") -> list[Example]:
    generator = torch.Generator().manual_seed(count)
    means = [torch.randn(4, *size, generator=generator) for _ in range(count)]
    return [Example(mean, torch.full_like(mean, 0.1), torch.ones(1, *size), caption) for mean in means]


def trainer_of(concepts: list[ConceptExamples], folder: Path, resume: Path | None = None, **settings) -> Trainer:
    config = replace(trainer(folder / "unused").config, **settings)
    return Trainer(TinyBackend(), [CONCEPT], concepts, config, folder, "tiny", resume)


def test_concepts_share_the_steps_equally_however_many_pictures_they_have(tmp_path: Path) -> None:
    few, many = examples(2, seed=1), examples(40, seed=2)
    run = trainer_of([ConceptExamples(few.instance, []), ConceptExamples(many.instance, [])], tmp_path)
    slots = [run.drawing.slot(position, 0, torch.Generator().manual_seed(0)) for position in range(80)]
    owners = [any(slot[0].example is example for example in few.instance) for slot in slots]
    assert owners == [True, False] * 40
    assert len({id(slot[0].example) for slot in slots[1::2]}) == 40  # every picture once before any comes again


def test_concepts_of_different_sizes_share_the_steps_equally_each_in_passes_of_its_own(tmp_path: Path) -> None:
    wide = ConceptExamples(sized(3, (2, 4)), sized(5, (2, 4), "photo of a cat"))
    mixed = ConceptExamples(sized(6, (2, 2)) + sized(2, (4, 2)), [])
    run = trainer_of([wide, mixed], tmp_path, train_batch_size=6)
    sizes_of_mixed = set()
    for run.step in range(20):
        (batches,) = run._draw()
        by_size = {tuple(batch.latents.shape[2:]): (batch.instances, len(batch.examples)) for batch in batches}
        assert by_size.pop((2, 4)) == (3, 6)  # its pictures and as many regularization pictures
        ((size, counts),) = by_size.items()
        assert counts == (3, 3)
        sizes_of_mixed.add(size)
    assert sizes_of_mixed == {(2, 2), (4, 2)}


def test_the_loss_of_a_step_does_not_depend_on_the_passes_it_takes(tmp_path: Path) -> None:
    """A picture and the same picture turned are the same to a UNet that mixes all cells: two passes, one loss."""
    square = examples(4)
    flat = [replace(each, mean=each.mean.reshape(4, 1, 4), std=each.std.reshape(4, 1, 4),
                    mask=each.mask.reshape(1, 1, 4)) for each in square.prior]  # fmt: skip
    together = trainer_of([square], tmp_path / "a").run().delta
    apart = trainer_of([ConceptExamples(square.instance, flat)], tmp_path / "b")
    assert len(apart._draw()[0]) == 2
    for key, entry in apart.run().delta.entries.items():
        assert torch.allclose(entry, together.entries[key], atol=1e-6)


def test_interrupted_run_on_pictures_of_several_sizes_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    concept = ConceptExamples(sized(5, (2, 2)) + sized(4, (2, 4)), sized(3, (2, 2), "photo of a cat"))
    trainer_of([concept], tmp_path / "whole").run()
    steps: list[int] = []
    trainer_of([concept], tmp_path / "cut").run(lambda p: steps.append(p.step), interrupted=lambda: len(steps) >= 9)
    trainer_of([concept], tmp_path / "cut", tmp_path / "cut" / "checkpoint-10").run()
    assert final_bytes(tmp_path / "cut") == final_bytes(tmp_path / "whole")


def test_accumulated_batches_of_several_sizes_learn_what_one_batch_learns(tmp_path: Path) -> None:
    concept = ConceptExamples(sized(5, (2, 2)) + sized(4, (2, 4)), [])
    whole = trainer_of([concept], tmp_path / "a", train_batch_size=4).run().delta
    parts = trainer_of([concept], tmp_path / "b", train_batch_size=2, gradient_accumulation_steps=2).run().delta
    for key, entry in whole.entries.items():
        assert torch.allclose(entry, parts.entries[key], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_train_steps": 0}, "max_train_steps must be 1 or more"),
        ({"mixed_precision": "fp8"}, "no, fp16, bf16"),
        ({"mixed_precision": "fp16"}, "needs a GPU"),
        ({"learning_rate": "fast"}, "is not a learning rate"),
        ({"freeze_model": "all"}, "crossattn_kv, crossattn"),
        ({"modifier_token": ("<new2>",)}, "no caption or prompt has the modifier token <new2>"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, **settings)


def test_resuming_with_other_settings_is_refused_and_says_which(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    with pytest.raises(UserError, match="learning_rate was '1e-2', is '1e-3'"):
        trainer(tmp_path, tmp_path / "checkpoint-14", learning_rate="1e-3")
    longer = trainer(tmp_path, tmp_path / "checkpoint-20", max_train_steps=25)
    assert longer.run().step == 25


def test_a_save_of_other_shapes_is_refused_though_changes_are_allowed(tmp_path: Path) -> None:
    trainer(tmp_path, max_train_steps=7).run()
    config = TrainingConfig(max_train_steps=9, vectors_per_token=2)
    resume = tmp_path / "checkpoint-7"
    run = Trainer(TinyBackend(), [CONCEPT], [examples()], config, tmp_path, "tiny", resume, allow_changes=True)
    with pytest.raises(UserError, match=r"embedding\.<new1> is \(1, \d+\) in it and \(2, \d+\) now"):
        run.run()


def test_bf16_training_keeps_float32_parameters(tmp_path: Path) -> None:
    delta = trainer(tmp_path, mixed_precision="bf16").run().delta
    assert {entry.dtype for entry in delta.entries.values()} == {torch.float32}
    assert all(entry.isfinite().all() and entry.any() for entry in delta.entries.values())


def test_min_snr_weighting_changes_what_is_learned(tmp_path: Path) -> None:
    plain, weighed = trainer(tmp_path / "a").run().delta, trainer(tmp_path / "b", snr_gamma=1.0).run().delta
    assert any(not torch.allclose(plain.entries[key], weighed.entries[key]) for key in plain.entries)


def test_a_preview_that_was_stopped_costs_the_log_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    backend = TinyBackend()
    backend.generate = lambda *_: []  # type: ignore[method-assign]
    shown: list[int] = []
    run = trainer(tmp_path, backend=backend, report_to="tensorboard", validation_prompt="a <new1>", validation_steps=9)
    run.run(on_pictures=lambda step, _: shown.append(step))
    assert (caplog.text, shown) == ("", [])


def test_tensorboard_log_is_written_on_request(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trainer(tmp_path, report_to="tensorboard").run()
    assert any((tmp_path / "logs").glob("events.*"))


def test_default_settings_are_the_published_recipe() -> None:
    config = TrainingConfig()
    assert float(config.learning_rate) == 1e-5 * 8
    assert (config.max_train_steps, config.prior_loss_weight, config.freeze_model) == (250, 1.0, "crossattn_kv")


def test_concept_is_told_with_the_token(tmp_path: Path) -> None:
    run = Trainer(TinyBackend(), [CONCEPT], [examples()], TrainingConfig(), tmp_path, "tiny")
    assert run.class_words == {"<new1>": "cat"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_train_steps": 0}, "max_train_steps must be 1 or more, not 0"),
        ({"checkpoints_total_limit": 0}, "checkpoints_total_limit must be 1 or more, not 0"),
        ({"checkpoints_total_limit": -1}, "checkpoints_total_limit must be 1 or more"),
        ({"snr_gamma": -1.0}, "snr_gamma must be above 0, not -1.0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be above 0"),
        ({"max_grad_value": math.inf}, "max_grad_value must be above 0, not inf"),
        ({"prior_loss_weight": -0.1}, "prior_loss_weight must be 0 or more"),
        ({"adam_weight_decay": math.nan}, "adam_weight_decay must be 0 or more, not nan"),
        ({"adam_beta2": 1.0}, "adam_beta2 must be 0 or more and below 1"),
        ({"learning_rate": "fast"}, "'fast' is not a learning rate"),
        ({"embedding_learning_rate": "-1e-4"}, "a learning rate is 0 or more"),
        ({"learning_rate": "1e9"}, "a learning rate is 0 or more and at most 1000, not 1e9"),
        ({"learning_rate": "1e-4:0"}, "'1e-4:0' has a rate until step 0; the first step is 1"),
        (
            {"learning_rate": "0", "embedding_learning_rate": "0:5, 0"},
            "nothing would be learned: learning_rate and embedding_learning_rate are 0",
        ),
        ({"modifier_token": ("***",)}, "no letter or digit to use in a file name"),
        ({"modifier_token": ("<" + "x" * 300 + ">",)}, "too long for a file name"),
    ],
)
def test_settings_that_no_training_can_have_are_refused_before_it(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        TrainingConfig(**settings).check()


def test_pictures_that_cannot_be_kept_cost_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def full(step: int, pictures: list) -> None:
        raise OSError(28, "No space left on device")

    result = trainer(tmp_path, validation_prompt="a <new1>", validation_steps=5).run(on_pictures=full)
    assert result.step == 20 and "the pictures of step 5 are not kept" in caplog.text


def test_pictures_that_cannot_be_drawn_cost_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(*_: object) -> list:
        raise UserError("the numbers ran away")

    backend = TinyBackend()
    monkeypatch.setattr(backend, "generate", overflow)
    result = trainer(tmp_path, backend=backend, validation_prompt="a <new1>", validation_steps=5).run()
    assert result.step == 20 and "pictures of step 5 are not kept: the numbers ran away" in caplog.text


def test_two_trainings_into_one_folder_are_refused(tmp_path: Path) -> None:
    def other(progress: Progress) -> None:
        with pytest.raises(UserError, match="another training is writing into"):
            trainer(tmp_path).run()

    trainer(tmp_path, max_train_steps=1).run(other)
    assert not (tmp_path / ".lock").exists()


def test_the_autoencoder_is_aside_while_training_but_not_for_previews_nor_after(tmp_path: Path) -> None:
    backend, aside = TinyBackend(), []
    training = trainer(tmp_path, backend=backend, validation_prompt="<new1>", validation_steps=10)
    training.run(lambda progress: aside.append(backend.aside))  # drawing while it is aside fails
    assert aside == [True] * 20
    assert backend.aside is False


def test_a_training_of_factors_goes_on_from_a_save_to_the_same_bytes(tmp_path: Path) -> None:
    trainer(tmp_path / "whole", rank=2).run()
    stopped = trainer(tmp_path / "parts", rank=2)
    stopped.run(interrupted=lambda: stopped.step == 12)
    resume = checkpoints.resolve_checkpoint(tmp_path / "parts", "latest")
    trainer(tmp_path / "parts", resume, rank=2).run()
    whole, parts = (tmp_path / name / "tiny.delta.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    assert all(entry.us.any() and entry.us.shape[1] == 2 for entry in Delta.load(whole).entries.values())


def test_offset_noise_is_the_same_all_over_a_channel_and_changes_nothing_else(tmp_path: Path) -> None:
    (plain,), (offset,) = (trainer(tmp_path / str(part), noise_offset=part)._draw() for part in (0.0, 0.1))
    # The first sample's random numbers are drawn before those of its offset; later ones differ altogether.
    added = offset[0].noise[0] - plain[0].noise[0]
    assert torch.equal(offset[0].latents[0], plain[0].latents[0])
    assert added.abs().min() > 0
    assert torch.allclose(added, added.mean(dim=(1, 2), keepdim=True).expand_as(added), atol=1e-6)


def test_a_word_may_be_written_in_either_case_in_captions(tmp_path: Path) -> None:
    shouted = [replace(example, caption="photo of a <NEW1> cat") for example in examples().instance]
    assert Trainer(TinyBackend(), [CONCEPT], [ConceptExamples(shouted, [])], TrainingConfig(), tmp_path, "tiny")


def test_a_rate_that_holds_until_step_1_is_that_of_the_first_step_alone(tmp_path: Path) -> None:
    one, two = (
        trainer(tmp_path / str(steps), learning_rate="1e-2:1, 0", max_train_steps=steps).run().delta.entries
        for steps in (1, 2)
    )
    assert any(entry.any() for entry in one.values())
    assert all(torch.equal(one[key], two[key]) for key in one)
