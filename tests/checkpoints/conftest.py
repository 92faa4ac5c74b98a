import pytest
from gguf_files import hugging_face, metadata_of, tensors_of, write_file


@pytest.fixture
def write(tmp_path):
    """Writes a random model; `change` edits its metadata and tensors first."""

    def write(config, *, change=lambda metadata, tensors: None, **settings):
        fields, weights = hugging_face(config, tmp_path / "hf")
        metadata, tensors = metadata_of(fields), tensors_of(fields, weights)
        change(metadata, tensors)
        return write_file(tmp_path / "model.gguf", metadata, tensors, **settings)

    return write
