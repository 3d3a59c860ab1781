"""torch.compile on the blocks of a tiny UNet with adapters: the same predictions and gradients, and
few graphs. `aot_eager` traces forward and backward as the usual backend does, without making
kernels.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo import config
from torch._dynamo.utils import counters

from tests.unit.sdxl import test_streaming
from trainers.embedded_base.sdxl.architecture import UNET, build_unet
from trainers.sdxl import prepare
from trainers.sdxl.checkpointing import enable_gradient_checkpointing
from trainers.sdxl.streaming import list_blocks
from trainers.sdxl.targets import find_unet_targets
from trainers.training.adapters import AdapterSettings, attach_adapters
from trainers.training.compiled_blocks import compile_blocks, require_compiler, uncompile_blocks
from trainers.training.events import Notice

dataset, weights, train = test_streaming.dataset, test_streaming.weights, test_streaming.train

SIZES_HW = ((16, 16), (16, 24), (24, 16), (8, 32), (16, 16))


@pytest.fixture
def unet():
    torch.manual_seed(0)
    model = build_unet()
    torch.compiler.reset()
    counters.clear()
    parameters = attach_adapters(
        model, find_unet_targets(model, "attention_mlp"), AdapterSettings(4, 4.0, 0.0, 0), component="unet"
    )
    for parameter in parameters:
        parameter.data.normal_(0, 0.02)
    return model


def predict(unet, size_hw):
    """Return the prediction, and the gradients of all adapters as one vector."""
    draw = torch.Generator().manual_seed(1)
    texts = {
        "text_embeds": torch.randn(2, UNET["projection_class_embeddings_input_dim"] - 6 * 256, generator=draw),
        "time_ids": torch.full((2, 6), 128.0),
    }
    states = torch.randn(2, 77, UNET["cross_attention_dim"], generator=draw)
    latents = torch.randn(2, 4, *size_hw, generator=draw)
    prediction = unet(latents, torch.tensor([100, 500]), states, added_cond_kwargs=texts, return_dict=False)[0]
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(prediction.square().mean(), trained)
    return prediction.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_predict_and_learn_the_same_with_few_graphs(unet, checkpointing):
    if checkpointing:
        enable_gradient_checkpointing(unet)
    plain = [predict(unet, size) for size in SIZES_HW]
    blocks = list_blocks(unet)
    limit = config.recompile_limit
    compile_blocks(unet, blocks, backend="aot_eager")
    for size, (prediction, gradients) in zip(SIZES_HW, plain, strict=True):
        compiled, compiled_gradients = predict(unet, size)
        torch.testing.assert_close(compiled, prediction, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(compiled_gradients, gradients, rtol=1e-4, atol=1e-6 * float(gradients.abs().max()))
    num_kinds = len({(type(block), *(tuple(p.shape) for p in block.parameters())) for block in blocks})
    assert 0 < counters["stats"]["unique_graphs"] <= 2 * num_kinds
    assert not counters["graph_break"]
    assert config.recompile_limit == limit


def test_blocks_run_as_they_are_after_uncompiling(unet):
    compile_blocks(unet, list_blocks(unet), backend="aot_eager")
    uncompile_blocks(list_blocks(unet))
    predict(unet, (16, 16))
    assert not counters["stats"]["unique_graphs"]


CASES: dict[str, dict[str, Any]] = {
    "checkpointing": {"gradient_checkpointing": True},
    "prior, samples, validation": {
        "prior_loss_weight": 1.0,
        "sample_every_n_steps": 2,
        "sample_steps": 2,
        "validate_every_n_steps": 2,
    },
    "bf16": {"mixed_precision": "bf16", "train_text_encoders": True, "lora_dropout": 0.1},
    "int8": {"base_dtype": "int8"},
}


@pytest.mark.parametrize("name", CASES)
def test_a_compiled_training_has_the_same_losses(train, monkeypatch, name):
    monkeypatch.setattr(prepare, "compile_blocks", partial(compile_blocks, backend="aot_eager"))
    plain, _ = train(blocks_to_swap=0, **CASES[name])
    torch.compiler.reset()
    counters.clear()
    compiled, host = train(blocks_to_swap=0, torch_compile=True, **CASES[name])
    tolerance = 2e-2 if name == "bf16" else 1e-4
    assert compiled.losses == pytest.approx(plain.losses, rel=tolerance)
    assert counters["stats"]["unique_graphs"] and not counters["graph_break"]
    assert not any("torch_compile" in event.message for event in host.select(Notice))


def test_with_streamed_weights_it_is_said_that_nothing_is_compiled(train, monkeypatch):
    monkeypatch.setattr(prepare, "compile_blocks", pytest.fail)
    _, host = train(blocks_to_swap=3, torch_compile=True)
    assert [event.message for event in host.select(Notice) if "torch_compile" in event.message] == [
        "torch_compile is not used: weights of blocks are in main memory"
    ]


def test_without_triton_a_gpu_gets_a_sentence_and_a_cpu_needs_none(monkeypatch):
    monkeypatch.setattr("torch.utils._triton.has_triton_package", lambda: False)
    require_compiler(torch.device("cpu"))
    with pytest.raises(ImportError, match="torch_compile needs the package triton"):
        require_compiler(torch.device("cuda"))
