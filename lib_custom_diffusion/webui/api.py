"""The extension in the WebUI's API."""

from __future__ import annotations

from dataclasses import asdict
from secrets import compare_digest
from typing import Any

import gradio as gr
import torch
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import progress, shared
from modules.call_queue import queue_lock

from ..errors import UserError
from ..training.plan import PLAIN, TrainingPlan
from ..ui.inspection import summarize
from ..ui.training_page import error_html
from .delta_library import DeltaOnDisk, library
from .reopened_page import JOB, Shown, failed, for_own_pages, last, succeeded
from .training_job import train


def register(_blocks: gr.Blocks | None, app: FastAPI) -> None:
    """Add the routes, if the WebUI was started with its API, behind the API's password if it has one."""
    if not (shared.cmd_opts.api or shared.cmd_opts.nowebui):
        return
    guard = [Depends(for_own_pages), *([Depends(_check_password)] if shared.cmd_opts.api_auth else [])]
    app.add_api_route("/sdapi/v1/deltas", list_deltas, methods=["GET"], dependencies=guard)
    app.add_api_route("/sdapi/v1/refresh-deltas", refresh_deltas, methods=["POST"], dependencies=guard)
    train_guard = [*guard, Depends(_check_json)]
    app.add_api_route(
        "/sdapi/v1/train/custom-diffusion", train_custom_diffusion, methods=["POST"], dependencies=train_guard
    )


def list_deltas() -> list[dict[str, Any]]:
    """The deltas in the folder; `error` says what is wrong with one that cannot be read."""
    return [_described(delta) for delta in library.all()]


def refresh_deltas() -> list[dict[str, Any]]:
    """Look at the folder again, and list it."""
    library.refresh()
    return list_deltas()


def train_custom_diffusion(settings: dict[str, Any]) -> dict[str, Any]:
    """Train with these settings, which are those of the command line, when it is its turn; answer when it is done.

    Results and logs go to the configured folders alone.
    """
    task = progress.create_task_id(JOB)
    progress.add_task_to_queue(task)
    with queue_lock:
        shared.state.begin(job=task)
        progress.start_task(task)
        try:
            done = train(TrainingPlan.of(settings), wording=PLAIN)
            _record(task, succeeded(done))
        except UserError as error:
            _record(task, failed(error_html(error)))
            raise HTTPException(status_code=422, detail=str(error)) from error
        except torch.cuda.OutOfMemoryError as error:
            raise HTTPException(
                status_code=422, detail="the GPU's memory is too small; lower train_batch_size"
            ) from error
        finally:
            progress.finish_task(task)
            shared.state.end()
    return {
        "steps": done.step,
        "interrupted": done.interrupted,
        "delta": str(done.delta),
        "embeddings": [str(path) for path in done.embeddings],
        "log_directory": str(done.log_directory),
        "prompt": done.prompt,
        "notes": done.note,
    }


def _record(task: str, shown: Shown) -> None:
    """For pages that have watched it, as the host does with its own."""
    progress.record_results(task, shown)
    last.end(task, shown)


def _described(delta: DeltaOnDisk) -> dict[str, Any]:
    described: dict[str, Any] = {"name": delta.name, "path": str(delta.path), "hash": delta.shorthash}
    try:
        return {**described, **asdict(summarize(delta.path))}
    except UserError as error:
        return {**described, "error": str(error)}


def _check_json(request: Request) -> None:
    """FastAPI takes a body of no stated type for JSON, and a browser sends such a one for any page, of whatever site.

    With a type of JSON it asks the server first, which knows the sites that the WebUI was told of.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send the settings as JSON, with Content-Type: application/json")


def _check_password(given: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008 - FastAPI's way
    passwords = dict(pair.split(":", 1) for pair in shared.cmd_opts.api_auth.split(","))
    right = passwords.get(given.username)
    if right is None or not compare_digest(given.password.encode(), right.encode()):
        raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})
