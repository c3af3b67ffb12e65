"""The stand-in WebUI, fresh for every test: a loaded checkpoint, an empty folder for everything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "stand_in"), str(HERE), str(HERE.parent)]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The stand-in's loaded checkpoint; folders are tmp_path/embeddings, deltas and models."""
    from host import TinyHostModel
    from modules import extra_networks, paths, sd_hijack, sd_models, shared
    from modules.textual_inversion.textual_inversion import EmbeddingDatabase

    from lib_custom_diffusion.webui.delta_library import library

    for name in ("embeddings", "deltas", "models"):
        (tmp_path / name).mkdir()
    model = TinyHostModel()
    monkeypatch.setattr(paths, "data_path", str(tmp_path))
    monkeypatch.setattr(shared, "sd_model", model)
    monkeypatch.setattr(sd_models.model_data, "sd_model", model)
    monkeypatch.setattr(sd_models, "model_path", str(tmp_path / "models"))
    monkeypatch.setattr(shared.cmd_opts, "embeddings_dir", str(tmp_path / "embeddings"))
    monkeypatch.setattr(shared.cmd_opts, "deltas_dir", str(tmp_path / "deltas"))
    monkeypatch.setattr(shared, "state", shared.State())
    monkeypatch.setattr(sd_hijack.model_hijack, "embedding_db", EmbeddingDatabase())
    monkeypatch.setattr(extra_networks, "extra_network_registry", {})
    monkeypatch.setattr(library, "logs", [tmp_path / "textual_inversion"])
    monkeypatch.setattr(library, "other_logs", tmp_path / "custom-diffusion-logs.txt")
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings()
    return model
