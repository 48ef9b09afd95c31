"""The choice of kernel instances that compilers are given."""

from gpt.ops.gpu.sources import Instance
from tests.support.instances import extremes, instances


def attention(dropout, head):
    return Instance.of("attention.hip", {"DROPOUT": dropout, "HEAD_DIM": head})


def softmax(gradient, threads):
    return Instance.of("softmax.hip", {"GRADIENT": gradient, "THREADS": threads})


def test_of_instances_that_differ_in_a_size_the_smallest_and_the_largest_are_the_extremes():
    """As numbers, not as texts: 1024 is more than 256."""
    every = [softmax(gradient, threads) for gradient in (0, 1) for threads in (256, 1024, 128, 512)]
    assert set(extremes(every)) == {softmax(gradient, threads) for gradient in (0, 1) for threads in (128, 1024)}


def test_each_size_of_heads_is_an_extreme_and_dropout_stands_for_none():
    every = [attention(dropout, head) for dropout in (0, 1) for head in (32, 64, 80)] + [attention(0, 16)]
    assert set(extremes(every)) == {*(attention(1, head) for head in (32, 64, 80)), attention(0, 16)}


def test_the_extremes_have_every_file_and_every_value_that_is_no_size():
    every = instances("gfx1100", 32, True)
    chosen = extremes(every)
    assert len(chosen) < 0.6 * len(every)
    assert {each.file for each in chosen} == {each.file for each in every}

    def switches(group):
        return {(each.file, name, value) for each in group for name, value in each.defines if not value.isdigit()}

    assert switches(chosen) == switches(every)
