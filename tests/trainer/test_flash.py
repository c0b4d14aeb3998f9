"""FlashAttention's part that is ours: what its kernels are given. The kernel here is a fake of the package flash-attn.

It computes with torch's SDPA on a CPU, document by document, in the package's signature; no GPU was near these tests.
"""

import sys
from types import ModuleType
from typing import Any

import deepspeed
import pytest
import torch
import transformers
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, varlen

from packed_models import LENGTHS, MODELS, SMALL, gradients, network, packs
from sft_trainer import attention, engine, flash, flashkernels, recompute
from sft_trainer.flashkernels import Found, Kernel

CALLS: list[list[int]] = []  # edges of every call


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> torch.Tensor:
    """The fake, of version 2's signature."""
    assert causal
    assert cu_seqlens_q is cu_seqlens_k
    assert (q.dim(), dropout_p, cu_seqlens_q.dtype) == (3, 0.0, torch.int32)
    CALLS.append(cu_seqlens_q.tolist())
    sizes = cu_seqlens_q.diff().tolist()
    assert max(sizes) == max_seqlen_q == max_seqlen_k
    outputs = []
    for document in zip(*(tensor.split(sizes) for tensor in (q, k, v)), strict=True):
        query, key, value = (tensor.transpose(0, 1)[None] for tensor in document)
        index = torch.arange(query.shape[2])
        distance = index[:, None] - index
        seen = (distance >= 0) & (distance <= (window_size[0] if window_size[0] >= 0 else len(index)))
        if softcap:
            groups = query.shape[1] // key.shape[1]
            key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
            scores = softcap * torch.tanh(query @ key.mT * softmax_scale / softcap)
            out = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value
        else:
            out = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, seen, scale=softmax_scale, enable_gqa=True
            )
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    fake = ModuleType("flash_attn")
    fake.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    CALLS.clear()
    found = flashkernels.of_package()
    assert found.kernel is not None
    return found.kernel


@pytest.mark.parametrize("checkpointing", ["None", "Selective", "Full"])
@pytest.mark.parametrize("kind", MODELS)
def test_packs_compute_what_sdpa_computes_document_by_document(
    kind: str, checkpointing: Any, kernel: Kernel
) -> None:
    model, (ids, positions) = network(kind).train(), packs()
    assert attention.use_per_document(model)
    expected = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    wanted = gradients(model, expected)
    flash.install(model, kernel)
    recompute.enable(model, checkpointing)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients(model, logits), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert CALLS, "the kernel was not called"


def test_all_documents_of_all_packs_are_one_call_a_layer(kernel: Kernel) -> None:
    model, (ids, positions) = network("llama"), packs()
    flash.install(model, kernel)
    model(input_ids=ids, position_ids=positions, use_cache=False)
    edges = torch.tensor([0, *LENGTHS[0], *LENGTHS[1]]).cumsum(0).tolist()
    assert [edges, edges] == CALLS


def test_padded_rows_are_documents_beside_their_padding(kernel: Kernel) -> None:
    model, (ids, _) = network("mistral"), packs()
    mask = torch.ones_like(ids)
    mask[0, 30:] = 0
    expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    flash.install(model, kernel)
    found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)
    assert CALLS[0] == [0, 30, 48, 96]


def test_scores_are_capped_where_the_model_caps_them(kernel: Kernel) -> None:
    """Gemma 2: transformers has no SDPA for it, and eager attention under a mask otherwise."""
    config = transformers.AutoConfig.for_model(
        "gemma2",
        **SMALL,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=7,
        attn_logit_softcapping=2.0,
    )
    model, (ids, positions) = transformers.AutoModelForCausalLM.from_config(config), packs()
    assert attention.implementation(model) == "eager"
    expected = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    flash.install(model, kernel)
    found = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert flash.heads_of(config).cap == 2.0


HEADS = flashkernels.Heads(query=4, key=2, size=8, window=None, cap=0.0, dropout=0.0)


@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize("cap", [0.0, 1.5])
def test_a_right_kernel_has_no_defect(window: int | None, cap: float, kernel: Kernel) -> None:
    heads = HEADS._replace(window=window, cap=cap)
    with torch.no_grad():  # as the self-check calls it
        assert flashkernels.defect(kernel, heads, torch.float32, torch.device("cpu")) is None


def test_a_wrong_kernel_has_one(kernel: Kernel) -> None:
    def mixes(query: Any, key: Any, value: Any, edges: torch.Tensor, longest: int, **options: Any) -> Any:
        return kernel(query, key, value, edges[[0, -1]], len(query), **options)

    def forgets_a_gradient(query: Any, key: Any, *rest: Any, **options: Any) -> Any:
        return kernel(query, key.detach() + 0 * key, *rest, **options)

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel image is available\nfor this device")

    for wrong, words in ((mixes, "else"), (forgets_a_gradient, "else"), (fails, "fails: no kernel image")):
        found = flashkernels.defect(wrong, HEADS, torch.float32, torch.device("cpu"))  # type: ignore[arg-type]
        assert found is not None
        assert words in found


def test_torchs_own_kernel_is_given_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def varlen_attn(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, **more: Any) -> Any:
        assert set(more) == {"scale", "window_size", "enable_gqa"}
        assert more["enable_gqa"] is (q.shape[1] != k.shape[1])
        assert more["window_size"][1] == 0
        window = {"window_size": (more["window_size"][0], 0)}
        return flash_attn_varlen_func(
            q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=more["scale"], causal=True, **window
        )

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    for heads in (HEADS, HEADS._replace(window=9, key=4)):
        found = flashkernels.of_torch(heads)
        assert found.kernel is not None
        assert found.words == f"torch {torch.__version__}"
        assert flashkernels.defect(found.kernel, heads, torch.float32, torch.device("cpu")) is None
    assert "capped scores" in flashkernels.of_torch(HEADS._replace(cap=2.0)).words
    assert "dropout" in flashkernels.of_torch(HEADS._replace(dropout=0.1)).words


def test_without_the_package_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert flashkernels.of_package().kernel is None
    assert "flash_attn" in flashkernels.of_package().words


def test_torchs_kernel_still_has_the_signature_we_call() -> None:
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    assert list(names)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size", "enable_gqa"} <= set(names)


AMPERE = (8, 0)


@pytest.mark.parametrize(
    ("kind", "more", "dtype", "capability", "words"),
    [
        ("llama", {}, torch.bfloat16, AMPERE, None),
        ("llama", {}, torch.float16, (9, 0), None),
        ("llama", {}, torch.bfloat16, None, "GPUs only"),
        ("llama", {}, torch.bfloat16, (7, 5), "8.0 or newer"),
        ("llama", {}, torch.float32, AMPERE, "bf16 and fp16"),
        ("llama", {"head_dim": 288}, torch.bfloat16, AMPERE, "heads of 288"),
        ("llama", {"head_dim": 20}, torch.bfloat16, AMPERE, "heads of 20"),
        ("bloom", {}, torch.bfloat16, AMPERE, "this architecture"),
    ],
)
def test_what_is_missing_is_named(
    kind: str, more: dict[str, Any], dtype: torch.dtype, capability: Any, words: str | None
) -> None:
    config = transformers.AutoConfig.for_model(kind, **SMALL, **MODELS.get(kind, {}), **more)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    found = flash.missing(model, dtype, capability)
    assert found is None if words is None else words in str(found)


def test_dropout_of_attention_is_found_by_each_of_its_names() -> None:
    config = transformers.AutoConfig.for_model("gpt2", attn_pdrop=0.1)
    assert flash.heads_of(config) == flashkernels.Heads(12, 12, 64, None, 0.0, 0.1)


def test_on_a_cpu_there_is_none() -> None:
    assert flash.find(network("llama"), torch.bfloat16, torch.device("cpu")) == Found(
        None, "it computes on GPUs only"
    )


def test_torchs_kernel_is_never_cudnns(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper = 9
    monkeypatch.setattr(varlen, "_cudnn_version_and_major_capability", lambda device: (92600, hopper))
    monkeypatch.setattr(varlen, "_should_use_cudnn", lambda device: True)
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **_: None)
    with FakeTensorMode():
        heads = torch.empty(24, 4, 64, dtype=torch.bfloat16, device="cuda")
        edges = torch.empty(3, dtype=torch.int32, device="cuda")

    def picked() -> str:
        backend = varlen._select_backend(heads, heads, heads, edges, edges, 16, [-1, 0])
        return SDPBackend(backend).name

    assert picked() == "CUDNN_ATTENTION"
    try:
        engine.prepare("gpu")
        assert picked() == "FLASH_ATTENTION"
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
