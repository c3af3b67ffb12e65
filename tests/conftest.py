"""What several test files share."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has its programs ignore
