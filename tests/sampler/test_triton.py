"""The rule in Triton: interpreted on the CPU, against the baseline; and compiled for a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from rsk.check.synthetic import make_batch
from rsk.sampler.implementations import IMPLEMENTATIONS

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="needs the package triton: pip install 'rsk[triton]'",
)


def run(code, interpret):
    """Run code in a process of its own: Triton decides at import whether it interprets."""
    environment = os.environ | {
        "TRITON_INTERPRET": "1" if interpret else "0",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", textwrap.dedent(code)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_triton
@pytest.mark.slow
def test_the_tokens_of_the_baseline():
    """Ragged, certain and mixed drafts, 16 bits, strides, seeds, invalid requests."""
    code = """
        import torch, rsk
        from rsk import check
        from rsk.check.synthetic import make_batch
        from rsk.sampler.implementations import IMPLEMENTATIONS

        triton = IMPLEMENTATIONS["triton"]
        check.assert_agrees(
            triton, mixed=True, examples=30, seed=0, max_elements=1 << 13, large_vocabulary=False
        )
        for spec_len, vocab_size in ((0, 5000), (3, 4096), (4, 9000)):  # up to three slices
            batch = make_batch(3, spec_len, vocab_size, seed=vocab_size)
            for seed in range(2):
                expected = rsk.rejection_sample(*batch, seed=seed, backend="baseline")
                assert torch.equal(triton(*batch, seed=seed).tokens, expected.tokens)
        print("same")
    """
    assert run(code, interpret=True) == "same\n"


@needs_triton
@pytest.mark.slow
def test_it_compiles_for_a_gpu():
    """By Triton's own compiler and ptxas; no two roundings became one, no subnormal became 0."""
    code = """
        import re
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile
        from rsk.sampler import triton_kernels

        CONSTANTS = {"WIDTH": 4, "SIZE": triton_kernels.SLICE, "OUTPUT": 8, "ALL_SLICES": 8}
        WIDE = {"drafts", "seeds", "positions", "tokens", "num_accepted", "totals"}
        for kernel, dtype in (("_add_up", "*fp32"), ("_pick", "*bf16")):
            function = getattr(triton_kernels, kernel)
            signature = {
                name: "constexpr" if name in CONSTANTS
                else "*i64" if name in WIDE
                else dtype if name.endswith("_rows")
                else "i64" if name in ("seed", "position")
                else "i32"
                for name in function.arg_names
            }
            constants = {n: v for n, v in CONSTANTS.items() if n in signature}
            source = ASTSource(function, signature, constants)
            options = triton_kernels.OPTIONS
            compiled = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            assert compiled.asm["cubin"]
            assert re.search(r"\\bsub(\\.rn)?\\.f32", compiled.asm["ptx"])
            assert not re.search(r"\\bfma\\b|\\.ftz", compiled.asm["ptx"])
            print(kernel)
    """
    assert run(code, interpret=False) == "_add_up\n_pick\n"


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets")
def test_on_a_cpu_it_says_what_to_do():
    with pytest.raises(ValueError, match=r"expected tensors on a GPU, got cpu; .*INTERPRET=1"):
        IMPLEMENTATIONS["triton"](*make_batch(1, 1, 5), seed=0)


def test_without_triton_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "rsk.sampler.triton_kernels", raising=False)
    monkeypatch.delattr("rsk.sampler.triton_kernels", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rsk\[triton\]'"):
        IMPLEMENTATIONS["triton"](*make_batch(1, 1, 5), seed=0)


@needs_triton
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_tokens_of_the_baseline_on_a_gpu(dtype):
    from rsk import check

    triton = IMPLEMENTATIONS["triton"]
    check.assert_well_formed(triton, device="cuda")
    check.assert_agrees(triton, mixed=True, examples=100, seed=1, device="cuda")
    batch = make_batch(64, 4, 128256, dtype=dtype, device="cuda")
    expected = IMPLEMENTATIONS["vectorized"](*batch, seed=2)
    got = triton(*batch, seed=2)
    assert torch.equal(got.tokens, expected.tokens)
    assert torch.equal(got.num_accepted, expected.num_accepted)
