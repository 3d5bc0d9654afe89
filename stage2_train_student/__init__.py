"""Stage two: students, trained from a store of a teacher's targets. `Predictor` is for programs of one's own."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stage2_train_student.predictor import Predictor

__all__ = ["Predictor"]


def __getattr__(name: str) -> Any:
    """`Predictor`, imported when it is asked for: PyTorch takes seconds to load."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from stage2_train_student.predictor import Predictor

    return Predictor
