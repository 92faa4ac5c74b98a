"""Operations on parameters: merge, swap, pack, expand, trim."""
