from tests.backbones.conftest import dit_folder, make_dit, picture  # noqa: F401
