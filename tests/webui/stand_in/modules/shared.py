from types import SimpleNamespace
from typing import Any, ClassVar


class Options(SimpleNamespace):
    data: ClassVar[dict[str, Any]] = {}  # what was chosen once; the rest has its defaults

    def __getattr__(self, name):
        return self.data.get(name, {"emphasis": "Original"}[name])


cmd_opts = SimpleNamespace(
    deltas_dir="/dev/null/nowhere",
    embeddings_dir="/dev/null/nowhere",
    lora_dir="/dev/null/nowhere",
    ckpt_dir=None,
    api=True,
    nowebui=False,
    api_auth=None,
)
opts = Options(
    extra_networks_card_description_is_html=False,
    samples_format="png",
    sd_noise_schedule="Default",
    save_optimizer_state=False,
    save_training_settings_to_txt=True,
    training_enable_tensorboard=False,
    training_image_repeats_per_epoch=1,
    training_write_csv_every=500,
    unload_models_when_training=False,
    dataset_filename_word_regex="",
    dataset_filename_join_string=" ",
)
sd_model = None
parallel_processing_allowed = True


class State:
    def __init__(self):
        self.begin("")

    def begin(self, job="(unknown)"):
        self.job, self.job_no, self.job_count, self.textinfo = job, 0, -1, None
        self.interrupted, self.sampling_step, self.sampling_steps = False, 0, 0
        self.skipped = self.stopping_generation = False
        self.current_image = None

    def end(self):
        self.job, self.job_count = "", 0

    def interrupt(self):
        self.interrupted = True

    def stop_generating(self):
        self.stopping_generation = True

    def skip(self):
        self.skipped = True

    def assign_current_image(self, image):
        self.current_image = image


state = State()
