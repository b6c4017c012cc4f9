"""Import this first in a script to hide what coremltools and torchao note at import about parts they lack off macOS."""

import logging
import warnings

for _name in ("coremltools", "torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
