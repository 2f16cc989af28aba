"""The local engine: many generations at once over one loaded model, by continuous batching."""

import os

# Threads that compute wait for one another about a thousand times per step. Falling asleep each time makes small steps
# two to three times as slow; spinning for long takes the cores from the rest of the machine. Some ten microseconds of
# spinning cost neither. The OpenMP library reads this once, when llama.cpp is loaded: hence here, before that.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
