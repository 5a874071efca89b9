"""Settings of APD. The paper's values are not public: every default is inferred."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from advdistill import Config

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class APD(Config):
    """Adversarial Prompt Distillation."""

    beta: Weight = 1.0
    """Weight of the student's feedback to a teacher that learns; 0: none. (inferred)"""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides both logits of both KL terms. (inferred)"""
