"""The mathematics of the LoRA tools, compared with whole matrices."""

import math

import pytest
import torch
from torch import Tensor

from trainers.lora.modules import LoraModule
from trainers.lora.tools.kinds import name_kind, to_low_rank
from trainers.lora.tools.low_rank import choose_rank, join, truncate_matrix, truncate_product


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def multiply(module: LoraModule) -> Tensor:
    """The update as a matrix, by the definition alpha / rank * up @ down."""
    return module.alpha / module.rank * module.up.flatten(1).double() @ module.down.flatten(1).double()


MODULES = {
    "linear": LoraModule(draw(6, 40), draw(24, 6, seed=1), 3.0),
    "convolution": LoraModule(draw(6, 5, 3, 3), draw(24, 6, 1, 1, seed=1), 3.0),
    "more ranks than inputs": LoraModule(draw(60, 8), draw(24, 60, seed=1), 60.0),
    "negative": LoraModule(draw(6, 40), draw(24, 6, seed=1), -3.0),
}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_the_error_of_a_cut_is_the_norm_of_the_singular_values_that_were_cut_off(module: LoraModule):
    update = multiply(module)
    values = torch.linalg.svdvals(update)
    for rank in (1, 4):
        cut = truncate_product(module, rank=rank)
        assert cut.module.rank == cut.module.alpha == rank
        assert math.isclose(cut.norm, float(update.norm()), rel_tol=1e-6)
        assert math.isclose(cut.error, float(values[rank:].norm()), rel_tol=1e-5)
        measured = (update - multiply(cut.module)).norm()
        assert math.isclose(float(measured), cut.error, rel_tol=1e-5), "no matrix of this rank is nearer"


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_a_cut_that_keeps_everything_has_the_same_effect_in_the_layers_own_shape(module: LoraModule):
    cut = truncate_product(module)
    assert cut.module.rank == min(module.rank, 8 if module.rank == 60 else 6)
    assert cut.module.down.shape[1:] == module.down.shape[1:] and cut.module.up.shape[2:] == module.up.shape[2:]
    torch.testing.assert_close(multiply(cut.module), multiply(module), rtol=1e-5, atol=1e-5)
    assert cut.error < 1e-6 * cut.norm


def test_a_share_of_the_norm_keeps_as_few_singular_values_as_it_needs():
    values = torch.tensor([4.0, 2.0, 2.0, 1.0])  # squares 16, 4, 4, 1 of 25
    shares = {0.7: 1, 0.8: 1, 0.81: 2, math.sqrt(20 / 25): 2, 0.9: 3, 0.99: 4, 1.0: 4}
    assert {share: choose_rank(values, 5.0, rank=0, norm_share=share) for share in shares} == shares
    assert choose_rank(values, 5.0, rank=2, norm_share=0.99) == 2
    assert choose_rank(torch.tensor([1.0, 1e-9]), 1.0, rank=0, norm_share=1.0) == 1, "rounding is no rank"
    assert choose_rank(torch.zeros(3), 0.0, rank=2, norm_share=0.5) == 1


def test_a_sum_is_exact_and_its_ranks_add_up():
    first, second = MODULES["linear"], LoraModule(draw(2, 40, seed=2), draw(24, 2, seed=3), 7.0)
    joined = join([(first, 0.5), (second, -2.0)])
    assert joined.rank == joined.alpha == 8
    torch.testing.assert_close(multiply(joined), 0.5 * multiply(first) - 2 * multiply(second), rtol=1e-5, atol=1e-5)


def test_a_flattened_convolution_is_added_in_the_shape_of_the_other():
    convolution = MODULES["convolution"]
    flat = LoraModule(draw(2, 45, seed=2), draw(24, 2, seed=3), 2.0)
    joined = join([(flat, 1.0), (convolution, 1.0)])
    assert joined.down.shape == (8, 5, 3, 3) and joined.up.shape == (24, 8, 1, 1)
    torch.testing.assert_close(multiply(joined), multiply(flat) + multiply(convolution), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(300, 200), (200, 30, 3, 3)], ids=["linear", "convolution"])
def test_a_matrix_of_low_rank_is_found_again_in_a_random_subspace(shape: tuple[int, ...]):
    weight = (draw(shape[0], 8) @ draw(8, math.prod(shape[1:]), seed=1)).reshape(shape)
    cut = truncate_matrix(weight, rank=8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(multiply(cut.module).float(), weight.flatten(1), rtol=1e-4, atol=1e-4)
    assert cut.error < 1e-5 * cut.norm and cut.module.down.shape[1:] == weight.shape[1:]


def test_the_random_subspace_is_as_good_as_the_exact_cut_on_a_full_spectrum():
    weight = draw(400, 300) * 0.01 + draw(400, 40, seed=1) @ draw(40, 300, seed=2)
    exact = float(torch.linalg.svdvals(weight.double())[16:].norm())
    cut = truncate_matrix(weight, rank=16, generator=torch.Generator().manual_seed(0))
    assert exact <= cut.error * (1 + 1e-6) < exact * 1.001


def test_the_same_matrix_gives_the_same_lora_whatever_was_drawn_before():
    weight = draw(300, 200)
    torch.manual_seed(1)
    first = truncate_matrix(weight, rank=4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    second = truncate_matrix(weight, rank=4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.module.up, second.module.up)


# ---- other kinds of adapters, by LyCORIS' formulas ----

ALPHA = torch.tensor(2.0)
KINDS = {
    "LoRA without alpha": (
        {"lora_down.weight": draw(3, 10), "lora_up.weight": draw(8, 3, seed=1)},
        lambda p: p["lora_up.weight"] @ p["lora_down.weight"],
    ),
    "LoRA with Tucker decomposition": (
        {
            "lora_down.weight": draw(3, 10, 1, 1),
            "lora_mid.weight": draw(3, 3, 3, 3, seed=1),
            "lora_up.weight": draw(8, 3, 1, 1, seed=2),
            "alpha": ALPHA,
        },
        lambda p: (
            2
            / 3
            * torch.einsum(
                "or,rshw,si->oihw",
                p["lora_up.weight"].flatten(1),
                p["lora_mid.weight"],
                p["lora_down.weight"].flatten(1),
            )
        ),
    ),
    "LoHa": (
        {
            "hada_w1_a": draw(8, 3),
            "hada_w1_b": draw(3, 10, seed=1),
            "hada_w2_a": draw(8, 3, seed=2),
            "hada_w2_b": draw(3, 10, seed=3),
            "alpha": ALPHA,
        },
        lambda p: 2 / 3 * (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"]),
    ),
    "LoHa with Tucker decomposition": (
        {
            **{f"hada_t{half}": draw(3, 3, 3, 3, seed=half) for half in (1, 2)},
            **{f"hada_w{half}_a": draw(3, 8, seed=2 + half) for half in (1, 2)},
            **{f"hada_w{half}_b": draw(3, 10, seed=4 + half) for half in (1, 2)},
            "alpha": ALPHA,
        },
        lambda p: (
            2
            / 3
            * math.prod(
                torch.einsum("ijkl,jr,ip->prkl", p[f"hada_t{half}"], p[f"hada_w{half}_b"], p[f"hada_w{half}_a"])
                for half in (1, 2)
            )
        ),
    ),
    "LoKr of whole matrices": (
        {"lokr_w1": draw(2, 2), "lokr_w2": draw(4, 5, seed=1), "alpha": ALPHA},
        lambda p: torch.kron(p["lokr_w1"], p["lokr_w2"]),
    ),
    "LoKr of factors": (
        {
            "lokr_w1_a": draw(2, 1),
            "lokr_w1_b": draw(1, 2, seed=1),
            "lokr_w2_a": draw(4, 3, seed=2),
            "lokr_w2_b": draw(3, 5, seed=3),
            "alpha": ALPHA,
        },
        lambda p: 2 / 3 * torch.kron(p["lokr_w1_a"] @ p["lokr_w1_b"], p["lokr_w2_a"] @ p["lokr_w2_b"]),
    ),
    "LoKr on a convolution": (
        {"lokr_w1": draw(2, 2), "lokr_w2": draw(4, 5, 3, 3, seed=1)},
        lambda p: torch.kron(p["lokr_w1"][:, :, None, None], p["lokr_w2"]),
    ),
    "LoKr with Tucker decomposition": (
        {
            "lokr_w1": draw(2, 2),
            "lokr_t2": draw(3, 3, 3, 3, seed=1),
            "lokr_w2_a": draw(3, 4, seed=2),
            "lokr_w2_b": draw(3, 5, seed=3),
            "alpha": ALPHA,
        },
        lambda p: (
            2
            / 3
            * torch.kron(
                p["lokr_w1"][:, :, None, None],
                torch.einsum("ijkl,jr,ip->prkl", p["lokr_t2"], p["lokr_w2_b"], p["lokr_w2_a"]).contiguous(),
            )
        ),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_becomes_an_equal_update_of_low_rank(kind: str):
    parts, formula = KINDS[kind]
    module = to_low_rank(parts, kind)
    expected = formula(parts)
    assert name_kind(parts) == kind.split()[0]
    assert module.down.ndim == expected.ndim
    torch.testing.assert_close(multiply(module).float(), expected.flatten(1), rtol=1e-4, atol=1e-4)


def test_a_dora_an_incomplete_module_and_sizes_that_do_not_fit_are_named():
    plain, _ = KINDS["LoRA without alpha"]
    with pytest.raises(ValueError, match="x is a DoRA: what it does depends on the base model's weights"):
        to_low_rank({**plain, "dora_scale": draw(8, 1)}, "x")
    with pytest.raises(ValueError, match=r"x has no lora_down\.weight; the file is not complete"):
        to_low_rank({"lora_up.weight": draw(8, 3)}, "x")
    with pytest.raises(ValueError, match=r"x: its tensors do not belong together \(down \[3, 10\], up \[8, 4\]\)"):
        to_low_rank({**plain, "lora_up.weight": draw(8, 4)}, "x")
