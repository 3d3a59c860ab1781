"""Whole SDXL trainings of a DoRA, a LoHa and a LoKr: files, precision, resume, where they start."""

import json
from functools import partial
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.unit.sdxl import test_trainer
from tests.unit.sdxl.test_trainer import (  # noqa: F401 (fixtures)
    RecordingHost,
    copy_model,
    dataset,
    list_names,
    weights,
)
from trainers.files.tensor_cache import TensorCache
from trainers.lora.read import read_lora
from trainers.sdxl.check.family_check import SDXLCheck
from trainers.sdxl.config import BASE_DTYPES, SDXLConfig
from trainers.sdxl.merge import merged_lora
from trainers.sdxl.start import check_settings
from trainers.training.events import Interrupted, StepDone

TARGETS = r".*(attn1\.to_q|attn2\.to_k|ff\.net\.2|resnets\.0\.conv1|downsamplers\.0\.conv)"
train = partial(test_trainer.train, target_modules=TARGETS, save_dtype="fp32")
KINDS: dict[str, dict[str, Any]] = {
    "dora": {"adapter": "dora"},
    "loha": {"adapter": "loha"},
    "lokr": {"adapter": "lokr", "lokr_factor": 4},
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


@pytest.fixture(scope="module")
def loras(weights, dataset, tmp_path_factory):  # noqa: F811
    """One finished training of each kind, by its name."""
    return {
        name: train(weights, dataset, tmp_path_factory.mktemp(name), max_train_steps=6, learning_rate=1e-2, **kind)
        for name, kind in KINDS.items()
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_run_learns_and_writes_a_verified_file_in_lycoris_names(loras, name):
    trained = loras[name]
    endings = {
        "dora": {"lora_down.weight", "lora_up.weight", "dora_scale", "alpha"},
        "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"},
        "lokr": {"lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha"},
    }[name]
    tensors = load_file(trained.path)
    assert {key.partition(".")[2] for key in tensors} >= endings
    assert trained.losses[-1] < trained.losses[0] * 2 and all(torch.isfinite(torch.tensor(trained.losses)))
    with safe_open(trained.path, "pt") as file:
        header = file.metadata()
    args = json.loads(header["ss_network_args"])
    assert header["ss_network_module"] == "lycoris.kohya"
    assert args["algo"] == {"dora": "lora"}.get(name, name) and args["target_modules"] == TARGETS
    assert args.get("dora_wd") == ("True" if name == "dora" else None)
    assert args.get("factor") == ("4" if name == "lokr" else None)


@each_kind
@pytest.mark.parametrize(
    "settings",
    [
        {"mixed_precision": "bf16"},
        {"mixed_precision": "fp16", "gradient_checkpointing": True},
        {"train_text_encoders": True, "ema_decay": 0.5},
        {"prior_loss_weight": 0.5, "class_prompt": "a thing"},
        {"blocks_to_swap": 1000},
        {"train_batch_size": 1, "gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_it_trains_as_a_lora_does_with_every_setting(weights, dataset, tmp_path, kind, settings):  # noqa: F811
    trained = train(weights, dataset, tmp_path, max_train_steps=2, **kind, **settings)
    assert all(torch.isfinite(tensor).all() for tensor in load_file(trained.path).values())
    assert trained.ema_path is None or trained.ema_path.is_file()


@each_kind
@pytest.mark.parametrize("settings", [{"blocks_to_swap": 1000}, {"gradient_checkpointing": True}], ids=str)
def test_streaming_and_recomputation_change_nothing(weights, dataset, tmp_path, kind, settings):  # noqa: F811
    plain = train(weights, dataset, tmp_path, name="plain", **kind)
    other = train(weights, dataset, tmp_path, name="other", **kind, **settings)
    torch.testing.assert_close(torch.tensor(other.losses), torch.tensor(plain.losses), rtol=1e-5, atol=0)


@each_kind
@pytest.mark.parametrize("base_dtype", [name for name in BASE_DTYPES if name != "nf4"])
def test_it_trains_on_a_base_of_fewer_bits(weights, dataset, tmp_path, kind, base_dtype):  # noqa: F811
    plain = train(weights, dataset, tmp_path, name="plain", **kind)
    other = train(weights, dataset, tmp_path, name="other", base_dtype=base_dtype, **kind)
    torch.testing.assert_close(torch.tensor(other.losses), torch.tensor(plain.losses), rtol=0.05, atol=0)


@each_kind
def test_a_stopped_run_equals_one_that_was_not(weights, dataset, tmp_path, kind):  # noqa: F811
    given = {**kind, "ema_decay": 0.5, "lora_dropout": 0.2, "resume": "auto"}
    whole = train(weights, dataset, tmp_path / "whole", **given)
    with pytest.raises(Interrupted):
        train(weights, dataset, tmp_path / "parts", host=RecordingHost(cancel_at_step=2), **given)
    host = RecordingHost()
    trained = train(weights, dataset, tmp_path / "parts", host=host, **given)
    assert len(host.select(StepDone)) == 2 and trained.losses == whole.losses
    assert all(torch.equal(trained.state_dict[name], tensor) for name, tensor in whole.state_dict.items())


@pytest.mark.parametrize("name", KINDS)
def test_training_continues_from_a_file_of_its_kind_at_its_strength(weights, dataset, tmp_path, loras, name):  # noqa: F811
    start = {"network_weights": str(loras[name].path), "alpha": 2.0, "learning_rate": 1e-9, "max_train_steps": 1}
    continued = train(weights, dataset, tmp_path, **KINDS[name], **start)
    names, model = list_names(weights), copy_model(weights)
    layers = dict(model.unet.named_modules())
    found, expected = (read_lora(trained.path, names) for trained in (continued, loras[name]))
    assert found.keys() == expected.keys()
    for (_, path), module in expected.items():
        weight = layers[path].weight.detach()
        merged = found["unet", path].merge_into(weight, 1.0)
        torch.testing.assert_close(merged, module.merge_into(weight, 1.0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_another_kind_is_refused_before_anything_is_loaded(loras, name):
    config = SDXLConfig(adapter="lora", network_weights=str(loras[name].path))
    kind = {"dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}[name]
    with pytest.raises(ValueError, match=f"the file is a {kind}, and this run trains a LoRA. Set adapter to {name}"):
        check_settings(config)


def test_a_lokr_of_another_factor_is_refused_before_the_first_image_is_encoded(weights, dataset, tmp_path, loras):  # noqa: F811
    host = RecordingHost()
    with pytest.raises(ValueError, match=r"this run .*Set rank, lokr_factor, lokr_decompose_both"):
        train(
            weights,
            dataset,
            tmp_path,
            host=host,
            adapter="lokr",
            lokr_factor=2,
            network_weights=str(loras["lokr"].path),
        )
    assert not host.select(StepDone) and not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("name", KINDS)
def test_merging_for_sampling_gives_the_weights_back(weights, loras, name):  # noqa: F811
    model = copy_model(weights)
    modules = read_lora(loras[name].path, list_names(weights))
    before = {path: tensor.clone() for path, tensor in model.unet.state_dict().items()}
    with merged_lora(modules, {"unet": model.unet}, strength=0.5):
        changed = [path for path, tensor in model.unet.state_dict().items() if not torch.equal(tensor, before[path])]
    assert len(changed) == len(modules)
    assert all(torch.equal(tensor, before[path]) for path, tensor in model.unet.state_dict().items())


def test_lokr_factor_zero_is_refused():
    with pytest.raises(ValueError, match="lokr_factor must be -1, or 1 or more, got 0"):
        SDXLConfig(lokr_factor=0)


def test_convolutions_are_trained_with_their_own_rank_and_go_on_from_their_file(weights, dataset, tmp_path):  # noqa: F811
    given = {"target_modules": "attention", "rank": 4, "conv_rank": 2, "conv_alpha": 0.5, "use_rslora": True}
    trained = train(weights, dataset, tmp_path, name="first", learning_rate=1e-2, **given)
    modules = read_lora(trained.path, list_names(weights))
    ranks = {module.rank for module in modules.values() if module.down.shape[2:] == (3, 3)}
    others = {module.rank for module in modules.values() if module.down.shape[2:] != (3, 3)}
    assert (ranks, others) == ({2}, {4}) and trained.metadata["ss_network_alpha"] == "2.0"  # alpha 1, times sqrt(4)
    args = json.loads(trained.metadata["ss_network_args"])
    assert trained.metadata["ss_network_module"] == "networks.lora"
    assert (args["conv_dim"], float(args["conv_alpha"])) == ("2", pytest.approx(0.5 * 2**0.5, rel=1e-5))
    start = {"network_weights": str(trained.path), "learning_rate": 1e-9, "max_train_steps": 1}
    more = read_lora(train(weights, dataset, tmp_path, name="next", **given, **start).path, list_names(weights))
    for key, module in modules.items():
        torch.testing.assert_close(
            more[key].scale * more[key].multiply(), module.scale * module.multiply(), rtol=1e-4, atol=1e-6
        )


DROPOUTS = {"rank_dropout": 0.3, "module_dropout": 0.3, "scale_weight_norms": 0.01, "learning_rate": 1e-2}


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_a_run_with_dropouts_and_a_norm_resumes_and_recomputes_bit_for_bit(weights, dataset, tmp_path, adapter):  # noqa: F811
    given = {**DROPOUTS, "adapter": adapter, "resume": "auto", "gradient_checkpointing": True}
    whole = train(weights, dataset, tmp_path / "whole", **given)
    with pytest.raises(Interrupted):
        train(weights, dataset, tmp_path / "parts", host=RecordingHost(cancel_at_step=2), **given)
    trained = train(weights, dataset, tmp_path / "parts", **given)
    assert trained.losses == whole.losses
    assert all(torch.equal(trained.state_dict[name], tensor) for name, tensor in whole.state_dict.items())
    kept = train(weights, dataset, tmp_path / "kept", **{**given, "gradient_checkpointing": False})
    torch.testing.assert_close(torch.tensor(kept.losses), torch.tensor(whole.losses), rtol=1e-5, atol=0)
    modules = read_lora(trained.path, list_names(weights)).values()
    assert max(module.scale * module.measure() for module in modules) == pytest.approx(0.01, rel=1e-3)
    assert trained.metadata["ss_scale_weight_norms"] == "0.01"
    args = json.loads(trained.metadata["ss_network_args"])
    assert (args["rank_dropout"], args["module_dropout"]) == ("0.3", "0.3")


# ---- ranks and learning rates of single layers ----

OF_LAYERS = {
    "rank": 2,
    "alpha": 1.0,
    "network_reg_dims": "resnets=3, attn2=6",
    "network_reg_lrs": "ff.net=1e-9",
    "learning_rate": 1e-2,
}


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_layers_have_ranks_and_learning_rates_of_their_own(weights, dataset, tmp_path, adapter):  # noqa: F811
    given = {**OF_LAYERS, "adapter": adapter, "resume": "auto"}
    trained = train(weights, dataset, tmp_path / "whole", **given)
    modules = read_lora(trained.path, list_names(weights))
    for (_, path), module in modules.items():
        rank = 3 if "resnets" in path else 6 if "attn2" in path else 2
        assert (module.rank, module.scale) == (rank, 0.5)
        moved = (module.scale * module.up).abs().max()
        assert moved < 1e-6 if "ff.net" in path else moved > 1e-4
    assert {path.split(".")[-1] for _, path in modules} >= {"conv1", "to_k", "2", "to_q"}
    args = json.loads(trained.metadata["ss_network_args"])
    assert (args["network_reg_dims"], args["network_reg_lrs"]) == ("resnets=3, attn2=6", "ff.net=1e-9")
    assert trained.metadata["ss_unet_lr"] == "0.01" and trained.metadata["ss_network_dim"] == "2"
    with pytest.raises(Interrupted):
        train(weights, dataset, tmp_path / "parts", host=RecordingHost(cancel_at_step=2), **given)
    again = train(weights, dataset, tmp_path / "parts", **given)
    assert again.losses == trained.losses
    assert all(torch.equal(again.state_dict[name], tensor) for name, tensor in trained.state_dict.items())
    start = {"network_weights": str(trained.path), "max_train_steps": 1, "learning_rate": 1e-9, "resume": "new"}
    more = read_lora(train(weights, dataset, tmp_path / "more", **{**given, **start}).path, list_names(weights))
    for key, module in modules.items():
        torch.testing.assert_close(
            more[key].scale * more[key].multiply(), module.scale * module.multiply(), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("setting", ["network_reg_dims", "network_reg_lrs"])
def test_an_expression_for_no_layer_is_refused_before_the_first_image_is_encoded(weights, dataset, tmp_path, setting):  # noqa: F811
    cache = TensorCache(tmp_path / "cache")
    with pytest.raises(ValueError, match=f"{setting}: 'atn2' matches no layer that is trained"):
        train(weights, dataset, tmp_path, cache=cache, **{setting: "atn2=1"})
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_flight_check_refuses_an_expression_for_no_layer():
    with pytest.raises(ValueError, match="network_reg_lrs: 'mid_blok' matches no layer that is trained"):
        SDXLCheck().check_settings(SDXLConfig(network_reg_lrs="mid_blok=1e-4"))


def test_prodigy_refuses_learning_rates_of_single_layers():
    config = SDXLConfig(optimizer="Prodigy", learning_rate=1.0, network_reg_lrs="mid_block=0.5")
    with pytest.raises(
        ValueError, match=r"Prodigy finds one learning rate .* leave network_reg_lrs empty and loraplus_lr_ratio 0"
    ):
        check_settings(config)

    with pytest.raises(ValueError, match=r"Prodigy finds one learning rate .*\[1\.0, 16\.0\]"):
        check_settings(SDXLConfig(optimizer="Prodigy", learning_rate=1.0, loraplus_lr_ratio=16.0))


# ---- LoRA+ ----


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_up_matrices_learn_at_a_multiple_of_the_rate(weights, dataset, tmp_path, adapter):  # noqa: F811
    """A step of Adam has the size of its learning rate, whatever the gradient."""
    given = {"adapter": adapter, "max_train_steps": 1, "learning_rate": 1e-6, "lr_warmup_steps": 0.0}
    plain, plus = (
        read_lora(
            train(weights, dataset, tmp_path / str(ratio), loraplus_lr_ratio=ratio, **given).path, list_names(weights)
        )
        for ratio in (0.0, 16.0)
    )
    for key, module in plain.items():
        torch.testing.assert_close(plus[key].up, 16 * module.up, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(plus[key].down, module.down, rtol=0, atol=0)


def test_a_run_with_lora_plus_resumes_bit_for_bit(weights, dataset, tmp_path):  # noqa: F811
    given = {**OF_LAYERS, "loraplus_lr_ratio": 4.0, "train_text_encoders": True, "ema_decay": 0.5, "resume": "auto"}
    whole = train(weights, dataset, tmp_path / "whole", **given)
    assert json.loads(whole.metadata["ss_network_args"])["loraplus_lr_ratio"] == "4"
    with pytest.raises(Interrupted):
        train(weights, dataset, tmp_path / "parts", host=RecordingHost(cancel_at_step=2), **given)
    again = train(weights, dataset, tmp_path / "parts", **given)
    assert again.losses == whole.losses
    assert all(torch.equal(again.state_dict[name], tensor) for name, tensor in whole.state_dict.items())


def test_lora_plus_of_kinds_without_up_matrices_is_refused():
    with pytest.raises(ValueError, match=r"loraplus_lr_ratio is for adapter lora and dora, .* not for lokr"):
        SDXLConfig(adapter="lokr", loraplus_lr_ratio=4.0)


# ---- T-LoRA ----


def test_a_t_lora_trains_only_the_ranks_of_its_timesteps_and_saves_an_ordinary_file(weights, dataset, tmp_path):  # noqa: F811
    """From timestep 900 on, 2 + floor(6 * 100 / 1000) = 2 of 8 ranks are trained."""
    given = {"rank": 8, "tlora_min_rank": 2, "min_timestep": 900, "learning_rate": 1e-2}
    trained = train(weights, dataset, tmp_path, prior_loss_weight=0.5, class_prompt="a thing", **given)
    assert {key.partition(".")[2] for key in trained.state_dict} == {"lora_down.weight", "lora_up.weight", "alpha"}
    for module in read_lora(trained.path, list_names(weights)).values():
        up = module.up.flatten(1)
        assert up.shape[1] == 8 and bool(up[:, :2].any(0).all()) and not up[:, 2:].any()
    assert json.loads(trained.metadata["ss_network_args"])["tlora_min_rank"] == "2"


def test_a_t_lora_resumes_and_recomputes_bit_for_bit(weights, dataset, tmp_path):  # noqa: F811
    given = {"rank": 8, "tlora_min_rank": 2, "learning_rate": 1e-2, "train_text_encoders": True, "resume": "auto"}
    whole = train(weights, dataset, tmp_path / "whole", gradient_checkpointing=True, **given)
    with pytest.raises(Interrupted):
        host = RecordingHost(cancel_at_step=2)
        train(weights, dataset, tmp_path / "parts", host=host, gradient_checkpointing=True, **given)
    again = train(weights, dataset, tmp_path / "parts", gradient_checkpointing=True, **given)
    assert again.losses == whole.losses
    assert all(torch.equal(again.state_dict[name], tensor) for name, tensor in whole.state_dict.items())
    kept = train(weights, dataset, tmp_path / "kept", gradient_checkpointing=False, **given)
    torch.testing.assert_close(torch.tensor(kept.losses), torch.tensor(whole.losses), rtol=1e-5, atol=0)
    plain = train(weights, dataset, tmp_path / "plain", gradient_checkpointing=False, **{**given, "tlora_min_rank": 0})
    assert plain.losses != kept.losses


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter": "dora", "tlora_min_rank": 2}, "tlora_min_rank is for adapter lora, not for dora"),
        ({"rank": 4, "tlora_min_rank": 4}, "tlora_min_rank 4 must be below rank 4"),
    ],
)
def test_a_t_lora_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SDXLConfig(**settings)


@pytest.mark.parametrize("settings", [{}, {"blocks_to_swap": 1000}, {"base_dtype": "int8"}], ids=str)
def test_a_run_that_starts_with_singular_vectors_resumes_bit_for_bit(weights, dataset, tmp_path, settings):  # noqa: F811
    given = {"init_lora_weights": "svd", "rank": 4, "learning_rate": 1e-3, "resume": "auto", **settings}
    whole = train(weights, dataset, tmp_path / "whole", **given)
    with pytest.raises(Interrupted):
        train(weights, dataset, tmp_path / "parts", host=RecordingHost(cancel_at_step=2), **given)
    again = train(weights, dataset, tmp_path / "parts", **given)
    assert again.losses == whole.losses
    assert all(torch.equal(again.state_dict[name], tensor) for name, tensor in whole.state_dict.items())
    assert {key.partition(".")[2] for key in whole.state_dict} == {"lora_down.weight", "lora_up.weight", "alpha"}
