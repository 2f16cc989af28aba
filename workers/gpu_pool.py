"""Whether this machine can serve a GPU pool; `headrace up` asks before it starts that pool's worker.

python -m workers.gpu_pool    # prints the GPUs; exits with 78 and says why when there is none
"""

import os
import sys
from collections.abc import Collection

from models.catalog import Catalog
from models.startup import settings_or_end
from workers.settings import GpuSettings

NO_GPU = os.EX_CONFIG


def why_not(settings: GpuSettings) -> str | None:
    """Why a GPU pool's worker cannot start here; None when it can, or when the operator insists."""
    if not settings.gpu_required:
        return None
    try:
        from workers.engine.gpu import why_no_gpu  # here, so that workers without local models need no native library
    except ImportError:
        return "llama-cpp-python is not installed"
    return why_no_gpu()


def refuse_without_gpu(catalog: Catalog, queues: Collection[str], settings: GpuSettings) -> None:
    """End the process when it was to serve queues of a GPU pool and cannot; raises SystemExit."""
    of_gpus = sorted(set(queues) & set(catalog.queues_of_pool("gpu")))
    problem = why_not(settings) if of_gpus else None
    if problem is not None:
        print(f"headrace: no worker for the GPU queues {', '.join(of_gpus)} here: {problem}", file=sys.stderr)
        print("headrace: HEADRACE_GPU_REQUIRED=false serves them all the same", file=sys.stderr)
        raise SystemExit(NO_GPU)


def main() -> None:
    """Print what there is."""
    problem = why_not(settings_or_end(GpuSettings))
    if problem is not None:
        print(problem)
        raise SystemExit(NO_GPU)
    from workers.engine.gpu import available_gpus

    for gpu in available_gpus():
        print(f"{gpu.name}: {gpu.description}, {gpu.free_bytes >> 20} of {gpu.total_bytes >> 20} MiB free")


if __name__ == "__main__":
    main()
