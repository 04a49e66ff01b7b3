"""From the specification of a system to the system, loaded and ready."""

from dmcodec.evaluation.systems.baselines import open_baseline
from dmcodec.evaluation.systems.neural import open_codec
from dmcodec.evaluation.systems.system import System, SystemSpec


def open_system(spec: SystemSpec, device: str = "cpu") -> System:
    """The system of a specification, loaded and ready.

    Raises FileNotFoundError, ValueError or MissingPackage with what to do when a file, program or
    package is not there or not whole.
    """
    match spec.kind:
        case "dmcodec" | "published" | "transformers":
            return open_codec(spec, device)
        case _:
            return open_baseline(spec)
