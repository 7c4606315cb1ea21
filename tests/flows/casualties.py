"""Images that kill the process that works on them, for tests; children import it by its name."""

import os
import signal
from typing import Any

from fcnpipe.survey.image_list import SurveyImage
from flows import subflows

WORK = subflows._process_image


def work(sender: Any, entry: SurveyImage, batch: subflows.BatchOptions, context: bytes) -> None:
    """Die if the image is called poison, as the kernel lets a process die that takes the memory."""
    if "poison" in entry.name:
        os.kill(os.getpid(), signal.SIGKILL)
    WORK(sender, entry, batch, context)
