"""Where a job computes: on the GPU that Ray gave it, else on the CPU."""

import torch


def device() -> torch.device:
    """The device of the job that runs in this process.

    Ray is asked, not torch: a job without a GPU may see those of its node. It must not even look at them, or
    a later job of the same process could not be given another one.
    """
    import ray

    given = ray.is_initialized() and ray.get_gpu_ids()
    return torch.device("cuda" if given and torch.cuda.is_available() else "cpu")


def use_processor(threads: int) -> None:
    """Set how torch computes in this process: on so many threads, with subnormal numbers as zeros."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def free_bytes() -> float:
    """Bytes that are free on the job's GPU, and no more than its share: others that share it come later."""
    import ray

    share = ray.get_runtime_context().get_assigned_resources()["GPU"]
    free, total = torch.cuda.mem_get_info()
    return min(free, share * total)
