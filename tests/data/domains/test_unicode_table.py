import unicodedata

from lt_mia_jax.data.domains.unicode_table import character_tables


def test_rows_are_the_characters_own_data():
    tables = list(character_tables())
    rows = [row.split(", ") for table in tables for row in table.split("\n")]
    points = [int(row[0], 16) for row in rows]
    assert points == sorted(set(points))
    for row, point in zip(rows, points, strict=True):
        character = chr(point)
        assert unicodedata.lookup(row[1]) == character
        assert row[2] == unicodedata.category(character)
        assert row[5:] == (
            [unicodedata.decomposition(character)]
            if unicodedata.decomposition(character)
            else []
        )
    assert ord("A") in points
    assert 0x4E00 not in points  # a Han character, named by its code point
    assert 0xAC00 not in points  # a Hangul syllable


def test_a_table_holds_neighbours():
    for table in character_tables():
        points = [int(row.split(", ")[0], 16) for row in table.split("\n")]
        assert len({point // 8 for point in points}) == 1
