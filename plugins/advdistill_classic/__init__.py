"""Classical adversarial robustness distillation, in CLIP form."""
