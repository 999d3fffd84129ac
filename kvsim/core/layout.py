"""How the GPUs of one replica share a model: the sizes of each kind of parallelism, under vLLM's names."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Ranks of one replica along each axis; a GPU is one rank.

    - ``tensor_parallel_size``: heads and MLP columns are split; KV heads are replicated when there are fewer.
    - ``pipeline_parallel_size``: consecutive layers form stages.
    - ``data_parallel_size``: attention is copied to each group of ``tensor_parallel_size`` ranks, which has requests
      and KV of its own; the experts of a mixture are shared by all of them. (Copies of a whole model are replicas.)
    - ``enable_expert_parallel``: whole experts are dealt out to the ranks of a stage instead of slices of each.
    - ``decode_context_parallel_size``: so many ranks that would hold the same KV share its tokens (adds no GPU).
    - ``prefill_context_parallel_size``: further ranks share the tokens of a prompt; each holds all weights but experts.

    Source: vLLM ``ParallelConfig`` and ``FusedMoEParallelConfig``.

    >>> Layout(tensor_parallel_size=8, pipeline_parallel_size=2).gpus
    16
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    decode_context_parallel_size: int = 1
    prefill_context_parallel_size: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.pipeline_parallel_size * self.stage_ranks

    @property
    def stage_ranks(self) -> int:
        """GPUs of one pipeline stage: those that share the experts of its layers."""
        return self.tensor_parallel_size * self.data_parallel_size * self.prefill_context_parallel_size

    @property
    def tensor_context_ranks(self) -> int:
        """Tensor-parallel ranks that share the tokens of a KV head instead of each holding them all."""
        beside = self.prefill_context_parallel_size  # those share the tokens first
        return max(1, self.decode_context_parallel_size // beside)

    def __str__(self) -> str:
        """The sizes that are not 1, as keys of a scenario; ``tensor_parallel_size`` always.

        >>> print(Layout(pipeline_parallel_size=2, enable_expert_parallel=True))
        tensor_parallel_size 1, pipeline_parallel_size 2, enable_expert_parallel
        """
        sizes = {name: value for name, value in vars(self).items() if name != "enable_expert_parallel"}
        parts = [f"{name} {size}" for name, size in sizes.items() if size != 1 or name == "tensor_parallel_size"]
        return ", ".join([*parts, *(["enable_expert_parallel"] if self.enable_expert_parallel else [])])


ONE_GPU = Layout()
