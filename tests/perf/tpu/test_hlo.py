# SPDX-License-Identifier: Apache-2.0
"""Costs read from compiled programs' text, small enough to be added up by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.perf.tpu import hlo
from albert_jax.perf.tpu.cost_model import step_cost
from albert_jax.perf.tpu.topology import parse_slice

V5E = parse_slice("v5e:2x2")

# As libtpu prints a scan in a scan, with what no sum needs left out.
NESTED = """HloModule jit_step, is_scheduled=true

FileNames
1 "step.py"

%fused_computation.1 (param_0: bf16[8,16], param_1: bf16[16,32]) -> bf16[8,32] {
  %param_0 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[16,32]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = bf16[8,32]{1,0:T(8,128)(2,1)} convolution(%param_0, %param_1), \
dim_labels=bf_io->bf, backend_config={"window_config":{"estimated_cycles":"999999"}}
}

%inner_condition (p: (s32[], bf16[8,16])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(5)
  %p = (s32[], bf16[8,16]{1,0}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%at, %constant.9), direction=LT
}

%inner_body (q: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %one = s32[]{:T(128)} constant(1)
  %q = (s32[], bf16[8,16]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  %x = bf16[8,16]{1,0} get-tuple-element(%q), index=1
  %w = bf16[16,32]{1,0} constant({...})
  %dot_fusion = bf16[8,32]{1,0:T(8,128)(2,1)} fusion(%x, %w), kind=kOutput, \
calls=%fused_computation.1, metadata={op_name="jit(step)/ffn/dot_general" stack_frame_id=3}, \
backend_config={"window_config":{"kernel_window_bounds":[],"estimated_cycles":"300"}}
  %next = s32[]{:T(128)} add(%i, %one), backend_config={"estimated_cycles":"0"}
  ROOT %out = (s32[], bf16[8,16]{1,0}) tuple(%next, %x)
}

%outer_condition (r: (s32[], bf16[8,16])) -> pred[] {
  %constant.8 = s32[]{:T(128)} constant(9)
  %r = (s32[], bf16[8,16]{1,0}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%r), index=0
  ROOT %less = pred[]{:T(512)} compare(%count, %constant.8), direction=LT
}

%outer_body (s: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %two = s32[]{:T(128)} constant(2)
  %zero = s32[]{:T(128)} constant(0)
  %s = (s32[], bf16[8,16]{1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%s), index=0
  %y = bf16[8,16]{1,0} get-tuple-element(%s), index=1
  %negate.1 = bf16[8,16]{1,0} negate(%y), backend_config={"estimated_cycles":"50"}
  %begin = (s32[], bf16[8,16]{1,0}) tuple(%zero, %negate.1)
  %inner = (s32[], bf16[8,16]{1,0}) while(%begin), condition=%inner_condition, body=%inner_body
  %z = bf16[8,16]{1,0} get-tuple-element(%inner), index=1
  %after = s32[]{:T(128)} add(%j, %two), backend_config={"estimated_cycles":"0"}
  ROOT %carried = (s32[], bf16[8,16]{1,0}) tuple(%after, %z)
}

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (weights: bf16[8,16], long: f32[1500000]) -> f32[1000,100] {
  %weights = bf16[8,16]{1,0} parameter(0)
  %long = f32[1500000]{0} parameter(1)
  %three = s32[]{:T(128)} constant(3)
  %three.copy = s32[]{:T(128)} copy(%three), backend_config={"estimated_cycles":"0"}
  %start = (s32[], bf16[8,16]{1,0}) tuple(%three.copy, %weights)
  %copy-start = (f32[1500000]{0:S(1)}, f32[1500000]{0}, u32[]{:S(2)}) copy-start(%long)
  %outer = (s32[], bf16[8,16]{1,0}) while(%start), condition=%outer_condition, body=%outer_body
  %copy-done = f32[1500000]{0:S(1)} copy-done(%copy-start)
  %grad = f32[1000,100]{1,0} fusion(%copy-done), kind=kLoop, calls=%add.1, \
metadata={op_name="jit(step)/grad"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  ROOT %all-reduce.1 = f32[1000,100]{1,0:T(8,128)} all-reduce(%grad), channel_id=1, \
replica_groups=mesh['axis_0'=4] {'axis_0'}, to_apply=%add.1, metadata={op_name="jit(step)/psum"}
}
"""
# 3 turns of (50 + 5 turns of 300), and 1000 after.
NESTED_CYCLES = 3 * (50 + 5 * 300) + 1000


def test_loops_in_loops_fusions_and_copies_are_counted_once_for_each_turn():
    cost = step_cost(hlo.parse_program(NESTED), V5E)
    assert cost.unknown_loops == []
    cycles = sum(each.seconds for each in cost.of_kind("cycles"))
    assert cycles == pytest.approx(NESTED_CYCLES / 1.5e9)
    assert cost.flops == 15 * 2 * 8 * 16 * 32
    dots = next(each for each in cost.merged() if each.source == "jit(step)/ffn/dot_general")
    assert (dots.times, dots.kind) == (15, "cycles")
    # 6 MB take 7.33 us from HBM, of which the loop hides its own time.
    (waited,) = cost.of_kind("copy")
    hidden = 3 * (50 + 5 * 300) / 1.5e9
    assert waited.seconds == pytest.approx(6e6 / 819e9 - hidden)
    # 0.4 MB, of which 3/4 passes twice, over two links of a corner of 2x2.
    (reduced,) = cost.of_kind("collective")
    assert (reduced.name, reduced.bytes) == ("all-reduce", 400_000)
    assert reduced.seconds == pytest.approx(2 * 0.75 * 400_000 / 90e9)
    assert cost.seconds == pytest.approx(cycles + waited.seconds + reduced.seconds)


def test_entries_of_tuples_are_operands_or_gotten():
    """As libtpu 0.0.50 prints them: `%s#1` for what 0.0.42 gets by an instruction of its own."""
    short, gets = (
        NESTED,
        re.findall(r"  %(\w+) = \S+ get-tuple-element\(%(\w+)\), index=(\d)\n", NESTED),
    )
    for name, whole, index in gets:
        short = re.sub(rf"  %{name} = .*get-tuple-element.*\n", "", short)
        short = re.sub(rf"%{name}\b", f"%{whole}#{index}", short)
    assert "get-tuple-element" not in short
    found, expected = (step_cost(hlo.parse_program(text), V5E) for text in (short, NESTED))
    assert len(gets) == 7
    assert found == expected


def test_an_entry_of_a_nested_tuple_has_its_shape():
    program = hlo.parse_program(
        "ENTRY %main (p: (f32[2], (s32[], f32[3,4]))) -> f32[3,4] {\n"
        "  %p = (f32[2]{0}, /*index=1*/(s32[], f32[3,4]{1,0:T(8,128)})) parameter(0)\n"
        "  ROOT %n = f32[3,4]{1,0} negate(%p#1#1)\n"
        "}\n"
    )
    assert program.entry.instructions["p#1#1"].bytes == 48


def test_a_copy_that_the_program_hides_costs_nothing():
    cost = step_cost(hlo.parse_program(NESTED.replace('"300"', '"30000"')), V5E)
    assert [each.seconds for each in cost.of_kind("copy")] == [0.0]


def test_one_chip_has_nobody_to_reduce_with():
    cost = step_cost(hlo.parse_program(NESTED), parse_slice("v5e:1x1"))
    assert [each.seconds for each in cost.of_kind("collective")] == [0.0]


@pytest.mark.parametrize(
    ("change", "turns"),
    [
        (("direction=LT\n}\n\n%outer_body", "direction=LE\n}\n\n%outer_body"), 4),
        (("constant(9)", "constant(3)"), 0),
        (("%three = s32[]{:T(128)} constant(3)", "%three = s32[]{:T(128)} constant(8)"), 1),
        (("%two = s32[]{:T(128)} constant(2)", "%two = s32[]{:T(128)} constant(1)"), 6),
        (("body=%outer_body\n", 'body=%outer_body, x={"known_trip_count":{"n":"7"}}\n'), 7),
        (("%three = s32[]{:T(128)} constant(3)", "%three = s32[]{:T(128)} parameter(2)"), None),
    ],
)
def test_how_often_a_loop_turns_is_read_from_its_counter(change, turns):
    program = hlo.parse_program(NESTED.replace(*change))
    loop = program.entry.instructions["outer"]
    assert hlo.trip_count(program, program.entry, loop) == turns


def test_a_loop_of_unknown_length_is_named_and_counted_once():
    text = NESTED.replace("%three = s32[]{:T(128)} constant(3)", "%three = s32[] parameter(2)")
    cost = step_cost(hlo.parse_program(text), V5E)
    assert cost.unknown_loops == ["outer"]
    cycles = sum(each.seconds for each in cost.of_kind("cycles"))
    assert cycles == pytest.approx((50 + 5 * 300 + 1000) / 1.5e9)


CONDITIONAL = """HloModule jit_step, is_scheduled=true

%cheap (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %n = f32[4]{0} negate(%x), backend_config={"estimated_cycles":"10"}
}

%dear (y: f32[4]) -> f32[4] {
  %y = f32[4]{0} parameter(0)
  ROOT %m = f32[4]{0} negate(%y), backend_config={"estimated_cycles":"700"}
}

ENTRY %main (p: pred[], v: f32[4]) -> f32[4] {
  %p = pred[] parameter(0)
  %v = f32[4]{0} parameter(1)
  ROOT %c = f32[4]{0} conditional(%p, %v, %v), BRANCHES
}
"""


@pytest.mark.parametrize(
    "branches",
    [
        "branch_computations={%cheap, %dear}",
        "true_computation=%dear, false_computation=%cheap",
    ],
)
def test_a_conditional_costs_its_dearest_branch(branches):
    cost = step_cost(hlo.parse_program(CONDITIONAL.replace("BRANCHES", branches)), V5E)
    assert cost.seconds == pytest.approx(700 / 1.5e9)


# A kernel's metadata breaks the line, as JAX's splash attention has it.
KERNELS = """HloModule jit_f, is_scheduled=true

ENTRY %main.1 (q: bf16[2,4,512,64]) -> f32[256,128] {
  %q = bf16[2,4,512,64]{3,2,1,0} parameter(0)
  %x = f32[256,128]{1,0} parameter(1)
  %splash_mha_fwd_residuals.1 = (bf16[2,4,512,64]{3,2,1,0:T(8,128)(2,1)S(1)}, f32[2,4,512]{2,1,0}) \
custom-call(%q, %q, %q), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128, \\"use_fused_bwd_kernel\\": false}"
}}, metadata={op_name="jit(f)/splash_mha_fwd_residuals/pallas_call" stack_frame_id=4}, \
backend_config={"custom_call_config":{"body":"TUzvUg(("}}
  %room = f32[256,128]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %twice.1 = f32[256,128]{1,0:T(8,128)} custom-call(%x), \
custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/twice/pallas_call"}, \
backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"985000000","transcendentals":"7","bytes_accessed":"819000"}}}
}
"""


def test_kernels_are_counted_as_they_declare_or_as_attention_by_their_shapes():
    cost = step_cost(hlo.parse_program(KERNELS), V5E, {"": 0.25, "twice": 0.5})
    splash, twice = cost.of_kind("kernel")
    assert splash.source == "jit(f)/splash_mha_fwd_residuals/pallas_call"
    # Two matmuls of 8 heads, 512 x 512 x 64.
    assert splash.flops == 2 * 2 * 8 * 512 * 512 * 64
    assert splash.seconds == pytest.approx(splash.flops / (0.25 * 197e12))
    assert twice.seconds == pytest.approx(985e6 / (0.5 * 197e12))  # 10 us; by its bytes 1 us
    assert cost.seconds == pytest.approx(splash.seconds + twice.seconds)
    moving = {"twice": 0.05}  # of the HBM's rate; then its bytes take longer
    _, twice = step_cost(hlo.parse_program(KERNELS), V5E, {"": 0.25}, moving).of_kind("kernel")
    assert twice.seconds == pytest.approx(819e3 / (0.05 * V5E.chip.hbm_bandwidth))


@pytest.mark.parametrize(
    ("equation", "left", "right", "products"),
    [
        ("ab,bc->ac", (8, 16), (16, 4), 8 * 16 * 4),
        ("nab,nbc->nac", (3, 8, 16), (3, 16, 4), 3 * 8 * 16 * 4),
        ("bfnd,btnd->bnft", (2, 8, 3, 4), (2, 5, 3, 4), 2 * 3 * 8 * 5 * 4),
    ],
)
def test_matmul_flops_are_those_of_the_equation(equation, left, right, products):
    function = jax.jit(lambda a, b: jnp.einsum(equation, a, b))
    lowered = function.lower(*(np.ones(s, np.float32) for s in (left, right)))
    program = hlo.parse_program(lowered.compile().as_text())
    found = sum(
        hlo.matmul_flops(computation, each)
        for computation in program.computations.values()
        for each in computation.instructions.values()
    )
    assert found == 2 * products


@pytest.mark.parametrize(
    ("shapes", "rest", "products"),
    [
        # A matmul, as a TPU has it.
        (("4,128,256", "256,96,1", "4,128,96"), "window={size=1}, dim_labels=0bf_io0->0bf",
         4 * 128 * 256 * 96),
        # Twelve of them at once: the batch as a dilated window that meets each input once.
        (("12,64,32", "12,32,64", "12,64,64"), "window={size=12 stride=11 pad=0_0 lhs_dilate=12}, "
         "dim_labels=0bf_0io->0bf", 12 * 64 * 64 * 32),
        # Ten outputs under a window of three, padded by one on each side: 28 meet an input.
        (("1,10,5", "3,5,7", "1,10,7"), "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
         28 * 5 * 7),
    ],
)  # fmt: skip
def test_convolutions_count_the_products_that_meet_no_padding(shapes, rest, products):
    left, right, out = (f"f32[{shape}]{{2,1,0}}" for shape in shapes)
    program = hlo.parse_program(
        f"ENTRY %main (a: f32[{shapes[0]}], b: f32[{shapes[1]}]) -> f32[{shapes[2]}] {{\n"
        f"  %a = {left} parameter(0)\n  %b = {right} parameter(1)\n"
        f"  ROOT %c = {out} convolution(%a, %b), {rest}\n}}\n"
    )
    assert hlo.matmul_flops(program.entry, program.entry.root) == 2 * products


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse_program("HloModule empty\n")
