from bevel.backends.torch.lines import Line, assign, settle


def test_a_variable_is_deleted_after_its_last_use():
    lines = [assign(["a"], "f(x)"), assign(["b"], "g(a)"), assign(["c"], "h(a, b)")]
    assert settle(lines, "c", kept=["x"]) == ["a = f(x)", "b = g(a)", "c = h(a, b); del a, b", "return c"]


def test_optional_lines_stay_only_where_they_are_read():
    lines = [Line("n = x.shape[0]", ("n",), optional=True), Line("m = x.shape[1]", ("m",), optional=True)]
    assert settle([*lines, assign(["y"], "x.reshape([n])")], "y") == [
        "n = x.shape[0]",
        "y = x.reshape([n]); del n",
        "return y",
    ]


def test_what_a_block_reads_lives_until_its_end():
    block = [assign(["y"], "a + 1")]
    lines = [
        assign(["a"], "f(x)"),
        Line("if c:", ("y",), block=block, other=Line("else:", block=[assign(["y"], "a")])),
    ]
    assert settle(lines, "y") == ["a = f(x)", "if c:", "    y = a + 1", "else:", "    y = a", "del a", "return y"]


def test_an_empty_block_passes():
    assert settle([Line("for i in range(3):", block=[])], "x") == ["for i in range(3):", "    pass", "return x"]
