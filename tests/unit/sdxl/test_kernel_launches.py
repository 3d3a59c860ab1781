"""How many operations a step of full-size SDXL launches: at batch 1 a fast GPU waits for them."""

from benchmarks.kernel_launches import count_step


def test_a_step_in_half_precision_launches_few_operations_and_hardly_a_cast():
    forward, backward = count_step(precision="bf16", checkpointing=True)
    assert forward.total + backward.total <= 11_500
    assert forward.casts + backward.casts < 100
