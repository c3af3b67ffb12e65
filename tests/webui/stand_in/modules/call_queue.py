import threading

queue_lock = threading.RLock()


def wrap_queued_call(func):
    return func


def wrap_gradio_gpu_call(func, extra_outputs=None):
    return func
