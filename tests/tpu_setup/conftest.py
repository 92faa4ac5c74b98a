import os
import subprocess

import pytest
from tpu_cloud import GCLOUD, SCRIPTS, SETTINGS


@pytest.fixture
def cloud(tmp_path):
    """A folder with the stand-in; returns a function that runs a script beside it."""
    fake = tmp_path / "fake"
    fake.mkdir()
    program = fake / "gcloud"
    program.write_text(GCLOUD)
    program.chmod(0o755)

    def script(
        name, *arguments, states=("ACTIVE",), reports=("",), fails=(), **settings
    ):
        (fake / "calls").write_text("")
        queues = {"states": states, "reports": reports, "fails": fails}
        for queue, lines in queues.items():
            (fake / queue).write_text("".join(f"{line}\n" for line in lines))
        environment = {
            "PATH": f"{fake}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "FAKE": str(fake),
            "POD_ENV": str(tmp_path / "absent"),
            **SETTINGS,
            **settings,
        }
        done = subprocess.run(
            [str(SCRIPTS / name), *arguments],
            env={key: value for key, value in environment.items() if value},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done, (fake / "calls").read_text().splitlines()

    return script
