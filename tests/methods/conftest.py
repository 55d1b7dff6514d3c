from tests.backbones.conftest import dit_folder, make_dit, picture  # noqa: F401
from tests.segmenters.conftest import sam2_folder, sam2_package_files  # noqa: F401
