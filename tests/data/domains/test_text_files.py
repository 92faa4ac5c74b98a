from lt_mia_jax.data.domains.text_files import blocks_without_license, packed

HEADER = """// Licensed to the Foundation under one
// or more contributor license agreements.
//
// See the License for limitations.

#pragma once

#include <vector>


namespace n {

/// \\brief A class under no licence.
class A {
 public:
  int f();
<spaces>
  int g();
};
}  // namespace n
""".replace("<spaces>", "   ")


def test_licence_goes_and_blocks_keep_their_indentation():
    blocks = blocks_without_license(HEADER)
    assert [block.strip("\n") for block in blocks] == [
        "#pragma once",
        "#include <vector>",
        "namespace n {",
        "/// \\brief A class under no licence.\nclass A {\n public:\n  int f();",
        "  int g();\n};\n}  // namespace n",
    ]


def test_a_file_without_licence_is_whole():
    text = "#pragma once\n\n// a comment about a licence\nint f();\n"
    assert "\n\n".join(blocks_without_license(text)) == text


def test_packing_joins_neighbours_to_350_characters():
    blocks = [f"{number}" * 100 for number in range(10)]
    documents = list(packed(blocks))
    assert documents == ["\n\n".join(blocks[0:4]), "\n\n".join(blocks[4:8])]
    assert list(packed(["x" * 900])) == ["x" * 900]
    assert list(packed(["x"])) == []
